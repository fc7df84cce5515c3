"""Rows of the oracle table for two-sample tests: kernels, discrepancies and p-values, in float64.

Statistics are held against double sums, scikit-learn and SciPy; p-values against all permutations of a small sample,
all signs, or the level at which a true null hypothesis may be rejected.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from jaxtyping import Float
from scipy.spatial.distance import cdist, pdist
from sklearn.gaussian_process.kernels import Matern, RationalQuadratic
from sklearn.metrics.pairwise import polynomial_kernel, rbf_kernel

from dgm_jax.metrics import (
    block_mmd,
    conditional_mmd_test,
    distance_kernel,
    energy_distance,
    energy_test,
    gaussian,
    laplace,
    median_distance,
    mmd,
    mmd_test,
    permutation_test,
    polynomial,
    rational_quadratic,
    relative_mmd_test,
    wild_energy_test,
    wild_mmd_test,
)
from experiments._oracle_rows import Row, paper, relative, standard_errors, worst

GRETTON = "Gretton et al. 2012, JMLR 13:723"
DRAWS, REPETITIONS = 4000, 500
Matrix = Float[np.ndarray, "points others"]


def two_sample_rows(names: Sequence[str]) -> Iterator[Row]:
    """Kernels, discrepancies, and tests built on them. No row depends on a process."""
    yield from kernel_rows()
    yield from discrepancy_rows()
    yield from p_value_rows()
    yield from level_rows()


def unbiased(k: Matrix, n: int) -> float:
    """The U-statistic of a pooled kernel matrix whose first n points are the first set."""
    own = [(part.sum() - np.trace(part)) / (len(part) * (len(part) - 1)) for part in (k[:n, :n], k[n:, n:])]
    return float(sum(own) - 2 * k[:n, n:].mean())


def kernel_rows() -> Iterator[Row]:
    """Against scikit-learn's, and SciPy's distances."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(1.0, 2.0, (13, 5)), rng.normal(-0.5, 1.0, (7, 5))
    matern = np.mean([np.asarray(Matern(b, nu=0.5)(x, y)) for b in (1.3, 3.0)], axis=0)
    both = (rbf_kernel(x, y, gamma=1 / 2) + rbf_kernel(x, y, gamma=1 / 32)) / 2
    cases = [
        ("gaussian", gaussian(1.0, 4.0), "scikit-learn's rbf_kernel", both, GRETTON),
        ("laplace", laplace(1.3, 3.0), "scikit-learn's Matern, nu = 1/2", matern, ""),
        ("rational_quadratic", rational_quadratic(0.7), "scikit-learn's", RationalQuadratic(1.0, 0.7)(x, y), ""),
        ("polynomial", polynomial(), "scikit-learn's", polynomial_kernel(x, y, 3, 1 / 5, 1), paper("1801.01401")),
        ("distance_kernel", distance_kernel(), "SciPy's distances", -cdist(x, y), paper("1207.6076")),
    ]
    for name, kernel, oracle, expected, source in cases:
        found = kernel(jnp.asarray(x), jnp.asarray(y))
        yield Row(f"`{name}`", source, "none", oracle, worst(relative(found, expected), 1e-12))
    median = float(median_distance(jnp.asarray(x), jnp.asarray(y)))
    expected = np.median(pdist(np.concatenate([x, y])))
    yield Row("`median_distance`", GRETTON, "none", "median of SciPy's", worst(median / expected - 1, 1e-12))


