"""Frechet and kernel distances, their limits and intervals, against scipy, NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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

X = np.random.default_rng(7).normal(size=(8, 2)).astype(np.float32)
RNG = np.random.default_rng(0)
FACTORS = RNG.normal(size=(2, 5, 5))
MEANS = RNG.normal(size=(2, 5))
COVS = np.einsum("kij,klj->kil", FACTORS, FACTORS) + 0.1 * np.eye(5)


def of_scipy(mean_1, cov_1, mean_2, cov_2):
    root = scipy.linalg.sqrtm(cov_1 @ cov_2)
    return np.sum((mean_1 - mean_2) ** 2) + np.trace(cov_1 + cov_2 - 2 * np.real(root))


EXACT = of_scipy(MEANS[0], COVS[0], MEANS[1], COVS[1])


def gaussians(seed, n):
    rng = np.random.default_rng(seed)
    return [rng.multivariate_normal(mean, cov, n) for mean, cov in zip(MEANS, COVS, strict=True)]


def test_known_gaussians():
    """scipy's root of the product; commuting covariances have (s - s')^2 for each coordinate."""
    arguments = (MEANS[0], COVS[0], MEANS[1], COVS[1])
    assert abs(frechet_distance(*arguments) / EXACT - 1) < 1e-10
    with jax.enable_x64(True):
        assert abs(jax.jit(frechet_distance)(*map(jnp.asarray, arguments)) / EXACT - 1) < 1e-10
    assert abs(frechet_distance(*(jnp.asarray(a, jnp.float32) for a in arguments)) / EXACT - 1) < 1e-5
    stds = np.array([[1.0, 2.0, 0.0], [0.5, 2.0, 3.0]])
    found = frechet_distance(np.zeros(3), np.diag(stds[0] ** 2), np.ones(3), np.diag(stds[1] ** 2))
    np.testing.assert_allclose(found, 3 + np.sum((stds[0] - stds[1]) ** 2), rtol=1e-12)


def test_symmetric_and_zero_on_the_diagonal_also_where_singular():
    """Four features of a sample of three: their covariance has rank two."""
    x = np.random.default_rng(1).normal(size=(2, 3, 4))
    (m, c), (n, d) = ((part.mean(0), np.cov(part, rowvar=False)) for part in x)
    np.testing.assert_allclose(frechet_distance(m, c, n, d), frechet_distance(n, d, m, c), rtol=1e-6)
    assert 0 <= frechet_distance(m, c, m, c) < 1e-6
    # on samples of one rank the root is the nuclear norm of the centred sets' product, with no covariance formed
    centred = [(part - part.mean(0)) / np.sqrt(2) for part in x]
    nuclear = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    expected = np.sum((m - n) ** 2) + np.trace(c) + np.trace(d) - 2 * nuclear
    np.testing.assert_allclose(frechet_distance(m, c, n, d), expected, rtol=1e-6)


def test_gradients_are_finite_differences():
    with jax.enable_x64(True):
        arguments = [jnp.asarray(a) for a in (MEANS[0], COVS[0], MEANS[1], COVS[1])]
        direction = jnp.asarray(RNG.normal(size=(5, 5)))
        direction = direction + direction.T

        def along(step):
            return frechet_distance(arguments[0] + step, arguments[1] + step * direction, *arguments[2:])

        gradient = jax.grad(along)(0.0)
        np.testing.assert_allclose(gradient, (along(1e-5) - along(-1e-5)) / 2e-5, rtol=1e-6)


def test_samples_have_the_distance_of_numpys_moments():
    x, y = gaussians(2, 200)
    expected = of_scipy(x.mean(0), np.cov(x, rowvar=False), y.mean(0), np.cov(y, rowvar=False))
    with jax.enable_x64(True):
        found = jax.jit(frechet_of)(x.reshape(200, 5, 1), y.reshape(200, 5, 1))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_float32_far_from_0_keeps_its_digits():
    """The same rounded points, moved back to 0 in float64, where that is exact."""
    far = [(part + 1e5).astype(np.float32) for part in gaussians(3, 60)]
    near = [jnp.asarray(part.astype(np.float64) - 1e5, jnp.float32) for part in far]
    np.testing.assert_allclose(frechet_of(*map(jnp.asarray, far)), frechet_of(*near), rtol=1e-5)


def test_streaming_moments_are_numpys_in_float64():
    """In uneven batches, merged, far from 0: a float32 sum of squares would have no digit left."""
    x = np.random.default_rng(3).normal(1e4, 1.0, (1000, 3)).astype(np.float32)
    parts = np.split(x, [1, 8, 8 + 500])
    first = init_moments(3)
    for part in parts[:2]:
        first = update_moments(first, part)
    second = init_moments(3)
    for part in parts[2:]:
        second = update_moments(second, jnp.asarray(part))
    both = merge_moments(first, second)
    assert both.count == 1000
    np.testing.assert_allclose(both.mean, x.astype(np.float64).mean(0), rtol=1e-12)
    np.testing.assert_allclose(both.covariance, np.cov(x.astype(np.float64), rowvar=False), rtol=1e-9)
    assert merge_moments(init_moments(3), init_moments(3)).count == 0


def test_the_bias_falls_as_one_over_n_and_the_limit_has_none():
    """Over 40 pairs of sets: the mean at n is off by slope/n, the extrapolated one by its standard error at most."""
    raw, limits, slopes = [], [], []
    for seed in range(40):
        x, y = gaussians(seed, 400)
        found = frechet_infinity(x, y, jax.random.key(seed), sizes=(50, 70, 100, 200), repeats=4)
        limits.append(found.limit)
        slopes.append(found.slope)
        raw.append(found.values)
    error = np.std(limits, ddof=1) / np.sqrt(40)
    assert abs(np.mean(limits) - EXACT) < 4 * error + abs(np.mean(slopes)) / 50**2  # the line's own error is of 1/n^2
    bias = np.mean(raw, axis=0) - EXACT
    spread = np.std(raw, axis=0, ddof=1) / np.sqrt(40)
    assert bias[0] > 4 * spread[0]
    assert (np.diff(bias) < 0).all()


def test_the_limit_of_one_law_is_nothing():
    """Sets of one law have a distance that is all bias: about (tr C + ...)/n, here many times its limit's error."""
    limits, values = [], []
    for seed in range(30):
        rng = np.random.default_rng(100 + seed)
        x, y = rng.normal(size=(2, 300, 3))
        found = frechet_infinity(x, y, jax.random.key(seed), sizes=(50, 100, 150, 300), repeats=4)
        limits.append(found.limit)
        values.append(found.values[0])
    error = np.std(limits, ddof=1) / np.sqrt(30)
    assert abs(np.mean(limits)) < 4 * error + np.mean(values) / 50
    assert np.mean(values) > 20 * abs(np.mean(limits))


