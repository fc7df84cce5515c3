"""A small classifier of colour digits: its answers, and the layer before them as features of shape and of colour.

The network of `experiments._digit_features` on 16 x 16 x 3 pixels, which answers two questions at once: the class, by
cross-entropy, and red, green and blue of the colour, by squared error. So its 64 features tell both. It is trained on
4,500 digits in new colours at every visit, moved by up to a pixel, in about half a minute on 2 CPU cores.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from dgm_jax.data import batches, source
from dgm_jax.training import init_state, make_step
from experiments._colour_digits import CLASSES, SHAPE, colour, coloured, drawn_hues
from experiments._digit_features import Classifier, kept_parameters, moved

Images = Float[np.ndarray, "n 16 16 3"]
CLASSIFIER = Classifier(CLASSES + 3, (32, 64))


class ColourFeatures(NamedTuple):
    """Functions of images [n, 16, 16, 3] in [-1, 1]: features, class probabilities and colours in [0, 1]."""

    features: Callable[[Images], Float[np.ndarray, "n 64"]]
    probabilities: Callable[[Images], Float[np.ndarray, "n 10"]]
    colours: Callable[[Images], Float[np.ndarray, "n 3"]]


def load_colour_features(directory: Path, *, steps: int = 2000) -> ColourFeatures:
    """The classifier that is kept in `directory`, trained first where there is none."""
    params = kept_parameters(directory / "colour_classifier.npz", CLASSIFIER.init, SHAPE, lambda: train(steps))
    apply = jax.jit(lambda x: CLASSIFIER.apply(params, x + 1))

    def all_of(images: Images) -> tuple[np.ndarray, np.ndarray]:
        parts = [apply(jnp.asarray(images[i : i + 500], jnp.float32)) for i in range(0, len(images), 500)]
        features, answers = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))
        return features, answers

    def probabilities(images: Images) -> np.ndarray:
        return np.asarray(jax.nn.softmax(jnp.asarray(all_of(images)[1][:, :CLASSES]), axis=1))

    return ColourFeatures(lambda x: all_of(x)[0], probabilities, lambda x: all_of(x)[1][:, CLASSES:])


def train(steps: int, *, batch: int = 100) -> Any:
    """Parameters, averaged over the last steps."""

    def loss(params: Any, digits: dict[str, Array], key: Array) -> Array:
        key_hue, key_move = jax.random.split(key)
        hues = drawn_hues(key_hue, len(digits["image"]))
        found: Any = CLASSIFIER.apply(params, moved(coloured(digits["image"], hues), key_move, 1) + 1)
        answers = found[1]
        labels = digits["label"].reshape(-1)
        classes = optax.softmax_cross_entropy_with_integer_labels(answers[:, :CLASSES], labels)
        return classes.mean() + ((answers[:, CLASSES:] - colour(hues)) ** 2).mean()

    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, max(steps, 1)))
    state = init_state(CLASSIFIER.init(jax.random.key(0), jnp.zeros((1, *SHAPE))), optimizer, jax.random.key(1))
    step = jax.jit(make_step(loss, optimizer, ema_decay=0.98), donate_argnums=0)
    rows = batches(source("mnist5k", "train"), batch, seed=0)
    for _ in range(steps):
        state, _ = step(state, next(rows))
    return state.ema


def right(found: ColourFeatures, images: Images, labels: np.ndarray) -> np.ndarray:
    """Whether each image's most likely class is its label."""
    return found.probabilities(images).argmax(1) == labels
