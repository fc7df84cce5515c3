"""Posteriors q(z | x): how they are drawn from, and their densities.

A posterior is `draw(x, key) -> (z, log_q)`, with z [batch, latent] reparametrised, so that gradients reach the encoder,
and log_q in nats. Where the density of any z is known too, a second function gives `log_q(x, z)`, which `dreg_bound`
and importance sampling ask for. The functions take networks with their parameters closed over.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dgm_jax.losses.divergences import Entries, cholesky_factor
from dgm_jax.losses.draws import Draw, Latents, LogDensity, Observed, check_observed, check_pair, check_per_example
from dgm_jax.losses.flows import Layer
from dgm_jax.numerics import normal_like
from dgm_jax.typing import Keys, PerExample

DiagonalEncoder = Callable[[Observed], tuple[Latents, Latents]]  # x -> (mean, log_std)
FullEncoder = Callable[[Observed], tuple[Latents, Entries]]  # x -> (mean, entries of `cholesky_factor`)


def diagonal_posterior(encode: DiagonalEncoder) -> Draw:
    """N(mean, diag std^2) with (mean, log_std) = encode(x) (Kingma & Welling 2014, arXiv:1312.6114, eq. 9)."""

    def draw(x: Observed, key: Keys) -> tuple[Latents, PerExample]:
        check_observed(x)
        mean, log_std = check_pair(encode(x), x)
        noise = normal_like(key, mean)
        return mean + jnp.exp(log_std) * noise, _log_normal(noise) - log_std.sum(1)

    return draw


def diagonal_log_density(encode: DiagonalEncoder) -> LogDensity:
    """The log-density of `diagonal_posterior` at any z."""

    def log_q(x: Observed, z: Latents) -> PerExample:
        mean, log_std = check_pair(encode(x), x)
        return _log_normal((z - mean) * jnp.exp(-log_std)) - log_std.sum(1)

    return log_q


def full_covariance_posterior(encode: FullEncoder) -> Draw:
    """N(mean, L L^T) with (mean, entries) = encode(x) and L = `cholesky_factor(entries)`.

    Reference: Kingma et al. 2016, arXiv:1606.04934, appendix A's linear flow of a diagonal Gaussian.
    """

    def draw(x: Observed, key: Keys) -> tuple[Latents, PerExample]:
        check_observed(x)
        mean, entries = _check_full(encode(x), x)
        noise, latent = normal_like(key, mean), mean.shape[-1]
        z = mean + jnp.einsum("bij,bj->bi", cholesky_factor(entries, latent), noise)
        return z, _log_normal(noise) - entries[:, :latent].sum(1)

    return draw


def full_covariance_log_density(encode: FullEncoder) -> LogDensity:
    """The log-density of `full_covariance_posterior` at any z, by a triangular solve."""

    def log_q(x: Observed, z: Latents) -> PerExample:
        mean, entries = _check_full(encode(x), x)
        latent = mean.shape[-1]
        factor = cholesky_factor(entries, latent)
        noise = jax.scipy.linalg.solve_triangular(factor, (z - mean)[..., None], lower=True)[..., 0]
        return _log_normal(noise) - entries[:, :latent].sum(1)

    return log_q


def flow_posterior(base: Draw, layers: Sequence[Layer], *, context: Callable[[Observed], Any] = lambda x: x) -> Draw:
    """The base's draw sent through invertible layers: log q falls by each layer's log |det|.

    Args:
        context: what the layers see of x, computed once (an encoder's features); by default x itself.

    Reference: Rezende & Mohamed 2015, arXiv:1505.05770, eq. 7.
    """

    def draw(x: Observed, key: Keys) -> tuple[Latents, PerExample]:
        (z, log_q), features = base(x, key), context(x)
        for layer in layers:
            z, log_det = layer(z, features)
            log_q = log_q - check_per_example(log_det, x, "layer's log_det")
        return z, log_q

    return draw


def flow_log_density(
    base: LogDensity, inverses: Sequence[Layer], *, context: Callable[[Observed], Any] = lambda x: x
) -> LogDensity:
    """The log-density of `flow_posterior` at any z, where the layers have inverses.

    Args:
        base: the log-density of the base, (x, z).
        inverses: of the layers, in the layers' own order.
    """

    def log_q(x: Observed, z: Latents) -> PerExample:
        features, gained = context(x), jnp.zeros(z.shape[0], z.dtype)
        for inverse in reversed(inverses):
            z, log_det = inverse(z, features)
            gained = gained + check_per_example(log_det, x, "inverse's log_det")
        return base(x, z) + gained

    return log_q


def _check_full(pair: tuple[Latents, Entries], x: Observed) -> tuple[Latents, Entries]:
    """A full encoder's (mean, entries), or `ValueError` unless both have a row for each example."""
    mean, entries = pair
    if mean.ndim != 2 or mean.shape[0] != x.shape[0] or entries.shape[0] != x.shape[0]:
        raise ValueError(
            f"Expected the encoder's mean ({x.shape[0]}, latent) and entries ({x.shape[0]}, latent (latent + 1)/2), as "
            f"each example has both; got {mean.shape} and {entries.shape}."
        )
    return mean, entries


def _log_normal(noise: Latents) -> PerExample:
    return jnp.sum(jax.scipy.stats.norm.logpdf(noise), axis=1)
