"""The maximum mean discrepancy and the energy distance, unbiased, from tiles of the kernel matrix.

    MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y),   energy distance = 2 E|x - y| - E|x - x'| - E|y - y'|

estimated by means over different points (U-statistics), which are negative by chance where the laws are near. Adding
a constant to k changes neither: a typical value is taken off before the sums, so that they keep their digits. Only
the upper triangle of the x-x and y-y tiles is computed, and one tile is held at a time.

References: Gretton et al. 2012, JMLR 13:723, eq. 3; blocks, Zaremba et al. 2013, arXiv:1307.1954; energy distance,
Szekely & Rizzo 2013, doi:10.1016/j.jspi.2013.03.018.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dgm_jax.metrics.kernels import Gram, Kernel, distance_kernel
from dgm_jax.metrics.samples import First, Points, Second, check_samples, flat
from dgm_jax.numerics import is_count
from dgm_jax.typing import Scalar

Others = Float[Array, "others dim"]


class BlockEstimate(NamedTuple):
    """The mean over blocks of their unbiased estimates, and its standard error."""

    estimate: Scalar
    standard_error: Scalar


def mmd(x: First, y: Second, *, kernel: Kernel, chunk: int = 1024) -> Scalar:
    """The unbiased estimate of MMD^2, in time of all pairs and memory of `chunk` x `chunk`."""
    check_samples(x=x, y=y)
    check_chunk(chunk)
    x, y = flat(x), flat(y)
    typical = gram(kernel, x[:256], y[:256]).mean()

    def shifted(x: Float[Array, "n dim"], y: Float[Array, "m dim"]) -> Gram:
        return gram(kernel, x, y) - typical

    n, m = len(x), len(y)
    own = own_sum(shifted, x, chunk) / (n * (n - 1)) + own_sum(shifted, y, chunk) / (m * (m - 1))
    return own - 2 * cross_sum(shifted, x, y, chunk) / (n * m)


def energy_distance(x: First, y: Second, *, chunk: int = 1024) -> Scalar:
    """The unbiased estimate of 2 E|x - y| - E|x - x'| - E|y - y'|, in the units of the data."""
    return mmd(x, y, kernel=distance_kernel(), chunk=chunk)


def block_mmd(x: First, y: Second, *, kernel: Kernel, block: int) -> BlockEstimate:
    """MMD^2 as a mean over blocks of `block` points of x and as many of y, in time linear in the number of points.

    The points are to be in random order; those beyond the last whole block are left out. Blocks being independent,
    estimate/standard_error is nearly normal for many of them, under the null hypothesis too.
    """
    check_samples(x=x, y=y)
    blocks = min(len(x), len(y)) // block if is_count(block, 2) else 0
    if blocks < 2:
        raise ValueError(
            f"Expected 2 <= block <= {min(len(x), len(y)) // 2}, as each block needs two points and the standard error "
            f"two blocks; got {block=}."
        )
    parts = [flat(part)[: blocks * block].reshape(blocks, block, -1) for part in (x, y)]
    values = jax.lax.map(lambda pair: mmd(*pair, kernel=kernel, chunk=block), tuple(parts))
    return BlockEstimate(values.mean(), values.std(ddof=1) / blocks**0.5)


def gram(kernel: Kernel, x: Float[Array, "n dim"], y: Float[Array, "m dim"]) -> Gram:
    """k(x, y), or `ValueError` where its shape is not that of the pairs."""
    values = kernel(x, y)
    if values.shape != (len(x), len(y)):
        raise ValueError(
            f"Expected kernel(x [n, dim], y [m, dim]) of shape [n, m], as it is one value per pair; got {values.shape} "
            f"for n, m = {len(x)}, {len(y)}."
        )
    return values


def check_chunk(chunk: int) -> None:
    """Raise `ValueError` unless `chunk` is a whole number from 1."""
    if not is_count(chunk):
        raise ValueError(f"Expected a whole number chunk >= 1, as tiles have sides; got {chunk=}.")


def own_sum(kernel: Kernel, x: Points, chunk: int) -> Scalar:
    """The sum of k over ordered pairs of different points of x, k being symmetric."""
    tiles, size, n = *tiled(x, chunk), len(x)

    def tile(pair: Array) -> Scalar:
        i, j = pair
        k = gram(kernel, tiles[i], tiles[j])
        edge = (i == j) | (j * size + size > n)  # elsewhere all pairs count, and looking costs a quarter of the time
        total = jax.lax.cond(
            edge, lambda k: jnp.where(different(i, j, size, n), k, 0).sum(1).sum(), lambda k: k.sum(1).sum(), k
        )
        return jnp.where(i == j, total, 2 * total)

    return jax.lax.map(tile, upper(len(tiles))).sum()


def cross_sum(kernel: Kernel, x: Points, y: Others, chunk: int) -> Scalar:
    """The sum of k over all pairs of a point of x and one of y."""
    return row_sums(kernel, x, y, chunk).sum()


def row_sums(kernel: Kernel, x: Points, y: Others, chunk: int) -> Float[Array, " points"]:
    """sum_j k(x_i, y_j) of each x_i."""
    (tiles, side), (others, size), m = tiled(x, chunk), tiled(y, chunk), len(y)

    def tile(pair: Array) -> Float[Array, " side"]:
        i, j = pair
        k = gram(kernel, tiles[i], others[j])
        if m % size == 0:
            return k.sum(1)
        return jnp.where((j * size + jnp.arange(size) < m)[None], k, 0).sum(1)

    pairs = np.stack(np.unravel_index(np.arange(len(tiles) * len(others)), (len(tiles), len(others))), axis=1)
    sums = jax.lax.map(tile, jnp.asarray(pairs)).reshape(len(tiles), len(others), side).sum(1)
    return sums.reshape(-1)[: len(x)]


def tiled(x: Array, chunk: int) -> tuple[Array, int]:
    """The rows in as few tiles as `chunk` allows, `[tiles, side, columns]`, and their side.

    All tiles are of one size: the last row is repeated.
    """
    count = -(-len(x) // chunk)
    side = -(-len(x) // count)
    padded = jnp.pad(x, ((0, count * side - len(x)), (0, 0)), mode="edge")
    return padded.reshape(count, side, -1), side


def upper(tiles: int) -> Int[Array, "pairs 2"]:
    """The places of the tiles on and above the diagonal."""
    return jnp.asarray(np.stack(np.triu_indices(tiles), axis=1))


def different(i: Array, j: Array, side: int, points: int) -> Bool[Array, "side side"]:
    """Which pairs of tile (i, j) are of two different points, none of them past the last."""
    rows, columns = i * side + jnp.arange(side), j * side + jnp.arange(side)
    return (rows < points)[:, None] & (columns < points)[None] & (rows[:, None] != columns[None])
