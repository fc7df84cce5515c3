"""Sequential Monte Carlo against the posterior of its own chain, exact posteriors and integrals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_posterior import MASKED, chain_posterior, condition, levels_of
from oracles import GAUSSIAN, MIXTURE, PROCESSES, last_time, mixture_weights

from dgm_jax.metrics import energy_test
from dgm_jax.parameterizations import gaussian_likelihood, gaussian_twist, operators
from dgm_jax.processes import log_snr_grid, uniform
from dgm_jax.samplers import resample, smc
from dgm_jax.samplers.smc import Particles

RUNS, PARTICLES, NOISE_STD, DATA_STD = 16, 300, 0.3, 1.2
MEASURED = np.array([0.4], np.float32)


def runs(process, log_likelihood, twist, *, ts, key=0):
    """RUNS independent sets of particles."""
    denoise = MIXTURE.denoise(process)
    draw = jax.jit(
        jax.vmap(lambda key: smc(denoise, process, log_likelihood, twist, key, (PARTICLES, 2), ts=ts)),
    )
    return draw(jax.random.split(jax.random.key(key), RUNS))


def check_mean(values, expected, *, bias=0.0):
    """The mean over runs within four of its standard errors, and a stated bias."""
    values = np.asarray(values, np.float64)
    error = values.std(0, ddof=1) / np.sqrt(len(values))
    np.testing.assert_array_less(np.abs(values.mean(0) - expected), 4 * error + bias + 1e-12)


@pytest.mark.parametrize("name", ["vp", "ve", "rectified"])
def test_smc_is_unbiased_for_its_own_chain(name):
    """Twelve coarse steps: evidence, and evidence times the mean, of the posterior under the chain's own Gaussian law.

    No bias is allowed, so that a weight that forgets a factor is seen. Under data's own law twelve steps are far off.
    """
    process, count, y = PROCESSES[name], 400, MEASURED
    ts, denoise = log_snr_grid(process, 12, t_min=1e-2, t_max=last_time(name)), GAUSSIAN.denoise(process)
    operator = operators.matrix(MASKED.astype(np.float32))
    likelihood = gaussian_likelihood(operator, y, noise_std=NOISE_STD)
    twist = gaussian_twist(process, operator, y, noise_std=NOISE_STD, data_std=0.8)
    draw = jax.jit(jax.vmap(lambda key: smc(denoise, process, likelihood, twist, key, (30, 2), ts=ts)))
    found = draw(jax.random.split(jax.random.key(5), count))
    exact = chain_posterior(process, ts, GAUSSIAN, MASKED, y, NOISE_STD)
    evidence = np.exp(np.asarray(found.log_evidence, np.float64) - exact.log_evidence)
    check_mean(evidence, 1.0)
    mean = np.einsum("rp,rpi->ri", np.exp(np.asarray(found.log_weights, np.float64)), np.asarray(found.x, np.float64))
    check_mean(evidence[:, None] * (mean - exact.posterior.mean), 0.0)
    resampled = jax.vmap(lambda p, key: resample(p, key, 30))(found, jax.random.split(jax.random.key(6), count))
    check_mean(evidence[:, None] * (np.asarray(resampled).mean(1) - exact.posterior.mean), 0.0)
    of_data = condition(GAUSSIAN, MASKED, y, NOISE_STD).log_evidence
    with pytest.raises(AssertionError):
        check_mean(evidence * np.exp(exact.log_evidence - of_data), 1.0)


@pytest.mark.parametrize("name", ["vp", "ve", "rectified"])
def test_smc_draws_the_exact_posterior(name):
    """Mean, covariance, weights, evidence; a two-sample test against exact draws passes, where PiGDM's prior fails."""
    process = PROCESSES[name]
    ts = log_snr_grid(process, 150, t_min=1e-3, t_max=last_time(name))
    operator = operators.matrix(MASKED.astype(np.float32))
    log_likelihood = gaussian_likelihood(operator, MEASURED, noise_std=NOISE_STD)
    twist = gaussian_twist(process, operator, MEASURED, noise_std=NOISE_STD, data_std=DATA_STD)
    found, exact = runs(process, log_likelihood, twist, ts=ts), condition(MIXTURE, MASKED, MEASURED, NOISE_STD)
    assert int(found.evaluations[0]) == 151
    weights, x = np.exp(np.asarray(found.log_weights, np.float64)), np.asarray(found.x, np.float64)
    np.testing.assert_allclose(weights.sum(1), 1, rtol=1e-5)
    assert 0.3 * PARTICLES < found.effective_size.min(0).mean() <= PARTICLES

    # stated bias: half a step in log-SNR for a kernel of order one, in units of each moment's spread
    bias = (levels_log_snr(process, ts[-1]) - levels_log_snr(process, ts[0])) / 150 / 2
    spread = np.sqrt(np.diag(exact.posterior.covariance))
    mean = np.einsum("rp,rpi->ri", weights, x)
    check_mean(mean, exact.posterior.mean, bias=bias * spread)
    second = np.einsum("rp,rpi,rpj->rij", weights, x - exact.posterior.mean, x - exact.posterior.mean)
    check_mean(second, exact.posterior.covariance, bias=bias * np.outer(spread, spread))
    check_mean(np.exp(np.asarray(found.log_evidence) - exact.log_evidence), 1.0, bias=bias)

    points = jax.vmap(lambda p, key: resample(p, key, 20))(found, jax.random.split(jax.random.key(1), RUNS))
    drawn = exact.draw(np.random.default_rng(0), 320).astype(np.float32)
    share = mixture_weights(exact.posterior, np.asarray(points).reshape(-1, 2))
    error = 4 * np.sqrt(exact.posterior.weights * (1 - exact.posterior.weights) / 320) + bias
    np.testing.assert_array_less(np.abs(share - exact.posterior.weights), error)
    test = jax.jit(lambda x, y: energy_test(x, y, jax.random.key(2), permutations=199).p_value)
    assert test(points.reshape(-1, 2), drawn) > 0.01
    prior = MIXTURE.sample(np.random.default_rng(1), 320)
    assert test(prior, drawn) < 0.01  # the test sees what y does


