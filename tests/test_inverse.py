"""Denoisers that know a measurement, against exact posteriors: where each is exact, and its bias elsewhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from exact_posterior import BOTH, MASKED, MIXED, affine_denoiser, ancestral_moments, condition, isotropic, levels_of
from oracles import GAUSSIAN, MIXTURE, PROCESSES, last_time
from test_sde import check_moments

from dgm_jax.parameterizations import (
    dps,
    gaussian_likelihood,
    gaussian_twist,
    inpaint,
    operators,
    pigdm,
    pigdm_forward,
    project,
)
from dgm_jax.parameterizations.operators import LinearOperator
from dgm_jax.processes import log_snr_grid
from dgm_jax.samplers import Ancestral, sample_sde

STD, DIM = 0.7, 3
ROWS = np.array([[0.8, -0.6, 0.3], [0.2, 0.5, -1.0]])
Y = np.array([0.9, -0.4])
TIMES = np.array([0.02, 0.3, 0.6, 0.95])
RNG = np.random.default_rng(1)


def states(process, mixture):
    """x_t of the mixture at TIMES."""
    t = jnp.asarray(TIMES)
    x_0 = mixture.sample(RNG, len(TIMES), np.float64)
    return process.perturb(jnp.asarray(x_0), t, jnp.asarray(RNG.standard_normal(x_0.shape))), t


@pytest.mark.parametrize("name", PROCESSES)
def test_pigdm_is_exact_for_isotropic_gaussian_data(name):
    """To rounding, with noise and without; without it `project` is the same, and exact too."""
    process, data = PROCESSES[name], isotropic(DIM, STD)
    with jax.enable_x64(True):
        operator, (x, t) = operators.matrix(ROWS), states(process, data)
        for noise_std in (0.3, 0.0):
            exact = condition(data, ROWS, Y, max(noise_std, 1e-9)).posterior.denoise(process)(x, t)
            found = pigdm(data.denoise(process), process, operator, Y, noise_std=noise_std, data_std=STD)(x, t)
            np.testing.assert_allclose(found, exact, rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(project(data.denoise(process), operator, Y)(x, t), exact, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("name", PROCESSES)
def test_dps_overtrusts_y_by_the_variance_that_it_ignores(name):
    """For Gaussian data and one row, DPS - D is 1 + A Cov[x_0 | x_t] A'/s^2 times what is exact."""
    process, s, y = PROCESSES[name], 0.25, np.array([0.8])
    with jax.enable_x64(True):
        operator, (x, t) = operators.matrix(MIXED), states(process, GAUSSIAN)
        denoise = GAUSSIAN.denoise(process)
        plain = np.asarray(denoise(x, t))
        exact = np.asarray(condition(GAUSSIAN, MIXED, y, s).posterior.denoise(process)(x, t)) - plain
        found = np.asarray(dps(denoise, process, operator, y, noise_std=s)(x, t)) - plain
        ratio = (np.asarray(process.alpha(t)) / np.asarray(process.sigma(t))) ** 2
    rest = [np.linalg.inv(np.linalg.inv(GAUSSIAN.covariances[0]) + r * np.eye(2)) for r in ratio]
    factor = np.array([1 + (MIXED @ c @ MIXED.T).item() / s**2 for c in rest])
    np.testing.assert_allclose(found, factor[:, None] * exact, rtol=1e-6, atol=1e-9)


def length(x):
    """A measurement that is not linear."""
    return jnp.sqrt(jnp.sum(x**2, axis=1, keepdims=True))


@pytest.mark.parametrize("name", ["vp", "ve", "rectified"])
def test_dps_takes_a_function_that_is_not_linear(name):
    """The gradient of its log-density, by central differences of SciPy's."""
    process, s, y = PROCESSES[name], 0.25, np.array([1.3])
    with jax.enable_x64(True):
        (x, t), denoise = states(process, MIXTURE), MIXTURE.denoise(process)

        def log_density(x):
            return scipy.stats.norm.logpdf(y[0], np.linalg.norm(np.asarray(denoise(x, t)), axis=1), s)

        found = np.asarray(dps(denoise, process, length, y, noise_std=s, scale=0.5)(x, t) - denoise(x, t))
        size = np.asarray(process.sigma(t)) * 1e-4
        for i, unit in enumerate(np.eye(2)):
            step = jnp.asarray(size[:, None] * unit)
            slope = (log_density(x + step) - log_density(x - step)) / (2 * size)
            expected = 0.5 * np.asarray(process.variance(t) / process.alpha(t)) * slope
            np.testing.assert_allclose(found[:, i], expected, rtol=1e-5, atol=1e-8)


