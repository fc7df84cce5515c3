"""A mean log-likelihood with its interval over examples, in nats and in bits per dimension, dequantisation stated.

    interval = mean +- z std/sqrt(n),   z the normal quantile: what another set of n examples would move

A number in bits/dim means nothing without its dequantisation: log-densities of dequantised data are bounds on the
log-probability of the discrete data, "uniform" a looser one than "variational" (Theis et al. 2016, arXiv:1511.01844,
section 3.1; Ho et al. 2019, arXiv:1902.00275).
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from dgm_jax.likelihood.bits import bits_per_dim, discrete_bits_per_dim
from dgm_jax.numerics import known
from dgm_jax.typing import PerExample, Scalar

Dequantization = Literal["none", "uniform", "variational"]


class MeanInterval(NamedTuple):
    """A mean over examples and the ends of its interval."""

    mean: Scalar
    low: Scalar
    high: Scalar


class LikelihoodSummary(NamedTuple):
    """What a table states of a model's likelihood.

    Attributes:
        nats: per example, summed over the event; higher is better.
        bits_per_dim: lower is better; `low` and `high` in its own order.
        examples: how many were averaged.
        dequantization: "none" of log-probabilities of discrete data, else the noise that was added.
        confidence: of the intervals.
    """

    nats: MeanInterval
    bits_per_dim: MeanInterval
    examples: int
    dequantization: Dequantization
    confidence: float


def summarize_likelihood(
    nats: PerExample,
    event_size: int,
    *,
    dequantization: Dequantization,
    levels: int | None = None,
    confidence: float = 0.95,
) -> LikelihoodSummary:
    """Means with intervals of log-likelihoods (or bounds on them) in nats, one per example.

    Args:
        levels: of the data that were dequantised and scaled to [-1, 1]; without dequantisation there is no scale to
            take off, and levels are not asked for.
    """
    if dequantization not in ("none", "uniform", "variational"):
        raise ValueError(
            f'Expected dequantization "none", "uniform" or "variational", as bits mean nothing without it; got '
            f"{dequantization!r}."
        )
    if (levels is None) != (dequantization == "none"):
        raise ValueError(
            f"Expected levels with dequantised data and with no other, as they are their scale; got {levels=}, "
            f"{dequantization=}."
        )
    if nats.ndim != 1 or len(nats) < 2:
        raise ValueError(f"Expected nats [examples] of 2 or more, as they have a spread; got {nats.shape}.")
    if not 0 < confidence < 1:
        raise ValueError(f"Expected 0 < confidence < 1, as it is a probability; got {confidence=}.")
    values = known(nats)
    if values is not None and jnp.isnan(values).any():
        raise ValueError(f"Expected nats without NaN, as their mean would be; got {int(jnp.isnan(values).sum())}.")

    half = jax.scipy.special.ndtri(jnp.asarray((1 + confidence) / 2, nats.dtype)) * nats.std(ddof=1)
    mean, half = nats.mean(), half / jnp.sqrt(jnp.asarray(len(nats), nats.dtype))
    interval = MeanInterval(mean, mean - half, mean + half)
    ends = jnp.stack([mean, interval.high, interval.low])  # more nats are fewer bits
    bits = discrete_bits_per_dim(ends, event_size) if levels is None else bits_per_dim(ends, event_size, levels=levels)
    return LikelihoodSummary(interval, MeanInterval(*bits), len(nats), dequantization, float(confidence))
