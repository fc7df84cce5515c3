"""Does the generator copy its training set? Distances to the nearest training point, against those of held-out data.

    statistic   P(d(generated) < d(held out)) + P(equal)/2,   d the distance to the nearest training point

Held-out points and generated points of the data's law are at the same distances from the training set, so that this
is 1/2; copies are nearer. It is Mann & Whitney's U over the number of pairs, with the normal law of U, corrected for
ties and continuity. An underfitted generator is farther and has a statistic below 1/2, which may hide copies.

Reference: Meehan et al. 2020, arXiv:2004.05675, sec. 3 (one cell, the sign turned).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.metrics.neighbours import nearest
from dgm_jax.metrics.samples import Test, check_samples, check_varied


def memorization_test(
    train: Float[Array, " train *event"],
    held_out: Float[Array, " held_out *event"],
    generated: Float[Array, " generated *event"],
    *,
    chunk: int = 512,
) -> Test:
    """Small p-values where generated points are nearer to the training set than held-out points are.

    The held-out points must be of the law of the training points, and independent of them: duplicates across the two
    hide copies. From 8 points of each on, as the normal law is that of many.

    Returns:
        `Test` whose null is the standard deviation of the statistic under the null hypothesis, about 1/2.
    """
    check_samples(least=1, train=train, held_out=held_out)
    check_samples(least=8, held_out=held_out, generated=generated)
    check_varied(held_out=held_out)
    held, made = (nearest(train, x, k=1, chunk=chunk).distances[:, 0] for x in (held_out, generated))
    return smaller_test(made, held)


def smaller_test(a: Float[Array, " n"], b: Float[Array, " m"]) -> Test:
    """Mann and Whitney's test of whether a tends to be smaller than b; its statistic is P(a < b) + P(a = b)/2."""
    n, m = len(a), len(b)
    pooled, ordered = jnp.sort(jnp.concatenate([a, b])), jnp.sort(a)
    below, upto = (jnp.searchsorted(ordered, b, side=side) for side in ("left", "right"))
    share = ((below + upto).astype(a.dtype) / (2 * n)).mean()
    low, high = (jnp.searchsorted(pooled, pooled, side=side) for side in ("left", "right"))
    # sum of t^3 - t over groups of t equal values, over N(N - 1)
    ties = (((high - low).astype(a.dtype) ** 2 - 1) / ((n + m) * (n + m - 1))).sum()
    std = jnp.sqrt(jnp.maximum((n + m + 1 - ties) / (12 * n * m), 0))
    z = (share - 0.5 - 0.5 / (n * m)) / jnp.where(std > 0, std, 1)
    return Test(share, jnp.where(std > 0, jax.scipy.stats.norm.sf(z), 1), std)
