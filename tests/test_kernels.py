"""Kernels against scikit-learn and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.distance import cdist, pdist
from sklearn.gaussian_process.kernels import Matern, RationalQuadratic
from sklearn.metrics.pairwise import laplacian_kernel, polynomial_kernel, rbf_kernel

from dgm_jax.metrics import kernels
from dgm_jax.metrics.order import kth_smallest, kth_smallest_distance

RNG = np.random.default_rng(0)
X, Y = RNG.normal(1.0, 2.0, (13, 5)), RNG.normal(-0.5, 1.0, (7, 5))
EXPECTED = {
    "gaussian": (kernels.gaussian(1.7), lambda x, y: rbf_kernel(x, y, gamma=1 / (2 * 1.7**2))),
    "gaussians": (
        kernels.gaussian(0.5, 1.0, 4.0),
        lambda x, y: np.mean([rbf_kernel(x, y, gamma=1 / (2 * b**2)) for b in (0.5, 1.0, 4.0)], axis=0),
    ),
    "laplace": (kernels.laplace(1.3), lambda x, y: Matern(1.3, nu=0.5)(x, y)),
    "laplaces": (
        kernels.laplace(1.3, 3.0),
        lambda x, y: (Matern(1.3, nu=0.5)(x, y) + Matern(3.0, nu=0.5)(x, y)) / 2,
    ),
    "rational quadratic": (kernels.rational_quadratic(0.7), lambda x, y: RationalQuadratic(1.0, 0.7)(x, y)),
    "polynomial": (kernels.polynomial(), lambda x, y: polynomial_kernel(x, y, degree=3, gamma=1 / 5, coef0=1)),
    "quadratic": (kernels.polynomial(2), lambda x, y: polynomial_kernel(x, y, degree=2, gamma=1 / 5, coef0=1)),
    "distance": (kernels.distance_kernel(), lambda x, y: -cdist(x, y)),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_kernels_are_those_of_scikit_learn(name):
    kernel, expected = EXPECTED[name]
    with jax.enable_x64(True):
        np.testing.assert_allclose(kernel(jnp.asarray(X), jnp.asarray(Y)), expected(X, Y), rtol=1e-11, atol=1e-12)
    x, y = jnp.asarray(X, jnp.float32), jnp.asarray(Y, jnp.float32)
    assert kernel(x, y).dtype == jnp.float32
    # squared distances up to 200 with rounding of 200 eps, and a cube
    np.testing.assert_allclose(kernel(x, y), expected(np.asarray(x), np.asarray(y)), rtol=1e-4, atol=2e-5)


def test_the_laplace_kernel_is_scikit_learns_on_a_line():
    """Off it, that one is of the sum of absolute differences."""
    with jax.enable_x64(True):
        found = kernels.laplace(2.0)(jnp.asarray(X[:, :1]), jnp.asarray(Y[:, :1]))
    np.testing.assert_allclose(found, laplacian_kernel(X[:, :1], Y[:, :1], gamma=0.5), rtol=1e-9)


def test_data_far_from_zero_lose_no_digits():
    """The squares are 10^8 there, and float32 resolves 8 of them; of centred points, 10^-5."""
    x, y = (np.asarray(part + 1e4, np.float32) for part in (X, Y))
    exact = cdist(np.float64(x), np.float64(y), "sqeuclidean")
    np.testing.assert_allclose(kernels.squared_distances(jnp.asarray(x), jnp.asarray(y)), exact, rtol=1e-5, atol=1e-4)
    assert np.abs(exact - cdist(X, Y, "sqeuclidean")).max() < 0.1


def test_no_squared_distance_is_negative():
    x = jnp.asarray(np.repeat(X, 3, axis=0), jnp.float32)
    assert (kernels.squared_distances(x, x) >= 0).all()
    assert jnp.isfinite(kernels.laplace(1.0)(x, x)).all()


def test_the_median_distance_is_numpys():
    with jax.enable_x64(True):
        x, y = jnp.asarray(X), jnp.asarray(Y)
        expected = np.median(pdist(np.concatenate([X, Y])))
        np.testing.assert_allclose(kernels.median_distance(x, y), expected, rtol=1e-10)
        few = np.median(pdist(np.concatenate([X[::2], Y[::2]])))
        np.testing.assert_allclose(kernels.median_distance(x, y, most=10), few, rtol=1e-10)
        images = x.reshape(13, 5, 1), y.reshape(7, 5, 1)
        np.testing.assert_allclose(kernels.median_distance(*images), expected, rtol=1e-10)


def test_where_most_points_coincide_the_mean_distance_stands_in():
    x = jnp.asarray([[3.1, 0.2]] * 9 + [[4.1, 0.2]])
    found = kernels.median_distance(x[:5], x[5:])
    np.testing.assert_allclose(found, 9 / 45, rtol=5e-3)  # 9 of 45 pairs at distance 1; the others 0 up to rounding


def test_the_kth_smallest_is_numpys():
    rng = np.random.default_rng(1)
    numbers = rng.integers(0, 50, (40, 3), np.uint32)
    distances = np.float32(rng.exponential(size=300)).round(2)
    for k in (1, 17, 40):
        np.testing.assert_array_equal(kth_smallest(jnp.asarray(numbers), k), np.sort(numbers, axis=0)[k - 1])
        assert kth_smallest_distance(jnp.asarray(distances), k) == np.sort(distances)[k - 1]
