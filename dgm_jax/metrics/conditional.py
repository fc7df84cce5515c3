"""A two-sample test for labelled data: is p(x | label) that of p(y | label), for every label?

    statistic = sum_c (share of label c in the pooled sample) MMD^2(x | c, y | c),   each unbiased

Points are permuted within their label. Hence a generator that is asked for other shares of the labels than the data's
is not blamed for them, while one that ignores its label is found out, even where its marginal law is right.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from dgm_jax.metrics.kernels import Kernel
from dgm_jax.metrics.samples import First, Second, Test
from dgm_jax.metrics.two_sample import kernel_test, median_gaussian, pool
from dgm_jax.numerics import known, split
from dgm_jax.typing import Keys

Labels = Array | np.ndarray


def conditional_mmd_test(
    x: First,
    x_labels: Int[Labels, " first"],
    y: Second,
    y_labels: Int[Labels, " second"],
    key: Keys,
    *,
    kernel: Kernel | None = None,
    permutations: int = 999,
) -> Test:
    """The weighted sum of MMD^2 over labels, and its p-value where each label's points have one law in x and y.

    Args:
        x_labels: whole numbers, at least two points of each in x and in y.
        kernel: as in `mmd_test`.
    """
    z, n = pool(x, y, permutations)
    _check_labels(x_labels, x, "x")
    _check_labels(y_labels, y, "y")
    _check_counts(x_labels, y_labels)
    labels = jnp.concatenate([jnp.asarray(x_labels), jnp.asarray(y_labels)])
    key_points, key_labels = split(key)
    kernel = median_gaussian(z, key_points) if kernel is None else kernel
    labellings = relabellings_within(n, labels, key_labels, permutations)
    return kernel_test(kernel, z, labellings.astype(z.dtype), labels)


def relabellings_within(n: int, labels: Int[Array, " points"], key: Keys, draws: int) -> Bool[Array, "points draws"]:
    """Which points are in the first set: the n first, then as many of each label at random, a column each."""
    points = len(labels)
    first = jnp.arange(points) < n
    by_label = first[jnp.argsort(labels)]

    def draw(key: Keys) -> Bool[Array, " points"]:
        shuffled = jax.random.permutation(key, points)
        order = shuffled[jnp.argsort(labels[shuffled])]  # stable, so in random order within each label
        return jnp.zeros(points, bool).at[order].set(by_label)

    return jnp.concatenate([first[None], jax.vmap(draw)(jax.random.split(key, draws))]).T


def _check_labels(labels: Labels, samples: First, name: str) -> None:
    if not isinstance(labels, jax.Array | np.ndarray) or not jnp.issubdtype(labels.dtype, jnp.integer):
        got = labels.dtype if isinstance(labels, jax.Array | np.ndarray) else type(labels)
        raise ValueError(f"Expected {name}_labels to be whole numbers, as points are grouped by them; got {got}.")
    if labels.shape != np.shape(samples)[:1]:
        raise ValueError(
            f"Expected {name}_labels of shape {np.shape(samples)[:1]}, one for each point of {name}; got "
            f"{labels.shape}."
        )


def _check_counts(x_labels: Labels, y_labels: Labels) -> None:
    of_x, of_y = known(x_labels), known(y_labels)
    if of_x is None or of_y is None:
        return
    for label in np.union1d(of_x, of_y):
        counts = int((of_x == label).sum()), int((of_y == label).sum())
        if min(counts) < 2:
            raise ValueError(
                f"Expected at least 2 points of each label in x and in y, as fewer have no spread; got {counts[0]} and "
                f"{counts[1]} of label {label}."
            )
