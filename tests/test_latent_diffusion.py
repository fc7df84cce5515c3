"""Latent diffusion: an autoencoder whose exact latents are known, the scale, and the whole of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgm_jax.latents.latent_diffusion import draw_latents, flattened, latent_scale, scaled_space
from dgm_jax.losses import beta_loss, gaussian_elbo, gaussian_log_likelihood
from dgm_jax.numerics import expand_to
from dgm_jax.processes import karras_grid, variance_preserving
from dgm_jax.samplers import sample_ode

SHAPE = (2, 3, 2)
N = 4000
OFFSET, SPREAD = 0.5, 0.5  # of the latents' means
STD = 0.3  # of each posterior


def encode(x):
    """Linear: the mean of z is 2 x, its log_std a constant."""
    return 2.0 * x, jnp.full_like(x, np.log(STD))


def decode(z):
    return z / 2.0


@pytest.fixture(scope="module")
def x():
    return (OFFSET + SPREAD * jax.random.normal(jax.random.key(0), (N, *SHAPE))) / 2.0


def test_drawn_latents_have_unit_variance_and_their_own_noise(x):
    mean, log_std = encode(x)
    scale = latent_scale(mean, log_std)
    assert scale.shape == ()
    # A variance from n independent values has a relative error of sqrt(2 / n).
    np.testing.assert_allclose(scale, (SPREAD**2 + STD**2) ** -0.5, rtol=4 * np.sqrt(0.5 / mean.size))
    z = draw_latents(mean, log_std, jax.random.key(1), scale=scale)
    np.testing.assert_allclose(np.var(z), 1.0, atol=4 * np.sqrt(2 / z.size))
    np.testing.assert_allclose(np.std(z / scale - mean), STD, rtol=4 * np.sqrt(0.5 / z.size))
    # The scale alone, no shift: Rombach et al. leave the mean where it is.
    np.testing.assert_allclose(np.mean(z), OFFSET * scale, atol=4 / np.sqrt(z.size))
    single = draw_latents(mean[1:3], log_std[1:3], jax.random.split(jax.random.key(1), N)[1:3], scale=scale)
    np.testing.assert_allclose(single, z[1:3], rtol=1e-6)  # a key for each example


def test_scale_counts_the_posteriors_variance_of_every_channel(x):
    mean, log_std = encode(x)
    log_std = log_std + jnp.linspace(-1.0, 1.0, 2)[None, None, None, :]
    drawn = np.asarray(mean) + np.exp(log_std) * np.random.default_rng(0).normal(size=mean.shape)
    np.testing.assert_allclose(latent_scale(mean, log_std), 1 / drawn.std(), rtol=4 * np.sqrt(1 / mean.size))


def test_scaled_space_goes_there_and_back(x):
    space = scaled_space(encode, decode, scale=1.7)
    np.testing.assert_allclose(space.encode(x), 1.7 * encode(x)[0], rtol=1e-6)
    np.testing.assert_allclose(space.decode(space.encode(x)), x, rtol=1e-5)


def test_flattened_gives_the_bound_what_it_takes(x):
    x = x[:5]
    encode_flat, decode_flat = flattened(encode, decode, latent_shape=SHAPE)
    key = jax.random.key(2)

    def log_likelihood(x, z):
        return gaussian_log_likelihood(decode_flat(z), jnp.asarray(0.0), x)

    loss = beta_loss(gaussian_elbo(encode_flat, log_likelihood, x, key), beta=0.5)
    mean, std = np.asarray(2.0 * x, np.float64), STD
    kl = ((mean**2 + std**2 - 1) / 2 - np.log(std)).sum((1, 2, 3))
    # The draw's error is x - z/2 = -std noise/2: with the same key in the same vectors.
    noise = np.asarray(jax.vmap(lambda k: jax.random.normal(k, (12,)))(jax.random.split(key, 5)), np.float64)
    nll = ((std * noise / 2) ** 2 / 2 + np.log(2 * np.pi) / 2).sum(1)
    np.testing.assert_allclose(loss, nll + 0.5 * kl, rtol=1e-4)


def test_diffusion_of_latents_draws_the_data(x):
    """With the exact denoiser of the latents' Gaussian, sampled latents are decoded into the data plus what z adds."""
    mean, log_std = encode(x)
    scale, process = latent_scale(mean, log_std), variance_preserving()
    center = OFFSET * scale  # its spread is 1

    def denoise(z_t, t):
        alpha, variance = process.alpha(t), process.variance(t)
        gain = expand_to(alpha / (alpha**2 + variance), z_t)
        return center + gain * (z_t - expand_to(alpha, z_t) * center)

    @jax.jit
    def draw(key):
        z = sample_ode(denoise, process, key, (N, *SHAPE), ts=karras_grid(process, 30, t_min=1e-3)).x
        return scaled_space(encode, decode, scale=scale).decode(z)

    drawn = np.asarray(draw(jax.random.key(3)), np.float64)
    spread = (SPREAD**2 + STD**2) ** 0.5 / 2
    # Noise at t = 1 has mean 0, not alpha(1) center, and 30 steps of Heun leave some thousandths.
    bias = float(process.alpha(jnp.ones(1))[0] * center) + 2e-3
    np.testing.assert_allclose(drawn.mean(), OFFSET / 2, atol=4 * spread / np.sqrt(drawn.size) + bias * spread)
    np.testing.assert_allclose(drawn.std(), spread, rtol=4 * np.sqrt(0.5 / drawn.size) + 5e-3)


def test_float64(x):
    with jax.enable_x64(True):
        mean, log_std = (jnp.asarray(np.asarray(a[:3]), jnp.float64) for a in encode(x))
        scale = latent_scale(mean, log_std)
        assert scale.dtype == jnp.float64
        assert draw_latents(mean, log_std, jax.random.key(0), scale=scale).dtype == jnp.float64


BAD = [
    (lambda m: latent_scale(m, m[:1]), r"encoder's log_std.*\(1, 2, 3, 2\)"),
    (lambda m: latent_scale(m * jnp.nan, m), "finite mean"),
    (lambda m: latent_scale(m, m - 200), "latents that vary"),
    (lambda m: flattened(encode, decode, latent_shape=(2, -2)), r"sizes >= 1.*\(2, -2\)"),
    (lambda m: draw_latents(m, m, jax.random.key(0), scale=0.0), "finite scale > 0.*0.0"),
    (lambda m: draw_latents(m, m, jax.random.key(0), scale=-1.0), "finite scale > 0.*-1.0"),
    (lambda m: draw_latents(m, m, jax.random.key(0), scale=jnp.ones(2)), "one finite scale"),
    (lambda m: scaled_space(encode, decode, scale=float("inf")).decode(m), "finite scale > 0.*inf"),
    (lambda m: flattened(encode, decode, latent_shape=(12,))[0](m), r"latent_shape.*\(4, 2, 3, 2\)"),
]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("call", "message"), BAD)
def test_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((4, *SHAPE)))
