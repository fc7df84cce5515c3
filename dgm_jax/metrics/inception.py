"""The Inception score, of the answers of any classifier: exp of the mutual information of sample and class.

    score = exp(E_x KL(p(y | x) || p(y))),   p(y) = E_x p(y | x);   from 1 to the number of classes

It never looks at the data, so that a generator of one perfect sample for each class has the highest score.

Reference: Salimans et al. 2016, arXiv:1606.03498, sec. 4; its limits, Barratt & Sharma 2018, arXiv:1801.01973.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.metrics.samples import check_samples
from dgm_jax.numerics import is_count, known
from dgm_jax.typing import Scalar


class InceptionScore(NamedTuple):
    """Mean and standard deviation (over n, as published) of the score over splits, and its values `[splits]`."""

    mean: Scalar
    std: Scalar
    values: Float[Array, " splits"]


def inception_score(
    probabilities: Float[Array, "samples classes"] | Float[np.ndarray, "samples classes"], *, splits: int = 10
) -> InceptionScore:
    """The score of each of `splits` equal parts, in order; samples beyond the last whole part are left out.

    Small parts bias the score downwards, towards 1: it compares at equal numbers only.

    Args:
        probabilities: of the classes, each row summing to one.
    """
    check_samples(least=1, probabilities=probabilities)
    if probabilities.ndim != 2:
        raise ValueError(f"Expected probabilities [samples, classes], as rows are laws; got {probabilities.shape}.")
    if not is_count(splits) or splits > len(probabilities):
        raise ValueError(f"Expected 1 <= splits <= {len(probabilities)}, as each part holds a sample; got {splits=}.")
    values = known(probabilities)
    if values is not None and ((values < 0).any() or not np.allclose(values.sum(1), 1, atol=1e-3)):
        raise ValueError(
            f"Expected probabilities >= 0 with rows that sum to 1, as they are laws; got a least of {values.min()} and "
            f"sums from {values.sum(1).min()} to {values.sum(1).max()}."
        )
    p = jnp.asarray(probabilities)
    p = p[: len(p) // splits * splits].reshape(splits, -1, p.shape[1])
    marginal = p.mean(1, keepdims=True)
    terms = jax.scipy.special.xlogy(p, p) - jax.scipy.special.xlogy(p, jnp.broadcast_to(marginal, p.shape))
    scores = jnp.exp(terms.sum(2).mean(1))
    return InceptionScore(scores.mean(), scores.std(), scores)
