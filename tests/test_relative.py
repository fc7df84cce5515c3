"""Relative and conditional tests: closed forms, double sums, rates of rejection."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.metrics.pairwise import rbf_kernel

from dgm_jax.metrics import conditional_mmd_test, mmd, mmd_test, relative_mmd_test
from dgm_jax.metrics.conditional import relabellings_within
from dgm_jax.metrics.kernels import gaussian

REPETITIONS = 500


def mapped(function, seed, repetitions=REPETITIONS):
    keys = jax.random.split(jax.random.key(seed), repetitions)
    return jax.device_get(jax.jit(lambda keys: jax.lax.map(function, keys))(keys))


def three(key, a, b, size=60):
    """Real data N(0, I) in the plane and two models of other means, of another size too."""
    keys = jax.random.split(key, 3)
    sizes = size, size - 10, size - 10
    return [
        jax.random.normal(k, (n, 2)) + jnp.array([[shift, 0.0]])
        for k, n, shift in zip(keys, sizes, (0.0, a, b), strict=True)
    ]


def test_the_statistic_is_the_difference_of_both_discrepancies():
    real, a, b = three(jax.random.key(0), 0.3, 1.0)
    test, square = (jax.jit(partial(function, kernel=gaussian(1.0))) for function in (relative_mmd_test, mmd))
    found, other = test(real, a, b), test(real, b, a)
    expected = square(real, b) - square(real, a)
    np.testing.assert_allclose(found.statistic, expected, atol=1e-6)
    np.testing.assert_allclose(found.p_value, scipy.stats.norm.sf(expected / found.null), rtol=1e-3)
    np.testing.assert_allclose(found.p_value + other.p_value, 1, rtol=1e-5)


def test_the_stated_error_is_the_spread_of_repetitions():
    """Of unequal models. A spread's relative error is 1/sqrt(2 n); projections on n points leave out terms in 1/n."""
    found = mapped(lambda key: relative_mmd_test(*three(key, 0.5, 1.5), kernel=gaussian(1.0)), 1, 500)
    ratio = np.sqrt(np.mean(found.null**2)) / found.statistic.std()
    assert abs(ratio - 1) < 4 / np.sqrt(2 * 500) + 4 / 60
    # the mean is that of the closed form, E k = (1/v) exp(-m^2/(2 v)), v = 3
    exact = 2 / 3 * (np.exp(-(0.5**2) / 6) - np.exp(-(1.5**2) / 6))
    assert abs(found.statistic.mean() - exact) < 4 * found.statistic.std() / np.sqrt(500)


@pytest.mark.parametrize(("a", "b"), [(1.0, -1.0), (0.0, 0.0)])
def test_equally_far_models_are_told_apart_no_more_often_than_the_level(a, b):
    found = mapped(lambda key: relative_mmd_test(*three(key, a, b), kernel=gaussian(1.5)), 2)
    assert (found.p_value <= 0.05).mean() < 0.05 + 4 * np.sqrt(0.05 * 0.95 / REPETITIONS)
    assert (found.p_value <= 0.5).mean() > 0.3


@pytest.mark.slow
def test_the_closer_model_wins_the_more_the_closer_it_is():
    shares = [
        (mapped(lambda key, a=a: relative_mmd_test(*three(key, a, 1.0), kernel=gaussian(1.5)), 3, 200).p_value <= 0.05)
        for a in (0.7, 0.4)
    ]
    worse = mapped(lambda key: relative_mmd_test(*three(key, 1.0, 0.4), kernel=gaussian(1.5)), 3, 200).p_value <= 0.05
    assert worse.mean() < 0.01 < shares[0].mean() < shares[1].mean()
    assert shares[1].mean() > 0.7


def test_two_copies_of_one_model_are_equally_far():
    real, a, _ = three(jax.random.key(4), 0.5, 0.5)
    found = jax.jit(relative_mmd_test)(real, a, a)
    assert abs(found.statistic) < 1e-6
    assert 0 <= found.p_value <= 1