# samples, on Gaussian data, where every rule's moments are a recursion ----------------------------------------------

NOISE_STD, MEASURED, N, STEPS = 0.3, np.array([2.3]), 4000, 40
KNOWN = np.array([True, False])


def rule(name, process):
    """(denoiser of the library, the same as (alpha, sigma) -> (gain, offset) by NumPy)."""
    denoise, operator = GAUSSIAN.denoise(process), operators.matrix(MASKED.astype(np.float32))
    y = MEASURED.astype(np.float32)
    if name == "dps":
        found, weight = dps(denoise, process, operator, y, noise_std=NOISE_STD), None
    else:
        found, weight = inpaint(denoise, KNOWN, np.array([*y, np.nan], np.float32)), np.eye(2)

    def affine(alpha, sigma):
        gain, offset = affine_denoiser(GAUSSIAN, alpha, sigma)
        of_error = (sigma**2 / alpha * gain.T / NOISE_STD**2 if weight is None else weight) @ MASKED.T
        return gain - of_error @ MASKED @ gain, offset + of_error @ (MEASURED - MASKED @ offset)

    return found, affine


@pytest.mark.parametrize("process_name", ["vp", "ve"])
@pytest.mark.parametrize("name", ["dps", "inpaint"])
def test_samples_have_the_rules_own_moments_and_its_bias(name, process_name):
    """The moments of the discretised rule within four standard errors; and what they are beside the exact posterior."""
    process = PROCESSES[process_name]
    ts = log_snr_grid(process, STEPS, t_min=1e-2, t_max=last_time(process_name))
    found, affine = rule(name, process)
    draw = jax.jit(lambda key: sample_sde(found, process, key, (N, 2), ts=ts, solver=Ancestral()).x)
    levels = levels_of(process, ts)
    mean, covariance = ancestral_moments(levels, affine, 2)
    check_moments(draw(jax.random.key(0)), mean, covariance)
    exact = condition(GAUSSIAN, MASKED, MEASURED, NOISE_STD if name == "dps" else 1e-6).posterior
    if name == "dps":  # too narrow, in the direction that is measured
        assert 0.5 < np.sqrt(covariance[0, 0] / exact.covariance[0, 0]) < 0.9
    else:  # the rest sees too little of y, and its width is not the posterior's
        prior, posterior = GAUSSIAN.mean[1], exact.mean[1]
        assert 0.1 < (mean[1] - prior) / (posterior - prior) < 0.9, (mean, posterior)
        np.testing.assert_allclose(covariance[0, 0], levels[-1][1] ** 2, rtol=1e-6)


@pytest.mark.parametrize("name", ["vp", "ve", "rectified"])
def test_an_exact_denoisers_jacobian_is_symmetric(name):
    """So that forward mode gives PiGDM's gradient, on a mixture where neither is exact."""
    process = PROCESSES[name]
    with jax.enable_x64(True):
        (x, t), denoise, operator = states(process, MIXTURE), MIXTURE.denoise(process), operators.matrix(MIXED)
        options = {"noise_std": 0.2, "data_std": STD}
        backward, forward = (f(denoise, process, operator, Y[:1], **options)(x, t) for f in (pigdm, pigdm_forward))
        np.testing.assert_allclose(forward, backward, rtol=1e-8, atol=1e-10)
        assert np.abs(forward - denoise(x, t)).max() > 0.05


# composition, imputation, bad input -------------------------------------------------------------------------------


def test_the_twist_is_pigdms_density_and_the_likelihood_scipys():
    process = PROCESSES["sub_vp"]
    with jax.enable_x64(True):
        operator, (x, t) = operators.matrix(BOTH), states(process, MIXTURE)
        denoise = MIXTURE.denoise(process)
        twist = gaussian_twist(process, operator, Y, noise_std=0.3, data_std=STD)
        gradient = jax.grad(lambda x: twist(denoise(x, t), t).sum())(x)
        of_gradient = (process.variance(t) / process.alpha(t))[:, None]
        guided = pigdm(denoise, process, operator, Y, noise_std=0.3, data_std=STD)
        np.testing.assert_allclose(guided(x, t), denoise(x, t) + of_gradient * gradient, rtol=1e-8, atol=1e-10)

        expected = scipy.stats.multivariate_normal.logpdf(np.asarray(x) @ BOTH.T, Y, 0.09 * np.eye(2))
        found = gaussian_likelihood(operator, Y, noise_std=0.3)(x)
        np.testing.assert_allclose(found, expected, rtol=1e-10)
        expected = scipy.stats.norm.logpdf(np.asarray(x)[:, 0], Y[0], 0.3)  # of the coordinate that is measured
        observed = gaussian_likelihood(operators.mask(KNOWN), np.array([Y[0], np.nan]), noise_std=0.3)(x)
        np.testing.assert_allclose(observed, expected, rtol=1e-10)