def test_kernel_distance_is_unbiased_and_its_error_is_the_truth():
    """1-d Gaussians, (x y + 1)^3: MMD^2 is sum_k binom(3, k) (E x^k - E y^k)^2."""
    rng = np.random.default_rng(4)
    moments = [np.array([1, 0.3, 0.09 + 1, 0.027 + 0.9]), np.array([1, 0.0, 1.44, 0.0])]
    exact = np.sum(np.array([1, 3, 3, 1]) * (moments[0] - moments[1]) ** 2)
    x = rng.normal(0.3, 1.0, (300, 200, 1))
    y = rng.normal(0.0, 1.2, (300, 200, 1))
    with jax.enable_x64(True):
        estimate = jax.jit(jax.vmap(lambda x, y, key: kernel_distance(x, y, key, subset_size=20)))
        found = estimate(x, y, jax.random.split(jax.random.key(0), 300))
    values, errors = np.asarray(found.estimate), np.asarray(found.standard_error)
    assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(300)
    # the mean of squared standard errors is unbiased for the variance
    ratio = np.mean(errors**2) / values.var(ddof=1)
    squares = (values - values.mean()) ** 2  # both are means of 300: of the squared errors, and of these
    spread = np.var(errors**2) / np.mean(errors**2) ** 2 + np.var(squares) / np.mean(squares) ** 2
    assert abs(ratio - 1) < 4 * np.sqrt(spread / 300)


