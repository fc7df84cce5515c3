"""The oracle itself against SciPy densities, the posterior summed on a grid, and Tweedie's formula."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, MIXTURE, PROCESSES, last_time, mixture_weights
from scipy.stats import multivariate_normal

SPACING = 0.04  # below half the narrowest posterior's std; sums over a smooth density are then exact to rounding
AXIS = np.arange(-5.0, 5.0, SPACING)
GRID = np.stack(np.meshgrid(AXIS, AXIS, indexing="ij"), -1).reshape(-1, 2)
DATA = pytest.mark.parametrize("which", ["gaussian", "mixture"])


def density(data, x, alpha=1.0, variance=0.0):
    """sum_k w_k N(x; alpha m_k, alpha^2 C_k + variance I), by SciPy."""
    parts = zip(data.weights, data.means, data.covariances, strict=True)
    return sum(w * multivariate_normal(alpha * m, alpha**2 * c + variance * np.eye(2)).pdf(x) for w, m, c in parts)


NAMES = {"gaussian": GAUSSIAN, "mixture": MIXTURE}


@cache
def density_on_grid(name):
    return density(NAMES[name], GRID)


def states(process, t):
    """States that are likely and unlikely under the mixture, one for each time."""
    rng = np.random.default_rng(4)
    x_0 = np.array([[-1.4, 0.5], [0.4, -1.5], [1.0, 0.6], [0.0, 0.0], [-0.8, -0.6], [1.9, 0.9]])
    noise = rng.standard_normal(x_0.shape)
    return jnp.asarray(np.asarray(process.alpha(t))[:, None] * x_0 + np.asarray(process.sigma(t))[:, None] * noise)


def posterior_mean(which, alpha, sigma, x_t):
    """E[x_0 | x_t] as a ratio of sums over a grid of x_0, which need no Gaussian algebra."""
    log_kernel = -np.sum((x_t - alpha * GRID) ** 2, 1) / (2 * sigma**2)
    weights = density_on_grid(which) * np.exp(log_kernel - log_kernel.max())
    return weights @ GRID / weights.sum()


@DATA
@pytest.mark.parametrize("name", PROCESSES)
def test_log_prob_denoiser_and_score(name, which):
    process, data = PROCESSES[name], NAMES[which]
    with jax.enable_x64(True):
        # sigma/alpha from 0.1, where the grid below still resolves the kernel
        low = float(process.time_at(0.1))
        t = jnp.linspace(max(low, 0.02), last_time(name), 6)
        x = states(process, t)
        alpha, variance = np.asarray(process.alpha(t)), np.asarray(process.variance(t))

        def evaluate(x, t):
            score = jax.grad(lambda x: data.log_prob(process, x, t).sum())(x)
            return data.log_prob(process, x, t), data.denoise(process)(x, t), score

        log_prob, denoised, score = jax.jit(evaluate)(x, t)
        expected = [np.log(density(data, p, a, v)) for p, a, v in zip(x, alpha, variance, strict=True)]
        np.testing.assert_allclose(log_prob, expected, rtol=1e-10, atol=1e-10)
        tweedie = (np.asarray(x) + variance[:, None] * np.asarray(score)) / alpha[:, None]
        scale = 1 + (np.abs(x) / alpha[:, None]).max()  # what cancels in Tweedie's formula
        np.testing.assert_allclose(denoised, tweedie, rtol=0, atol=1e-12 * scale)
        for i in range(len(t)):
            by_grid = posterior_mean(which, alpha[i], np.sqrt(variance[i]), np.asarray(x[i]))
            np.testing.assert_allclose(denoised[i], by_grid, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", PROCESSES)
def test_float32_agrees_with_float64(name):
    process = PROCESSES[name]
    times = np.linspace(0.02, last_time(name), 6)
    answers = {}

    def evaluate(x, t):
        return MIXTURE.denoise(process)(x, t), MIXTURE.log_prob(process, x, t)

    for dtype in (np.float32, np.float64):
        with jax.enable_x64(dtype is np.float64):
            t = jnp.asarray(times.astype(np.float32), dtype)
            x = jnp.asarray(np.asarray(states(process, t), np.float32), dtype)
            answers[dtype] = jax.device_get(jax.jit(evaluate)(x, t))
    for single, double in zip(*answers.values(), strict=True):
        np.testing.assert_allclose(single, double, rtol=2e-4, atol=2e-4)


@DATA
def test_mean_and_covariance_by_summation(which):
    data, weights = NAMES[which], density_on_grid(which)
    weights = weights / weights.sum()
    centred = GRID - weights @ GRID
    np.testing.assert_allclose(data.mean, weights @ GRID, rtol=1e-10)
    np.testing.assert_allclose(data.covariance, np.einsum("n,ni,nj->ij", weights, centred, centred), rtol=1e-10)


@DATA
def test_samples_follow_the_density(which):
    n, data = 20_000, NAMES[which]
    x = data.sample(np.random.default_rng(0), n, np.float64)
    errors = np.sqrt(np.diag(data.covariance) / n)
    assert (np.abs(x.mean(0) - data.mean) < 4 * errors).all()
    centred = x - data.mean
    products = centred[:, :, None] * centred[:, None, :]
    assert (np.abs(products.mean(0) - data.covariance) < 4 * products.std(0) / np.sqrt(n)).all()
    # -E log p is the entropy: the cross-entropy of the samples must agree with the grid's sum
    p = density_on_grid(which)
    entropy = -np.sum(p * np.log(np.maximum(p, 1e-300))) * SPACING**2
    nats = -np.log(density(data, x))
    assert abs(nats.mean() - entropy) < 4 * nats.std() / np.sqrt(n)


def test_mixture_weights_counts_components():
    n = 20_000
    x = MIXTURE.sample(np.random.default_rng(1), n)
    errors = np.sqrt(MIXTURE.weights * (1 - MIXTURE.weights) / n)
    assert (np.abs(mixture_weights(MIXTURE, x) - MIXTURE.weights) < 4 * errors + 1e-4).all()  # 1e-4: overlap
    np.testing.assert_array_equal(mixture_weights(MIXTURE, MIXTURE.means[[1, 1, 2, 0]]), [0.25, 0.5, 0.25])