def test_imputation_is_inpainting_with_a_mask_of_each_row():
    process, known = PROCESSES["vp"], np.array([[True, False], [False, True], [True, True]])
    rows = np.where(known, [[0.5, 9.0], [9.0, -0.3], [1.0, 2.0]], np.nan).astype(np.float32)
    ts = log_snr_grid(process, 10, t_min=1e-3, t_max=1.0)
    denoise = inpaint(GAUSSIAN.denoise(process), known, rows)
    x = np.asarray(sample_sde(denoise, process, jax.random.key(0), (3, 2), ts=ts, solver=Ancestral()).x)
    alpha, sigma = levels_of(process, ts)[-1]
    np.testing.assert_allclose(x[known], alpha * rows[known], atol=5 * sigma)
    assert np.isfinite(x).all()


T = jnp.asarray(TIMES, jnp.float32)
X = jnp.zeros((len(TIMES), 2))
ONE = np.array([0.5], np.float32)


def call(make):
    return lambda: make(GAUSSIAN.denoise(PROCESSES["vp"]), PROCESSES["vp"])(X, T)


OPERATOR = operators.matrix(MASKED)
NO_ADJOINT = LinearOperator(lambda x: x[:, :1])
BAD = {
    "pigdm without adjoint": (
        call(lambda d, p: pigdm(d, p, NO_ADJOINT, ONE, noise_std=0.1, data_std=1.0)),
        "Expected a LinearOperator with an adjoint",
    ),
    "project with a function": (call(lambda d, p: project(d, length, ONE)), "Expected a LinearOperator with"),
    "dps without noise": (call(lambda d, p: dps(d, p, OPERATOR, ONE, noise_std=0.0)), "Expected noise_std > 0"),
    "dps, scale": (call(lambda d, p: dps(d, p, OPERATOR, ONE, noise_std=1.0, scale=-1.0)), "scale"),
    "pigdm, noise": (
        call(lambda d, p: pigdm(d, p, OPERATOR, ONE, noise_std=-0.1, data_std=1.0)),
        "Expected noise_std >= 0",
    ),
    "pigdm, data": (
        call(lambda d, p: pigdm(d, p, OPERATOR, ONE, noise_std=0.1, data_std=0.0)),
        "Expected data_std > 0",
    ),
    "inpaint, mask": (call(lambda d, p: inpaint(d, np.ones(3, bool), X)), "Expected a mask of shape"),
    "inpaint, y": (call(lambda d, p: inpaint(d, KNOWN, ONE)), "Expected y of shape"),
    "dps, noise of each pixel": (
        call(lambda d, p: dps(d, p, OPERATOR, ONE, noise_std=np.ones(2))),
        "Expected noise_std > 0, one finite number",
    ),
    "pigdm, infinite noise": (
        call(lambda d, p: pigdm(d, p, OPERATOR, ONE, noise_std=np.inf, data_std=1.0)),
        "Expected noise_std >= 0, one finite number",
    ),
    "inpaint, y of NaN": (
        call(lambda d, p: inpaint(d, KNOWN, np.array([np.nan, 0.3]))),
        "Expected finite y where it is measured.*got 1 such",
    ),
    "dps, y of NaN": (call(lambda d, p: dps(d, p, OPERATOR, ONE * np.nan, noise_std=1.0)), "Expected finite y"),
    "likelihood, y of inf": (lambda: gaussian_likelihood(OPERATOR, ONE * np.inf, noise_std=1.0), "Expected finite y"),
    "project, network of one row": (
        call(lambda d, p: project(lambda x, t: x[:1], OPERATOR, ONE)),
        "Expected the denoiser to return",
    ),
    "inpaint, network of one row": (
        call(lambda d, p: inpaint(lambda x, t: x[:1], KNOWN, np.ones(2))),
        "Expected the denoiser to return",
    ),
    "adjoint of another shape": (
        call(lambda d, p: project(d, LinearOperator(lambda x: x[:, :1], lambda y: y), ONE)),
        "Expected an adjoint that returns x_0's shape",
    ),
    "no signal": (
        lambda: dps(GAUSSIAN.denoise(PROCESSES["rectified"]), PROCESSES["rectified"], OPERATOR, ONE, noise_std=1.0)(
            X, jnp.ones(len(X))
        ),
        "log p",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_measurements_are_refused(untyped, name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
