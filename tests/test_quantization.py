"""Vector quantisation: nearest codes by SciPy, gradients by the paper's equations, moving averages by NumPy's means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.cluster.vq
import scipy.spatial.distance

from dgm_jax.losses.quantization import (
    code_book,
    code_perplexity,
    code_sums,
    init_code_averages,
    nearest_codes,
    quantize,
    straight_through,
    update_code_averages,
)

CODES, DIM = 7, 3
EVENTS = [(), (4,), (2, 5)]


def case(positions, offset=0.0):
    rng = np.random.default_rng(1)
    codes = offset + rng.standard_normal((CODES, DIM))
    return jnp.asarray(offset + rng.standard_normal((6, *positions, DIM)), jnp.float32), jnp.asarray(codes, jnp.float32)


@pytest.mark.parametrize("positions", EVENTS)
@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_the_nearest_code_is_scipys(positions, offset):
    z, codes = case(positions, offset)
    distances = scipy.spatial.distance.cdist(np.asarray(z, np.float64).reshape(-1, DIM), np.asarray(codes, np.float64))
    np.testing.assert_array_equal(jax.jit(nearest_codes)(z, codes), distances.argmin(1).reshape(6, *positions))


def test_of_equal_distances_the_first_code_is_taken():
    codes = jnp.array([[5.0], [1.0], [-1.0], [1.0]])
    np.testing.assert_array_equal(nearest_codes(jnp.zeros((2, 1)), codes), [1, 1])


@pytest.mark.parametrize("positions", EVENTS)
def test_values_and_losses_are_the_papers(positions):
    z, codes = case(positions)
    out = jax.jit(quantize)(z, codes)
    nearest = np.asarray(codes)[np.asarray(out.indices)]
    np.testing.assert_array_equal(out.z, nearest)  # to the last bit
    squares = np.sum((np.asarray(z) - nearest) ** 2, axis=tuple(range(1, z.ndim)))
    np.testing.assert_allclose(out.code_book_loss, squares, rtol=1e-5)
    np.testing.assert_allclose(out.commitment_loss, squares, rtol=1e-5)


def test_each_gradient_goes_where_the_paper_sends_it():
    z, codes = case((4,))
    weights = jnp.asarray(np.random.default_rng(2).standard_normal(z.shape), z.dtype)

    def terms(z, codes):
        out = quantize(z, codes)
        return jnp.stack([jnp.sum(weights * out.z), out.code_book_loss.sum(), out.commitment_loss.sum()])

    of_z, of_codes = jax.jit(jax.jacrev(terms, argnums=(0, 1)))(z, codes)
    indices = np.asarray(nearest_codes(z, codes)).ravel()
    gap = np.asarray(z - codes[indices.reshape(z.shape[:-1])])
    np.testing.assert_array_equal(of_z[0], weights)  # straight through: the identity
    np.testing.assert_array_equal(of_z[1], np.zeros(z.shape))
    np.testing.assert_allclose(of_z[2], 2 * gap, rtol=1e-5)
    np.testing.assert_array_equal(of_codes[0], np.zeros(codes.shape))
    np.testing.assert_array_equal(of_codes[2], np.zeros(codes.shape))
    expected = np.zeros(codes.shape)
    np.add.at(expected, indices, -2 * gap.reshape(-1, DIM))
    np.testing.assert_allclose(of_codes[1], expected, rtol=1e-4, atol=1e-5)


def test_averages_of_fixed_assignments_go_to_the_means_geometrically():
    """k-means' second half: a code is the mean of its vectors; what is left of the start is decay^n of it."""
    rng = np.random.default_rng(3)
    z = jnp.asarray(rng.standard_normal((40, 5, DIM)), jnp.float32)
    assigned = rng.integers(0, CODES, (40, 5))
    codes = jnp.asarray(rng.standard_normal((CODES, DIM)), jnp.float32)
    decay, n = 0.8, 60
    sums = code_sums(z, jnp.asarray(assigned), codes=CODES)
    update = jax.jit(lambda averages: update_code_averages(averages, sums, decay=decay))
    averages, first = init_code_averages(codes), None
    np.testing.assert_array_equal(code_book(averages, smoothing=0.0), codes)
    for i in range(n):
        averages = update(averages)
        first = averages if i == 0 else first
    groups = [np.asarray(z, np.float64)[assigned == k] for k in range(CODES)]
    means, counts = np.array([g.mean(0) for g in groups]), np.array([len(g) for g in groups])
    np.testing.assert_allclose(code_book(averages, smoothing=0.0), means, atol=decay**n * 10 + 1e-5)
    # appendix A.1, one step by hand
    count = decay * 1.0 + (1 - decay) * counts
    moved = (decay * np.asarray(codes) + (1 - decay) * means * counts[:, None]) / count[:, None]
    np.testing.assert_allclose(code_book(first, smoothing=0.0), moved, rtol=1e-4, atol=1e-5)


