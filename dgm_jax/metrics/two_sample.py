"""Two-sample tests by permutation: is the law of x that of y?

Under the null hypothesis the pooled points are exchangeable, so that the observed statistic is one of the draws under
random relabellings: p = (1 + draws at least as large)/(1 + draws) is at most a with chance at most a, at any number of
points. The kernel of the pooled sample is computed once, and the statistics of all relabellings a in {0, 1}^N are a
product of matrices, from a'K a, a'K 1 and 1'K 1.

Reference: Gretton et al. 2012, JMLR 13:723, sec. 4; exactness, Phipson & Smyth 2010, arXiv:1603.05766.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dgm_jax.metrics.discrepancies import different, gram, tiled, upper
from dgm_jax.metrics.kernels import Kernel, distance_kernel, gaussian, median_of_pairs
from dgm_jax.metrics.order import kth_smallest
from dgm_jax.metrics.samples import First, Points, Second, Test, check_samples, check_varied, flat
from dgm_jax.numerics import is_count, split, typed_key
from dgm_jax.typing import Keys, Scalar

SIDE = 1024  # of a tile of the kernel matrix
MOST = 1000  # points of which the median distance is taken
Labellings = Float[Array, "points draws"]
Draws = Float[Array, " draws"]


def mmd_test(x: First, y: Second, key: Keys, *, kernel: Kernel | None = None, permutations: int = 999) -> Test:
    """The unbiased estimate of MMD^2, and its p-value under the null hypothesis that x and y have one law.

    Memory is that of the relabellings, (n + m) x permutations.

    Args:
        kernel: `None` is the Gaussian at the median distance between pooled points (1,000 of them, drawn by the key
            whichever set they are of, so that the test stays exact). One made from the data is to treat both alike.
    """
    z, n = pool(x, y, permutations)
    key_points, key_labels = split(key)
    kernel = median_gaussian(z, key_points) if kernel is None else kernel
    return kernel_test(
        kernel, z, relabellings(n, len(z), key_labels, permutations).astype(z.dtype), jnp.zeros(len(z), int)
    )


def energy_test(x: First, y: Second, key: Keys, *, permutations: int = 999) -> Test:
    """The unbiased estimate of the energy distance, and its p-value under the null hypothesis."""
    return mmd_test(x, y, key, kernel=distance_kernel(), permutations=permutations)


def permutation_test(
    statistic: Callable[[Array, Array], Scalar], x: First, y: Second, key: Keys, *, permutations: int
) -> Test:
    """The p-value of any statistic (x, y) -> number that is large where the laws differ, computed for each permutation.

    Args:
        statistic: a function of arrays that JAX can trace; a key that it needs is closed over.
    """
    _, n = pool(x, y, permutations)
    z = jnp.concatenate([x, y])
    shape = jax.eval_shape(statistic, x, y).shape
    if shape != ():
        raise ValueError(f"Expected statistic(x, y) to be one number, as draws are counted; got shape {shape}.")

    def draw(key: Keys) -> Array:
        return jax.random.permutation(key, len(z))

    orders = jax.lax.map(draw, jax.random.split(typed_key(key), permutations))
    orders = jnp.concatenate([jnp.arange(len(z))[None], orders])
    values = jax.lax.map(lambda order: statistic(z[order[:n]], z[order[n:]]), orders)
    # a statistic of the same two sets may differ by the order of its sums
    return counted(values, 4 * jnp.finfo(values.dtype).eps * jnp.abs(values).max())


def pool(x: First, y: Second, permutations: int) -> tuple[Points, int]:
    """The points of both sets and how many are of x, checked."""
    check_samples(x=x, y=y)
    if not is_count(permutations):
        raise ValueError(
            f"Expected a whole number of permutations >= 1, as the p-value is a share of them; got {permutations=}."
        )
    z = jnp.concatenate([flat(x), flat(y)])
    check_varied(**{"x and y pooled": z})
    return z, len(x)


def median_gaussian(z: Points, key: Keys) -> Kernel:
    """The Gaussian kernel at the median distance, of points that are drawn from both sets alike."""
    return gaussian(median_of_pairs(z[jax.random.permutation(key, len(z))[:MOST]] if len(z) > MOST else z))


def relabellings(n: int, points: int, key: Keys, draws: int) -> Bool[Array, "points draws"]:
    """Which points are in the first set: the n first, then uniform subsets of n, a column each.

    A subset is that of the n smallest of random whole numbers of 32 bits. Two of them agree at that place with a chance
    below points/2^32.
    """
    first = jnp.arange(points) < n
    numbers = jax.random.bits(typed_key(key), (points, draws), jnp.uint32)
    smallest = numbers <= kth_smallest(numbers, n)[None]
    return jnp.concatenate([first[:, None], smallest], axis=1)


def kernel_test(kernel: Kernel, z: Points, labellings: Labellings, groups: Int[Array, " points"]) -> Test:
    """The test of the first labelling among all, by the unbiased estimate of MMD^2 of a group and its share.

    The kernel is computed in tiles on and above the diagonal, each once, and multiplied with all labellings.

    Args:
        labellings: 1 where a point is in the first set, 0 where it is in the second; all columns have as many ones
            in each group.
    """
    same = groups[:, None] == groups[None]
    size = same.astype(z.dtype).sum(1)
    n = jnp.where(same, labellings[:, 0][None], 0).sum(1)
    m, share = size - n, size / len(z)
    weights = jnp.stack([share / (n * (n - 1)), share / (m * (m - 1)), share / (n * m)], axis=1)
    typical = gram(kernel, z[:256], z[-256:]).mean()
    (points, side), (columns, _) = tiled(z, SIDE), tiled(labellings, SIDE)
    (weights, _), (group, _) = tiled(weights, SIDE), tiled(groups[:, None], SIDE)

    def tile(pair: Array) -> tuple[Draws, Scalar]:
        i, j = pair
        keep = different(i, j, side, len(z)) & (group[i] == group[j].T)
        k = jnp.where(keep, gram(kernel, points[i], points[j]) - typical, 0)
        of_x, of_y, across = jnp.split(weights[i], 3, axis=1)
        a = columns[i]
        in_x = jnp.matmul(k, columns[j], precision=jax.lax.Precision.HIGHEST)  # sum_j k_ij a_j
        in_y = k.sum(1, keepdims=True) - in_x
        terms = a * (of_x * in_x - across * in_y) + (1 - a) * (of_y * in_y - across * in_x)
        both = jnp.where(i == j, 1, 2).astype(z.dtype)  # a tile off the diagonal stands for its mirror image
        return both * terms.sum(0), both * jnp.abs(k).sum(1).sum()

    values, sizes = jax.lax.map(tile, upper(len(points)))
    # sums of so many terms of that size, in another order
    return counted(values.sum(0), 4 * jnp.finfo(z.dtype).eps * sizes.sum() / len(z) ** 2)


def counted(values: Draws, rounding: Scalar) -> Test:
    """The test whose observed statistic is the first value; draws within `rounding` below it count as equal to it."""
    observed, null = values[0], values[1:]
    at_least = (null >= observed - rounding).astype(values.dtype).sum()
    return Test(observed, (1 + at_least) / (1 + len(null)), null)
