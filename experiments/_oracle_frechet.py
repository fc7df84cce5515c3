"""Rows of the oracle table for distances of features: Frechet, kernel, limits, intervals, Inception's score."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
import scipy.stats

from dgm_jax.metrics import (
    bootstrap_interval,
    frechet_distance,
    frechet_infinity,
    frechet_of,
    inception_score,
    init_moments,
    kernel_distance,
    merge_moments,
    update_moments,
)
from experiments._oracle_rows import Row, paper, relative, standard_errors, worst

HEUSEL, CHONG, KID, SALIMANS = "1706.08500", "1911.07023", "1801.01401", "1606.03498"
RNG = np.random.default_rng(0)
FACTORS = RNG.normal(size=(2, 5, 5))
MEANS = RNG.normal(size=(2, 5))
COVS = np.einsum("kij,klj->kil", FACTORS, FACTORS) + 0.1 * np.eye(5)


def frechet_rows(names: Sequence[str]) -> Iterator[Row]:
    """Against scipy, NumPy and closed forms. No row depends on a process."""
    exact = of_scipy(MEANS[0], COVS[0], MEANS[1], COVS[1])
    found = frechet_distance(MEANS[0], COVS[0], MEANS[1], COVS[1])
    oracle = "scipy's root of the covariances' product"
    yield Row("`frechet_distance`", paper(HEUSEL, "eq. 6"), "none", oracle, worst(relative(found, exact), 1e-9))
    x, y = sets(1, 200)
    expected = of_scipy(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    found = frechet_of(jnp.asarray(x), jnp.asarray(y))
    yield Row("`frechet_of`", paper(HEUSEL, "eq. 6"), "none", oracle, worst(relative(found, expected), 1e-9))
    yield from moment_rows()
    limits, slopes = [], []
    for seed in range(60):
        x, y = sets(seed, 400)
        line = frechet_infinity(x, y, jax.random.key(seed), sizes=(50, 70, 100, 200), repeats=4)
        limits.append(line.limit)
        slopes.append(line.slope)
    yield Row(
        "`frechet_infinity`",
        paper(CHONG, "sec. 3"),
        "none",
        "closed form, in standard errors; a line leaves slope/50^2",
        standard_errors(limits, exact, bias=abs(float(np.mean(slopes))) / 50**2),
    )
    yield from estimate_rows()


def sets(seed: int, n: int) -> list[np.ndarray]:
    """Draws from both Gaussians."""
    rng = np.random.default_rng(seed)
    return [rng.multivariate_normal(mean, cov, n) for mean, cov in zip(MEANS, COVS, strict=True)]


def of_scipy(mean_1: Any, cov_1: Any, mean_2: Any, cov_2: Any) -> float:
    """The squared distance by a root of a matrix that is not symmetric."""
    root = np.real(scipy.linalg.sqrtm(cov_1 @ cov_2))
    return float(np.sum((mean_1 - mean_2) ** 2) + np.trace(cov_1 + cov_2 - 2 * root))


def moment_rows() -> Iterator[Row]:
    """Means and covariances in batches, of float32 features far from 0."""
    x = np.random.default_rng(3).normal(1e4, 1.0, (1000, 3)).astype(np.float32)
    first = update_moments(init_moments(3), x[:7])
    both = merge_moments(first, update_moments(init_moments(3), x[7:]))
    expected = np.cov(x.astype(np.float64), rowvar=False)
    error = worst(relative(both.covariance, expected), 1e-9)
    for method in ("`init_moments`, `update_moments`", "`merge_moments`"):
        yield Row(method, "", "none", "NumPy's covariance in float64, mean 1e4", error)


def estimate_rows() -> Iterator[Row]:
    """What is random, in standard errors, and the score by hand."""
    moments = [np.array([1, 0.3, 1.09, 0.927]), np.array([1, 0.0, 1.44, 0.0])]  # E x^k of N(0.3, 1) and N(0, 1.2^2)
    exact = float(np.sum(np.array([1, 3, 3, 1]) * (moments[0] - moments[1]) ** 2))
    rng = np.random.default_rng(4)
    x, y = rng.normal(0.3, 1.0, (300, 200, 1)), rng.normal(0.0, 1.2, (300, 200, 1))
    estimate = jax.vmap(lambda x, y, key: kernel_distance(x, y, key, subset_size=20).estimate)
    values = estimate(jnp.asarray(x), jnp.asarray(y), jax.random.split(jax.random.key(0), 300))
    oracle = "moments of Gaussians, in standard errors"
    yield Row("`kernel_distance`", paper(KID, "sec. 4.1"), "none", oracle, standard_errors(values, exact))

    p = np.random.default_rng(5).dirichlet(np.ones(3), 20)
    by_hand = [np.exp(np.mean([scipy.stats.entropy(row, part.mean(0)) for row in part])) for part in np.split(p, 2)]
    error = worst(relative(inception_score(jnp.asarray(p), splits=2).values, by_hand), 1e-12)
    yield Row("`inception_score`", paper(SALIMANS, "sec. 4"), "none", "scipy's entropies", error)

    def held(key: jax.Array) -> jax.Array:
        key_x, key_y, key_draws = jax.random.split(key, 3)
        sample = jax.random.normal(key_x, (60, 1)) + 1, jax.random.normal(key_y, (60, 1))
        interval = bootstrap_interval(lambda x, y: x.mean() - y.mean(), *sample, key_draws, resamples=100)
        return (interval.low < 1) & (interval.high > 1)

    covered = jax.vmap(held)(jax.random.split(jax.random.key(6), 400))
    oracle = "95 % of 400 intervals, in standard errors; 1/n by theory"
    yield Row("`bootstrap_interval`", "", "none", oracle, standard_errors(covered, 0.95, bias=1 / 60))