def test_smoothing_keeps_the_total_and_saves_unused_codes():
    codes = jnp.asarray(np.random.default_rng(4).standard_normal((CODES, DIM)), jnp.float32)
    z = jnp.tile(codes[2], (10, 1))
    sums = code_sums(z, nearest_codes(z, codes), codes=CODES)
    averages = init_code_averages(codes)
    for _ in range(20):  # 0.001^20 is 0 in float32: unused codes lose all they had
        averages = update_code_averages(averages, sums, decay=0.001)
    assert np.count_nonzero(averages.counts) == 1
    smoothing = 0.1
    book = np.asarray(code_book(averages, smoothing=smoothing))
    assert np.isfinite(book).all()
    counts = np.where(np.arange(CODES) == 2, 10.0, 0.0)
    smoothed = (counts + smoothing) / (10 + CODES * smoothing) * 10
    np.testing.assert_allclose(smoothed.sum(), 10)
    np.testing.assert_allclose(book[2], 10 * np.asarray(codes)[2] / smoothed[2], rtol=1e-4)


def test_sums_of_parts_are_the_sums_of_the_whole():
    z, codes = case((4,))
    indices = nearest_codes(z, codes)
    whole = code_sums(z, indices, codes=CODES)
    parts = [code_sums(z[rows], indices[rows], codes=CODES) for rows in (slice(0, 2), slice(2, 6))]
    for a, b, c in zip(*parts, whole, strict=True):
        np.testing.assert_allclose(a + b, c, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(whole.counts, np.bincount(np.asarray(indices).ravel(), minlength=CODES))


def test_lloyds_iterations_with_no_memory_are_k_means():
    rng = np.random.default_rng(5)
    centres = np.array([[-4.0, 0.0], [4.0, 1.0], [0.0, 6.0]])
    z = np.concatenate([c + rng.standard_normal((50, 2)) for c in centres]).astype(np.float32)
    codes = jnp.asarray(z[[0, 60, 120]])
    averages = init_code_averages(codes)
    for _ in range(10):
        indices = nearest_codes(jnp.asarray(z), code_book(averages, smoothing=0.0))
        averages = update_code_averages(averages, code_sums(jnp.asarray(z), indices, codes=3), decay=0.0)
    reference, _ = scipy.cluster.vq.kmeans2(z.astype(np.float64), z[[0, 60, 120]].astype(np.float64), minit="matrix")
    np.testing.assert_allclose(code_book(averages, smoothing=0.0), reference, atol=1e-4)


def test_perplexity_counts_the_codes_in_use():
    uniform = jnp.tile(jnp.arange(4), (3, 2))
    np.testing.assert_allclose(code_perplexity(uniform, codes=CODES), 4.0, rtol=1e-6)
    np.testing.assert_allclose(code_perplexity(jnp.full(9, 3), codes=CODES), 1.0, rtol=1e-6)
    shares = np.array([0.5, 0.25, 0.25])
    expected = np.exp(-np.sum(shares * np.log(shares)))
    np.testing.assert_allclose(code_perplexity(jnp.array([0, 0, 1, 2]), codes=CODES), expected, rtol=1e-6)


X = jnp.zeros((3, 4, DIM))
BAD = {
    "codes of another dimension": (lambda: quantize(X, jnp.zeros((5, DIM + 1))), r"codes \[codes, 3\].*\(5, 4\)"),
    "codes of rank three": (lambda: nearest_codes(X, jnp.zeros((2, 5, DIM))), r"codes \[codes, 3\]"),
    "integers for vectors": (lambda: quantize(jnp.zeros((3, DIM), int), jnp.zeros((5, DIM))), "floating-point z.*int"),
    "another shape through": (lambda: straight_through(X, X[:, :1]), r"shape of z.*\(3, 1, 3\)"),
    "no codes": (lambda: code_perplexity(jnp.zeros(3, int), codes=0), "codes >= 1.*codes=0"),
    "index beyond the codes": (lambda: code_perplexity(jnp.array([0, 5]), codes=5), r"\[0, 5\).*0 to 5"),
    "indices of another shape": (lambda: code_sums(X, jnp.zeros(3, int), codes=5), "one index per vector"),
    "decay of one": (
        lambda: update_code_averages(*[init_code_averages(jnp.zeros((5, 2)))] * 2, decay=1.0),
        "0 <= decay < 1.*1.0",
    ),
    "sums of other codes": (
        lambda: update_code_averages(*(init_code_averages(jnp.zeros((n, 2))) for n in (5, 6)), decay=0.9),
        r"\(5, 2\).*\(6, 2\)",
    ),
    "negative smoothing": (lambda: code_book(init_code_averages(X[0]), smoothing=-1.0), "0 <= smoothing.*-1.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_says_rule_reason_and_value(name, untyped):
    call, match = BAD[name]
    with pytest.raises(ValueError, match=match):
        call()
