"""Neighbours, precision, recall, density, coverage and copies, against scikit-learn, prdc and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from prdc import compute_prdc
from sklearn.neighbors import NearestNeighbors

from dgm_jax.data import grid
from dgm_jax.metrics import density_coverage, memorization_test, nearest, nearest_other, precision_recall
from dgm_jax.metrics.memorization import smaller_test
from dgm_jax.metrics.neighbours import smallest

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64])


def clouds(n, m, dim, seed=0, shift=0.5, scale=1.3):
    rng = np.random.default_rng(seed)
    return rng.normal(2.0, 1.0, (n, dim)), rng.normal(2.0 + shift, scale, (m, dim))


# neighbours -----------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize(("n", "k", "chunk"), [(301, 3, 64), (40, 39, 7), (97, 1, 500)])
def test_neighbours_are_those_of_scikit_learn(n, k, chunk, dtype):
    x, y = (part.astype(dtype) for part in clouds(n, 53, 5))
    with jax.enable_x64(dtype == np.float64):
        found = nearest(jnp.asarray(x), jnp.asarray(y), k=k, chunk=chunk)
        others = nearest_other(jnp.asarray(x), k=k, chunk=chunk)
    tree = NearestNeighbors(n_neighbors=k, algorithm="kd_tree").fit(x.astype(np.float64))
    for (distances, indices), queries in ((found, y), (others, None)):
        assert distances.dtype == dtype
        expected, which = tree.kneighbors(None if queries is None else queries.astype(np.float64))
        np.testing.assert_allclose(distances, expected, rtol=8 * np.finfo(dtype).eps)
        np.testing.assert_array_equal(indices, which)


def test_copies_are_at_distance_zero_and_a_point_is_not_its_own_neighbour():
    x = jnp.asarray(np.random.default_rng(0).normal(100.0, 1.0, (50, 3)), jnp.float32)
    np.testing.assert_array_equal(nearest(x, x, k=1).distances, 0)
    assert np.all(nearest_other(x, k=1).distances > 0)
    twice = nearest_other(jnp.concatenate([x, x]), k=1)
    np.testing.assert_array_equal(twice.distances, 0)
    np.testing.assert_array_equal(twice.indices[:, 0], (np.arange(100) + 50) % 100)


@pytest.mark.parametrize(("n", "k"), [(1000, 1), (1000, 17), (10, 10), (23, 5)])
def test_the_smallest_of_a_row(n, k):
    values = np.random.default_rng(1).integers(0, 50, (30, n)).astype(np.float32)  # with ties
    found = np.asarray(smallest(jnp.asarray(values), k))
    np.testing.assert_array_equal(np.take_along_axis(values, found, 1), np.sort(values, 1)[:, :k])
    assert all(len(set(row)) == k for row in found)


# precision, recall, density, coverage ---------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize(("n", "m", "dim", "k"), [(300, 200, 8, 3), (150, 310, 2, 5), (64, 64, 40, 1)])
def test_scores_are_those_of_prdc(n, m, dim, k, dtype):
    x, y = (part.astype(dtype) for part in clouds(n, m, dim))
    expected = compute_prdc(x.astype(np.float64), y.astype(np.float64), k)
    with jax.enable_x64(dtype == np.float64):
        x, y = jnp.asarray(x.reshape(n, -1, 2 if dim > 2 else 1)), jnp.asarray(y.reshape(m, -1, 2 if dim > 2 else 1))
        run = jax.jit(lambda x, y: (precision_recall(x, y, k=k, chunk=50), density_coverage(x, y, k=k, chunk=50)))
        found = {name: value for part in run(x, y) for name, value in part._asdict().items()}
    for name, value in expected.items():
        # shares of counts: one pair on the other side of an edge is 1/(number of points) at least
        np.testing.assert_allclose(found[name], value, atol=8 * np.finfo(dtype).eps * max(1, value), err_msg=name)


def test_scores_under_one_law_are_the_lemmas():
    """Density 1 and coverage 1 - prod (n-i)/(n+m-i) (Naeem et al. 2020, lemmas 1 and 2)."""
    n, m, k, repeats = 60, 40, 4, 400

    def scores(key):
        pooled = jax.random.gumbel(key, (n + m, 3))
        return density_coverage(pooled[:n], pooled[n:], k=k)

    found = jax.jit(lambda keys: jax.lax.map(scores, keys))(jax.random.split(jax.random.key(0), repeats))
    i = np.arange(1, k + 1)
    expected = {"density": 1.0, "coverage": 1 - np.prod((n - i) / (n + m - i))}
    for name, value in found._asdict().items():
        assert abs(value.mean() - expected[name]) < 4 * value.std(ddof=1) / np.sqrt(repeats), name


MIXTURE = grid(5)


def mixture(rng, n, weights=None, shrunk=None):
    labels = rng.choice(25, n, p=weights)
    scale = np.where(labels == shrunk, 0.1, 1.0)[:, None] * 0.05
    return jnp.asarray(np.asarray(MIXTURE.means)[labels] + scale * rng.standard_normal((n, 2)), jnp.float32)


@pytest.mark.parametrize("change", ["none", "dropped", "narrow"])
def test_a_mode_that_is_dropped_or_narrow_lowers_recall_or_coverage(change):
    """Against the scores of 19 sets of the data's law: below all of them with chance 1/20 where nothing is wrong."""
    rng = np.random.default_rng(2)
    weights = np.full(25, 1 / 25)
    if change == "dropped":
        weights[12] = 0
    n, scores = 1500, jax.jit(lambda x, y: density_coverage(x, y).coverage)
    real = mixture(rng, n)
    null = [float(scores(real, mixture(rng, n))) for _ in range(19)]
    found = float(scores(real, mixture(rng, n, weights / weights.sum(), 12 if change == "narrow" else None)))
    p_value = (1 + np.sum(np.asarray(null) <= found)) / 20
    assert (p_value <= 0.05) == (change != "none")
    if change == "dropped":  # its real points are in no ball of a generated point
        recall = precision_recall(real, mixture(rng, n, weights / weights.sum())).recall
        assert recall < 1 - 0.04 + 4 * np.sqrt(0.04 / n)


