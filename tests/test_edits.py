"""Stochastic edits of Gaussian data, whose law is known at every starting time; asymmetric steps as in their paper."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, MIXTURE, PROCESSES

from dgm_jax.latents import AsymmetricReverse, realism_faithfulness, sdedit
from dgm_jax.metrics import energy_test
from dgm_jax.processes import log_snr_grid, uniform
from dgm_jax.samplers import Ancestral, solve_sde

GUIDE = np.array([0.2, 1.1], np.float32)


@pytest.mark.parametrize("t", [0.15, 0.5])
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_edits_of_gaussian_data_have_their_exact_law(name, t):
    """x_t is noised from the guide, then x_0 is drawn given x_t: two Gaussians, multiplied out by NumPy."""
    process, n = PROCESSES[name], 4000
    ts = log_snr_grid(process, 150, t_min=2e-3, t_max=t)
    guide = jnp.broadcast_to(jnp.asarray(GUIDE)[None], (n, 2))
    edited = jax.jit(lambda key: sdedit(GAUSSIAN.denoise(process), process, guide, key, ts=ts, solver=Ancestral()).x)
    x = np.asarray(edited(jax.random.key(0)), np.float64)
    alpha, variance = (float(f(jnp.asarray(t))) for f in (process.alpha, process.variance))
    mean, covariance = GAUSSIAN.means[0], GAUSSIAN.covariances[0]
    gain = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + variance * np.eye(2))
    expected = mean + alpha * gain @ (GUIDE - mean)
    spread = covariance - alpha * gain @ covariance + variance * gain @ gain.T
    error = np.sqrt(np.diag(spread) / n)
    np.testing.assert_array_less(np.abs(x.mean(0) - expected), 4 * error + 0.01)
    of_spread = np.sqrt((spread**2 + np.outer(np.diag(spread), np.diag(spread))) / n)
    np.testing.assert_array_less(np.abs(np.cov(x.T) - spread), 4 * of_spread + 0.02 * spread.max())


def test_from_faithful_to_real():
    """Later times keep less of the guide, and the last ones draw the data."""
    process, n = PROCESSES["vp"], 500
    guide = jnp.broadcast_to(jnp.asarray([[3.0, 3.0]]), (n, 2))
    real = jnp.asarray(MIXTURE.sample(np.random.default_rng(0), n))
    grids = [log_snr_grid(process, 60, t_min=1e-3, t_max=t) for t in (0.01, 0.3, 1.0)]

    def p_value(x):
        return energy_test(x, real, jax.random.key(1), permutations=99).p_value

    found = realism_faithfulness(
        MIXTURE.denoise(process), process, guide, jax.random.key(0), grids=grids, realism=p_value, solver=Ancestral()
    )
    assert found.distance.shape == (3, n)
    np.testing.assert_allclose(found.times, [0.01, 0.3, 1.0], rtol=1e-6)
    assert (np.diff(found.distance.mean(1)) > 0.1).all()
    assert found.distance[0].mean() < 0.3
    assert (found.realism[:2] <= 0.01).all()
    assert found.realism[2] > 0.01
    of_data = np.mean((np.asarray(real) - 3.0) ** 2, axis=1)  # a coordinate's mean square, whatever their number
    both = np.sqrt((of_data.var() + np.var(found.distance[2] ** 2)) / n)
    np.testing.assert_allclose(np.mean(found.distance[2] ** 2), of_data.mean(), atol=4 * both)


def test_an_asymmetric_step_is_the_papers():
    """x_s = sqrt(a_s) P(edited) + sqrt(1 - a_s) noise(not edited), DDIM where nothing is edited."""
    process, ts = PROCESSES["from_betas"], uniform(4, t_min=0.2, t_max=1.0)
    exact, key = MIXTURE.denoise(process), jax.random.key(0)

    def edited(x_t, t):
        return exact(x_t, t) + 0.3 * jnp.tanh(x_t)

    x = jax.random.normal(key, (5, 2))
    found = solve_sde(exact, process, x, key, ts=ts, solver=AsymmetricReverse(edited))
    state = np.asarray(x, np.float64)
    for t, s in pairwise(ts):
        a_t, a_s = (float(process.alpha(jnp.asarray(v))) ** 2 for v in (t, s))
        at = jnp.asarray(state, jnp.float32), jnp.full(5, t, jnp.float32)
        noise = (state - np.sqrt(a_t) * np.asarray(exact(*at))) / np.sqrt(1 - a_t)
        state = np.sqrt(a_s) * np.asarray(edited(*at)) + np.sqrt(1 - a_s) * noise
    np.testing.assert_allclose(found.x, state, atol=2e-5)
    assert found.evaluations == 8
    same = solve_sde(exact, process, x, key, ts=ts, solver=AsymmetricReverse(exact)).x
    np.testing.assert_allclose(same, solve_sde(exact, process, x, key, ts=ts, solver=Ancestral(0.0)).x, atol=1e-5)


def test_a_guide_that_is_no_batch_is_refused(untyped):
    process = PROCESSES["vp"]
    with pytest.raises(ValueError, match="the guide"):
        sdedit(None, process, jnp.ones((2, 1), int), jax.random.key(0), ts=uniform(3, t_min=0.1))
    with pytest.raises(ValueError, match="falling"):
        sdedit(lambda x, t: x, process, jnp.ones((2, 1)), jax.random.key(0), ts=uniform(3, t_min=0.1)[::-1])
