"""Captions of one digit in a corner, and pictures of them: "the three at the top left", "seven bottom right", ...

A picture is 20 x 20 pixels in [-1, 1]: a digit of 8 x 8 somewhere in one of four squares of 10 x 10. Each digit is
never seen in one of the four corners in training (the held-out pairs); digit and corner are each seen in other pairs,
so that a caption of a held-out pair is understood only from its parts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dgm_jax.data import to_unit

SIDE, CORNER, DIGIT = 20, 10, 8
SHAPE = (SIDE, SIDE, 1)
LEVELS = 17  # of the 8 x 8 digits' pixels
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CORNERS = (("top", "left"), ("top", "right"), ("bottom", "left"), ("bottom", "right"))
TEMPLATES = (
    "the {digit} at the {row} {column}",
    "{digit} {row} {column}",
    "{row} {column} {digit}",
    "the digit {digit} in the {row} {column} corner",
    "in the {row} {column} the {digit}",
)
WORDS = ("at", "the", "digit", "in", "corner", "top", "bottom", "left", "right", *DIGITS)
NUMBERS = {word: number for number, word in enumerate(WORDS, 1)}  # 0 is padding
VOCABULARY = len(WORDS) + 1
LONGEST = 8


def caption(digit: int, corner: int, template: int) -> str:
    """In words."""
    row, column = CORNERS[corner]
    return TEMPLATES[template].format(digit=DIGITS[digit], row=row, column=column)


def tokens_of(text: str) -> np.ndarray:
    """Each word's number, with padding up to `LONGEST`."""
    numbers = [NUMBERS[word] for word in text.split()]
    return np.array(numbers + [0] * (LONGEST - len(numbers)), np.int32)


def caption_table() -> Int[np.ndarray, "digits corners templates tokens"]:
    """The tokens of every caption."""
    return np.array(
        [[[tokens_of(caption(d, c, i)) for i in range(len(TEMPLATES))] for c in range(4)] for d in range(10)]
    )


def held_out_corner(digit: int) -> int:
    """The corner in which training never sees this digit; each corner misses two or three."""
    return digit % 4


def pairs(seen: bool) -> list[tuple[int, int]]:
    """All (digit, corner) that training sees, or all that it does not."""
    return [(d, c) for d in range(10) for c in range(4) if (c != held_out_corner(d)) == seen]


def corners_seen() -> Int[np.ndarray, "digits 3"]:
    """For each digit the corners in which training sees it."""
    return np.array([[c for c in range(4) if c != held_out_corner(d)] for d in range(10)])


def placed(digits: Array, corners: Int[Array, " batch"], key: Array) -> Float[Array, "batch side side 1"]:
    """Digits as stored, [batch, 8, 8, 1], each anywhere in its corner's square."""
    slack = CORNER - DIGIT + 1
    offsets = jax.vmap(lambda k: jax.random.randint(k, (2,), 0, slack))(key)
    at = offsets + CORNER * jnp.stack([corners // 2, corners % 2], 1)

    def one(digit: Array, at: Array) -> Array:
        return jax.lax.dynamic_update_slice(jnp.full(SHAPE, -1.0, digit.dtype), digit, (at[0], at[1], 0))

    return jax.vmap(one)(to_unit(digits, levels=LEVELS), at)


# scores ---------------------------------------------------------------------------------------------------------


def squares(images: np.ndarray) -> np.ndarray:
    """The four corners of each picture, [n, 4, 10, 10], in [0, 1]."""
    grey = (np.clip(images[..., 0], -1, 1) + 1) / 2
    return grey.reshape(-1, 2, CORNER, 2, CORNER).transpose(0, 1, 3, 2, 4).reshape(-1, 4, CORNER, CORNER)


def fit_reader(digits: dict[str, np.ndarray], *, copies: int = 5) -> Any:
    """A support vector machine that reads 10 x 10 squares, fitted on digits placed anywhere in them."""
    from sklearn.svm import SVC

    keys = jax.random.split(jax.random.key(0), copies * len(digits["image"]))
    images = np.tile(digits["image"], (copies, 1, 1, 1))
    placed_ = np.asarray(placed(jnp.asarray(images), jnp.zeros(len(images), int), keys))
    return SVC(C=10.0, gamma=0.05).fit(  # type: ignore[arg-type]
        squares(placed_)[:, 0].reshape(len(images), -1), np.tile(digits["label"].ravel(), copies)
    )


def read(reader: Any, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The corner with most ink, the digit that is read there, and the share of ink that is elsewhere."""
    parts = squares(images)
    ink = parts.sum((2, 3))
    corner = ink.argmax(1)
    digit = reader.predict(parts[np.arange(len(parts)), corner].reshape(len(parts), -1))
    return corner, digit, 1 - ink.max(1) / np.maximum(ink.sum(1), 1e-6)
