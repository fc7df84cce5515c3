"""Variational bounds on average: each term in closed form, and the bound against the likelihood that it bounds."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from exact_bounds import CENTRES, LEVELS, MASS, affine, analytic_terms, continuous_terms, scales
from oracles import GAUSSIAN, MIXTURE, PROCESSES, last_time

from dgm_jax.likelihood import (
    continuous_bound,
    discrete_bits_per_dim,
    log_likelihood,
    variational_bound,
)
from dgm_jax.losses import diffusion_loss, weights
from dgm_jax.processes import from_log_snr, levels, log_snr_grid, uniform, variance_exploding

ALL = pytest.mark.parametrize("name", PROCESSES)
BETAS = np.linspace(1e-4, 0.02, 1000)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("name", ["from_betas", "ve", "cosine", "vp"])
def test_every_term_is_its_analytic_value(name, variance):
    """Gaussian data on 17 levels: L_T, every L_{t-1} and L_0 with the discretised decoder, within 4 standard errors."""
    process, n, dim = PROCESSES[name], 20_000, 2
    with jax.enable_x64(True):
        ts = log_snr_grid(process, 5, t_min=0.02, t_max=last_time(name))
        x_0 = jnp.asarray(np.random.default_rng(2).choice(CENTRES, (n, dim), p=MASS))
        bound = jax.jit(
            lambda x, key: variational_bound(
                affine(process)[0], process, x, key, ts=ts, variance=variance, levels=LEVELS
            )
        )(x_0, jax.random.key(0))
        total, bits = jax.device_get((bound.total, discrete_bits_per_dim(-bound.total, dim)))
        bound = jax.device_get(bound)
        prior, transitions, reconstruction = analytic_terms(process, ts, variance)
    actual = np.concatenate([bound.prior[None], bound.transitions, bound.reconstruction[None]])
    expected = dim * np.array([prior, *transitions, reconstruction])
    assert actual.shape == (7, n)
    error = actual.std(1) / np.sqrt(n)
    np.testing.assert_array_less(np.abs(actual.mean(1) - expected), 4 * error)
    np.testing.assert_allclose(total, actual.sum(0), rtol=1e-12)
    # the bound lies above the entropy of the levels, which no code beats
    entropy = dim * scipy.stats.entropy(MASS)
    assert expected.sum() > entropy
    assert abs(bits.mean() - expected.sum() / dim / np.log(2)) < 4 * bits.std() / np.sqrt(n)


@pytest.mark.parametrize("name", ["from_betas", "ve", "rectified"])
def test_the_bound_is_below_the_likelihood_and_tightens_with_steps(name):
    """-E total <= E log p for a mixture and its exact denoiser; the gap falls with the number of steps."""
    process, n = PROCESSES[name], 2_000
    low = 0.0 if name == "ve" else 1e-3
    with jax.enable_x64(True):
        x_0 = jnp.asarray(MIXTURE.sample(np.random.default_rng(3), n, np.float64))
        exact = MIXTURE.log_prob(process, x_0, jnp.full(n, 0.0)) if name != "ve" else None
        if exact is None:
            parts = [
                np.log(w) + scipy.stats.multivariate_normal.logpdf(x_0, m, c)
                for w, m, c in zip(MIXTURE.weights, MIXTURE.means, MIXTURE.covariances, strict=True)
            ]
            exact = scipy.special.logsumexp(parts, axis=0)
        gaps, errors = [], []
        for steps in (8, 32, 128):
            ts = log_snr_grid(process, steps, t_min=low, t_max=last_time(name))
            total = jax.jit(
                lambda x, key, ts=ts: (
                    variational_bound(
                        MIXTURE.denoise(process), process, x, key, ts=ts, variance="posterior", levels=None
                    ).total
                )
            )(x_0, jax.random.key(1))
            gap = np.asarray(total + exact)
            gaps.append(gap.mean())
            errors.append(gap.std() / np.sqrt(n))
        total = np.asarray(total)
        ode = jax.jit(lambda x: log_likelihood(MIXTURE.denoise(process), process, x, ts=ts[::-1]))(x_0[:200])
        ode = np.asarray(ode)
    assert gaps[-1] > -4 * errors[-1]
    for k in (1, 2):
        assert gaps[k - 1] - gaps[k] > 4 * np.hypot(errors[k - 1], errors[k])
    # the same order against the ODE's own estimate of log p
    assert np.mean(total[:200] + ode) > -4 * errors[-1] * np.sqrt(10)


def test_a_learned_variance_reaches_the_decoder():
    """v interpolates sigma(t)^2 and the posterior variance of the step before: one minus the bound's quadratic form."""
    process, ts = PROCESSES["from_betas"], np.array([0.003, 0.002, 0.001])
    x_0 = jnp.asarray(GAUSSIAN.sample(np.random.default_rng(4), 5))
    of_value = {
        v: variational_bound(
            lambda x, t: x_0,
            process,
            x_0,
            jax.random.key(2),
            ts=ts,
            variance=lambda x, t, v=v: jnp.full_like(x, v),
            levels=None,
        ).reconstruction
        for v in (0.0, 0.25, 1.0)
    }
    clipped = BETAS[1] * BETAS[0] / (1 - (1 - BETAS[0]) * (1 - BETAS[1]))
    for v, nats in of_value.items():  # the estimate is x_0 itself, so that -log p is the normalisation, two coordinates
        np.testing.assert_allclose(nats, np.log(2 * np.pi * BETAS[0] ** v * clipped ** (1 - v)), rtol=1e-4)