def levels_log_snr(process, t):
    (alpha, sigma) = levels_of(process, [t])[0]
    return 2 * np.log(alpha / sigma)


@pytest.mark.parametrize("steered", [0.0, 1.0])
def test_smc_of_a_measurement_that_is_not_linear(steered):
    """y = |x_0| + noise: the moments are an integral over the plane. With a twist and without, as twists cancel."""
    process, y, s = PROCESSES["vp"], 1.7, 0.2
    ts = log_snr_grid(process, 150, t_min=1e-3, t_max=1.0)

    def log_likelihood(x):
        return jax.scipy.stats.norm.logpdf(y, jnp.sqrt(jnp.sum(x**2, axis=1)), s)

    def twist(estimate, t):
        std = jnp.sqrt(s**2 + process.variance(t) / (process.alpha(t) ** 2 + process.variance(t)))
        return steered * jax.scipy.stats.norm.logpdf(y, jnp.sqrt(jnp.sum(estimate**2, axis=1)), std)

    found = runs(process, log_likelihood, twist, ts=ts)
    axis = np.linspace(-4, 4, 401)
    grid = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    density = np.exp(mixture_log_prob(grid) - (y - np.linalg.norm(grid, axis=1)) ** 2 / (2 * s**2))
    evidence = density.sum() * (axis[1] - axis[0]) ** 2 / np.sqrt(2 * np.pi * s**2)
    mean = density @ grid / density.sum()
    weights = np.exp(np.asarray(found.log_weights, np.float64))
    check_mean(np.einsum("rp,rpi->ri", weights, np.asarray(found.x, np.float64)), mean, bias=0.06)
    check_mean(np.exp(np.asarray(found.log_evidence)) / evidence, 1.0, bias=0.06)


def mixture_log_prob(x):
    logs = [
        np.log(w)
        - np.einsum("ni,ij,nj->n", x - m, np.linalg.inv(c), x - m) / 2
        - np.linalg.slogdet(2 * np.pi * c)[1] / 2
        for w, m, c in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.covariances, strict=True)
    ]
    return np.logaddexp.reduce(logs)


def constant(process, *, value=0.0, threshold=0.5, ts=None, key=0, n=64):
    """SMC of a likelihood that does not depend on x."""
    level = lambda x: jnp.full(len(x), value)  # noqa: E731
    ts = log_snr_grid(process, 4, t_min=1e-3, t_max=1.0) if ts is None else ts
    twist = lambda estimate, t: 0 * t  # noqa: E731
    draw = jax.jit(
        lambda key: smc(MIXTURE.denoise(process), process, level, twist, key, (n, 2), ts=ts, threshold=threshold)
    )
    return draw(jax.random.key(key))


