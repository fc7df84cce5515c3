"""Colour digits: handwritten digits of 16 x 16 pixels, each in one saturated colour on black, in [-1, 1].

    image = 2 grey colour(hue) - 1       grey in [0, 1]; colour(hue) with brightness and saturation 1

The 28 x 28 digits of "mnist5k" are averaged over squares of 2 x 2 and framed by one black pixel. A hue says nothing of
a class, so that class and colour are two attributes of an image that are known exactly, and independent. An image has
the hue that its place in the set draws: a set is always the same. Training draws new hues at every visit.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from dgm_jax.data import load, source

SHAPE = (16, 16, 3)
CLASSES = 10
NULL = 10  # the label that says nothing


class ColourDigits(NamedTuple):
    """Images [n, 16, 16, 3] in [-1, 1], their classes, and their hues in [0, 1)."""

    images: Float[np.ndarray, "n 16 16 3"]
    labels: np.ndarray
    hues: np.ndarray


def colour_digits(split: str) -> ColourDigits:
    """A split of "mnist5k" in colour: "train" has 4,500 digits, "test" 500, as many of each class."""
    digits = load(source("mnist5k", split))
    labels = digits["label"].reshape(-1).astype(np.int32)
    hues = np.random.default_rng(0).uniform(size=len(labels)).astype(np.float32)
    return ColourDigits(np.asarray(coloured(digits["image"], jnp.asarray(hues))), labels, hues)


def by_class(digits: ColourDigits) -> ColourDigits:
    """The same digits in the order of classes 0 .. 9, 0 .. 9, ..."""
    order = np.argsort(digits.labels, kind="stable").reshape(CLASSES, -1).T.reshape(-1)
    return ColourDigits(*(values[order] for values in digits))


def coloured(image: UInt8[Array, "n 28 28 1"] | UInt8[np.ndarray, "n 28 28 1"], hues: Float[Array, " n"]) -> Array:
    """Digits as stored, [n, 28, 28, 1] of levels 0 to 255, in colours: [n, 16, 16, 3] in [-1, 1]."""
    grey = jnp.asarray(image).astype(jnp.float32).reshape(-1, 14, 2, 14, 2).mean((2, 4)) / 255
    framed = jnp.pad(grey, ((0, 0), (1, 1), (1, 1)))
    return 2 * framed[..., None] * colour(hues)[:, None, None, :] - 1


def colour(hues: Float[Array, " n"]) -> Float[Array, "n 3"]:
    """Red, green and blue of hues in [0, 1): one of the three is 1, one is 0."""
    corners = jnp.asarray([0.0, 2 / 3, 1 / 3], hues.dtype)
    distance = jnp.abs((hues[:, None] + corners + 0.5) % 1 - 0.5)  # on the circle, from red, green and blue
    return jnp.clip(2 - 6 * distance, 0, 1)


def drawn_hues(key: Array, n: int) -> Float[Array, " n"]:
    """Uniform hues, as training and the sets draw them."""
    return jax.random.uniform(key, (n,))


def brightness(images: np.ndarray) -> np.ndarray:
    """The grey [n, 16, 16] in [0, 1] under the colour: the largest of the three channels, whatever the hue."""
    return np.clip((images.max(-1) + 1) / 2, 0, 1)
