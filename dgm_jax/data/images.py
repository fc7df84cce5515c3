"""Images as integers 0 .. levels - 1 and as reals in [-1, 1], the range of every network here.

    real = (2 integer - (levels - 1)) / (levels - 1)        integer = round((real + 1) (levels - 1) / 2)

The numerator is exact in float32, so that the ends are exactly -1 and 1, and the second undoes the first exactly.
Photographs have 256 levels, scikit-learn's digits 17.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Shaped, UInt8

from dgm_jax.numerics import known

Image = Shaped[Array, "..."] | Shaped[np.ndarray, "..."]


def to_unit(image: Image, *, levels: int = 256) -> Float32[Array, "..."]:
    """Integers 0 .. levels - 1 in uint8 as float32 in [-1, 1]; under `jit` too, so that uint8 is what travels."""
    _check_levels(levels)
    if image.dtype != np.uint8:
        raise ValueError(f"Expected an image in uint8, as floats may be in [-1, 1] already; got {image.dtype}.")
    values = known(image)
    if values is not None and values.size and values.max() >= levels:
        raise ValueError(f"Expected values below {levels=}, as 0 .. levels - 1 fill [-1, 1]; got {values.max()}.")
    return (2 * jnp.asarray(image).astype(jnp.float32) - (levels - 1)) / (levels - 1)


def from_unit(image: Image, *, levels: int = 256) -> UInt8[Array, "..."]:
    """Reals as the nearest of 0 .. levels - 1 in uint8; reals outside [-1, 1] become its nearer end."""
    _check_levels(levels)
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"Expected a floating-point image in [-1, 1], as to_unit gives; got {image.dtype}.")
    values = known(image)
    if values is not None and np.isnan(values).any():
        raise ValueError(f"Expected no NaN, as no integer stands for it; got {int(np.isnan(values).sum())} of them.")
    levelled = jnp.round((jnp.asarray(image) + 1) * ((levels - 1) / 2))
    return jnp.clip(levelled, 0, levels - 1).astype(jnp.uint8)


def _check_levels(levels: int) -> None:
    if not 2 <= levels <= 256:
        raise ValueError(f"Expected 2 <= levels <= 256, as uint8 holds; got {levels=}.")
