"""The two data sets of family_comparison: points to train on, points held out, and what is scored.

Networks see points [n, dim]: those of the grid as they are, and digits dequantised, integers 0 .. 255 plus uniform
noise, scaled to [-1, 1). Drawn digits are rounded back to integers, what a picture file would hold, before they are
scored; what is outside goes to the ends.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dgm_jax.data import grid, load, source
from dgm_jax.likelihood import bits_per_dim, dequantize
from dgm_jax.typing import Keys, PerExample
from experiments._family_networks import Points

GRID, STD = grid(5), 0.05  # 25 modes of this standard deviation
LEVELS, SIDE = 256, 28


class Data(NamedTuple):
    """A data set.

    batch: (key, n) -> points of the training set, in the networks' units.
    mean, std: of each coordinate of them.
    output: what bounds a generator as the data are bounded.
    held_out: (n) -> points whose log-density is measured, in the networks' units.
    finish: points in the networks' units -> what is scored and shown.
    real: (n, seed) -> n points to be scored as if they were drawn; no two seeds share one.
    reference: n points held out with which all are compared, as they are scored.
    loss: nats in the networks' units -> what the table shows, lower is better: nats, or bits/dim.
    """

    name: str
    batch: Callable[[Keys, int], Points]
    mean: np.ndarray
    std: np.ndarray
    output: Callable[[Array], Array]
    held_out: Callable[[int], Points]
    finish: Callable[[Points], np.ndarray]
    real: Callable[[int, int], np.ndarray]
    reference: np.ndarray
    loss: Callable[[PerExample], PerExample]


def grid_data(points: int) -> Data:
    """25 Gaussians in the plane, of which every batch is drawn anew."""
    held_out = GRID.sample(jax.random.key(2), points)
    return Data(
        name="grid",
        batch=lambda key, n: GRID.sample(key, n),
        mean=np.zeros(2),
        std=np.full(2, np.sqrt(8 + STD**2)),
        output=lambda x: x,
        held_out=lambda n: held_out[:n],
        finish=lambda x: np.asarray(x),
        real=lambda n, seed: np.asarray(GRID.sample(jax.random.key(1000 + seed), n)),
        reference=np.asarray(held_out),
        loss=lambda nats: -nats,
    )


def digits_data(points: int) -> Data:
    """4,500 digits of 28 x 28 pixels to train on, and up to 500 held out."""
    known, test = (load(source("mnist5k", split)) for split in ("train", "test"))
    order = np.random.default_rng(0).permutation(len(known["image"]))
    images = flat_levels(known["image"])
    held_out = flat_levels(test["image"])[:points]
    stored = jnp.asarray(images)

    def batch(key: Keys, n: int) -> Points:
        key_which, key_levels = jax.random.split(key)
        which = jax.random.randint(key_which, (n,), 0, len(images))
        return dequantize(stored[which], key_levels, levels=LEVELS)

    def real(n: int, seed: int) -> np.ndarray:
        return images[order[seed * n : (seed + 1) * n]].reshape(-1, SIDE, SIDE, 1)

    scaled = (images + 0.5) * (2 / LEVELS) - 1
    variance = scaled.var(axis=0) + (2 / LEVELS) ** 2 / 12  # with the noise of the dequantisation
    return Data(
        name="digits",
        batch=batch,
        mean=scaled.mean(axis=0),
        std=np.sqrt(variance),
        output=jnp.tanh,
        held_out=lambda n: dequantize(jnp.asarray(held_out[:n]), jax.random.key(3), levels=LEVELS),
        finish=lambda x: to_levels(np.asarray(x)).reshape(-1, SIDE, SIDE, 1),
        real=real,
        reference=held_out.reshape(-1, SIDE, SIDE, 1),
        loss=lambda nats: bits_per_dim(nats, SIDE**2, levels=LEVELS),
    )


DATA: dict[str, Callable[[int], Data]] = {"grid": grid_data, "digits": digits_data}


def flat_levels(images: Any) -> UInt8[np.ndarray, "n pixels"]:
    """Images as rows of integers."""
    return np.asarray(images, np.uint8).reshape(len(images), -1)


def to_levels(x: Float[np.ndarray, "n pixels"]) -> UInt8[np.ndarray, "n pixels"]:
    """Of each value in [-1, 1) the integer whose dequantised values hold it; what is outside goes to the ends."""
    return np.clip(np.floor((x + 1) * (LEVELS / 2)), 0, LEVELS - 1).astype(np.uint8)
