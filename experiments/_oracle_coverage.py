"""Rows of the oracle table for coverage, modes, memorisation, Wasserstein distances and classifiers as tests."""

import contextlib
import io
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import ot
import scipy.stats
from prdc import compute_prdc
from scipy.spatial import KDTree
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from dgm_jax.metrics import (
    birthday_batch,
    classifier_test,
    density_coverage,
    duplicate_pairs,
    logistic,
    memorization_test,
    mlp,
    mode_scores,
    mode_shares_test,
    modes_captured,
    nearest,
    nearest_mode,
    nearest_neighbours,
    nearest_other,
    precision_recall,
    reverse_kl,
    sliced_wasserstein,
    support_size,
    wasserstein,
    wasserstein_along,
)
from experiments._oracle_rows import Row, paper, relative, standard_errors, worst

KYNKAANNIEMI, NAEEM, MEEHAN = "1904.06991", "2002.09797", "2004.05675"
SRIVASTAVA, ARORA, LOPEZ = "1705.07761", "1706.08224", "1610.06545"
BONNEEL = "doi:10.1007/s10851-014-0506-3"
EXACT = 1e-12


def coverage_rows(names: Sequence[str]) -> Iterator[Row]:
    """Against prdc, scikit-learn, SciPy and POT. No row depends on a process."""
    yield from ball_rows()
    yield from mode_rows()
    yield from wasserstein_rows()
    yield from classifier_rows()


def ball_rows() -> Iterator[Row]:
    """Neighbours, the scores built on them, and copies of a training set."""
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(300, 4)), 1.2 * rng.normal(size=(250, 4))
    tree = NearestNeighbors(n_neighbors=5).fit(real)
    distances, indices = tree.kneighbors(fake)
    found = nearest(jnp.asarray(real), jnp.asarray(fake), k=5)
    error = worst(relative(found.distances, distances) + (np.asarray(found.indices) != indices), EXACT)
    yield Row("`nearest`", "", "none", "scikit-learn's neighbours", error)
    found = nearest_other(jnp.asarray(real), k=5)
    distances, indices = tree.kneighbors()
    error = worst(relative(found.distances, distances) + (np.asarray(found.indices) != indices), EXACT)
    yield Row("`nearest_other`", "", "none", "scikit-learn's neighbours", error)
    with contextlib.redirect_stdout(io.StringIO()):
        peers = {k: compute_prdc(real, fake, nearest_k=k) for k in (3, 5)}
    near = precision_recall(jnp.asarray(real), jnp.asarray(fake), k=3)
    error = worst(relative([*near], [peers[3]["precision"], peers[3]["recall"]]), EXACT)
    yield Row("`precision_recall`", paper(KYNKAANNIEMI, "eq. 1-3"), "none", "prdc", error)
    dense = density_coverage(jnp.asarray(real), jnp.asarray(fake), k=5)
    error = worst(relative([*dense], [peers[5]["density"], peers[5]["coverage"]]), EXACT)
    yield Row("`density_coverage`", paper(NAEEM, "eq. 4 and 6"), "none", "prdc", error)
    train, held_out = rng.normal(size=(200, 4)), rng.normal(size=(60, 4))
    made = np.concatenate([train[:10], rng.normal(size=(60, 4))])
    test = memorization_test(*(jnp.asarray(part) for part in (train, held_out, made)))
    copies, others = (NearestNeighbors(n_neighbors=1).fit(train).kneighbors(x)[0][:, 0] for x in (made, held_out))
    peer = scipy.stats.mannwhitneyu(others, copies, alternative="greater", method="asymptotic")
    expected = [peer.statistic / (len(made) * len(held_out)), peer.pvalue]
    error = worst(relative([test.statistic, test.p_value], expected), 1e-9)
    yield Row("`memorization_test`", paper(MEEHAN, "sec. 3"), "none", "SciPy's Mann-Whitney test", error)


