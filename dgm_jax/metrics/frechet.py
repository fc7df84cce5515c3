"""The Frechet distance between Gaussians of the features' moments, and its limit of infinitely many samples.

    d^2 = |m_1 - m_2|^2 + tr(C_1 + C_2 - 2 (C_1^(1/2) C_2 C_1^(1/2))^(1/2))

which is the squared Wasserstein-2 distance of N(m_1, C_1) and N(m_2, C_2). Its trace of a root is the sum of the roots
of a symmetric matrix's eigenvalues, right also for the singular covariances of fewer samples than features. Estimated
moments bias it upwards by about a constant over the number of samples, so that distances of different numbers do not
compare: `frechet_infinity` fits the line in 1/n and returns its value at 0.

References: Heusel et al. 2017, arXiv:1706.08500, eq. 6; Chong & Forsyth 2020, arXiv:1911.07023, sec. 3.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.metrics.moments import init_moments, update_moments
from dgm_jax.metrics.samples import First, Second, check_samples, flat
from dgm_jax.numerics import is_count, known, typed_key
from dgm_jax.typing import Keys, Scalar

Vector = Float[Array, " dim"] | Float[np.ndarray, " dim"]
Matrix = Float[Array, "dim dim"] | Float[np.ndarray, "dim dim"]


class Extrapolation(NamedTuple):
    """A line value(n) = limit + slope/n, and the points that it is fitted to.

    Attributes:
        limit: at infinitely many samples; negative by chance where the laws are near.
        slope: the bias times n.
        sizes: n of each point.
        values: the mean distance of each n.
    """

    limit: float
    slope: float
    sizes: Float[np.ndarray, " sizes"]
    values: Float[np.ndarray, " sizes"]


def frechet_distance(mean_1: Vector, cov_1: Matrix, mean_2: Vector, cov_2: Matrix) -> Any:
    """The squared distance, in squared units of the features; never below 0.

    NumPy arrays, such as `Moments` holds, are computed with in float64 on the host; JAX arrays in their own dtype and
    traceable, differentiable where both covariances are positive definite with distinct eigenvalues.
    """
    arrays = (mean_1, cov_1, mean_2, cov_2)
    _check_moments(*arrays)
    on_host = not any(isinstance(a, jax.Array) for a in arrays)
    xp: Any = np if on_host else jnp
    if on_host:
        mean_1, cov_1, mean_2, cov_2 = (np.asarray(a, np.float64) for a in arrays)
    values, vectors = xp.linalg.eigh(cov_1)
    root = (vectors * xp.sqrt(xp.maximum(values, 0))[None]) @ vectors.T
    inner = root @ cov_2 @ root
    roots = xp.sqrt(xp.maximum(xp.linalg.eigvalsh((inner + inner.T) / 2), 0))
    distance = ((mean_1 - mean_2) ** 2).sum() + xp.trace(cov_1) + xp.trace(cov_2) - 2 * roots.sum()
    return xp.maximum(distance, 0)


def frechet_of(x: First, y: Second) -> Scalar:
    """The squared distance between the moments of two sets of features `[points, *event]`, in their dtype."""
    check_samples(x=x, y=y)
    moments = []
    origin = flat(y)[:1]  # near both, so that data far from 0 keep their digits
    for z in (flat(x) - origin, flat(y) - origin):
        centred = z - z.mean(0, keepdims=True)
        cov = jnp.matmul(centred.T, centred, precision=jax.lax.Precision.HIGHEST) / (len(z) - 1)
        moments += [z.mean(0), cov]
    return frechet_distance(*moments)


def frechet_infinity(real: First, fake: Second, key: Keys, *, sizes: Sequence[int], repeats: int = 10) -> Extrapolation:
    """The distance extrapolated to infinitely many samples of both sets.

    Args:
        sizes: of the random subsets, as many of `real` as of `fake`; two or more different ones. The line holds where
            they are well above the number of features.
        repeats: subsets of each size, over which distances are averaged.
    """
    check_samples(real=real, fake=fake)
    most = min(len(real), len(fake))
    if len(set(sizes)) < 2 or not all(is_count(n, 2) and n <= most for n in sizes):
        raise ValueError(
            f"Expected two or more different sizes from 2 to {most}, as a line in 1/n is fitted to subsets; got "
            f"{tuple(sizes)}."
        )
    if not is_count(repeats):
        raise ValueError(f"Expected a whole number of repeats >= 1, as distances are averaged; got {repeats=}.")
    sets = [np.asarray(x, np.float64).reshape(len(x), -1) for x in (real, fake)]
    key = typed_key(key)

    def distance(n: int, key: Keys) -> float:
        moments = []
        for x, key_x in zip(sets, jax.random.split(key), strict=True):
            chosen = np.asarray(jax.random.permutation(key_x, len(x)))[:n]
            found = update_moments(init_moments(x.shape[1]), x[chosen])
            moments += [found.mean, found.covariance]
        return float(frechet_distance(*moments))

    values = [
        np.mean([distance(n, key_n) for key_n in jax.random.split(jax.random.fold_in(key, i), repeats)])
        for i, n in enumerate(sizes)
    ]
    slope, limit = np.polyfit(1 / np.asarray(sizes, float), values, 1)
    return Extrapolation(float(limit), float(slope), np.asarray(sizes, float), np.asarray(values))


def _check_moments(mean_1: Any, cov_1: Any, mean_2: Any, cov_2: Any) -> None:
    shapes = [np.shape(a) for a in (mean_1, cov_1, mean_2, cov_2)]
    dim = shapes[0][:1]
    if shapes != [dim, dim * 2, dim, dim * 2] or len(dim) != 1:
        raise ValueError(
            f"Expected means [dim] and covariances [dim, dim] of one dim, as they are compared; got {shapes}."
        )
    for name, a in (("mean_1", mean_1), ("cov_1", cov_1), ("mean_2", mean_2), ("cov_2", cov_2)):
        values = known(a)
        if values is not None and not np.isfinite(values).all():
            bad = int((~np.isfinite(values)).sum())
            raise ValueError(f"Expected a finite {name}, as one NaN spoils the distance; got {bad} such values.")
        if values is not None and values.ndim == 2 and not np.allclose(values, values.T, rtol=1e-4, atol=1e-6):
            raise ValueError(f"Expected a symmetric {name}, as covariances are; got one that is not.")
