"""Replacement, RePaint and DPS's step against exact moments of their steps."""

from itertools import pairwise

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_posterior import MASKED, affine_denoiser, ancestral_moments, condition, levels_of
from oracles import GAUSSIAN, MIXTURE, PROCESSES, last_time, mixture_weights
from test_sde import check_moments

from dgm_jax.parameterizations import dps, inpaint, operators, pigdm
from dgm_jax.processes import log_snr_grid, uniform
from dgm_jax.samplers import (
    Ancestral,
    DPMSolverPP2MSDE,
    DPSStep,
    Langevin,
    PredictorCorrector,
    Replacement,
    ReverseDiffusion,
    colorization_transform,
    sample_sde,
)

KNOWN, Y = np.array([True, False]), np.array([2.3, np.nan], np.float32)
N = 4000
NOISE_STD, DATA_STD = 0.3, 1.2


# replacement ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vp", "ve", "rectified"])
@pytest.mark.parametrize("resamples", [1, 4])
def test_replacement_has_its_own_exact_moments_and_sees_too_little_of_y(name, resamples):
    """The moments of its steps follow exactly. Resampling carries more of y to the rest, and not all of it."""
    process = PROCESSES[name]
    ts = log_snr_grid(process, 30, t_min=1e-2, t_max=last_time(name))
    kernel = Replacement(KNOWN, Y, resamples=resamples)
    draw = jax.jit(lambda key: sample_sde(GAUSSIAN.denoise(process), process, key, (N, 2), ts=ts, solver=kernel))
    samples = draw(jax.random.key(0))
    assert int(samples.evaluations) == 30 * resamples
    denoiser = lambda alpha, sigma: affine_denoiser(GAUSSIAN, alpha, sigma)  # noqa: E731
    known = {"known": KNOWN, "y": np.array([2.3, 0.0])}
    mean, covariance = ancestral_moments(levels_of(process, ts), denoiser, 2, **known, resamples=resamples)
    check_moments(samples.x, mean, covariance)

    prior, posterior = GAUSSIAN.mean[1], condition(GAUSSIAN, MASKED, Y[:1], 1e-6).posterior.mean[1]
    seen = (mean[1] / levels_of(process, ts)[-1][0] - prior) / (posterior - prior)
    fewer, _ = ancestral_moments(levels_of(process, ts), denoiser, 2, **known)
    assert 0.1 < seen < 0.97
    assert resamples == 1 or mean[1] > fewer[1]


def test_replacement_works_about_other_kernels_and_before_a_corrector():
    """Whatever the kernel, the known part ends at alpha y + sigma noise; a corrector then moves it a little."""
    process = PROCESSES["vp"]
    ts = log_snr_grid(process, 5, t_min=1e-2, t_max=1.0)
    denoise = GAUSSIAN.denoise(process)

    def draw(solver):
        return jax.jit(lambda key: sample_sde(denoise, process, key, (N, 2), ts=ts, solver=solver).x)

    with jax.debug_key_reuse(True):
        known = np.asarray(draw(Replacement(KNOWN, Y, kernel=ReverseDiffusion()))(jax.random.key(0)))[:, 0]
        moved = draw(PredictorCorrector(Replacement(KNOWN, Y), Langevin(snr=0.1)))(jax.random.key(0))
    alpha, sigma = levels_of(process, ts)[-1]
    np.testing.assert_allclose(known.mean(), alpha * 2.3, atol=4 * sigma / np.sqrt(N))
    np.testing.assert_allclose(known.std(), sigma, atol=4 * sigma / np.sqrt(2 * N))
    assert np.isfinite(moved).all()
    np.testing.assert_allclose(moved[:, 0], 2.3, atol=0.5)


def test_colorization_keeps_the_grey_channel_and_draws_the_others():
    """M is orthogonal with the grey direction first; what is replaced is that channel of M's coordinates alone."""
    with jax.enable_x64(True):
        matrix = np.asarray(colorization_transform())
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(matrix[:, 0], 1 / np.sqrt(3))
    process, m = PROCESSES["ve"], jnp.asarray(matrix, jnp.float32)
    ts = log_snr_grid(process, 20, t_min=1e-2, t_max=1.0)
    grey = np.random.default_rng(0).standard_normal((64, 2, 1)).astype(np.float32)
    y = np.concatenate([grey, np.full((64, 2, 2), np.nan, np.float32)], axis=2)
    known = np.broadcast_to(np.array([True, False, False]), (2, 3))
    kernel = Replacement(known, y, transform=(lambda x: x @ m, lambda x: x @ m.T))

    def denoise(x_t, t):  # of N(0, I)
        return x_t / (1 + process.variance(t))[:, None, None]

    x = np.asarray(sample_sde(denoise, process, jax.random.key(0), (64, 2, 3), ts=ts, solver=kernel).x)
    sigma = levels_of(process, ts)[-1][1]
    error = (x.sum(-1) / np.sqrt(3) - grey[..., 0]) / sigma
    np.testing.assert_allclose(error.std(), 1, atol=4 / np.sqrt(2 * error.size))
    others = (x @ matrix)[..., 1:]
    sigmas = np.array([sigma for _, sigma in levels_of(process, ts)])
    variance = sigmas[0] ** 2
    for r, at in zip((sigmas[1:] / sigmas[:-1]) ** 2, sigmas[:-1] ** 2, strict=True):
        variance = ((1 - r) / (1 + at) + r) ** 2 * variance + r * at * (1 - r)  # of the chain itself: 0.68, not 1
    np.testing.assert_allclose(others.var(), variance, atol=4 * variance * np.sqrt(2 / others.size))


