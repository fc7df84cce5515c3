"""Intervals by the bootstrap: what a metric would be on other samples of the same two laws.

    [2 v - q(1 - a/2), 2 v - q(a/2)]   of the metric v and the quantiles q of its resampled values

Resampled sets hold points twice, which moves many metrics up, by about as much as finite sets move them up from the
laws' own value: the basic interval takes the first off and with it the second. It is for statistics that are smooth in
the two empirical laws, such as a Frechet distance. An MMD of resampled points counts each point's k(x, x) among the
pairs, and near its null law no bootstrap of points is right: tests are for that.

Reference: Davison & Hinkley 1997, Bootstrap Methods and their Application, sec. 5.2.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from dgm_jax.metrics.samples import First, Second, check_samples
from dgm_jax.numerics import is_count, typed_key
from dgm_jax.typing import Keys, Scalar


class Interval(NamedTuple):
    """The metric of the samples, and the ends of its interval."""

    value: Scalar
    low: Scalar
    high: Scalar


def bootstrap_interval(
    metric: Callable[[Array, Array], Any],
    real: First,
    fake: Second,
    key: Keys,
    *,
    resamples: int,
    confidence: float = 0.95,
) -> Interval:
    """The basic bootstrap interval of metric(real, fake), both resampled with replacement.

    Args:
        metric: (real, fake) -> a number, a function of arrays that JAX can trace.
    """
    check_samples(real=real, fake=fake)
    if not is_count(resamples, 2):
        raise ValueError(f"Expected a whole number of resamples >= 2, as quantiles are taken; got {resamples=}.")
    if not 0 < confidence < 1:
        raise ValueError(f"Expected 0 < confidence < 1, as it is a probability; got {confidence=}.")
    real, fake = jnp.asarray(real), jnp.asarray(fake)
    value = jnp.asarray(metric(real, fake))
    if value.shape != ():
        raise ValueError(f"Expected metric(real, fake) to be one number, as its spread is taken; got {value.shape}.")

    def draw(key: Keys) -> Scalar:
        x, y = (
            x[jax.random.randint(k, (len(x),), 0, len(x))]
            for x, k in zip((real, fake), jax.random.split(key), strict=True)
        )
        return jnp.asarray(metric(x, y))

    drawn = jax.lax.map(draw, jax.random.split(typed_key(key), resamples))
    ends = jnp.quantile(drawn, jnp.asarray([(1 + confidence) / 2, (1 - confidence) / 2], value.dtype))
    return Interval(value, 2 * value - ends[0], 2 * value - ends[1])
