"""Wasserstein distances between sample sets: sliced, at any size, and exact by the best pairing.

    W_p = (inf E |x - y|^p)^(1/p)   over couplings of x and y;   sliced: the p-th root of the mean over directions of
    W_p^p of the projections, which on a line is int_0^1 |F^-1(u) - G^-1(u)|^p du

Both are distances of empirical laws, in the units of the data: above 0 for different samples of one law.

Reference: Bonneel et al. 2015, doi:10.1007/s10851-014-0506-3.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.optimize import linear_sum_assignment

from dgm_jax.metrics.samples import First, Second, check_samples, flat
from dgm_jax.numerics import is_count, known, known_number, typed_key
from dgm_jax.typing import Keys, Scalar

Directions = Float[Array, "directions dim"]


def sliced_wasserstein(x: First, y: Second, key: Keys, *, projections: int, order: float = 2.0) -> Scalar:
    """Along `projections` random directions, uniform on the sphere; sets of any sizes."""
    check_samples(least=1, x=x, y=y)
    if not is_count(projections):
        raise ValueError(f"Expected a whole number of projections >= 1, as W is their mean; got {projections=}.")
    normals = jax.random.normal(typed_key(key), (projections, x[0].size), x.dtype)
    directions = normals / jnp.linalg.norm(normals, axis=1, keepdims=True)
    return wasserstein_along(x, y, directions, order=order)


def wasserstein_along(x: First, y: Second, directions: Directions, *, order: float = 2.0) -> Scalar:
    """The sliced distance along given unit vectors `[directions, dim]` of the flattened events."""
    check_samples(least=1, x=x, y=y)
    _check_order(order)
    x, y = flat(x), flat(y)
    if directions.shape[1:] != x.shape[1:]:
        raise ValueError(f"Expected directions [directions, {x.shape[1]}], as points are; got {directions.shape}.")
    at_x, at_y, width = quantiles(len(x), len(y))
    centre = y.mean(0, keepdims=True)
    x, y, width = x - centre, y - centre, jnp.asarray(width, x.dtype)

    def along(direction: Float[Array, " dim"]) -> Scalar:
        gap = jnp.sort(x @ direction)[at_x] - jnp.sort(y @ direction)[at_y]
        return (jnp.abs(gap) ** order * width).sum()

    return jax.lax.map(along, directions).mean() ** (1 / order)


def quantiles(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pieces of [0, 1] on which the quantile functions of n and m points are constant: ranks in both, and widths."""
    edges = np.union1d(np.arange(n, dtype=np.int64) * m, np.arange(m, dtype=np.int64) * n)  # in units of 1/(n m)
    width = np.diff(np.append(edges, n * m)) / (n * m)
    return (edges // m).astype(np.int32), (edges // n).astype(np.int32), width


def wasserstein(x: First, y: Second, *, order: float = 2.0) -> float:
    """Exact, for sets of one size: by the best pairing, in float64 on the host, in time n^3 and memory n^2.

    Half a second for 2,000 points. Not to be called under `jit`.
    """
    check_samples(least=1, x=x, y=y)
    _check_order(order)
    a, b = known(flat(x)), known(flat(y))
    if a is None or b is None:
        raise ValueError("Expected known samples, as the assignment is solved on the host; got traced ones.")
    if len(a) != len(b):
        raise ValueError(f"Expected sets of one size, as points are paired; got {len(a)} and {len(b)} points.")
    a, b = (part.astype(np.float64) - b.mean(0, dtype=np.float64) for part in (a, b))
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    rows, columns = linear_sum_assignment(np.maximum(squared, 0) ** (order / 2))
    paired = np.linalg.norm(a[rows] - b[columns], axis=1)  # without the rounding of |x|^2
    return float(np.mean(paired**order) ** (1 / order))


def _check_order(order: float) -> None:
    value = known_number(order)
    if value is not None and not 1 <= value < float("inf"):
        raise ValueError(f"Expected a finite order >= 1, as W is no distance below; got {value}.")
