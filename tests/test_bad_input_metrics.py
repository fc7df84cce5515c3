"""What metrics refuse: one clear error (rule, reason, value) before any compute is spent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgm_jax.metrics import (
    block_mmd,
    conditional_mmd_test,
    energy_distance,
    energy_test,
    kernels,
    mmd,
    mmd_test,
    permutation_test,
    relative_mmd_test,
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
BAD_SETS = {
    "other events": (X[:, :2], r"share their event shape.*\(2,\).*\(3,\)"),
    "an image against a vector": (X[..., None], r"event shape.*\(3, 1\).*\(3,\)"),
    "NaN": (X.at[2, 1].set(jnp.nan), "finite.*1 NaN and 0 inf in 1 of 8 points of .*at index 2"),
    "infinite": (X.at[5].set(jnp.inf), "finite.*0 NaN and 3 inf in 1 of 8 points of .*at index 5"),
    "one point": (X[:1], r"at least 2 points in .*\(1, 3\)"),
    "none": (X[:0], r"at least 2 points in .*\(0, 3\)"),
    "integers": ((X * 50).astype(jnp.uint8), "floating point.*to_unit.*uint8"),
}


@pytest.mark.parametrize("case", BAD_SETS)
@pytest.mark.parametrize("name", TWO_SETS)
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
