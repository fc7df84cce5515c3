"""Divergence against the full Jacobian, the key convention, and the checks at the gate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from dgm_jax.numerics import (
    check_data,
    check_times,
    divergence,
    example_keys,
    expand_to,
    in_order,
    is_count,
    known,
    known_number,
    normal,
    normal_like,
    probe_traces,
    rademacher_like,
    split,
    sum_events,
    typed_key,
)


def field(x):
    """A smooth field that mixes the coordinates of an event [2, 3] and not the examples."""
    flat = x.reshape(len(x), 6)
    mixing = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), x.dtype)
    return (jnp.sin(flat @ mixing) + flat**3).reshape(x.shape)


def jacobians(x):
    jacobian = jax.vmap(jax.jacfwd(lambda one: field(one[None])[0]))(x)
    return np.asarray(jacobian).reshape(len(x), 6, 6)


def rademacher(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).choice([-1.0, 1.0], size=shape), jnp.result_type(float))


@pytest.mark.parametrize("x64", [False, True])
def test_exact_divergence_is_the_trace(x64):
    with jax.enable_x64(x64):
        x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2, 3)), jnp.result_type(float))
        value, trace = jax.jit(lambda x: divergence(field, x))(x)
        assert trace.dtype == x.dtype
        tolerance = 1e-12 if x64 else 1e-5
        np.testing.assert_allclose(value, field(x), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(trace, np.einsum("nii", jacobians(x)), rtol=tolerance, atol=tolerance)


def test_each_probe_gives_its_quadratic_form_and_the_mean_is_unbiased():
    n = 4000
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 2, 3)), jnp.float32)
    jacobian = jacobians(x)[0]
    many = jnp.broadcast_to(x, (n, 2, 3))
    for probes in (rademacher(2, 1, n, 2, 3), normal(jax.random.key(3), (n, 2, 3))[None]):
        _, estimates = jax.jit(lambda probes: divergence(field, many, probes))(probes)
        flat = np.asarray(probes).reshape(n, 6)
        expected = np.einsum("ni,ij,nj->n", flat, jacobian, flat)
        np.testing.assert_allclose(estimates, expected, rtol=1e-4, atol=1e-4)
        standard_error = np.std(estimates) / np.sqrt(n)
        assert standard_error > 0
        assert abs(np.mean(estimates) - np.trace(jacobian)) < 4 * standard_error
    averaged = divergence(field, x, rademacher(4, 5, 1, 2, 3))[1]
    flat = np.asarray(rademacher(4, 5, 1, 2, 3)).reshape(5, 6)
    np.testing.assert_allclose(averaged, [np.einsum("ni,ij,nj", flat, jacobian, flat) / 5], rtol=1e-5)


def test_probe_traces_are_the_values_that_the_divergence_averages():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(4, 2, 3)), jnp.float32)
    probes = rademacher(6, 5, 4, 2, 3)
    calls = []

    def counted(x):
        calls.append(x)
        return field(x)

    value, traces = probe_traces(counted, x, probes)
    assert len(calls) == 1
    flat = np.asarray(probes).reshape(5, 4, 6)
    np.testing.assert_allclose(value, field(x), rtol=1e-6)
    np.testing.assert_allclose(traces, np.einsum("pni,nij,pnj->pn", flat, jacobians(x), flat), rtol=1e-4, atol=1e-5)


def test_one_rademacher_probe_is_exact_for_a_diagonal_field():
    x = jnp.ones((3, 4))
    rates = jnp.array([0.5, -2.0, 3.0, 0.25])
    _, estimate = divergence(lambda x: x * rates[None], x, rademacher(5, 1, 3, 4))
    np.testing.assert_allclose(estimate, np.full(3, 1.75), rtol=1e-6)


def test_events_are_summed_over_all_axes_but_the_first():
    x = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(sum_events(jnp.asarray(x)), [66.0, 210.0])  # 0 + ... + 11 and 12 + ... + 23
    np.testing.assert_array_equal(sum_events(jnp.asarray(x[:, 0, 0])), x[:, 0, 0])


def test_directions_are_signs_of_unit_covariance_by_each_examples_key():
    keys, x = jax.random.split(jax.random.key(2), 50), jnp.zeros((50, 3))
    v = np.asarray(rademacher_like(keys, x, 400))
    assert v.shape == (400, 50, 3)
    assert set(np.unique(v)) == {-1.0, 1.0}
    covariance = np.einsum("pni,pnj->ij", v, v) / (400 * 50)
    np.testing.assert_allclose(covariance, np.eye(3), atol=4 / np.sqrt(400 * 50))  # 4 standard errors
    np.testing.assert_array_equal(rademacher_like(keys[7:9], x[:2], 400), v[:, 7:9])


def test_what_is_known_of_a_number_and_of_an_order():
    assert [known_number(x) for x in (2, 0.5, np.float32(0.5), jnp.asarray(3))] == [2.0, 0.5, 0.5, 3.0]
    for x in (None, "1", {}, True, 1j, np.ones(1), [1.0, 2.0]):
        assert np.isnan(known_number(x)), x
    assert in_order(0, 0.5, 0.5, np.inf)
    assert not any((in_order(0, -1), in_order(0, np.nan, 1), in_order(None, 1), in_order(0, np.zeros(2))))

    def traced(x):
        assert known_number(x) is None
        assert in_order(0, x, 1)
        assert not in_order(1, x, 0)
        assert not in_order(0, x[None], 1)
        return x

    jax.jit(traced)(5.0)


def test_counts_are_whole_by_their_type():
    assert all((is_count(1), is_count(np.int64(3)), is_count(0, 0)))
    assert not any(map(is_count, (0, -1, 2.0, True, "2", None, np.float64(2))))


def test_expand_to_broadcasts_from_the_left():
    like = jnp.zeros((2, 3, 4))
    np.testing.assert_array_equal(expand_to(jnp.array([1.0, 2.0]), like) + like, np.array([[[1.0]], [[2.0]]]) + like)
    assert expand_to(jnp.float32(3.0), like).shape == (1, 1, 1)


def test_one_key_is_split_per_example_and_keys_draw_their_own_rows():
    key = jax.random.key(0)
    keys = jax.random.split(key, 6)
    whole = normal(keys, (6, 2, 3))
    np.testing.assert_array_equal(normal(key, (6, 2, 3)), whole)
    np.testing.assert_array_equal(normal(keys[2:5], (3, 2, 3)), whole[2:5])
    np.testing.assert_array_equal(whole[4], jax.random.normal(keys[4], (2, 3)))
    np.testing.assert_array_equal(normal_like(keys, whole), whole)
    with jax.enable_x64(True):
        assert normal(key, (2, 3)).dtype == jnp.float64
        assert normal(key, (2, 3), jnp.float32).dtype == jnp.float32


def test_noise_is_standard_normal_and_uncorrelated_between_examples():
    noise = np.asarray(normal(jax.random.key(1), (2000, 4)))
    assert stats.kstest(noise.ravel(), "norm").pvalue > 1e-3
    products = np.concatenate([(noise[1:] * noise[:-1]).ravel(), (noise[:, 1:] * noise[:, :-1]).ravel()])
    assert abs(products.mean()) < 4 / np.sqrt(products.size)


@pytest.mark.parametrize("batch", [(), (4,)])
def test_split_keeps_the_shape_and_gives_new_keys(batch):
    key = jax.random.key(7) if batch == () else jax.random.split(jax.random.key(7), 4)
    parts = split(key, 3)
    assert [part.shape for part in parts] == [batch] * 3
    rows = np.concatenate([jax.random.key_data(k).reshape(-1, 2) for k in (key, *parts)])
    assert len(np.unique(rows, axis=0)) == len(rows)
    if batch:
        # slice-invariant: what an example draws depends on its own key alone
        for part, of_slice in zip(parts, split(key[1:3], 3), strict=True):
            np.testing.assert_array_equal(jax.random.key_data(part[1:3]), jax.random.key_data(of_slice))


def test_legacy_keys_give_the_same_numbers():
    legacy = jax.random.PRNGKey(3)
    np.testing.assert_array_equal(normal(legacy, (3, 2)), normal(jax.random.key(3), (3, 2)))
    rows = jax.random.split(legacy, 3)
    np.testing.assert_array_equal(normal(rows, (3, 2)), normal(jax.random.split(jax.random.key(3), 3), (3, 2)))
    assert typed_key(rows).shape == (3,)
    assert [k.shape for k in split(rows)] == [(3,), (3,)]


def test_a_wrong_number_of_keys_is_refused():
    with pytest.raises(ValueError, match=r"one key per example \(5,\).*\(4,\)"):
        example_keys(jax.random.split(jax.random.key(0), 4), 5)


def test_known_sees_constants_and_not_traces():
    np.testing.assert_array_equal(known(jnp.arange(3)), [0, 1, 2])
    assert known(0.5) == 0.5
    constant = np.array([1.0, 2.0])
    seen = []

    @jax.jit
    def traced(x):
        seen.append((known(x), known((x, constant)), known(constant)))
        return x

    traced(jnp.ones(2))
    assert seen[0][0] is None
    assert seen[0][1] is None
    np.testing.assert_array_equal(seen[0][2], constant)
    jax.vmap(lambda x: seen.append(known(x)) or x)(jnp.ones(2))
    assert seen[1] is None


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((2, 3), np.uint8), r"floating-point.*uint8"),
        (np.zeros((2, 3), np.int32), r"floating-point.*int32"),
        (np.float32(1.0), r"batch.*shape \(\)"),
        (np.array([[0.0, np.nan], [np.inf, 1.0]], np.float32), "finite pixels.*2 such"),
    ],
)
def test_check_data_refuses(x, message):
    with pytest.raises(ValueError, match=message):
        check_data(jnp.asarray(x), "pixels")


@pytest.mark.parametrize(
    ("t", "message"),
    [
        (np.array([0.5, 0.5], np.float32), r"shape \(3,\).*\(2,\)"),
        (np.array([0.5, 1.5, 0.5], np.float32), r"\[0, 1\].*1\.5"),
        (np.array([0.5, -0.25, 0.5], np.float32), r"\[0, 1\].*-0\.25"),
        (np.array([0.5, np.nan, 0.5], np.float32), r"\[0, 1\].*nan"),
    ],
)
def test_check_times_refuses(t, message):
    with pytest.raises(ValueError, match=message):
        check_times(jnp.asarray(t), 3)


def test_checks_pass_what_is_right_and_what_is_not_known():
    check_data(jnp.zeros((2, 3)), "x")
    check_times(jnp.array([0.0, 1.0]), 2)

    @jax.jit
    def traced(x, t):
        check_data(x, "x")
        check_times(t, 2)
        return x

    assert np.isnan(traced(jnp.full((2, 3), jnp.nan), jnp.array([2.0, 3.0]))).all()
