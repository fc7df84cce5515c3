"""Correctors leave p_t as it is up to the order of their step; predictors and correctors take turns as in the paper."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains import X, check_moments, gaussian_denoiser
from oracles import GAUSSIAN, PROCESSES

from dgm_jax.samplers import (
    Langevin,
    NormalizedLangevin,
    PredictorCorrector,
    ReverseDiffusion,
    UnderdampedLangevin,
    solve_sde,
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def kind(solver):
    return type(solver).__name__


SNR = 0.2


def at_time(process, t, rng, n):
    """Exact draws from p_t of GAUSSIAN, its covariance, and its score."""
    alpha, variance = float(process.alpha(jnp.asarray(t))), float(process.variance(jnp.asarray(t)))
    mean, covariance = alpha * GAUSSIAN.means[0], alpha**2 * GAUSSIAN.covariances[0] + variance * np.eye(2)
    x = jnp.asarray(rng.multivariate_normal(mean, covariance, n))
    precision = np.linalg.inv(covariance)
    return x, mean, covariance, lambda x: -(x - jnp.asarray(mean)[None]) @ precision


def test_one_langevin_step_changes_the_law_by_the_square_of_its_size():
    """From N(m, C) a step e gives N(m, (1 - e/C)^2 C + 2 e) = N(m, C + e^2/C), exactly."""
    process, sigma = PROCESSES["vp"], float(PROCESSES["vp"].sigma(0.4))
    x, mean, covariance, score = at_time(process, 0.4, np.random.default_rng(0), 100_000)
    for snr in (0.1, 0.4):
        size = 2 * (snr * sigma) ** 2
        keys = jax.random.split(jax.random.key(1), len(x))
        moved = jax.jit(Langevin(snr), static_argnums=0)(score, x, jnp.asarray(sigma), keys)
        check_moments(moved, mean, covariance + size**2 * np.linalg.inv(covariance))


@pytest.mark.parametrize("solver", [diffrax.ALIGN(), diffrax.ShOULD(), diffrax.QUICSORT()], ids=kind)
def test_underdamped_langevin_leaves_the_law(solver):
    """Steps of 1/8 in units of sigma: an error of order two is below 1/64 of the variance."""
    process, sigma = PROCESSES["vp"], float(PROCESSES["vp"].sigma(0.4))
    x, mean, covariance, score = at_time(process, 0.4, np.random.default_rng(1), 20_000)
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return score(x)

    corrector = UnderdampedLangevin(1.0, 8, solver=solver)
    keys = jax.random.split(jax.random.key(2), len(x))
    moved = np.asarray(jax.jit(corrector, static_argnums=0)(counted, x, jnp.asarray(sigma), keys))
    jax.effects_barrier()
    assert len(calls) == corrector.evaluations
    spread = np.sqrt(np.diag(covariance))
    assert (np.abs(moved.mean(0) - mean) < 4 * spread / np.sqrt(len(x)) + spread / 64).all()
    error = np.sqrt((np.outer(spread, spread) ** 2 + covariance**2) / len(x))
    assert (np.abs(np.cov(moved.T) - covariance) < 4 * error + np.outer(spread, spread) / 64).all()
    moves = np.abs(np.asarray(moved - x)).mean(0)
    assert (moves > spread / 4).all()  # it did not merely stay


def test_normalized_langevin_is_algorithm_4_to_the_letter():
    """e = 2 (r |z|/|g|)^2 gives |x' - x - e g| = sqrt(2 e) |z|, hence |x' - x - e g| |g| = 2 r |z|^2, for some z."""
    rng, r = np.random.default_rng(3), 0.16
    gradient = jnp.asarray(rng.normal(size=(5, 3, 2)))
    x = jnp.asarray(rng.normal(size=(5, 3, 2)))
    keys = jax.random.split(jax.random.key(7), 5)
    z = np.stack([np.asarray(jax.random.normal(key, (1, 3, 2), x.dtype))[0] for key in keys])
    moved = NormalizedLangevin(r)(lambda x: gradient, x, jnp.asarray(0.7), keys)
    size = 2 * (r * np.sqrt((z**2).sum((1, 2))) / np.sqrt((np.asarray(gradient) ** 2).sum((1, 2)))) ** 2
    size = size[:, None, None]
    np.testing.assert_allclose(moved, x + size * gradient + np.sqrt(2 * size) * z, rtol=1e-12)


def test_the_corrector_moves_after_the_predictor_and_at_its_time():
    """With a denoiser that records its times: predictor at t, corrector at s, in the order of algorithm 1."""
    process, seen = PROCESSES["vp"], []
    exact = gaussian_denoiser(process)

    def recording(x, t):
        jax.debug.callback(lambda t: seen.append(float(t[0])), t, ordered=True)
        return exact(x, t)

    ts = np.array([0.9, 0.6, 0.2])
    solver = PredictorCorrector(ReverseDiffusion(), Langevin(SNR, 2))
    x = jax.jit(lambda x: solve_sde(recording, process, x, jax.random.key(0), ts=ts, solver=solver).x)(jnp.asarray(X))
    jax.block_until_ready(x)
    jax.effects_barrier()
    np.testing.assert_allclose(seen, [0.9, 0.6, 0.6, 0.6, 0.2, 0.2])
