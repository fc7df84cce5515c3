"""What metrics refuse: one clear error (rule, reason, value) before any compute is spent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgm_jax.metrics import (
    block_mmd,
    bootstrap_interval,
    classifier_test,
    conditional_mmd_test,
    density_coverage,
    energy_distance,
    energy_test,
    frechet_infinity,
    frechet_of,
    kernel_distance,
    kernels,
    logistic,
    memorization_test,
    mlp,
    mmd,
    mmd_test,
    mode_shares_test,
    modes_captured,
    nearest,
    nearest_neighbours,
    nearest_other,
    permutation_test,
    precision_recall,
    relative_mmd_test,
    reverse_kl,
    sliced_wasserstein,
    wasserstein,
    wasserstein_along,
    wild_energy_test,
    wild_mmd_test,
)

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)
LABELS = jnp.array([0, 0, 0, 1, 1, 1, 1, 0])


def never(x, y):
    raise AssertionError("the kernel was computed before the input was checked")


# two-sample tests ------------------------------------------------------------------------------------------------

TWO_SETS = {
    "mmd": lambda x, y: mmd(x, y, kernel=never),
    "energy_distance": lambda x, y: energy_distance(x, y),
    "block_mmd": lambda x, y: block_mmd(x, y, kernel=never, block=2),
    "mmd_test": lambda x, y: mmd_test(x, y, KEY, kernel=never),
    "energy_test": lambda x, y: energy_test(x, y, KEY),
    "permutation_test": lambda x, y: permutation_test(never, x, y, KEY, permutations=9),
    "wild_mmd_test": lambda x, y: wild_mmd_test(x, y, KEY, kernel=never),
    "wild_energy_test": lambda x, y: wild_energy_test(x, y, KEY),
    "relative_mmd_test": lambda x, y: relative_mmd_test(x, y, y, kernel=never),
    "conditional_mmd_test": lambda x, y: conditional_mmd_test(x, LABELS[: len(x)], y, LABELS, KEY, kernel=never),
}
TWO_SETS |= {
    "wasserstein": lambda x, y: wasserstein(x, y),
    "sliced_wasserstein": lambda x, y: sliced_wasserstein(x, y, KEY, projections=3),
    "precision_recall": lambda x, y: precision_recall(x, y, k=3),
    "density_coverage": lambda x, y: density_coverage(x, y, k=3),
    "classifier_test": lambda x, y: classifier_test(x, y, KEY, fit=never),
    "memorization_test": lambda x, y: memorization_test(x, y, y),
    "nearest": lambda x, y: nearest(x, y, k=1),
    "frechet_of": lambda x, y: frechet_of(x, y),
    "frechet_infinity": lambda x, y: frechet_infinity(x, y, KEY, sizes=(2, 4)),
    "kernel_distance": lambda x, y: kernel_distance(x, y, KEY, subset_size=2),
    "bootstrap_interval": lambda x, y: bootstrap_interval(never, x, y, KEY, resamples=9),
}
# one point has a distance, and may be learnt by heart
ONE_POINT_IS_ENOUGH = {"wasserstein", "sliced_wasserstein", "nearest", "memorization_test"}
BAD_SETS = {
    "other events": (X[:, :2], r"share their event shape.*\(2,\).*\(3,\)"),
    "an image against a vector": (X[..., None], r"event shape.*\(3, 1\).*\(3,\)"),
    "NaN": (X.at[2, 1].set(jnp.nan), "finite.*1 NaN and 0 inf in 1 of 8 points of .*at index 2"),
    "infinite": (X.at[5].set(jnp.inf), "finite.*0 NaN and 3 inf in 1 of 8 points of .*at index 5"),
    "one point": (X[:1], r"at least \d points in .*\(1, 3\)"),
    "none": (X[:0], r"at least \d points in .*\(0, 3\)"),
    "integers": ((X * 50).astype(jnp.uint8), "floating point.*to_unit.*uint8"),
}


@pytest.mark.parametrize(
    ("name", "case"),
    [(n, c) for n in TWO_SETS for c in BAD_SETS if c != "one point" or n not in ONE_POINT_IS_ENOUGH],
)
def test_sets_that_cannot_be_compared(name, case, untyped):
    x, message = BAD_SETS[case]
    with pytest.raises(ValueError, match=f"(?s)Expected.*{message}"):
        TWO_SETS[name](x, X)


TESTS = {
    "points all alike": (lambda: mmd_test(0 * X, 0 * X, KEY), "x and y pooled to vary.*16 equal points"),
    "pairs all alike": (lambda: wild_mmd_test(0 * X, 0 * X, KEY), "x and y pooled to vary.*16 equal"),
    "three sets alike": (lambda: relative_mmd_test(0 * X, 0 * X, 0 * X), "pooled to vary.*24 equal"),
    "no permutations": (lambda: mmd_test(X, X, KEY, permutations=0), "permutations >= 1.*permutations=0"),
    "real permutations": (lambda: energy_test(X, X, KEY, permutations=9.0), "permutations >= 1.*9.0"),
    "no draws": (lambda: wild_energy_test(X, X, KEY, draws=0), "draws >= 1.*draws=0"),
    "pairs without a partner": (lambda: wild_mmd_test(X[:5], X, KEY), "as many points in x as in y.*5 and 8"),
    "a statistic of rows": (
        lambda: permutation_test(lambda x, y: x[:, 0], X, X, KEY, permutations=9),
        r"one number.*\(8,\)",
    ),
    "no tile": (lambda: mmd(X, X, kernel=never, chunk=0), "chunk >= 1.*chunk=0"),
    "a block of one": (lambda: block_mmd(X, X, kernel=never, block=1), "2 <= block <= 4.*block=1"),
    "a single block": (lambda: block_mmd(X, X, kernel=never, block=5), "2 <= block <= 4.*block=5"),
    "a kernel of sums": (lambda: mmd(X, X, kernel=lambda x, y: x[:, 0]), r"shape \[n, m\].*\(8,\) for n, m = 8, 8"),
    "no bandwidth": (lambda: kernels.gaussian(), "one or more bandwidths.*none"),
    "a bandwidth of zero": (lambda: kernels.laplace(1.0, 0.0), "bandwidths > 0.*0.0"),
    "a bandwidth of NaN": (lambda: kernels.gaussian(jnp.nan), "bandwidths > 0.*nan"),
    "a negative scale": (lambda: kernels.rational_quadratic(-1.0), "scales > 0.*-1.0"),
    "half a degree": (lambda: kernels.polynomial(2.5), "whole degree >= 1.*2.5"),
    "a median of one point": (lambda: kernels.median_distance(X, X, most=1), "most >= 2.*most=1"),
    "real labels": (lambda: conditional_mmd_test(X, X[:, 0], X, LABELS, KEY), "x_labels to be whole.*float32"),
    "labels of others": (
        lambda: conditional_mmd_test(X, LABELS, X, LABELS[:5], KEY),
        r"y_labels of shape \(8,\).*\(5,\)",
    ),
    "a label on one side": (
        lambda: conditional_mmd_test(X, LABELS, X, 0 * LABELS, KEY),
        "2 points of each label.*4 and 0 of label 1",
    ),
}


@pytest.mark.parametrize("case", TESTS)
def test_two_sample_options(case, untyped):
    call, message = TESTS[case]
    with pytest.raises(ValueError, match=f"(?s)Expected.*{message}"):
        call()


# coverage, modes, distances, classifiers -------------------------------------------------------------------------

WEIGHTS = jnp.array([0.5, 0.5])
OPTIONS = {
    "as many neighbours as points": (lambda: precision_recall(X, X, k=8), "1 <= k <= 7.*other points of real.*k=8"),
    "no neighbours": (lambda: density_coverage(X, X, k=0), "1 <= k.*k=0"),
    "more neighbours than points": (lambda: nearest(X, X, k=9), "1 <= k <= 8.*k=9"),
    "no chunk": (lambda: nearest_other(X, k=1, chunk=0), "chunk >= 1.*chunk=0"),
    "one real point repeated": (lambda: precision_recall(X[:1].repeat(8, 0), X), "real to vary.*8 equal points"),
    "one held-out point repeated": (lambda: memorization_test(X, X[:1].repeat(8, 0), X), "held_out to vary"),
    "few held-out points": (lambda: memorization_test(X, X[:7], X), r"at least 8 points in held_out.*\(7, 3\)"),
    "one point for a classifier": (lambda: classifier_test(X[:1].repeat(8, 0), X[:1], KEY, fit=never), "at least 4"),
    "a constant pool": (lambda: classifier_test(X[:1].repeat(8, 0), X[:1].repeat(8, 0), KEY, fit=never), "to vary"),
    "no votes": (lambda: nearest_neighbours(0), "k >= 1.*k=0"),
    "no penalty": (lambda: logistic(penalty=0.0), "finite penalty > 0.*0.0"),
    "no layers": (lambda: mlp((), steps=1, rate=0.1), r"hidden widths >= 1.*\(\)"),
    "no steps": (lambda: mlp((4,), steps=0, rate=0.1), "steps >= 1.*steps=0"),
    "an infinite rate": (lambda: mlp((4,), steps=1, rate=float("inf")), "finite rate > 0.*inf"),
    "scores for all classes": (lambda: classifier_test(X, X, KEY, fit=lambda *_: lambda x: x), r"one probability per"),
    "sets of two sizes": (lambda: wasserstein(X, X[:5]), "one size.*8 and 5 points"),
    "a traced assignment": (lambda: jax.jit(wasserstein)(X, X), "known samples.*traced"),
    "no projections": (lambda: sliced_wasserstein(X, X, KEY, projections=0), "projections >= 1.*projections=0"),
    "an order below one": (lambda: sliced_wasserstein(X, X, KEY, projections=1, order=0.5), "order >= 1.*0.5"),
    "directions of another space": (lambda: wasserstein_along(X, X, jnp.ones((1, 2))), r"\[directions, 3\].*\(1, 2\)"),
    "a negative radius": (lambda: modes_captured(X, X[:2], radius=-1.0), "radius >= 0.*-1.0"),
    "a weight too many": (lambda: modes_captured(X, X[:2], radius=1.0, weights=jnp.ones(3) / 3), r"each of 2.*\(3,\)"),
    "weights of no law": (lambda: reverse_kl(LABELS, 2 * WEIGHTS), "weights with sum 1.*1"),
    "a weight of zero": (lambda: mode_shares_test(LABELS, KEY, weights=jnp.array([0.0, 1.0])), "positive weights"),
    "no draws": (lambda: mode_shares_test(LABELS, KEY, weights=WEIGHTS, draws=0), "draws >= 1.*draws=0"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_options_of_the_other_metrics(case, untyped):
    call, message = OPTIONS[case]
    with pytest.raises(ValueError, match=f"(?s)Expected.*{message}"):
        call()
