"""Attributes of a digit that its pixels tell: slant, thickness and width, of brightness [n, height, width].

    slant = -cov(column, row)/var(row)                     columns per row; 0 is upright, above 0 leans to the right
    thickness = 2 area/perimeter                           pixels; a long stroke of width d has 2 d l / 2 l
    width = sqrt(var(column) - cov(column, row)^2/var(row))     pixels, the std about the slanted axis

Rows and columns are weighted by brightness in [0, 1]; area is its sum, perimeter the sum of the length of its gradient.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

Brightness = Float[Array, "n height width"]
ATTRIBUTES = ("slant", "thickness", "width")


def attributes(bright: Brightness) -> Float[Array, "n attributes"]:
    """All of ATTRIBUTES."""
    total = bright.sum((1, 2))
    total = jnp.where(total > 0, total, 1.0)
    height, width = bright.shape[1:]
    rows, columns = jnp.arange(height, dtype=bright.dtype)[:, None], jnp.arange(width, dtype=bright.dtype)[None]

    def mean(values: Array) -> Float[Array, " n"]:
        return (bright * values).sum((1, 2)) / total

    row, column = (values - mean(values)[:, None, None] for values in (rows[None], columns[None]))
    covariance, of_rows, of_columns = mean(row * column), mean(row**2), mean(column**2)
    of_rows = jnp.maximum(of_rows, 1e-6)
    slant = -covariance / of_rows
    spread = jnp.sqrt(jnp.maximum(of_columns - covariance**2 / of_rows, 1e-6))
    return jnp.stack([slant, thickness(bright), spread], 1)


def thickness(bright: Brightness) -> Float[Array, " n"]:
    """The width of the stroke, in pixels."""
    down, across = jnp.gradient(bright, axis=(1, 2))
    return 2 * bright.sum((1, 2)) / jnp.maximum(jnp.hypot(down, across).sum((1, 2)), 1e-6)


def seen_attributes(x: Array) -> Array:
    """Slant, thickness and width of images in [-1, 1]."""
    return attributes(jnp.clip((x[..., 0] + 1) / 2, 0, 1))


def above_median(x: Array) -> Array:
    """Whether each attribute of each image is above its median [attributes, n]."""
    values = seen_attributes(x)
    return (values > jnp.median(values, axis=0)).T
