"""Starts, proposals and exact pairs for estimates of log p(x) under probabilistic PCA (`exact_latent.DIAGONAL`)."""

import jax
import jax.numpy as jnp
import numpy as np
from exact_latent import DIAGONAL as MODEL

log_joint = MODEL.log_joint
log_prob = MODEL.log_prob


def simulate(rng, n):
    """Pairs of z from the prior and x from the model: z is then an exact sample of p(z | x)."""
    z = rng.standard_normal((n, MODEL.latent))
    return z, z @ MODEL.weight.T + MODEL.offset + MODEL.std * rng.standard_normal((n, len(MODEL.offset)))


def posterior_samples(rng, x):
    """One exact sample of p(z | x) for each row of x."""
    return MODEL.mean(x) + rng.multivariate_normal(np.zeros(MODEL.latent), MODEL.covariance, len(x))


def log_prior(x, z):
    return jax.scipy.stats.norm.logpdf(z).sum(1)


def draw_prior(x, key):
    z = _noise(x, key)
    return z, log_prior(x, z)


def posterior_draw(widen=1.0, shift=0.0):
    """The exact posterior as a proposal, or one with `widen` times its spread and its mean moved by `shift`."""
    factor = widen * np.linalg.cholesky(MODEL.covariance)
    constant = -np.log(np.diag(factor)).sum() - MODEL.latent / 2 * np.log(2 * np.pi)

    def draw(x, key):
        noise = _noise(x, key)
        z = MODEL.encode_mean(x) + shift + noise @ jnp.asarray(factor.T, x.dtype)
        return z, constant - jnp.sum(noise**2, axis=1) / 2

    return draw


def _noise(x, key):
    keys = jax.random.split(key, len(x)) if key.ndim == 0 else key
    return jax.vmap(lambda k: jax.random.normal(k, (MODEL.latent,), x.dtype))(keys)