def discrepancy_rows() -> Iterator[Row]:
    """Against sums over pairs, SciPy on a line, and the exact MMD^2 of Gaussians."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.0, 1.0, (50, 3)), rng.normal(0.4, 1.5, (30, 3))
    expected = unbiased(rbf_kernel(np.concatenate([x, y]), gamma=1 / 8), 50)
    found = mmd(jnp.asarray(x), jnp.asarray(y), kernel=gaussian(2.0), chunk=16)
    yield Row("`mmd`", f"{GRETTON}, eq. 3", "none", "double sum, scikit-learn", worst(found - expected, 1e-12))
    x, y = x[:, 0], y[:, 0]
    own = sum(cdist(part[:, None], part[:, None]).mean() / (len(part) - 1) for part in (x, y))
    found = float(energy_distance(jnp.asarray(x[:, None]), jnp.asarray(y[:, None]), chunk=16))
    error = worst(found - (scipy.stats.energy_distance(x, y) ** 2 - own), 1e-12)
    yield Row("`energy_distance`", "doi:10.1016/j.jspi.2013.03.018", "none", "SciPy's, made unbiased", error)

    def estimate(key: Any) -> Any:
        x, y = jax.random.normal(key, (2, 30, 3))
        return block_mmd(x, 0.3 + 1.4 * y, kernel=gaussian(1.5), block=5).estimate

    def mean(square: float, variance: float) -> float:
        return float((2.25 / variance) ** 1.5 * np.exp(-square / (2 * variance)))

    exact = mean(0, 4.25) + mean(0, 2.25 + 2 * 1.96) - 2 * mean(3 * 0.09, 3.25 + 1.96)
    values = jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), 2000))
    measured = standard_errors(values, exact)
    yield Row("`block_mmd`", paper("1307.1954"), "none", "MMD^2 of Gaussians; standard errors", measured)


def p_value_rows() -> Iterator[Row]:
    """Against all 70 splits of 4 + 4 points and all 64 signs of 6 pairs; in standard errors of 4,000 draws."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=(8, 2)) + np.repeat([0.0, 0.8], 4)[:, None]
    x, y, key = jnp.asarray(z[:4]), jnp.asarray(z[4:]), jax.random.key(0)
    matrices = rbf_kernel(z, gamma=0.5), -cdist(z, z)
    orders = [[*first, *(i for i in range(8) if i not in first)] for first in combinations(range(8), 4)]
    shares = [share_of([unbiased(k[np.ix_(order, order)], 4) for order in orders]) for k in matrices]
    any_statistic: Callable[[Any, Any], Any] = lambda x, y: mmd(x, y, kernel=gaussian(1.0))  # noqa: E731
    found = [
        ("mmd_test", mmd_test(x, y, key, kernel=gaussian(1.0), permutations=DRAWS), shares[0]),
        ("energy_test", energy_test(x, y, key, permutations=DRAWS), shares[1]),
        ("permutation_test", permutation_test(any_statistic, x, y, key, permutations=DRAWS), shares[0]),
    ]
    for name, test, share in found:
        yield Row(
            f"`{name}`", f"{GRETTON}, sec. 4", "none", "all permutations; standard errors", draws_off(test, share)
        )
    z = rng.normal(size=(12, 2)) + np.repeat([0.0, 0.7], 6)[:, None]
    x, y = jnp.asarray(z[:6]), jnp.asarray(z[6:])
    signs = np.array(np.meshgrid(*[[1, -1]] * 6)).reshape(6, -1)
    tests = {
        "wild_mmd_test": (wild_mmd_test(x, y, key, kernel=gaussian(1.0), draws=DRAWS), rbf_kernel(z, gamma=0.5)),
        "wild_energy_test": (wild_energy_test(x, y, key, draws=DRAWS), -cdist(z, z)),
    }
    for name, (test, k) in tests.items():
        h = k[:6, :6] + k[6:, 6:] - k[:6, 6:] - k[6:, :6]
        np.fill_diagonal(h, 0)
        share = share_of(np.einsum("is,ij,js->s", signs, h, signs))
        yield Row(f"`{name}`", "PMLR 23:23", "none", "all signs; standard errors", draws_off(test, share))


def level_rows() -> Iterator[Row]:
    """Under a true null hypothesis: rejections at 5 % beyond that, or the distance from uniform p-values."""

    def equally_far(key: Any) -> Any:
        real, a, b = jax.random.normal(key, (3, 60, 2))
        return relative_mmd_test(real, a + jnp.array([[1.0, 0.0]]), b - jnp.array([[1.0, 0.0]])).p_value

    def each_label_right(key: Any) -> Any:
        keys = jax.random.split(key, 3)
        of_x, of_y = jnp.arange(40) % 2, jnp.arange(40) % 4 // 3
        x, y = (
            jax.random.normal(k, (40, 2)) + 3.0 * labels[:, None].astype(float)
            for k, labels in zip(keys[:2], (of_x, of_y), strict=True)
        )
        return conditional_mmd_test(x, of_x, y, of_y, keys[2], permutations=99).p_value

    keys = jax.random.split(jax.random.key(3), REPETITIONS)
    p_values = np.asarray(jax.jit(lambda keys: jax.lax.map(equally_far, keys))(keys))
    excess = float(max((p_values <= 0.05).mean() - 0.05, 0) / np.sqrt(0.05 * 0.95 / REPETITIONS)), 4.0
    source, oracle = paper("1511.04581", "sec. 4"), "rejections above 5 % under the null; standard errors"
    yield Row("`relative_mmd_test`", source, "none", oracle, excess)
    p_values = np.asarray(jax.jit(lambda keys: jax.lax.map(each_label_right, keys))(keys))
    uniform = p_values - np.random.default_rng(0).random(REPETITIONS) / 100
    distance = scipy.stats.kstest(uniform, "uniform").statistic
    measured = float(distance), float(scipy.stats.kstwo.isf(1e-4, REPETITIONS))
    yield Row("`conditional_mmd_test`", "", "none", "uniform p-values; distance of their distribution", measured)


def share_of(values: Any) -> float:
    """How many of all values are at least the first."""
    values = np.asarray(values)
    return float((values >= values[0] - 1e-12).mean())


def draws_off(test: Any, share: float) -> tuple[float, float]:
    """The p-value's distance from the exact share, in standard errors of its draws."""
    error = np.sqrt(share * (1 - share) / DRAWS)
    return float(abs(test.p_value - share) / error), 4 + 1 / DRAWS / error