def test_inception_score_by_hand():
    even = np.full((8, 4), 0.25)
    assert abs(inception_score(even, splits=2).mean - 1) < 1e-6
    sure = np.eye(4)[np.arange(8) % 4]
    assert abs(inception_score(sure, splits=2).mean - 4) < 1e-5
    p = np.random.default_rng(5).dirichlet(np.ones(3), 21)
    by_hand = []
    for part in (p[:7], p[7:14], p[14:21]):
        marginal = part.mean(0)
        by_hand.append(np.exp(np.mean([scipy.stats.entropy(row, marginal) for row in part])))
    found = inception_score(p, splits=3)
    np.testing.assert_allclose(found.values, by_hand, rtol=1e-5)
    np.testing.assert_allclose([found.mean, found.std], [np.mean(by_hand), np.std(by_hand)], rtol=1e-4)


def test_bootstrap_intervals_cover_a_difference_and_a_frechet_distance():
    """Of 150 repetitions: a share p has a standard error of sqrt(p (1 - p)/150), and the bootstrap an error of 1/n."""
    resamples, n, repetitions = 100, 60, 150

    def covered(metric, truth):
        @jax.jit
        @jax.vmap
        def ends(key):
            key_x, key_y, key_draws = jax.random.split(key, 3)
            x = 1 + 2 * jax.random.normal(key_x, (n, 1))
            y = jax.random.normal(key_y, (n, 1))
            interval = bootstrap_interval(metric, x, y, key_draws, resamples=resamples, confidence=0.9)
            return interval.low, interval.high

        low, high = ends(jax.random.split(jax.random.key(6), repetitions))
        return float(((low < truth) & (high > truth)).mean())

    for metric, truth in (
        (lambda x, y: x.mean() - y.mean(), 1.0),
        (lambda x, y: (x.mean() - y.mean()) ** 2 + (x.std() - y.std()) ** 2, 2.0),  # the Frechet distance on a line
    ):
        assert abs(covered(metric, truth) - 0.9) < 4 * np.sqrt(0.09 / repetitions) + 1 / n


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(np.zeros(2), np.eye(3), np.zeros(2), np.eye(2)), r"\[dim, dim\].*\(3, 3\)"),
        (lambda: frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), np.nan * np.eye(2)), "a finite cov_2.*4 such"),
        (lambda: frechet_distance(np.zeros(2), np.triu(np.ones((2, 2))), np.zeros(2), np.eye(2)), "symmetric cov_1"),
        (lambda: frechet_of(np.zeros((9, 2)), np.zeros((9, 3))), r"event shape.*\(2,\) and \(3,\)"),
        (lambda: update_moments(init_moments(2), np.zeros((4, 3))), "2 coordinates.*3"),
        (lambda: init_moments(2).covariance, "at least 2 features.*0"),
        (lambda: merge_moments(init_moments(2), init_moments(3)), "one size.*2 and 3"),
        (lambda: init_moments(0), "dim >= 1"),
        (
            lambda: frechet_infinity(np.zeros((9, 2)), np.zeros((9, 2)), jax.random.key(0), sizes=(5, 10)),
            r"from 2 to 9.*\(5, 10\)",
        ),
        (lambda: kernel_distance(X, X, jax.random.key(0), subset_size=5), "block.*5"),
        (lambda: inception_score(np.full((4, 2), 0.6), splits=1), "sum to 1.*1.2"),
        (lambda: inception_score(np.full((4, 2), 0.5), splits=5), "splits <= 4.*5"),
        (lambda: bootstrap_interval(lambda x, y: x, X, X, jax.random.key(0), resamples=2), "one number"),
        (lambda: bootstrap_interval(lambda x, y: 0.0, X, X, jax.random.key(0), resamples=1), "resamples >= 2"),
    ],
)
def test_bad_input(call, message, untyped):
    with pytest.raises(ValueError, match=f"Expected.*{message}"):
        call()
