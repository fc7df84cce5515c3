"""The scores of drawn points in family_comparison, each against points held out; real data's are the noise floor.

    mmd, mmd_p                the kernel two-sample statistic with a Gaussian at the median distance, by permutation
    c2st, c2st_p              accuracy of a classifier of 5 nearest neighbours on points that it has not seen
    precision, recall         shares within the other set's neighbourhoods of 3 nearest
    density, coverage         the same idea with neighbourhoods of 5 nearest of real points alone
    frechet                   Frechet's distance between Gaussians of the same moments

Of the grid they are of the points themselves, and modes, high_quality (within 3 std of a mode) and reverse_kl tell
how they lie on the modes. Of digits they are of the features of a classifier, but pixel_mmd, which is of pixels;
classes are those that at least one digit in a hundred is taken for, and class_kl is the KL of their shares, in nats,
from equal ones.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.data import to_unit
from dgm_jax.metrics.classifier import classifier_test, nearest_neighbours
from dgm_jax.metrics.coverage import density_coverage, precision_recall
from dgm_jax.metrics.frechet import frechet_of
from dgm_jax.metrics.modes import modes_captured, reverse_kl
from dgm_jax.metrics.samples import check_samples
from dgm_jax.metrics.two_sample import mmd_test
from experiments._family_data import GRID, STD, Data

Scores = dict[str, float]
SHARE = 0.01  # of digits, from which a class counts as captured


def scorer(data: Data, permutations: int, directory: Path, *, steps: int) -> Callable[[np.ndarray, int], Scores]:
    """(drawn points, seed) -> scores against the reference; the seed is of what is random in the tests.

    Args:
        directory, steps: where the classifier of digits is kept, and how long it is trained where there is none.
    """
    if data.name == "grid":
        real = jnp.asarray(data.reference)
        return lambda drawn, seed: {
            **common(real, jnp.asarray(drawn), permutations, seed),
            **on_modes(jnp.asarray(drawn)),
        }
    from experiments._digit_features import load_features

    found = load_features(directory, steps=steps)

    def features(levels: np.ndarray) -> jax.Array:
        return jnp.asarray(found.features(levels))

    real, uniform = features(data.reference), jnp.full(10, 0.1)

    def score(drawn: np.ndarray, seed: int) -> Scores:
        labels = jnp.asarray(found.probabilities(drawn)).argmax(1)
        pixels = _pixels(
            to_unit(jnp.asarray(data.reference)),
            to_unit(jnp.asarray(drawn)),
            jax.random.key(seed),
            permutations=permutations,
        )
        return {
            **common(real, features(drawn), permutations, seed),
            "pixel_mmd": float(pixels.statistic),
            "pixel_mmd_p": float(pixels.p_value),
            "classes": int((jnp.bincount(labels, length=10) >= SHARE * len(labels)).sum()),
            "class_kl": float(reverse_kl(labels, uniform)),
        }

    return score


def common(real: jax.Array, drawn: jax.Array, permutations: int, seed: int) -> Scores:
    """The scores that points and features share."""
    check_samples(real=real, drawn=drawn)  # the program that follows cannot see their values
    found = _common(real, drawn, jax.random.key(seed), permutations)
    return {name: float(value) for name, value in found.items()}


def on_modes(drawn: jax.Array) -> Scores:
    """How points lie on the modes of the grid."""
    found = modes_captured(drawn, jnp.asarray(GRID.means, drawn.dtype), radius=3 * STD)
    return {name: float(value) for name, value in found._asdict().items()}


@partial(jax.jit, static_argnums=3)
def _common(real: jax.Array, drawn: jax.Array, key: jax.Array, permutations: int) -> dict[str, jax.Array]:
    key_mmd, key_classifier = jax.random.split(key)
    mmd = mmd_test(real, drawn, key_mmd, permutations=permutations)
    c2st = classifier_test(real, drawn, key_classifier, fit=nearest_neighbours(5))
    near, dense = precision_recall(real, drawn, k=3), density_coverage(real, drawn, k=5)
    return {
        "mmd": mmd.statistic,
        "mmd_p": mmd.p_value,
        "c2st": c2st.statistic,
        "c2st_p": c2st.p_value,
        "precision": near.precision,
        "recall": near.recall,
        "density": dense.density,
        "coverage": dense.coverage,
        "frechet": frechet_of(real, drawn),
    }


_pixels = jax.jit(mmd_test, static_argnames="permutations")