def test_short_grids_and_a_last_point_at_zero():
    """T + 1 points to 0 are DDPM's T steps: T - 1 transitions and the decoder at the last positive time."""
    process, x_0 = PROCESSES["vp"], jnp.asarray(GAUSSIAN.sample(np.random.default_rng(4), 5))
    denoise = GAUSSIAN.denoise(process)

    def evaluate(ts, variance="posterior"):
        def run(x):
            return variational_bound(denoise, process, x, jax.random.key(2), ts=ts, variance=variance, levels=None)

        bound = jax.jit(run)(x_0)
        return bound.transitions, bound.total

    for steps in (1, 2, 3):
        transitions, total = evaluate(uniform(steps, t_min=0.0), lambda x, t: 0.5 * jnp.ones_like(x))
        assert transitions.shape == (steps - 1, 5)
        assert np.isfinite(total).all()
    np.testing.assert_array_equal(evaluate(uniform(3, t_min=0.0))[1], evaluate(uniform(3, t_min=0.0)[:-1])[1])


def test_training_on_the_variational_weight_has_the_bounds_mean():
    """diffusion_loss with the chain's times estimates the sum over the chain, in nats."""
    process, steps, n = PROCESSES["vp"], 20, 20_000
    x_0 = jnp.asarray(GAUSSIAN.sample(np.random.default_rng(6), n))
    times = levels(jnp.arange(1, steps + 1) / steps)
    weight = partial(weights.variational, process, steps=steps, event_size=2, variance="posterior")
    denoise = GAUSSIAN.denoise(process)
    loss = jax.jit(lambda x, key: diffusion_loss(denoise, process, x, key, weight=weight, times=times))(
        x_0, jax.random.key(3)
    )
    bound = jax.jit(
        lambda x, key: variational_bound(
            denoise, process, x, key, ts=uniform(steps, t_min=0.0), variance="posterior", levels=None
        )
    )(x_0, jax.random.key(4))
    sigma = scales(process, 1 / steps)[0][1]
    expected = bound.transitions.sum(0) + bound.reconstruction - np.log(2 * np.pi * sigma**2)
    error = np.hypot(loss.std(), expected.std()) / np.sqrt(n)
    assert abs(float(loss.mean() - expected.mean())) < 4 * error


def linear(high, low):
    return from_log_snr(lambda t: high + (low - high) * t)


@pytest.mark.parametrize("count", [256, 17])
def test_uniform_noise_over_the_levels_has_its_logarithm_in_bits(count):
    """With the exact denoiser of uniform levels the continuous bound is tight: log2(levels), 8 for 256."""
    process, n = linear(18.0, -9.0), 2048
    with jax.enable_x64(True):
        centres = jnp.asarray((2 * np.arange(count) - (count - 1)) / (count - 1))

        def denoise(x_t, t):
            alpha, variance = process.alpha(t)[:, None, None], process.variance(t)[:, None, None]
            logits = -((x_t[..., None] - alpha * centres[None, None]) ** 2) / (2 * variance)
            return jnp.sum(jax.nn.softmax(logits, axis=-1) * centres[None, None], axis=-1)

        x_0 = jnp.asarray(np.random.default_rng(7).choice(np.asarray(centres), (n, 1)))
        bound = jax.jit(lambda x, key: continuous_bound(denoise, process, x, key, t_min=0.0, levels=count, draws=256))(
            x_0, jax.random.key(5)
        )
        bits = np.asarray(discrete_bits_per_dim(-bound.total, 1))
        # what the prior N(0, sigma^2) adds is below its KL; the reconstruction adds the levels' overlap
        prior = float(bound.prior.mean()) / np.log(2)
    error = bits.std() / np.sqrt(n)
    assert abs(bits.mean() - np.log2(count)) < 4 * error + prior
    assert error < 0.03
    assert bound.transitions.shape == (256, n)


def test_no_information_codes_256_levels_in_8_bits_exactly():
    """A process that is noise from the start: each example costs 8 bits, whatever it is."""
    process = variance_exploding(1e9, 1e10)
    x_0 = jnp.asarray((2 * np.random.default_rng(8).integers(0, 256, (4, 3, 2)) - 255) / 255, jnp.float32)
    bound = continuous_bound(lambda x, t: 0 * x, process, x_0, jax.random.key(6), t_min=0.0, levels=256)
    np.testing.assert_allclose(discrete_bits_per_dim(-bound.total, 6), 8.0, rtol=1e-6)
    np.testing.assert_allclose(discrete_bits_per_dim(jnp.full(3, 6 * np.log(1 / 256)), 6), 8.0, rtol=1e-7)


@ALL
def test_the_continuous_bound_is_the_likelihood_under_the_exact_denoiser(name):
    """For Gaussian data and its exact denoiser each term has a closed form, and their sum lies above the entropy."""
    process, n, low, high = PROCESSES[name], 20_000, 0.02, last_time(name)
    with jax.enable_x64(True):
        x_0 = jnp.asarray(GAUSSIAN.sample(np.random.default_rng(9), n, np.float64))
        bound = jax.jit(
            lambda x, key, low: continuous_bound(  # the ends of the integral may be traced
                GAUSSIAN.denoise(process), process, x, key, t_min=low, t_max=high, levels=None, draws=8
            )
        )(x_0, jax.random.key(7), low)
        bound = jax.device_get(bound)
        prior, integral, reconstruction = continuous_terms(process, GAUSSIAN, low, high)
    for actual, expected in (
        (bound.prior, prior),
        (bound.transitions.sum(0), integral),
        (bound.reconstruction, reconstruction),
    ):
        assert abs(float(actual.mean()) - expected) < 4 * float(actual.std()) / np.sqrt(n)
    # the gap to the entropy of the data is positive and small
    entropy = 1 + np.log(2 * np.pi) + np.sum(np.log(np.linalg.eigvalsh(GAUSSIAN.covariance))) / 2
    assert prior + integral + reconstruction > entropy
