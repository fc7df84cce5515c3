"""Digits of the classes 0 .. 9 in turn against digits held out, in the features of a small classifier."""

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.data import load
from dgm_jax.metrics import density_coverage, frechet_of, precision_recall
from experiments._digit_features import DigitFeatures, accuracy
from experiments._latent_models import CLASSES, digits_source


def labels_of(n: int) -> np.ndarray:
    """0 .. 9 in turn."""
    return np.arange(n) % CLASSES


def training_sets(drawn: int, sets: int, seed: int) -> list[np.ndarray]:
    """Sets of training digits, as many of each class: what a perfect model would draw."""
    digits, rng = load(digits_source()), np.random.default_rng(seed)
    of_class = [rng.permutation(np.flatnonzero(digits["label"].reshape(-1) == label)) for label in range(CLASSES)]
    each = drawn // CLASSES
    return [
        digits["image"][np.stack([rows[i * each : (i + 1) * each] for rows in of_class], 1).reshape(-1)]
        for i in range(sets)
    ]


def measures(found: DigitFeatures, real: jax.Array, images: np.ndarray) -> dict[str, float]:
    """Everything of a set of digits of the classes 0 .. 9 in turn."""
    values = _of_features(real, jnp.asarray(found.features(images)))
    right = accuracy(found, images, labels_of(len(images)))
    return {"accuracy": right, **{name: float(value) for name, value in values.items()}}


@jax.jit
def _of_features(real: jax.Array, drawn: jax.Array) -> dict[str, jax.Array]:
    near, dense = precision_recall(real, drawn, k=3), density_coverage(real, drawn, k=5)
    return {**near._asdict(), **dense._asdict(), "frechet": frechet_of(real, drawn)}
