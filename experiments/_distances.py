"""Distances between sample sets, in the units of the data: sliced along even directions, and the energy distance."""

import jax
import numpy as np
from jaxtyping import Float

from dgm_jax.metrics import wasserstein_along

Points = Float[np.ndarray, "n dim"]
Directions = Float[np.ndarray, "directions dim"]


def fixed_directions(dim: int, n: int) -> Directions:
    """The same `n` unit vectors each time: at equal angles in the plane, else from random orthonormal bases."""
    if dim == 2:
        angles = np.pi * (np.arange(n) + 0.5) / n
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    rng = np.random.default_rng(0)
    bases = [np.linalg.qr(rng.standard_normal((dim, dim)))[0] for _ in range(-(-n // dim))]
    return np.concatenate(bases)[:n]


def sliced_wasserstein_2(x: Points, y: Points, directions: Directions) -> float:
    """The root of the mean over directions of the squared Wasserstein-2 distance along each."""
    return float(_along(x, y, directions.astype(x.dtype)))


_along = jax.jit(wasserstein_along)  # once for all sets of a size


def energy_distance(x: Points, y: Points) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| of the two empirical laws: 0 for equal sets alone, and never negative.

    Sets of n and m points of one law have E|x - x'| (1/n + 1/m) on average; `_digits.energy_distance` takes this bias
    off, and is negative by chance. Reference: Szekely and Rizzo 2013, doi:10.1016/j.jspi.2013.03.018.
    """
    from scipy.spatial.distance import cdist

    return float(2 * cdist(x, y).mean() - cdist(x, x).mean() - cdist(y, y).mean())


def summary(values: list[float]) -> dict[str, float]:
    """Mean and 95 % point of a distance between sets of one law: its noise floor."""
    return {"mean": float(np.mean(values)), "high": float(np.quantile(values, 0.95))}
