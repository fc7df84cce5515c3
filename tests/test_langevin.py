"""Annealed Langevin dynamics against the exact moments of its recursion, and against what it was invented for.

For Gaussian data every step is affine in x, so that mean and covariance follow exactly, discretisation included.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, PROCESSES, Mixture, langevin_moments
from test_sde import check_moments

from dgm_jax.parameterizations import as_denoiser
from dgm_jax.processes import log_snr_grid
from dgm_jax.samplers import annealed_langevin, final_denoising, solve_langevin

N = 4000
LEVELS = {  # falling times at which the first level's noise is wider than the data, and a stable epsilon/sigma_L^2
    "ve": (log_snr_grid(PROCESSES["ve"], 7, t_min=0.4, t_max=0.75), 0.3),
    "vp": (log_snr_grid(PROCESSES["vp"], 7, t_min=0.05, t_max=1.0), 0.15),
    "rectified": (np.linspace(1.0, 0.3, 8, dtype=np.float32), 0.2),
}


def settings(name):
    ts, relative = LEVELS[name]
    process = PROCESSES[name]
    return process, ts, relative * float(process.variance(jnp.asarray(ts[-1])))


@pytest.mark.parametrize("steps", [1, 6])
@pytest.mark.parametrize("name", LEVELS)
def test_samples_have_the_recursions_exact_moments(name, steps):
    process, ts, epsilon = settings(name)
    draw = jax.jit(
        lambda key: annealed_langevin(
            GAUSSIAN.denoise(process), process, key, (N, 2), ts=ts, epsilon=epsilon, steps=steps, save_path=True
        )
    )
    result = draw(jax.random.key(0))
    prior = float(process.variance(jnp.asarray(ts[0]))) * np.eye(2)
    exact = langevin_moments(process, ts, epsilon, steps, np.zeros(2), prior)
    check_moments(result.path[0], np.zeros(2), prior)
    check_moments(result.x, *exact)


@pytest.mark.parametrize("name", LEVELS)
def test_many_small_steps_reach_the_last_levels_law(name):
    """The recursion tends to N(alpha m, alpha^2 C + sigma^2 I) at the last level, as epsilon does to 0."""
    process, ts, epsilon = settings(name)
    errors = []
    for fine in (1, 2, 4):
        found = langevin_moments(process, ts, epsilon / fine, 2000 * fine, np.zeros(2), np.eye(2))
        alpha, variance = (float(f(jnp.asarray(ts[-1]))) for f in (process.alpha, process.variance))
        np.testing.assert_allclose(found[0], alpha * GAUSSIAN.means[0], rtol=1e-3)
        errors.append(np.abs(found[1] - alpha**2 * GAUSSIAN.covariances[0] - variance * np.eye(2)).max())
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 2, rtol=0.1)  # order one in epsilon


def test_one_level_is_plain_langevin_dynamics():
    process, ts, epsilon = settings("vp")
    x = jnp.asarray(np.tile(np.array([[0.4, 0.9]], np.float32), (N, 1)))
    run = jax.jit(
        lambda key: solve_langevin(
            GAUSSIAN.denoise(process), process, x, key, ts=ts[-1:], epsilon=epsilon, steps=9, save_path=True
        )
    )
    result = run(jax.random.key(1))
    assert int(result.evaluations) == 9
    assert result.path.shape == (10, N, 2)
    np.testing.assert_array_equal(result.path[0], x)
    np.testing.assert_array_equal(result.path[-1], result.x)
    for made in (1, 4, 9):
        exact = langevin_moments(process, ts[-1:], epsilon, made, np.array([0.4, 0.9]), np.zeros((2, 2)))
        check_moments(result.path[made], *exact)


def test_the_noise_of_each_step_is_fresh():
    """Increments of the path are independent of each other, of the state and of other examples."""
    process, ts, epsilon = settings("ve")

    def still(x, t):  # the score is 0
        return x

    path = jax.jit(
        lambda key: annealed_langevin(still, process, key, (N, 2), ts=ts, epsilon=epsilon, steps=2, save_path=True).path
    )(jax.random.key(2))
    sigma = np.repeat(np.asarray(process.sigma(jnp.asarray(ts)), np.float64), 2)
    scaled = np.diff(np.asarray(path, np.float64), axis=0) / (np.sqrt(epsilon) * sigma / sigma[-1])[:, None, None]
    series = np.concatenate([np.asarray(path[:1], np.float64) / sigma[0], scaled]).transpose(0, 2, 1).reshape(-1, N)
    correlation = np.corrcoef(series)
    # 4.5 standard errors, as there are 500 pairs
    assert np.abs(correlation - np.eye(len(series))).max() < 4.5 / np.sqrt(N)
    np.testing.assert_array_less(np.abs((series**2).mean(1) - 1), 4 * np.sqrt(2 / N))


def test_evaluations_are_the_networks_calls_at_the_levels_times():
    process, ts, epsilon = settings("ve")
    calls = []
    exact = GAUSSIAN.denoise(process)

    def counted(x, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t[0], ordered=True)
        return exact(x, t)

    for steps in (1, 3):
        calls.clear()
        result = jax.jit(
            lambda key, steps=steps: annealed_langevin(
                counted, process, key, (3, 2), ts=ts, epsilon=epsilon, steps=steps
            )
        )(jax.random.key(0))
        jax.block_until_ready(result.x)
        jax.effects_barrier()
        assert int(result.evaluations) == len(calls) == steps * len(ts)
        np.testing.assert_array_equal(np.float32(calls), np.repeat(ts, steps))
        denoised = jax.jit(lambda result: final_denoising(counted, result, ts[-1]))(result)
        jax.block_until_ready(denoised.x)
        jax.effects_barrier()
        assert int(denoised.evaluations) == len(calls) == steps * len(ts) + 1


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_final_denoising_takes_the_last_levels_noise_away(name):
    """E[x_0 | x_t] of a Gaussian is affine: its covariance is alpha^2 C V^-1 C with V that of x_t."""
    process, ts, epsilon = settings(name)
    run = jax.jit(
        lambda key: annealed_langevin(
            GAUSSIAN.denoise(process), process, key, (N, 2), ts=ts, epsilon=epsilon, steps=6, save_path=True
        )
    )
    samples = run(jax.random.key(3))
    denoised = final_denoising(GAUSSIAN.denoise(process), samples, ts[-1])
    prior = float(process.variance(jnp.asarray(ts[0]))) * np.eye(2)
    mean, covariance = langevin_moments(process, ts, epsilon, 6, np.zeros(2), prior)
    alpha, variance = (float(f(jnp.asarray(ts[-1]))) for f in (process.alpha, process.variance))
    data = GAUSSIAN.covariances[0]
    gain = alpha * data @ np.linalg.inv(alpha**2 * data + variance * np.eye(2))
    check_moments(denoised.x, GAUSSIAN.means[0] + gain @ (mean - alpha * GAUSSIAN.means[0]), gain @ covariance @ gain.T)
    assert denoised.path.shape == (len(samples.path) + 1, N, 2)
    np.testing.assert_array_equal(denoised.path[-1], denoised.x)


def test_annealing_gets_the_weights_right_and_plain_langevin_does_not():
    """Two distant modes of weights 0.2 and 0.8: plain Langevin keeps the shares of its start, which are equal."""
    process = PROCESSES["ve"]
    weights = np.array([0.2, 0.8])
    modes = Mixture(weights, np.array([[-4.0, -4.0], [4.0, 4.0]]), np.tile(0.25 * np.eye(2), (2, 1, 1)))
    ts = log_snr_grid(process, 19, t_min=0.45, t_max=0.85)  # sigma from 14 to 0.46
    n, epsilon = 1000, 0.1 * float(process.variance(jnp.asarray(ts[-1])))

    @jax.jit
    def draw(key):
        options = {"ts": ts[-1:], "epsilon": epsilon, "steps": 200}
        keys = jax.random.split(key, 3)
        x = process.sigma(ts[0]) * jax.random.normal(keys[0], (n, 2))
        plain = solve_langevin(modes.denoise(process), process, x, keys[1], **options)
        annealed = annealed_langevin(modes.denoise(process), process, keys[2], (n, 2), ts=ts, epsilon=epsilon, steps=40)
        return plain.x, annealed.x

    plain, annealed = (np.mean(np.asarray(x).sum(1) > 0) for x in draw(jax.random.key(4)))
    error = 4 * np.sqrt(0.8 * 0.2 / n)
    assert abs(plain - 0.5) < 4 * 0.5 / np.sqrt(n)
    # stated bias: each level starts from the one before, a weight's worth of the last level at which modes still mix
    assert abs(annealed - 0.8) < error + 0.02


def test_samples_follow_their_own_keys():
    process, ts, epsilon = settings("vp")
    keys = jax.random.split(jax.random.key(9), 6)

    def draw(keys, n):
        return annealed_langevin(GAUSSIAN.denoise(process), process, keys, (n, 2), ts=ts, epsilon=epsilon, steps=3).x

    whole = jax.jit(lambda k: draw(k, 6))(keys)
    np.testing.assert_array_equal(whole[2:5], jax.jit(lambda k: draw(k, 3))(keys[2:5]))
    assert len(np.unique(whole)) == 12


def test_ncsnv2s_network_is_the_noise_prediction_with_its_sign_turned():
    """Technique 3: the score is s(x)/sigma with a network that does not see t."""
    process, ts, epsilon = settings("ve")

    def network(x):
        return -jnp.tanh(x)

    denoise = as_denoiser(lambda x, t: -network(x), process, prediction="noise")
    x = jnp.asarray(np.random.default_rng(0).standard_normal((5, 2)), jnp.float32)
    key = jax.random.key(5)
    path = solve_langevin(denoise, process, x, key, ts=ts[:2], epsilon=epsilon, steps=1, save_path=True).path
    still = solve_langevin(lambda x, t: x, process, x, key, ts=ts[:2], epsilon=epsilon, steps=1, save_path=True).path
    sigma = np.asarray(process.sigma(jnp.asarray(ts[:2])))
    for i in range(2):
        moved = (path[i + 1] - path[i]) - (still[i + 1] - still[i])
        expected = epsilon * sigma[i] ** 2 / sigma[1] ** 2 / 2 * np.asarray(network(path[i])) / sigma[i]
        # the noise is a hundred times the drift and cancels
        np.testing.assert_allclose(moved, expected, atol=3e-6 * float(jnp.abs(path).max()))


def test_a_diverging_chain_says_so():
    process, ts, epsilon = settings("ve")
    result = jax.jit(
        lambda key: annealed_langevin(
            GAUSSIAN.denoise(process), process, key, (3, 2), ts=ts, epsilon=1e4 * epsilon, steps=30
        )
    )(jax.random.key(0))
    assert not np.isfinite(result.x).all()
    assert result.result == diffrax.RESULTS.nonfinite
    assert final_denoising(GAUSSIAN.denoise(process), result, ts[-1]).result == diffrax.RESULTS.nonfinite


def test_epsilon_may_be_traced_and_differentiated_and_ts_made_under_jit():
    process, ts, epsilon = settings("ve")

    def draw(epsilon, ts, **options):
        return annealed_langevin(
            GAUSSIAN.denoise(process), process, jax.random.key(0), (4, 2), ts=ts, epsilon=epsilon, steps=2, **options
        ).x

    expected = jax.jit(lambda: draw(epsilon, ts))()
    found, slope = jax.jit(lambda e, ts: jax.jvp(lambda e: draw(e, ts), (e,), (jnp.ones(()),)))(epsilon, ts)
    np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-5)
    assert np.isfinite(slope).all()

    def total(epsilon):
        return draw(epsilon, ts, adjoint=diffrax.DirectAdjoint()).sum()

    np.testing.assert_allclose(jax.jit(jax.grad(total))(jnp.float32(epsilon)), slope.sum(), rtol=1e-3)


def never(x, t):
    raise AssertionError("compute was spent")


BAD = {
    "epsilon of zero": ({"epsilon": 0.0}, "epsilon < inf.*epsilon=0.0"),
    "negative epsilon": ({"epsilon": -1e-3}, "0 < epsilon"),
    "epsilon of NaN": ({"epsilon": float("nan")}, "0 < epsilon"),
    "no steps": ({"steps": 0}, "steps >= 1.*steps=0"),
    "too many steps": ({"steps": 2**23 + 1}, "at most 16777216 steps.*float32"),
    "rising levels": ({"ts": np.array([0.1, 0.9], np.float32)}, "falling ts.*0.1"),
    "repeated levels": ({"ts": np.array([0.9, 0.9], np.float32)}, "strictly"),
    "a level without noise": ({"ts": np.array([0.9, 0.0], np.float32)}, "sigma\\(t\\) > 0"),
    "one level without noise": ({"ts": np.array([0.0], np.float32)}, "sigma\\(t\\) > 0"),
    "a level beyond one": ({"ts": np.array([1.5], np.float32)}, r"\[0, 1\].*1.5"),
    "no levels": ({"ts": np.zeros(0, np.float32)}, "points"),
    "an adjoint that runs back": ({"adjoint": diffrax.BacksolveAdjoint()}, "DirectAdjoint"),
    "a list of levels": ({"ts": [0.9]}, "array"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_before_compute(case, untyped):
    change, message = BAD[case]
    options = {"ts": np.array([0.9, 0.1], np.float32), "epsilon": 1e-3, "steps": 2} | change
    for call in (
        lambda: annealed_langevin(never, PROCESSES["vp"], jax.random.key(0), (3, 2), **options),
        lambda: solve_langevin(never, PROCESSES["vp"], jnp.zeros((3, 2)), jax.random.key(0), **options),
    ):
        with pytest.raises(ValueError, match=f"(?s)Expected.*{message}"):
            call()
