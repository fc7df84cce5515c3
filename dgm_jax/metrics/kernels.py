"""Kernels k(x, y) between sets of points, for the maximum mean discrepancy.

A kernel is any function (x [n, dim], y [m, dim]) -> [n, m]; those here are symmetric. Those of distances are
computed as |x|^2 + |y|^2 - 2 x.y after subtracting a common centre, so that data far from 0 lose no digits; the
distance of a point to itself is 0 up to the root of rounding, which U-statistics leave out. Bandwidths are in the
units of the data.

Reference: Gretton et al. 2012, JMLR 13:723; the rational quadratic, Rasmussen & Williams 2006, eq. 4.19.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.metrics.order import kth_smallest_distance
from dgm_jax.metrics.samples import First, Points, Second, check_samples, flat
from dgm_jax.numerics import is_count, known_number
from dgm_jax.typing import Scalar

Gram = Float[Array, "n m"]
Kernel = Callable[[Float[Array, "n dim"], Float[Array, "m dim"]], Gram]
Positive = float | Scalar


def squared_distances(x: Float[Array, "n dim"], y: Float[Array, "m dim"]) -> Gram:
    """|x_i - y_j|^2, by one matrix product of centred points; never below 0."""
    centre = y.mean(0, keepdims=True)
    x, y = x - centre, y - centre
    product = jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST)
    return jnp.maximum((x**2).sum(1)[:, None] + (y**2).sum(1)[None] - 2 * product, 0)


def distances(x: Float[Array, "n dim"], y: Float[Array, "m dim"]) -> Gram:
    """|x_i - y_j|."""
    return jnp.sqrt(squared_distances(x, y))


def gaussian(*bandwidths: Positive) -> Kernel:
    """The mean over bandwidths b of exp(-|x - y|^2/(2 b^2))."""
    _check_positive(bandwidths, "bandwidths")
    return lambda x, y: _mean_over(lambda squared, b: jnp.exp(squared * (-0.5 / b**2)), bandwidths, x, y)


def laplace(*bandwidths: Positive) -> Kernel:
    """The mean over bandwidths b of exp(-|x - y|/b), with the Euclidean norm."""
    _check_positive(bandwidths, "bandwidths")
    return lambda x, y: _mean_over(lambda squared, b: jnp.exp(-jnp.sqrt(squared) / b), bandwidths, x, y)


def rational_quadratic(*scales: Positive) -> Kernel:
    """The mean over scales a of (1 + |x - y|^2/(2 a))^-a: heavy tails (Binkowski et al. 2018, arXiv:1801.01401)."""
    _check_positive(scales, "scales")
    return lambda x, y: _mean_over(lambda squared, a: jnp.exp(-a * jnp.log1p(squared / (2 * a))), scales, x, y)


def polynomial(degree: int = 3) -> Kernel:
    """(x.y/dim + 1)^degree: that of the kernel Inception distance (arXiv:1801.01401, sec. 4.1). Not shift-invariant."""
    if not is_count(degree):
        raise ValueError(f"Expected a whole degree >= 1, as the kernel compares moments up to it; got {degree=}.")

    def kernel(x: Float[Array, "n dim"], y: Float[Array, "m dim"]) -> Gram:
        return (jnp.matmul(x, y.T, precision=jax.lax.Precision.HIGHEST) / x.shape[1] + 1) ** degree

    return kernel


def distance_kernel() -> Kernel:
    """-|x - y|, whose MMD^2 is the energy distance (Sejdinovic et al. 2013, arXiv:1207.6076)."""
    return lambda x, y: -distances(x, y)


def median_distance(x: First, y: Second, *, most: int = 1000) -> Scalar:
    """The median distance between different points of x and y pooled: the median heuristic for a bandwidth.

    Where at least half of the pairs coincide the median is 0, which is no bandwidth, and the mean distance is taken.

    Args:
        most: points that it is computed from, at equal strides, the same of x and y where they are equally many.
    """
    check_samples(least=1, x=x, y=y)
    if not is_count(most, 2):
        raise ValueError(f"Expected a whole number most >= 2, as points have distances to others; got {most=}.")
    pooled = jnp.concatenate([flat(x), flat(y)])
    stride = -(-len(pooled) // most)
    if stride > 1:
        pooled = jnp.concatenate([flat(x)[::stride], flat(y)[::stride]])
    return median_of_pairs(pooled)


def median_of_pairs(points: Points) -> Scalar:
    """The median distance between different points, or their mean distance where that is 0."""
    n = len(points)
    squared = squared_distances(points, points)
    # each pair comes twice, which moves no median; a point's distance to itself is put last
    between = jnp.where(jnp.eye(n, dtype=bool), jnp.inf, squared).reshape(-1)
    half = n * (n - 1) // 2
    median = sum(jnp.sqrt(kth_smallest_distance(between, k)) for k in (half, half + 1)) / 2
    # a coincidence is 0 up to rounding
    least = jnp.sqrt(4 * jnp.finfo(points.dtype).eps * squared.max())
    return jnp.where(median > least, median, jnp.sqrt(squared).sum(1).sum() / (2 * half))


def _mean_over(
    term: Callable[[Gram, Scalar], Gram],
    parameters: tuple[Positive, ...],
    x: Float[Array, "n dim"],
    y: Float[Array, "m dim"],
) -> Gram:
    squared = squared_distances(x, y)
    terms = [term(squared, jnp.asarray(parameter, squared.dtype)) for parameter in parameters]
    return sum(terms[1:], terms[0]) / len(terms)


def _check_positive(parameters: tuple[Positive, ...], name: str) -> None:
    if not parameters:
        raise ValueError(f"Expected one or more {name}, as the kernel is their mean; got none.")
    for parameter in parameters:
        value = known_number(parameter)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"Expected finite {name} > 0, as distances are divided by them; got {value}.")