def test_without_a_measurement_nothing_is_weighted():
    found = constant(PROCESSES["vp"], value=-1.5)
    np.testing.assert_allclose(found.log_weights, -np.log(64), rtol=1e-6)
    np.testing.assert_allclose(found.log_evidence, -1.5, rtol=1e-5)
    np.testing.assert_allclose(found.effective_size, 64, rtol=1e-5)
    # a likelihood of 0 everywhere
    nothing = constant(PROCESSES["vp"], value=-np.inf)
    assert nothing.log_evidence == -np.inf
    assert np.isnan(nothing.effective_size[-1])
    # a grid that ends without noise: the last point is the denoiser's own estimate
    to_zero = constant(PROCESSES["vp"], ts=uniform(5, t_min=0.0))
    assert int(to_zero.evaluations) == 5
    assert np.isfinite(to_zero.x).all()


def test_resampling_draws_each_particle_n_times_its_weight():
    weights = np.array([0.05, 0.62, 0.0, 0.33])
    particles = Particles(
        jnp.arange(4.0)[:, None], jnp.log(weights), jnp.zeros(()), jnp.ones(3), jnp.ones((), jnp.int32)
    )
    rows = np.asarray(jax.vmap(lambda key: resample(particles, key, 50))(jax.random.split(jax.random.key(0), 400)))
    counts = np.stack([(rows[..., 0] == i).sum(1) for i in range(4)], 1)
    assert (np.abs(counts - 50 * weights) < 1).all()
    error = counts.std(0) / np.sqrt(400)
    np.testing.assert_array_less(np.abs(counts.mean(0) - 50 * weights), 4 * error + 1e-6)
    assert len({tuple(row) for row in rows[:, :5, 0]}) > 50  # in random order


def test_smc_is_traced_once_and_the_same_under_vmap_and_pmap():
    process = PROCESSES["vp"]
    ts = log_snr_grid(process, 4, t_min=1e-2, t_max=1.0)
    operator = operators.matrix(MASKED.astype(np.float32))

    traces = []

    def draw(y, key):
        traces.append(None)
        log_likelihood = gaussian_likelihood(operator, y, noise_std=NOISE_STD)
        twist = gaussian_twist(process, operator, y, noise_std=NOISE_STD, data_std=DATA_STD)
        found = smc(MIXTURE.denoise(process), process, log_likelihood, twist, key, (32, 2), ts=ts)
        return found.x, found.log_weights

    ys, keys = np.array([[0.4], [-1.0]], np.float32), jax.random.split(jax.random.key(3), 2)
    once = jax.jit(draw)
    single = [once(y, key) for y, key in zip(ys, keys, strict=True)]
    assert len(traces) == 1
    each = jax.pmap(draw, devices=jax.devices()[:2])(ys, keys)
    mapped = jax.jit(jax.vmap(draw))(ys, keys)
    for i in range(2):
        for one, a, b in zip(single[i], mapped, each, strict=True):
            np.testing.assert_allclose(a[i], one, rtol=2e-4, atol=2e-5)
            np.testing.assert_allclose(b[i], one, rtol=2e-4, atol=2e-5)


VP = PROCESSES["vp"]
BAD = {
    "threshold": (lambda: constant(VP, threshold=1.5), "Expected threshold in"),
    "keys": (
        lambda: smc(
            GAUSSIAN.denoise(VP), VP, lambda x: x[:, 0], lambda e, t: t, jax.random.split(jax.random.key(0), 3), (3, 2),
            ts=uniform(4, t_min=1e-2),
        ),
        "Expected one key",
    ),
    "twist": (
        lambda: smc(
            GAUSSIAN.denoise(VP), VP, lambda x: x[:, 0], lambda e, t: e, jax.random.key(0), (3, 2),
            ts=uniform(4, t_min=1e-2),
        ),
        "Expected twist of shape",
    ),
    "log_likelihood": (
        lambda: smc(
            GAUSSIAN.denoise(VP), VP, lambda x: x.sum(), lambda e, t: t, jax.random.key(0), (3, 2),
            ts=uniform(4, t_min=1e-2),
        ),
        "Expected log_likelihood of shape",
    ),
    "weights": (lambda: resample(constant(VP, value=-np.inf), jax.random.key(0), 3), "Expected weights that are num"),
    "n": (lambda: resample(constant(VP), jax.random.key(0), 0), "Expected a whole number n"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused(untyped, name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()
