"""The k nearest of n points, exactly, from blocks of rows of the distance matrix.

A block of queries meets all points in one matrix product. The columns of its distances are dealt into groups; the k
smallest values of a row lie in the k groups of the least minima, so that one pass over the row and a search of a few
of its columns find them. (`lax.top_k` sorts the row, at many times the cost on a CPU.) Of the neighbours found,
distances are computed again from differences: the distance of a point to its copy is 0 exactly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgm_jax.metrics.kernels import squared_distances
from dgm_jax.metrics.samples import check_samples, flat
from dgm_jax.numerics import is_count

Rows = Float[Array, "rows dim"]
Squared = Float[Array, "rows points"]
Selected = Int[Array, "rows k"]


class Neighbours(NamedTuple):
    """Distances to the k nearest points, rising, and their indices."""

    distances: Float[Array, "queries k"]
    indices: Int[Array, "queries k"]


def nearest(
    points: Float[Array, " points *event"], queries: Float[Array, " queries *event"], *, k: int, chunk: int = 512
) -> Neighbours:
    """The k points nearest to each query, in the memory of `chunk` x len(points) numbers.

    Which of several points at one distance, up to the rounding of |x|^2, is taken is not specified.

    Raises:
        ValueError: if there are fewer than k points.
    """
    check_samples(least=1, points=points, queries=queries)
    check_neighbours(k, len(points), "points")
    return _nearest(flat(points), flat(queries), k, chunk, lambda squared, rows: squared)


def nearest_other(points: Float[Array, " points *event"], *, k: int, chunk: int = 512) -> Neighbours:
    """The k points nearest to each point but itself; copies of it are others.

    Raises:
        ValueError: if there are fewer than k other points.
    """
    check_samples(points=points)
    check_neighbours(k, len(points) - 1, "other points")
    columns = jnp.arange(len(points))

    def without_self(squared: Squared, rows: Int[Array, " rows"]) -> Squared:
        return jnp.where(rows[:, None] == columns[None], jnp.inf, squared)

    return _nearest(flat(points), flat(points), k, chunk, without_self)


def check_neighbours(k: int, most: int, name: str = "points") -> None:
    """Raise `ValueError` unless `k` is a whole number from 1 to `most`."""
    if not is_count(k) or k > most:
        raise ValueError(f"Expected 1 <= k <= {most}, as k neighbours are taken from {most} {name}; got {k=}.")


def by_rows(function: Callable[[Rows, Int[Array, " rows"]], Any], x: Float[Array, "all dim"], chunk: int) -> Any:
    """function(rows, their indices) -> arrays [rows, ...], for all rows of x, `chunk` at a time."""
    if not is_count(chunk):
        raise ValueError(f"Expected a whole number chunk >= 1, as rows are taken so many at a time; got {chunk=}.")
    blocks = -(-len(x) // chunk)
    side = -(-len(x) // blocks)
    padded = jnp.pad(x, ((0, blocks * side - len(x)), (0, 0)), mode="edge").reshape(blocks, side, -1)
    index = jnp.arange(blocks * side).reshape(blocks, side)
    out = jax.lax.map(lambda block: function(*block), (padded, index))
    return jax.tree.map(lambda values: values.reshape(blocks * side, *values.shape[2:])[: len(x)], out)


def smallest(values: Squared, k: int) -> Selected:
    """Columns of the k smallest values of each row, rising."""
    n = values.shape[1]
    width = max(1, round((n / k) ** 0.5))  # of a group, for the least work in all
    groups = -(-n // width)
    if groups <= k:
        return _by_turns(values, k)
    dealt = jnp.pad(values, ((0, 0), (0, groups * width - n)), constant_values=jnp.inf).reshape(-1, width, groups)
    chosen = _by_turns(dealt.min(1), k)
    columns = jnp.arange(width)[None, :, None] * groups + chosen[:, None]
    few = jnp.take_along_axis(dealt, chosen[:, None], axis=2)
    place = _by_turns(few.reshape(len(values), -1), k)
    return jnp.minimum(jnp.take_along_axis(columns.reshape(len(values), -1), place, axis=1), n - 1)


def _by_turns(values: Squared, k: int) -> Selected:
    def turn(values: Array, _: None) -> tuple[Array, Array]:
        column = values.argmin(1)
        return values.at[jnp.arange(len(values)), column].set(jnp.inf), column

    return jax.lax.scan(turn, values, length=k)[1].T


def _nearest(
    points: Float[Array, "points dim"], queries: Float[Array, "queries dim"], k: int, chunk: int, mask: Callable
) -> Neighbours:
    def block(rows: Rows, index: Int[Array, " rows"]) -> Neighbours:
        found = smallest(mask(squared_distances(rows, points), index), k)
        exact = jnp.sqrt(((rows[:, None] - points[found]) ** 2).sum(2))
        order = jnp.argsort(exact, axis=1)
        return Neighbours(*(jnp.take_along_axis(part, order, axis=1) for part in (exact, found)))

    return by_rows(block, queries, chunk)