# copies ---------------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("levels", [None, 6])
def test_ranks_are_those_of_scipy(levels, dtype):
    rng = np.random.default_rng(3)
    a, b = rng.normal(0.0, 1.0, 83), rng.normal(0.2, 1.0, 61)
    if levels:
        a, b = (np.round(part * levels / 4) for part in (a, b))
    a, b = a.astype(dtype), b.astype(dtype)
    expected = scipy.stats.mannwhitneyu(b, a, alternative="greater", method="asymptotic")
    with jax.enable_x64(dtype == np.float64):
        found = jax.jit(smaller_test)(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(found.statistic, expected.statistic / (83 * 61), rtol=16 * np.finfo(dtype).eps)
    # of z the rounding is some units of the statistic's over its spread, 0.05; p moves by less
    np.testing.assert_allclose(found.p_value, expected.pvalue, atol=500 * np.finfo(dtype).eps)


def test_equal_distances_say_nothing():
    found = smaller_test(jnp.ones(9), jnp.ones(8))
    assert (found.statistic, found.p_value, found.null) == (0.5, 1, 0)


def test_memorization_is_of_scikit_learns_distances():
    rng = np.random.default_rng(4)
    train, held_out, made = (rng.normal(0.0, scale, (n, 4)) for n, scale in ((90, 1.0), (40, 1.0), (50, 0.8)))
    tree = NearestNeighbors(n_neighbors=1).fit(train)
    held, near = (tree.kneighbors(part)[0][:, 0] for part in (held_out, made))
    expected = scipy.stats.mannwhitneyu(held, near, alternative="greater", method="asymptotic")
    with jax.enable_x64(True):
        found = memorization_test(jnp.asarray(train), jnp.asarray(held_out), jnp.asarray(made))
    np.testing.assert_allclose(found.p_value, expected.pvalue, rtol=1e-10)


def memorization_p_values(key, copied, repeats=400):
    def one(key):
        key_train, key_held, key_made, key_noise = jax.random.split(key, 4)
        train, held = jax.random.normal(key_train, (100, 3)), jax.random.normal(key_held, (40, 3))
        made = jax.random.normal(key_made, (40, 3))
        made = made.at[:copied].set(train[:copied] + 0.01 * jax.random.normal(key_noise, (copied, 3)))
        return memorization_test(train, held, made).p_value

    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, repeats)))


def test_memorization_rejects_as_often_as_it_says_and_sees_copies():
    null = memorization_p_values(jax.random.key(5), 0)
    for level in (0.05, 0.2):
        assert np.mean(null <= level) <= level + 4 * np.sqrt(level * (1 - level) / len(null))
    some, all_ = (np.mean(memorization_p_values(jax.random.key(6), n, 50) <= 0.05) for n in (10, 40))
    assert np.mean(null <= 0.05) < some < all_ == 1
