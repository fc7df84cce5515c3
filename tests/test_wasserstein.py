"""Wasserstein distances against SciPy, POT and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import scipy.stats

from dgm_jax.metrics import sliced_wasserstein, wasserstein, wasserstein_along

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def sets(n, m, dim, dtype, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(1.0, 1.0, (n, dim)).astype(dtype), rng.gamma(2.0, 1.0, (m, dim)).astype(dtype)


@DTYPES
@pytest.mark.parametrize(("n", "m"), [(50, 50), (7, 31), (60, 40), (1, 5)])
def test_on_a_line_it_is_scipys(n, m, dtype):
    x, y = sets(n, m, 1, dtype)
    with jax.enable_x64(dtype == np.float64):
        found = wasserstein_along(jnp.asarray(x), jnp.asarray(y), jnp.ones((1, 1), dtype), order=1.0)
    expected = scipy.stats.wasserstein_distance(x[:, 0].astype(np.float64), y[:, 0].astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=(n + m) * np.finfo(dtype).eps)


@DTYPES
@pytest.mark.parametrize("order", [1.0, 2.0, 3.0])
@pytest.mark.parametrize(("n", "m"), [(40, 40), (25, 60)])
def test_sliced_is_that_of_pot(n, m, order, dtype):
    x, y = sets(n, m, 6, dtype)
    normals = np.random.default_rng(1).standard_normal((30, 6))
    directions = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    expected = ot.sliced_wasserstein_distance(
        x.astype(np.float64), y.astype(np.float64), projections=directions.T, p=order
    )
    with jax.enable_x64(dtype == np.float64):
        x, y, directions = (jnp.asarray(part, dtype) for part in (x, y, directions))
        found = jax.jit(lambda x, y: wasserstein_along(x.reshape(n, 3, 2), y.reshape(m, 3, 2), directions, order=order))
        # POT's widths are differences of sums of 1/n, right to some rounding
        np.testing.assert_allclose(found(x, y), expected, rtol=(n + m) * np.finfo(dtype).eps)


def test_random_directions_are_uniform():
    """Of points one unit apart along one axis, W_2^2 along a direction is its squared cosine: 1/dim on average."""
    x, dim, projections = jnp.zeros((3, 4)), 4, 4000
    found = sliced_wasserstein(x, x.at[:, 1].add(1), jax.random.key(0), projections=projections)
    spread = np.sqrt(2 * (dim - 1) / (dim**2 * (dim + 2)))  # of a Beta(1/2, (dim - 1)/2)
    assert abs(found**2 - 1 / dim) < 4 * spread / np.sqrt(projections)


@pytest.mark.parametrize("order", [1.0, 2.0])
def test_exact_is_that_of_pot(order):
    x, y = sets(60, 60, 3, np.float64)
    cost = ot.dist(x, y, metric="euclidean") ** order
    expected = ot.emd2(ot.unif(60), ot.unif(60), cost) ** (1 / order)
    with jax.enable_x64(True):
        found = wasserstein(jnp.asarray(x), jnp.asarray(y), order=order)
    np.testing.assert_allclose(found, expected, rtol=1e-10)


def test_exact_closed_forms():
    """Moved by a vector it is its length, scaled about the mean the root mean square of the moves; of itself, 0."""
    x = jnp.asarray(np.random.default_rng(2).normal(50.0, 1.0, (80, 5)), jnp.float32)
    assert wasserstein(x, x[::-1]) == 0
    # moved points are rounded to float32 at 50
    assert wasserstein(x, x + 0.5) == pytest.approx(0.5 * np.sqrt(5), rel=float(64 * np.finfo(np.float32).eps))
    assert sliced_wasserstein(x, x[::-1], jax.random.key(0), projections=5) == 0
    line = wasserstein(x[:, :1], (x + 3)[:, :1], order=1.0)
    assert line == pytest.approx(3.0, rel=float(64 * np.finfo(np.float32).eps))
    ones = jnp.ones((1, 1))
    np.testing.assert_allclose(wasserstein_along(x[:, :1], (x + 3)[:, :1], ones, order=1.0), 3.0, rtol=1e-5)
