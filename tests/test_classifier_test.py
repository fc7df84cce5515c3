"""The classifier two-sample test: fits against scikit-learn, the p-value against SciPy, its level and its power."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from dgm_jax.metrics import classifier_test, logistic, mlp, nearest_neighbours
from dgm_jax.metrics.classifier import at_least

FITS = {"logistic": logistic(penalty=1.0), "neighbours": nearest_neighbours(5)}
NETWORK = mlp((16,), steps=100, rate=0.01)


def labelled(n, m, dim=3, seed=0, shift=0.7):
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.normal(5.0, 2.0, (n, dim)), rng.normal(5.0 + shift, 2.0, (m, dim))])
    return x, np.repeat([0, 1], [n, m])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("penalty", "shift"), [(1.0, 0.7), (1e-2, 20.0)])
def test_logistic_regression_is_that_of_scikit_learn(penalty, shift, dtype):
    x, labels = labelled(40, 70, shift=shift)
    centre, spread = x.mean(0), x.std(0)
    peer = LogisticRegression(C=1 / penalty, tol=1e-12, max_iter=10_000).fit((x - centre) / spread, labels)
    queries = labelled(9, 9, seed=1, shift=shift)[0]
    expected = peer.predict_proba((queries - centre) / spread)[:, 1]
    with jax.enable_x64(dtype == np.float64):
        classify = logistic(penalty=penalty)(jnp.asarray(x, dtype), jnp.asarray(labels), jax.random.key(0))
        found = classify(jnp.asarray(queries, dtype))
    # float32: the Hessian's condition over 110 points, at most 1e4 with the small penalty, times the rounding
    np.testing.assert_allclose(found, expected, atol=1e-6 if dtype == np.float64 else 1e-3)


@pytest.mark.parametrize("k", [1, 4])
def test_neighbours_vote_as_in_scikit_learn(k):
    x, labels = labelled(40, 70)
    queries = labelled(30, 30, seed=1)[0]
    expected = KNeighborsClassifier(n_neighbors=k).fit(x, labels).predict_proba(queries)[:, 1]
    with jax.enable_x64(True):
        classify = nearest_neighbours(k)(jnp.asarray(x), jnp.asarray(labels), jax.random.key(0))
        np.testing.assert_allclose(classify(jnp.asarray(queries)), expected, rtol=1e-12)


def test_the_network_learns_what_no_line_tells():
    """Inside and outside of a ring, and the loss that it has is below that of a constant."""
    rng = np.random.default_rng(2)
    x = rng.normal(0.0, 1.0, (400, 2)).astype(np.float32)
    labels = (np.linalg.norm(x, axis=1) > 1.2).astype(np.int32)
    found = mlp((16, 16), steps=200, rate=0.02)(jnp.asarray(x), jnp.asarray(labels), jax.random.key(0))(jnp.asarray(x))
    assert np.mean((np.asarray(found) > 0.5) == labels) > max(labels.mean(), 1 - labels.mean()) + 0.2


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tails_are_scipys(dtype):
    cases = [(0, 0), (0, 3), (3, 3), (13, 20), (2, 20), (5000, 9800), (4700, 9300), (5250, 10_000), (60, 60)]
    k, n = np.array(cases).T
    with jax.enable_x64(dtype == np.float64):
        tail = jax.vmap(lambda k, n: at_least(k, n, dtype, most=10_000))
        found = tail(jnp.asarray(k), jnp.asarray(n))
    expected = scipy.stats.binom.sf(k - 1, n, 0.5)
    # a term is the exponential of a sum of logarithms of one sign, each right to 4 roundings (of two whole numbers'
    # ratio, of log1p), added in the order of a tree of log2(10^4) levels or one by one over blocks of as many: at most
    # 2 log2(10^4) roundings; the sums of terms add as many. Terms above the tail's largest are fewer digits away
    logarithm = np.log(np.maximum(n, 1)) - np.log(expected)  # at least that of any term that matters
    roundings = (4 + 2 * np.log2(10_000)) * (1 + logarithm) + 4 * np.log2(10_000)
    error = np.abs(np.asarray(found, np.float64) / expected - 1)
    np.testing.assert_array_less(error, roundings * np.finfo(dtype).eps)


@pytest.mark.parametrize(("n", "m"), [(40, 40), (30, 71)])
def test_the_statistic_is_the_accuracy_and_the_p_value_that_of_pairs(n, m):
    """A classifier of our own shows what was held out."""
    seen = {}
    x, y = jnp.arange(float(n))[:, None], 20 + jnp.arange(float(m))[:, None]

    def fit(points, labels, key):
        seen.update(points=points, labels=labels)

        def classify(queries):
            seen["held"] = np.asarray(queries)[:, 0]
            return jnp.where(queries[:, 0] > 30, 0.9, 0.1)

        return classify

    found = classifier_test(x, y, jax.random.key(0), fit=fit)
    half = min(n, m) // 2
    held_x, held_y = seen["held"][:half], seen["held"][half:]
    together = np.concatenate([np.asarray(seen["points"])[:, 0][np.asarray(seen["labels"]) == 0], held_x])
    np.testing.assert_array_equal(np.sort(together), np.arange(n))
    assert len(held_y) == half
    assert len(seen["points"]) == n + m - 2 * half
    right = np.concatenate([held_x <= 30, held_y > 30])
    assert found.statistic == pytest.approx(right.mean(), rel=1e-6)
    wins, losses = np.sum((held_y > 30) & (held_x <= 30)), np.sum((held_y <= 30) & (held_x > 30))
    expected = scipy.stats.binomtest(wins, wins + losses, alternative="greater").pvalue
    assert found.p_value == pytest.approx(expected, rel=1e-4)


def p_values(fit, key, n, m, dim, shift=0.0, repeats=300):
    def one(key):
        key_x, key_y, key_test = jax.random.split(key, 3)
        x, y = jax.random.normal(key_x, (n, dim)), jax.random.normal(key_y, (m, dim)) + shift
        return classifier_test(x, y, key_test, fit=fit).p_value

    return np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(key, repeats)))


def check_level(p):
    for level in (0.05, 0.2):
        assert np.mean(p <= level) <= level + 4 * np.sqrt(level * (1 - level) / len(p))


@pytest.mark.parametrize(("name", "n", "m"), [("logistic", 50, 50), ("logistic", 40, 90), ("neighbours", 60, 60)])
def test_p_values_are_never_too_small_and_power_rises(name, n, m):
    check_level(p_values(FITS[name], jax.random.key(1), n, m, 2))
    weak, strong = (np.mean(p_values(FITS[name], jax.random.key(2), n, m, 2, s, 60) <= 0.05) for s in (0.5, 2.0))
    assert 0.05 < weak < strong
    assert strong > 0.95


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(50, 50), (60, 120)])
def test_p_values_of_the_network_are_never_too_small(n, m):
    check_level(p_values(NETWORK, jax.random.key(3), n, m, 4, repeats=500))
    assert np.mean(p_values(NETWORK, jax.random.key(4), n, m, 4, 1.5, 60) <= 0.05) > 0.95


def test_the_tests_power_is_the_known_one():
    """Of x and y at -d/2 and d/2 on a line the best accuracy is Phi(d/2); logistic regression finds the threshold."""
    n, shift = 2000, 0.3
    x, y = (jax.random.normal(jax.random.key(i), (n, 1)) + s for i, s in ((5, -shift / 2), (6, shift / 2)))
    found = classifier_test(x, y, jax.random.key(7), fit=logistic(penalty=1.0))
    best = scipy.stats.norm.cdf(shift / 2)
    assert abs(found.statistic - best) < 4 * np.sqrt(0.25 / n) + 0.001  # half of 2n points held out; the threshold's
    assert found.p_value < 0.01
