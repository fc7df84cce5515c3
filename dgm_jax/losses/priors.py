"""Priors p(z) over latents [batch, latent]: the log-density, which bounds ask for, and a sampler, which models ask for.

    log_prior, sample = standard_normal(2)
    log_joint = lambda x, z: log_prior(z) + bernoulli_log_likelihood(decode(z), x)

A learned prior's parameters are closed over. `sample(key, n)` takes one key, or one for each of the n draws.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.losses.draws import Latents, Observed, check_observed, check_pair
from dgm_jax.numerics import example_keys, normal, normal_like, split
from dgm_jax.typing import Keys, PerExample


class Prior(NamedTuple):
    """log_prob: z [batch, latent] -> log p(z), nats. sample: (key, n) -> z [n, latent]."""

    log_prob: Callable[[Latents], PerExample]
    sample: Callable[[Keys, int], Latents]


def standard_normal(latent: int) -> Prior:
    """N(0, I)."""
    if latent < 1:
        raise ValueError(f"Expected latent >= 1, as a code has dimensions; got {latent=}.")

    def log_prob(z: Latents) -> PerExample:
        _check_latent(z, latent)
        return jnp.sum(jax.scipy.stats.norm.logpdf(z), axis=1)

    return Prior(log_prob, lambda key, n: normal(key, (n, latent)))


def mixture(
    means: Float[Array, "components latent"],
    log_stds: Float[Array, "components latent"],
    logits: Float[Array, " components"],
) -> Prior:
    """A mixture of diagonal Gaussians with the weights softmax(logits); all three may be learned."""
    components, latent = means.shape
    if log_stds.shape != means.shape or logits.shape != (components,):
        raise ValueError(
            f"Expected means and log_stds [components, latent] and logits [components], as each component has them; "
            f"got {means.shape}, {log_stds.shape}, {logits.shape}."
        )

    def log_prob(z: Latents) -> PerExample:
        _check_latent(z, latent)
        scaled = (z[:, None] - means[None]) * jnp.exp(-log_stds)[None]
        each = jnp.sum(-(scaled**2) / 2 - log_stds[None], axis=2) - latent / 2 * math.log(2 * math.pi)
        return jax.nn.logsumexp(each + jax.nn.log_softmax(logits)[None], axis=1)

    def sample(key: Keys, n: int) -> Latents:
        key_component, key_noise = split(example_keys(key, n))
        chosen = jax.vmap(lambda k: jax.random.categorical(k, logits))(key_component)
        mean, log_std = means[chosen], log_stds[chosen]
        return mean + jnp.exp(log_std) * normal_like(key_noise, mean)

    return Prior(log_prob, sample)


def vamp(encode: Callable[[Observed], tuple[Latents, Latents]], pseudo_inputs: Observed) -> Prior:
    """The VampPrior: the mean of the posteriors N(mean, diag std^2) = encode(u) of learned pseudo-inputs u.

    The encoder is called once, when the prior is made.

    Reference: Tomczak & Welling 2018, arXiv:1705.07120, eq. 9.
    """
    check_observed(pseudo_inputs)
    mean, log_std = check_pair(encode(pseudo_inputs), pseudo_inputs)
    return mixture(mean, log_std, jnp.zeros(len(mean), mean.dtype))


def _check_latent(z: Latents, latent: int) -> None:
    if z.ndim != 2 or z.shape[1] != latent:
        raise ValueError(f"Expected z of shape [batch, {latent}], the prior's latents; got {z.shape}.")
