"""Discrepancies and the tests built on them: double sums, scipy, closed forms, all permutations, uniform p-values."""

from itertools import combinations
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import rbf_kernel

from dgm_jax.metrics import (
    block_mmd,
    energy_distance,
    energy_test,
    mmd,
    mmd_test,
    permutation_test,
    wild_energy_test,
    wild_mmd_test,
)
from dgm_jax.metrics.kernels import distance_kernel, gaussian, polynomial
from dgm_jax.metrics.two_sample import relabellings

REPETITIONS = 500


def unbiased(k, n):
    """The U-statistic of a pooled kernel matrix, by sums over pairs."""
    xx, yy, xy = k[:n, :n], k[n:, n:], k[:n, n:]
    m = len(yy)
    own = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return own - 2 * xy.mean()


@pytest.fixture(scope="module")
def sets():
    rng = np.random.default_rng(0)
    return rng.normal(0.0, 1.0, (23, 3)), rng.normal(0.4, 1.5, (17, 3))


@pytest.mark.parametrize("chunk", [5, 23])
def test_mmd_is_the_sum_over_pairs_whatever_the_tiles(sets, chunk):
    expected = unbiased(rbf_kernel(np.concatenate(sets), gamma=1 / 8), len(sets[0]))
    with jax.enable_x64(True):
        found = jax.jit(lambda x, y: mmd(x, y, kernel=gaussian(2.0), chunk=chunk))(*map(jnp.asarray, sets))
        assert abs(found - expected) < 1e-14
    single = mmd(*(jnp.asarray(part, jnp.float32).reshape(-1, 3, 1) for part in sets), kernel=gaussian(2.0))
    assert abs(single - expected) < 3e-7  # sums of numbers below 1, as a typical value is taken off


