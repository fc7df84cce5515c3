"""Scores of modes and supports: cases done by hand, SciPy's entropy and power divergence, exact expectations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from dgm_jax.data import grid
from dgm_jax.metrics import (
    birthday_batch,
    duplicate_pairs,
    mode_scores,
    mode_shares_test,
    modes_captured,
    nearest_mode,
    reverse_kl,
    support_size,
)

CENTERS = jnp.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])


def test_the_nearest_mode_and_points_that_are_lost():
    x = jnp.array([[0.3, 0.4], [4.0, 1.0], [jnp.nan, 0.0], [-jnp.inf, 0.0]])
    labels, distance = nearest_mode(x, CENTERS)
    np.testing.assert_array_equal(labels, [0, 1, 0, 0])
    np.testing.assert_allclose(distance, [0.5, 1.0, np.inf, np.inf])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nearest_modes_are_those_of_scipys_tree(dtype):
    rng = np.random.default_rng(0)
    x, centers = rng.normal(5.0, 2.0, (300, 3)).astype(dtype), rng.normal(5.0, 2.0, (20, 3)).astype(dtype)
    distance, labels = scipy.spatial.KDTree(centers.astype(np.float64)).query(x.astype(np.float64))
    with jax.enable_x64(dtype == np.float64):
        found = nearest_mode(jnp.asarray(x), jnp.asarray(centers))
    np.testing.assert_array_equal(found[0], labels)
    np.testing.assert_allclose(found[1], distance, rtol=8 * np.finfo(dtype).eps)


def test_scores_by_hand():
    """Four points at mode 0, two at mode 1 of which none is good, none at mode 2: KL((2/3, 1/3) || (1/2, 1/4, 1/4))."""
    labels = jnp.array([0, 0, 0, 0, 1, 1])
    good = jnp.array([True, True, False, True, False, False])
    found = mode_scores(labels, good, jnp.array([0.5, 0.25, 0.25]))
    assert (found.modes, found.high_quality) == (1, 0.5)
    np.testing.assert_allclose(found.reverse_kl, np.log(4 / 3), rtol=4e-7)  # both ratios are 4/3


def test_captured_modes_by_hand():
    x = jnp.array([[0.1, 0.0], [0.0, 0.2], [0.9, 0.0], [4.0, 0.1]])
    found = jax.jit(lambda x: modes_captured(x, CENTERS, radius=0.5))(x)
    assert (found.modes, found.high_quality) == (2, 0.75)
    expected = scipy.stats.entropy([0.75, 0.25, 0], [1 / 3] * 3)
    np.testing.assert_allclose(found.reverse_kl, expected, rtol=1e-6)
    assert modes_captured(x, CENTERS, radius=0.0, weights=jnp.array([0.5, 0.25, 0.25])).modes == 0


def test_reverse_kl_is_that_of_scipy_and_zero_at_the_weights():
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    labels = np.random.default_rng(0).integers(0, 4, 1000)
    with jax.enable_x64(True):
        found = reverse_kl(jnp.asarray(labels), jnp.asarray(weights))
        zero = reverse_kl(jnp.repeat(jnp.arange(4), jnp.array([1, 2, 3, 4])), jnp.asarray(weights))
    assert found == pytest.approx(scipy.stats.entropy(np.bincount(labels) / 1000, weights), rel=1e-12)
    assert zero == pytest.approx(0, abs=1e-15)


def test_duplicates_are_counted_as_by_hand():
    x = jnp.array([[0.0, 0.0], [0.0, 0.9], [0.0, 1.8], [5.0, 5.0], [jnp.nan, 0.0]])
    assert duplicate_pairs(x, radius=1.0) == 2
    assert duplicate_pairs(x, radius=2.0) == 3
    assert support_size(0, 5) == np.inf
    assert support_size(2, 5) == 5


def test_duplicates_are_those_of_scipys_tree():
    x = np.random.default_rng(1).normal(0.0, 1.0, (700, 3))
    tree = scipy.spatial.KDTree(x)
    with jax.enable_x64(True):
        found = [int(duplicate_pairs(jnp.asarray(x), radius=radius, chunk=99)) for radius in (0.1, 0.7)]
    assert found == [len(tree.query_pairs(radius)) for radius in (0.1, 0.7)]


def test_the_support_of_equal_atoms_is_their_number():
    """Pairs are uncorrelated, so that the share of duplicates has variance (1/N)(1 - 1/N) over the number of pairs."""
    atoms, n = 50, 2000
    x = jnp.asarray(np.random.default_rng(1).integers(0, atoms, (n, 1)), jnp.float32)
    pairs = n * (n - 1) / 2
    share = 1 / support_size(duplicate_pairs(x, radius=0.5), n)
    assert abs(share - 1 / atoms) <= 4 * np.sqrt((1 - 1 / atoms) / atoms / pairs)


def test_the_birthday_batch_holds_a_duplicate_half_of_the_time():
    """Of 365 days: 23 people. The exact chance is a product; the approximation's error is of the order n^3/N^2."""
    n = birthday_batch(365.0)
    assert round(float(n)) == 23
    chance = 1 - np.prod(1 - np.arange(23) / 365)
    assert abs(chance - 0.5) < 23**3 / (6 * 365**2) + 1 / 23