def labelled(key, size, shift, ignore=0.0):
    """Three labels of unequal shares, each with its own mean; with `ignore` the points belong to another label."""
    key_label, key_point, key_other, key_which = jax.random.split(key, 4)
    law = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    labels = jax.random.categorical(key_label, law, shape=(size - 6,))
    labels = jnp.concatenate([jnp.array([0, 0, 1, 1, 2, 2]), labels])  # at least two of each
    others = jax.random.permutation(key_other, labels)
    means = jnp.where(jax.random.uniform(key_which, (size,)) < ignore, others, labels)
    return jax.random.normal(key_point, (size, 2)) + 2 * means[:, None].astype(jnp.float32) + shift, labels


def run_conditional(key, size, shift=0.0, ignore=0.0):
    key_x, key_y, key_test = jax.random.split(key, 3)
    x, y = labelled(key_x, size, 0.0), labelled(key_y, size, shift, ignore)
    return conditional_mmd_test(*x, *y, key_test, kernel=gaussian(1.5), permutations=99)


def test_the_conditional_statistic_is_the_weighted_sum_over_labels():
    (x, x_labels), (y, y_labels) = labelled(jax.random.key(5), 30, 0.0), labelled(jax.random.key(6), 25, 0.5)
    found = jax.jit(
        lambda *sets: conditional_mmd_test(*sets, jax.random.key(7), kernel=gaussian(2.0), permutations=200)
    )(x, x_labels, y, y_labels)
    z, labels, first = np.concatenate([x, y]), np.concatenate([x_labels, y_labels]), np.arange(55) < 30

    def expected(first):
        total = 0.0
        for label in range(3):
            a, b = z[(labels == label) & first], z[(labels == label) & ~first]
            own = [(rbf_kernel(part, gamma=1 / 8).sum() / len(part) - 1) / (len(part) - 1) for part in (a, b)]
            total += (labels == label).mean() * (sum(own) - 2 * rbf_kernel(a, b, gamma=1 / 8).mean())
        return total

    np.testing.assert_allclose(found.statistic, expected(first), atol=1e-6)
    draws = np.asarray(relabellings_within(30, jnp.asarray(labels), jax.random.split(jax.random.key(7))[1], 200))
    np.testing.assert_array_equal(draws[:, 0], first)
    for label in range(3):
        of_label = draws[labels == label]
        assert (of_label.sum(0) == first[labels == label].sum()).all()
        share = first[labels == label].mean()
        assert np.abs(of_label[:, 1:].mean(1) - share).max() < 4.5 * np.sqrt(share * (1 - share) / 200)
    values = np.array([expected(column) for column in draws.T])
    np.testing.assert_allclose(found.null, values[1:], atol=1e-6)
    assert found.p_value == pytest.approx((values >= values[0]).mean())


def test_conditional_p_values_are_uniform_where_each_label_is_right():
    """And where the labels' shares are not: those are not blamed."""

    def once(key):
        key_x, key_y, key_test = jax.random.split(key, 3)
        x, labels = labelled(key_x, 50, 0.0)
        y, y_labels = labelled(key_y, 80, 0.0)
        many = 2 + jnp.argsort(-y_labels[2:])[:48]  # of the last label rather than of the first
        few = jnp.concatenate([many, jnp.array([0, 1])])
        return conditional_mmd_test(x, labels, y[few], y_labels[few], key_test, permutations=99).p_value

    p_values = mapped(once, 8) - np.random.default_rng(0).random(REPETITIONS) / 100
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 1e-4


def test_ignored_labels_are_found_out_though_the_marginal_is_right():
    some, much = (
        (mapped(lambda key, s=s: run_conditional(key, 60, ignore=s), 9, 200).p_value <= 0.05).mean() for s in (0.3, 1.0)
    )
    assert 0.05 + 4 * np.sqrt(0.05 * 0.95 / 200) < some < much
    assert much > 0.95

    def marginal(key):
        key_x, key_y, key_test = jax.random.split(key, 3)
        return mmd_test(
            labelled(key_x, 60, 0.0)[0],
            labelled(key_y, 60, 0.0, 1.0)[0],
            key_test,
            kernel=gaussian(1.5),
            permutations=99,
        )

    assert (mapped(marginal, 9, 200).p_value <= 0.05).mean() < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 200)