def test_energy_distance_is_scipys():
    """Its square is the statistic that counts each point's distance 0 to itself."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(0.0, 1.0, 40), rng.gamma(2.0, 1.0, 25)
    biased = scipy.stats.energy_distance(x, y) ** 2
    own = [cdist(part[:, None], part[:, None]).mean() / (len(part) - 1) for part in (x, y)]
    with jax.enable_x64(True):
        found = energy_distance(jnp.asarray(x)[:, None], jnp.asarray(y)[:, None], chunk=16)
    np.testing.assert_allclose(found, biased - sum(own), rtol=1e-10)


def test_mmd_estimates_the_gaussians_exact_value_without_bias():
    """E k of N(m, s^2 I) and N(m', s'^2 I) is (b^2/v)^(d/2) exp(-|m - m'|^2/(2 v)), v = b^2 + s^2 + s'^2."""
    d, b, m, s, n, repetitions = 3, 1.5, 0.3, 1.4, 30, 2000

    def mean(square, v):
        return (b**2 / v) ** (d / 2) * np.exp(-square / (2 * v))

    exact = mean(0, b**2 + 2) + mean(0, b**2 + 2 * s**2) - 2 * mean(d * m**2, b**2 + 1 + s**2)

    def estimate(key):
        x, y = jax.random.normal(key, (2, n, d))
        return mmd(x, m + s * y, kernel=gaussian(b)), block_mmd(x, m + s * y, kernel=gaussian(b), block=5)

    found, block = jax.device_get(jax.jit(jax.vmap(estimate))(jax.random.split(jax.random.key(0), repetitions)))
    for values in (found, block.estimate):
        assert abs(values.mean() - exact) < 4 * values.std() / np.sqrt(repetitions)
    # a variance estimated from 6 blocks is unbiased; 2,000 of them have a relative error below 3 %
    ratio = (block.standard_error**2).mean() / block.estimate.var()
    assert abs(ratio - 1) < 4 * np.sqrt(2 / repetitions + (block.standard_error**2).var() / repetitions / ratio**2)


def test_blocks_are_means_of_their_own_estimates(sets):
    x, y = (jnp.asarray(part, jnp.float32) for part in sets)
    parts = [mmd(x[i : i + 4], y[i : i + 4], kernel=gaussian(2.0)) for i in (0, 4, 8, 12)]
    found = block_mmd(x, y, kernel=gaussian(2.0), block=4)
    np.testing.assert_allclose(found.estimate, np.mean(parts), rtol=1e-5)
    np.testing.assert_allclose(found.standard_error, scipy.stats.sem(parts), rtol=1e-5)


@pytest.mark.parametrize("name", ["mmd", "energy", "any statistic"])
def test_p_values_are_those_of_all_permutations(name):
    """All 70 splits of 4 + 4 points; the observed one and its mirror image tie, and count as at least as large."""
    rng = np.random.default_rng(2)
    z = rng.normal(size=(8, 2))
    z[4:] += 0.8
    x, y = jnp.asarray(z[:4], jnp.float32), jnp.asarray(z[4:], jnp.float32)
    kernel, matrix = (
        (gaussian(1.0), rbf_kernel(z, gamma=0.5)) if name != "energy" else (distance_kernel(), -cdist(z, z))
    )
    splits = [[*first, *(i for i in range(8) if i not in first)] for first in combinations(range(8), 4)]
    exact = np.array([unbiased(matrix[np.ix_(order, order)], 4) for order in splits])
    share = (exact >= exact[0] - 1e-9).mean()
    draws, key = 4000, jax.random.key(3)
    found = {
        "mmd": lambda: mmd_test(x, y, key, kernel=kernel, permutations=draws),
        "energy": lambda: energy_test(x, y, key, permutations=draws),
        "any statistic": lambda: permutation_test(lambda x, y: mmd(x, y, kernel=kernel), x, y, key, permutations=draws),
    }[name]()
    assert 0.02 < share < 0.3
    np.testing.assert_allclose(found.statistic, exact[0], atol=1e-6)
    assert abs(found.p_value - share) < 4 * np.sqrt(share * (1 - share) / draws) + 1 / draws
    assert found.null.shape == (draws,)
    assert np.abs(np.asarray(found.null)[:, None] - exact).min(1).max() < 1e-6
    # all 70 values come up, 35 different ones, each as often as the others
    counts = np.bincount(np.abs(np.asarray(found.null)[:, None] - np.unique(exact.round(7))).argmin(1), minlength=35)
    assert scipy.stats.chisquare(counts).pvalue > 1e-4


def test_signs_are_those_of_all_swaps():
    """All 2^6 of them, by the pooled kernel less the pairs."""
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(6, 2)), rng.normal(0.7, 1.0, (6, 2))
    h = rbf_kernel(x, gamma=0.5) + rbf_kernel(y, gamma=0.5) - rbf_kernel(x, y, gamma=0.5) - rbf_kernel(y, x, gamma=0.5)
    np.fill_diagonal(h, 0)
    signs = np.array(np.meshgrid(*[[1, -1]] * 6)).reshape(6, -1)
    exact = np.einsum("is,ij,js->s", signs, h, signs) / 30
    share, draws = (exact >= exact[0] - 1e-9).mean(), 4000
    x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32)
    found = wild_mmd_test(x, y, jax.random.key(5), kernel=gaussian(1.0), draws=draws)
    np.testing.assert_allclose(found.statistic, exact[0], atol=1e-6)
    assert abs(found.p_value - share) < 4 * np.sqrt(share * (1 - share) / draws) + 1 / draws
    assert np.abs(np.asarray(found.null)[:, None] - exact).min(1).max() < 1e-6


def test_sizes_beyond_one_tile(sets, monkeypatch):
    """The statistic and the draws of tiles are those of one matrix."""
    monkeypatch.setattr("dgm_jax.metrics.two_sample.SIDE", 7)
    monkeypatch.setattr("dgm_jax.metrics.wild_bootstrap.SIDE", 7)
    x, y = (jnp.asarray(part, jnp.float32) for part in sets)
    found = mmd_test(x, y, jax.random.key(6), kernel=gaussian(2.0), permutations=50)
    matrix = rbf_kernel(np.concatenate(sets), gamma=1 / 8)
    np.testing.assert_allclose(found.statistic, unbiased(matrix, len(x)), atol=1e-6)
    monkeypatch.undo()
    same = mmd_test(x, y, jax.random.key(6), kernel=gaussian(2.0), permutations=50)
    np.testing.assert_allclose(found.null, same.null, atol=1e-6)
    monkeypatch.setattr("dgm_jax.metrics.wild_bootstrap.SIDE", 7)
    tiled = wild_energy_test(x[:17], y, jax.random.key(7), draws=50)
    monkeypatch.undo()
    np.testing.assert_allclose(tiled.null, wild_energy_test(x[:17], y, jax.random.key(7), draws=50).null, atol=1e-5)


def randomised(p_values, draws, seed):
    """Uniform on [0, 1] where the p-values are uniform on 1/(draws + 1), 2/(draws + 1), ..., 1."""
    return np.asarray(p_values, np.float64) - np.random.default_rng(seed).random(len(p_values)) / (draws + 1)


def null_p_values(test, size, dim, seed, repetitions=REPETITIONS):
    """Of pairs of sets from one law, a lopsided one: half a Gaussian and half a shifted exponential."""

    def once(key):
        keys = jax.random.split(key, 4)
        normal, heavy = jax.random.normal(keys[0], (2 * size, dim)), jax.random.exponential(keys[1], (2 * size, dim))
        z = jnp.where(jax.random.bernoulli(keys[2], 0.5, (2 * size, 1)), normal, 1 + 2 * heavy)
        return test(z[:size], z[size:], keys[3]).p_value

    return np.asarray(
        jax.jit(lambda keys: jax.lax.map(once, keys))(jax.random.split(jax.random.key(seed), repetitions))
    )


def mean_difference(x, y):
    return jnp.abs(x.mean() - y.mean())


def every_test(draws):
    return {
        "mmd_test": lambda x, y, key: mmd_test(x, y, key, permutations=draws),
        "energy_test": lambda x, y, key: energy_test(x, y, key, permutations=draws),
        "wild_mmd_test": lambda x, y, key: wild_mmd_test(x, y, key, draws=draws),
        "wild_energy_test": lambda x, y, key: wild_energy_test(x, y, key, draws=draws),
        "permutation_test": lambda x, y, key: permutation_test(mean_difference, x, y, key, permutations=draws),
    }


CASES = [("mmd_test", dim) for dim in (1, 2, 64)] + [("energy_test", dim) for dim in (1, 2, 64)]
CASES += [("wild_mmd_test", 2), ("wild_energy_test", 2), ("permutation_test", 1)]


SLOW_AT_50 = [("energy_test", 1), ("energy_test", 2), ("wild_energy_test", 2)]


@pytest.mark.parametrize(
    ("name", "dim"), [pytest.param(*case, marks=[pytest.mark.slow] * (case in SLOW_AT_50)) for case in CASES]
)
def test_p_values_are_uniform_under_the_null_hypothesis(name, dim):
    """500 repetitions at 50 points; of the family of checks one in a thousand would fail by chance at another seed."""
    p_values = null_p_values(every_test(99)[name], 50, dim, seed=dim)
    assert scipy.stats.kstest(randomised(p_values, 99, 0), "uniform").pvalue > 1e-4
    assert (p_values <= 0.05).mean() < 0.05 + 4 * np.sqrt(0.05 * 0.95 / REPETITIONS)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "dim"), CASES)
def test_p_values_are_uniform_at_500_points(name, dim):
    p_values = null_p_values(every_test(39)[name], 500, dim, seed=10 + dim)
    assert scipy.stats.kstest(randomised(p_values, 39, 0), "uniform").pvalue > 1e-4
    assert (p_values <= 0.05).mean() < 0.05 + 4 * np.sqrt(0.05 * 0.95 / REPETITIONS)


def test_block_estimates_reject_no_more_than_their_level():
    """A mean over 50 blocks against its standard error, one-sided."""

    def once(key):
        x, y = jax.random.normal(key, (2, 200, 2))
        found = block_mmd(x, y, kernel=gaussian(1.0), block=4)
        return found.estimate / found.standard_error

    z = np.asarray(jax.jit(lambda keys: jax.lax.map(once, keys))(jax.random.split(jax.random.key(8), 2000)))
    level = (z > NormalDist().inv_cdf(0.95)).mean()
    assert level < 0.05 + 4 * np.sqrt(0.05 * 0.95 / 2000)
    assert level > 0.01


def rejections(test, draw, effects, repetitions):
    """The share of p-values up to 5 % at each effect."""

    def once(key, effect):
        key_data, key_test = jax.random.split(key)
        return test(*draw(key_data, effect), key_test).p_value <= 0.05

    run = jax.jit(lambda keys, effect: jax.lax.map(lambda key: once(key, effect), keys))
    keys = jax.random.split(jax.random.key(9), repetitions)
    return [float(np.mean(run(keys, jnp.float32(effect)))) for effect in effects]


def test_the_linear_kernel_has_the_power_of_the_t_test():
    """On a line and at equal sizes it orders permutations as |t| does; the power of t is a noncentral law's."""
    n, draws, repetitions = 40, 199, 500

    def draw(key, shift):
        x, y = jax.random.normal(key, (2, n, 1))
        return x, y + shift

    shifts = [0.3, 0.6, 0.9]
    found = rejections(
        lambda x, y, key: mmd_test(x, y, key, kernel=polynomial(1), permutations=draws), draw, shifts, repetitions
    )
    critical = scipy.stats.t.ppf(0.975, 2 * n - 2)
    for share, shift in zip(found, shifts, strict=True):
        law = scipy.stats.nct(2 * n - 2, shift * np.sqrt(n / 2))
        power = law.sf(critical) + law.cdf(-critical)
        # the critical value comes from 199 draws, which moves the level by 1.5 % at random: the power by up to 2 %
        assert abs(share - power) < 4 * np.sqrt(power * (1 - power) / repetitions) + 0.02


def shifted(key, effect):
    x, y = jax.random.normal(key, (2, 60, 2))
    return x, y + effect


def spread(key, effect):
    x, y = jax.random.normal(key, (2, 60, 2))
    return x, y * (1 + effect)


def dropped(key, effect):
    """Five modes on a circle; the last loses the share `effect` of its weight to the others."""
    keys = jax.random.split(key, 3)
    angles = 2 * jnp.pi * jnp.arange(5.0) / 5
    centers = 3 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    modes = jax.random.randint(keys[0], (2, 150), 0, 5)
    moved = jax.random.randint(keys[1], (150,), 0, 4)
    lost = (modes[1] == 4) & (jax.random.uniform(jax.random.fold_in(keys[1], 1), (150,)) < effect)
    x, y = 0.3 * jax.random.normal(keys[2], (2, 150, 2))
    return x + centers[modes[0]], y + centers[jnp.where(lost, moved, modes[1])]


def fixed_kernel(draws):
    """The tests without the search for a median distance, which takes most of the time of small sets."""
    return {
        "mmd_test": lambda x, y, key: mmd_test(x, y, key, kernel=gaussian(1.5), permutations=draws),
        "energy_test": lambda x, y, key: energy_test(x, y, key, permutations=draws),
        "wild_mmd_test": lambda x, y, key: wild_mmd_test(x, y, key, kernel=gaussian(1.5), draws=draws),
    }


POWERS = {"shift": (shifted, (0, 0.4, 1)), "variance": (spread, (0, 0.5, 1.5)), "lost mode": (dropped, (0, 0.7, 1))}
SLOW = [("energy_test", "lost mode"), ("wild_mmd_test", "variance"), ("energy_test", "variance")]


@pytest.mark.parametrize(
    ("name", "law"),
    [("mmd_test", law) for law in POWERS] + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW],
)
def test_powers_rise_with_a_shift_a_variance_and_a_lost_mode(name, law):
    none, some, much = rejections(fixed_kernel(99)[name], *POWERS[law], 200)
    error = 4 * np.sqrt(0.05 * 0.95 / 200)
    assert none < 0.05 + error < some < much
    assert much > 0.8


def test_every_draw_has_as_many_points_of_each_set():
    found = np.asarray(relabellings(7, 30, jax.random.key(0), 500))
    assert (found.sum(0) == 7).all()
    np.testing.assert_array_equal(found[:, 0], np.arange(30) < 7)
    # each point is drawn 500 * 7/30 times; counts of one draw are negatively correlated, which helps
    share, error = found[:, 1:].mean(1), np.sqrt(7 / 30 * 23 / 30 / 500)
    assert np.abs(share - 7 / 30).max() < 4.5 * error


def test_precision_is_the_inputs(sets):
    with jax.enable_x64(True):
        for dtype in (jnp.float32, jnp.float64):
            x, y = (jnp.asarray(part[:16], dtype) for part in sets)
            for test in every_test(9).values():
                found = jax.eval_shape(test, x, y, jax.random.key(0))
                assert found.statistic.dtype == found.null.dtype == found.p_value.dtype == dtype