def test_a_last_point_0_keeps_y_by_inpainting():
    process = PROCESSES["vp"]
    denoise = inpaint(GAUSSIAN.denoise(process), KNOWN, Y)
    options = {"ts": uniform(6, t_min=0.0), "solver": Replacement(KNOWN, Y)}
    x = sample_sde(denoise, process, jax.random.key(0), (5, 2), **options).x
    np.testing.assert_array_equal(x[:, 0], Y[0])


# weights of modes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pigdm", "dps", "replacement", "RePaint"])
def test_weights_of_modes_are_those_of_neither_prior_nor_posterior(name):
    """Three modes and one coordinate measured: which mode is decided early, where y is seen too little of.

    SMC alone has them right, which `test_smc_draws_the_exact_posterior` holds it to.
    """
    process, n, y = PROCESSES["vp"], 2000, np.array([0.4], np.float32)
    ts, denoise = log_snr_grid(process, 60, t_min=1e-2, t_max=1.0), MIXTURE.denoise(process)
    operator, known = operators.matrix(MASKED.astype(np.float32)), np.array([y[0], np.nan], np.float32)
    guided, kernel, noise_std = denoise, Ancestral(), NOISE_STD
    if name == "pigdm":
        guided = pigdm(denoise, process, operator, y, noise_std=NOISE_STD, data_std=DATA_STD)
    elif name == "dps":
        guided = dps(denoise, process, operator, y, noise_std=NOISE_STD)
    else:  # which take y for noiseless
        kernel, noise_std = Replacement(KNOWN, known, resamples=1 if name == "replacement" else 4), 1e-2
    draw = jax.jit(lambda key: sample_sde(guided, process, key, (n, 2), ts=ts, solver=kernel).x)
    exact = condition(MIXTURE, MASKED, y, noise_std).posterior.weights
    found = mixture_weights(condition(MIXTURE, MASKED, y, NOISE_STD).posterior, draw(jax.random.key(0)))

    def apart(a, b):
        return np.abs(a - b).sum() / 2

    error = 4 * np.sqrt(exact * (1 - exact) / n).sum() / 2
    assert error < 0.05
    assert 0.05 + error < apart(found, exact) < apart(MIXTURE.weights, exact), (found, exact)


# DPS's step -----------------------------------------------------------------------------------------------------


def test_dps_steps_are_algorithm_1():
    """Beside the paper's algorithm in NumPy, in its own coordinates and without noise, on Gaussian data."""
    process, size, y = PROCESSES["vp"], 0.05, np.array([0.4])
    with jax.enable_x64(True):
        ts = np.asarray(uniform(12, t_min=1e-2), np.float64)
        operator = operators.matrix(MASKED)
        solver = DPSStep(operator, y, size=size, kernel=Ancestral(0.0))
        levels = levels_of(process, ts)
        samples = sample_sde(
            GAUSSIAN.denoise(process), process, jax.random.key(0), (3, 2), ts=ts, solver=solver, save_path=True
        )
    x = np.asarray(samples.path[0])
    for (alpha_t, sigma_t), (alpha_s, sigma_s) in pairwise(levels):
        gain, offset = affine_denoiser(GAUSSIAN, alpha_t, sigma_t)
        estimate = x @ gain.T + offset
        error = y - estimate @ MASKED.T
        gradient = -2 * error @ MASKED @ gain  # of |y - A D|^2
        step = alpha_s * estimate + sigma_s * (x - alpha_t * estimate) / sigma_t
        x = step - size / np.linalg.norm(error, axis=1, keepdims=True) * gradient
    np.testing.assert_allclose(samples.x, x, rtol=1e-8, atol=1e-9)
    assert int(samples.evaluations) == 12


def test_a_dps_step_towards_nan_is_seen():
    """A y whose values are traced cannot be refused; it must not pass for one that is met, and draw without it."""
    process, operator = PROCESSES["vp"], operators.matrix(MASKED)
    ts = uniform(3, t_min=1e-2)

    @jax.jit
    def draw(y):
        solver = DPSStep(operator, y, size=0.1)
        return sample_sde(GAUSSIAN.denoise(process), process, jax.random.key(0), (2, 2), ts=ts, solver=solver)

    found = draw(jnp.full(1, jnp.nan))
    assert found.result != diffrax.RESULTS.successful
    assert np.isnan(found.x).all()


VP = PROCESSES["vp"]
BAD = {
    "resamples": (lambda: Replacement(KNOWN, Y, resamples=0), "Expected whole resamples"),
    "kernel": (lambda: Replacement(KNOWN, Y, kernel=DPMSolverPP2MSDE()), "Expected a kernel of one step"),
    "kernel in a kernel": (
        lambda: DPSStep(operators.mask(KNOWN), Y, size=1.0, kernel=Replacement(KNOWN, Y)),
        "Expected a kernel of one step",
    ),
    "transform": (lambda: Replacement(KNOWN, Y, transform=lambda x: x), "Expected transform to be a pair"),
    "y of NaN": (lambda: Replacement(~KNOWN, Y), "Expected finite y where it is measured"),
    "size": (lambda: DPSStep(operators.mask(KNOWN), Y, size=0.0), "Expected size > 0"),
    "size without end": (lambda: DPSStep(operators.mask(KNOWN), Y, size=np.inf), "Expected size > 0, one finite"),
    "DPS step to NaN": (lambda: DPSStep(operators.mask(~KNOWN), Y, size=1.0), "Expected finite y where it is measured"),
    "mask": (
        lambda: sample_sde(
            GAUSSIAN.denoise(VP), VP, jax.random.key(0), (3, 2), ts=uniform(4, t_min=1e-2),
            solver=Replacement(Y[:1] > 0, Y),
        ),
        "Expected a mask of shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused(untyped, name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