def mode_rows() -> Iterator[Row]:
    """Scores on modes that are known, by SciPy's tree and entropies."""
    rng = np.random.default_rng(1)
    centers = np.stack(np.meshgrid(np.arange(3.0), np.arange(3.0)), axis=-1).reshape(-1, 2)
    x = centers[np.asarray(rng.integers(0, 7, 400))] + 0.2 * rng.normal(size=(400, 2))
    distances, labels = (np.asarray(found) for found in KDTree(centers).query(x))
    weights = np.full(9, 1 / 9)
    counts = np.bincount(labels, minlength=9)
    expected = [len(set(labels[distances <= 0.3])), (distances <= 0.3).mean(), scipy.stats.entropy(counts, weights)]
    own_labels, own_distances = nearest_mode(jnp.asarray(x), jnp.asarray(centers))
    error = worst(relative(own_distances, distances) + (np.asarray(own_labels) != labels), EXACT)
    yield Row("`nearest_mode`", paper(SRIVASTAVA, "sec. 4"), "none", "SciPy's tree", error)
    scores = {
        "`modes_captured`": modes_captured(jnp.asarray(x), jnp.asarray(centers), radius=0.3),
        "`mode_scores`": mode_scores(jnp.asarray(labels), jnp.asarray(distances <= 0.3), jnp.asarray(weights)),
    }
    for method, found in scores.items():
        error = worst(relative([float(score) for score in found], expected), EXACT)
        yield Row(method, paper(SRIVASTAVA, "sec. 4"), "none", "SciPy's tree and entropy", error)
    error = worst(relative(reverse_kl(jnp.asarray(labels), jnp.asarray(weights)), expected[2]), EXACT)
    yield Row("`reverse_kl`", paper(SRIVASTAVA, "sec. 4"), "none", "SciPy's entropy", error)

    def p_value(key: jax.Array) -> jax.Array:
        key_labels, key_test = jax.random.split(key)
        labels = jax.random.choice(key_labels, 3, (60,), p=jnp.asarray([0.5, 0.3, 0.2]))
        return mode_shares_test(labels, key_test, weights=jnp.asarray([0.5, 0.3, 0.2]), draws=99).p_value

    p = jax.lax.map(p_value, jax.random.split(jax.random.key(0), 500))
    oracle = "at most 10 % below 0.1 under the null; standard errors"
    rejected = (p <= 0.1).mean()
    yield Row("`mode_shares_test`", "", "none", oracle, (float(max(rejected - 0.1, 0) / (0.09 / 500) ** 0.5), 4.0))

    pairs = len(KDTree(x).query_pairs(0.05))
    found = duplicate_pairs(jnp.asarray(x), radius=0.05)
    yield Row("`duplicate_pairs`", paper(ARORA), "none", "SciPy's tree", worst(relative(found, pairs), EXACT))
    atoms = rng.integers(0, 50, (200, 100))  # 200 sets of 100 draws from 50 equal atoms
    shares = [len(KDTree(row[:, None]).query_pairs(0.5)) / (100 * 99 / 2) for row in atoms]
    oracle = "50 equal atoms, in standard errors of 1/N"
    inverse = [1 / float(support_size(int(share * 100 * 99 / 2 + 0.5), 100)) for share in shares]
    yield Row("`support_size`", paper(ARORA), "none", oracle, standard_errors(inverse, 1 / 50))
    n = float(birthday_batch(365.0))
    error = worst(relative(n * (n - 1) / (2 * 365), np.log(2)), EXACT)
    yield Row("`birthday_batch`", paper(ARORA), "none", "its equation", error)


def wasserstein_rows() -> Iterator[Row]:
    """Against POT, and SciPy on a line."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(80, 3)), 0.5 + rng.normal(size=(80, 3))
    expected = float(np.asarray(ot.emd2([], [], ot.dist(x, y)))) ** 0.5
    error = worst(relative(wasserstein(jnp.asarray(x), jnp.asarray(y)), expected), 1e-9)
    yield Row("`wasserstein`", BONNEEL, "none", "POT", error)
    directions = rng.normal(size=(20, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = ot.sliced_wasserstein_distance(x, y[:50], projections=directions.T)
    found = wasserstein_along(jnp.asarray(x), jnp.asarray(y[:50]), jnp.asarray(directions))
    yield Row("`wasserstein_along`", BONNEEL, "none", "POT, sets of two sizes", worst(relative(found, expected), 1e-9))
    found = sliced_wasserstein(
        jnp.asarray(x[:, :1]), jnp.asarray(y[:50, :1]), jax.random.key(0), projections=3, order=1.0
    )
    expected = scipy.stats.wasserstein_distance(x[:, 0], y[:50, 0])
    yield Row("`sliced_wasserstein`", BONNEEL, "none", "SciPy on a line", worst(relative(found, expected), 1e-9))


def classifier_rows() -> Iterator[Row]:
    """Fits against scikit-learn's, and the level of the tests that they make."""
    rng = np.random.default_rng(3)
    points, labels = rng.normal(size=(120, 3)), rng.integers(0, 2, 120)
    standard = (points - points.mean(0)) / points.std(0)
    queries, key = rng.normal(size=(40, 3)), jax.random.key(0)
    given = jnp.asarray(points), jnp.asarray(labels, jnp.int32), key
    peer = LogisticRegression(C=0.5, tol=1e-12, max_iter=10_000).fit(standard, labels)
    expected = peer.predict_proba((queries - points.mean(0)) / points.std(0))[:, 1]
    error = worst(relative(logistic(penalty=2.0)(*given)(jnp.asarray(queries)), expected), 1e-6)
    yield Row("`logistic`", paper(LOPEZ), "none", "scikit-learn's, its tolerance", error)
    expected = KNeighborsClassifier(5).fit(points, labels).predict_proba(queries)[:, 1]
    error = worst(relative(nearest_neighbours(5)(*given)(jnp.asarray(queries)), expected), EXACT)
    yield Row("`nearest_neighbours`", paper(LOPEZ), "none", "scikit-learn's", error)
    for method, fit in (
        ("`classifier_test`", nearest_neighbours(3)),
        ("`mlp`, in `classifier_test`", mlp((4,), steps=20, rate=0.1)),
    ):

        def p_value(key: jax.Array, fit=fit) -> jax.Array:  # type: ignore[no-untyped-def]
            key_x, key_y, key_test = jax.random.split(key, 3)
            x, y = jax.random.normal(key_x, (40, 2)), jax.random.normal(key_y, (50, 2))
            return classifier_test(x, y, key_test, fit=fit).p_value

        p = jax.lax.map(p_value, jax.random.split(jax.random.key(1), 400))
        excess = max(float((p <= 0.05).mean()) - 0.05, 0.0) / (0.05 * 0.95 / 400) ** 0.5
        oracle = "rejections above 5 % under the null; standard errors"
        yield Row(method, paper(LOPEZ), "none", oracle, (excess, 4.0))