# the test of shares ---------------------------------------------------------------------------------------------


def test_the_statistic_is_scipys_g_test_and_its_null_is_nearly_chi_squared():
    rng = np.random.default_rng(2)
    weights = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    labels = rng.choice(4, 2000, p=[0.12, 0.2, 0.29, 0.39])
    g, p_value = scipy.stats.power_divergence(np.bincount(labels), 2000 * weights, lambda_="log-likelihood")
    found = mode_shares_test(jnp.asarray(labels), jax.random.key(0), weights=jnp.asarray(weights), draws=999)
    np.testing.assert_allclose(2 * 2000 * found.statistic, g, rtol=1e-3)  # a KL of 0.001, of terms of 0.03 in float32
    spread = np.sqrt(p_value * (1 - p_value) / 999)
    assert abs(found.p_value - p_value) < 4 * spread + 0.01  # chi-squared to (modes - 1)/(expected count) of itself


@pytest.mark.parametrize("n", [20, pytest.param(400, marks=pytest.mark.slow)])
def test_p_values_of_shares_are_never_too_small(n):
    weights = jnp.array([0.05, 0.15, 0.3, 0.5])

    def one(key):
        key_labels, key_test = jax.random.split(key)
        labels = jax.random.categorical(key_labels, jnp.log(weights), shape=(n,))
        return mode_shares_test(labels, key_test, weights=weights, draws=99).p_value

    p = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(1), 500)))
    for level in (0.05, 0.2, 0.5):
        share = np.mean(p <= level + 1e-6)
        assert share <= level + 4 * np.sqrt(level * (1 - level) / 500)
    assert np.mean(p <= 0.5 + 1e-6) > 0.5 - 4 * np.sqrt(0.25 / 500) - 0.1  # atoms of the statistic at n = 20


def rare(modes, share):
    """Weights of modes of which the eighth has `share` of another's."""
    weights = np.full(modes, 1.0)
    weights[7] = share
    return weights / weights.sum()


@pytest.mark.parametrize(("modes", "n"), [(9, 300), pytest.param(25, 1000, marks=pytest.mark.slow)])
def test_a_rare_mode_is_seen_as_often_as_by_numpy(modes, n):
    """It is where none of 19 draws is as large: with chance (1 - c)^19, c the chance of one that NumPy counts."""
    draws, repeats, many, weights = 19, 150, 20_000, (rare(modes, 1.0), rare(modes, 0.4))
    equal, logits = jnp.full(modes, 1 / modes), jnp.log(jnp.asarray(weights[1], jnp.float32))

    def one(key):
        key_labels, key_test = jax.random.split(key)
        labels = jax.random.categorical(key_labels, logits, shape=(n,))
        return mode_shares_test(labels, key_test, weights=equal, draws=draws).p_value

    p = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(jax.random.key(4), repeats)))
    rng = np.random.default_rng(3)
    null, found = (scipy.stats.entropy(rng.multinomial(n, law, many), weights[0], axis=1) for law in weights)
    c = 1 - np.searchsorted(np.sort(null), found - 1e-5) / many  # the test's slack for ties
    expected = np.mean((1 - c) ** draws)
    # c is a share of `many` draws itself, and the mean one over as many
    of_c = np.mean(draws * (1 - c) ** (draws - 1) * np.sqrt(c * (1 - c) / many))
    error = np.sqrt(expected * (1 - expected) * (1 / repeats + 1 / many) + of_c**2)
    assert abs(np.mean(p <= 0.05 + 1e-6) - expected) < 4 * error
    assert expected > 0.05 + 4 * error


@pytest.mark.parametrize(("share", "modes"), [(1.0, 25), (0.0, 24)])
def test_a_dropped_mode_of_25_is_not_captured(share, modes):
    means, rng = np.asarray(grid(5).means), np.random.default_rng(3)
    x = means[rng.choice(25, 2500, p=rare(25, share))] + 0.05 * rng.standard_normal((2500, 2))
    x, means = jnp.asarray(x, jnp.float32), jnp.asarray(means, jnp.float32)
    assert modes_captured(x, means, radius=0.15).modes == modes
    test = mode_shares_test(nearest_mode(x, means)[0], jax.random.key(5), weights=jnp.full(25, 1 / 25), draws=199)
    if share == 0:  # the reverse KL is log(25/24) at least, five times what 95 % of the draws stay below
        assert test.statistic > np.log(25 / 24) - 1e-5
        assert test.p_value <= 1 / 200 + 1e-6
    else:
        assert 2 * 2500 * test.statistic < scipy.stats.chi2.ppf(1 - 1e-4, 24)
