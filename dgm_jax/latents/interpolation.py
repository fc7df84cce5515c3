"""Paths between two latents, and between two examples by way of their latents.

| rule | path | keeps |
|---|---|---|
| `linear` | (1 - s) z_0 + s z_1 | means; its middle is shorter than its ends where these are noise |
| `spherical` | sin((1 - s) a)/sin(a) z_0 + sin(s a)/sin(a) z_1, a the angle between them | the norm, and N(0, I) |

Ends are returned as they are, to the bit. Latents are batches [batch, *event], paths [points, batch, *event].

Reference: Ho et al. 2020, arXiv:2006.11239, section 4.3 (linear, in x_t); Song et al. 2020, arXiv:2010.02502,
eq. 67 (spherical, in x_1); Shoemake 1985, doi:10.1145/325165.325242.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.latents.spaces import LatentSpace
from dgm_jax.numerics import check_data, expand_to, known, sum_dtype, sum_events
from dgm_jax.typing import Data

Shares = Float[Array, " points"] | Float[Array, "points batch"] | Float[np.ndarray, " points"]
Path = Float[Array, "points batch *event"]
Rule = Callable[[Data, Data, Shares], Path]


def linear(z_0: Data, z_1: Data, shares: Shares) -> Path:
    """The straight way from z_0 at share 0 to z_1 at share 1.

    Args:
        shares: [points], or [points, batch] with an example's own; beyond [0, 1] the path is extrapolated.
    """
    s = _per_example(z_0, z_1, shares)
    return _combined(1 - s, s, z_0, z_1)


def spherical(z_0: Data, z_1: Data, shares: Shares) -> Path:
    """The way along the arc between two directions, each example's event as one vector.

    Parallel vectors, and those of length 0, are joined by the straight way. Opposite ones have no arc of their own:
    ValueError where the values are known, the straight way otherwise.

    Args:
        shares: as for `linear`.
    """
    s = _per_example(z_0, z_1, shares)
    wide = sum_dtype(z_0.dtype)  # in bfloat16 10 eps are 23 degrees
    s, a, b = (value.astype(wide) for value in (s, z_0, z_1))
    squared = sum_events(a**2) * sum_events(b**2)
    cosine = jnp.clip(sum_events(a * b) / jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), -1.0, 1.0)
    nearly = 1 - 10 * jnp.finfo(wide).eps
    opposite = known(cosine < -nearly)
    if opposite is not None and opposite.any():
        raise ValueError(
            "Expected latents that are not opposite, as no arc between these is the shortest; got opposite ones at "
            f"{np.flatnonzero(opposite)[:5]}."
        )
    straight = (jnp.abs(cosine) > nearly) | (squared == 0)
    angle = jnp.arccos(jnp.where(straight, 0.0, cosine))[None]
    from_0 = jnp.where(straight[None], 1 - s, jnp.sin((1 - s) * angle) / jnp.sin(angle))
    from_1 = jnp.where(straight[None], s, jnp.sin(s * angle) / jnp.sin(angle))
    return _combined(from_0.astype(z_0.dtype), from_1.astype(z_0.dtype), z_0, z_1)


def interpolate(space: LatentSpace, x_0: Data, x_1: Data, shares: Shares, *, rule: Rule) -> Path:
    """From x_0 to x_1: both encoded, their latents joined by `rule`, and every point of the path decoded at once.

    Its ends are the space's reconstructions of x_0 and x_1. With `spaces.noised_space` it is DDPM's interpolation, with
    `spaces.diffusion_space` DDIM's.
    """
    path = rule(space.encode(x_0), space.encode(x_1), shares)
    return jax.lax.map(space.decode, path)


def _per_example(z_0: Data, z_1: Data, shares: Shares) -> Float[Array, "points batch"]:
    check_data(z_0, "z_0")
    check_data(z_1, "z_1")
    if z_0.shape != z_1.shape:
        raise ValueError(f"Expected z_0 and z_1 of one shape, as they are joined; got {z_0.shape} and {z_1.shape}.")
    shares = jnp.asarray(shares, z_0.dtype)
    if shares.ndim not in (1, 2) or not shares.size or (shares.ndim == 2 and shares.shape[1] != z_0.shape[0]):
        raise ValueError(f"Expected shares [points] or [points, {z_0.shape[0]}], as the batch is; got {shares.shape}.")
    return jnp.broadcast_to(shares.reshape(len(shares), -1), (len(shares), z_0.shape[0]))


def _combined(from_0: Array, from_1: Array, z_0: Data, z_1: Data) -> Path:
    like = jnp.broadcast_to(z_0[None], (len(from_0), *z_0.shape))
    return expand_to(from_0, like) * z_0[None] + expand_to(from_1, like) * z_1[None]
