"""Decoders against SciPy's laws; the probabilities of all data sum to one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats

from dgm_jax.losses import (
    bernoulli_log_likelihood,
    categorical_log_likelihood,
    discretized_logistic_log_likelihood,
    gaussian_log_likelihood,
)

RNG = np.random.default_rng(0)


def test_classes_beyond_the_range_of_their_integers():
    """A uniform law over 256 classes gives each pixel 1/256, in uint8 too, where 256 itself is 0."""
    x = jnp.asarray([[0, 255]], jnp.uint8)
    found = categorical_log_likelihood(jnp.zeros((1, 2, 256)), x)
    np.testing.assert_allclose(found, [-2 * np.log(256)], rtol=1e-6)


def test_data_that_are_not_binary_have_no_gradient_under_jit():
    traced = jax.jit(jax.grad(lambda v, x: bernoulli_log_likelihood(v, x).sum()))
    found = traced(jnp.zeros((1, 2)), jnp.array([[0.5, 1.0]]))
    assert np.isnan(found[0, 0])
    assert found[0, 1] == 0.5


def test_bernoulli_is_scipys_and_sums_to_one_over_all_images():
    """Over the 2^6 images of 2 x 3 pixels."""
    logits = RNG.standard_normal((2, 3)) * 3
    x = np.array(list(itertools.product([0, 1], repeat=6))).reshape(-1, 2, 3)
    expected = scipy.stats.bernoulli.logpmf(x, scipy.special.expit(logits)).sum((1, 2))
    with jax.enable_x64(True):
        wide = jnp.broadcast_to(jnp.asarray(logits), x.shape)
        for dtype in (np.float64, np.int32, np.uint8, bool):
            log_p = bernoulli_log_likelihood(wide, jnp.asarray(x, dtype))
            np.testing.assert_allclose(log_p, expected, rtol=1e-12)
        np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-12)


def test_bernoulli_is_stable_on_big_logits():
    """In float32 to a rounding or two of the exact value, which is far below the logits' own rounding."""
    logits = np.array([-1e4, -90.0, -20.0, -3.0, 0.0, 3.0, 20.0, 90.0, 1e4], np.float32)
    for value in (0, 1):
        exact = -np.logaddexp(0, -np.float64(2 * value - 1) * logits.astype(np.float64))
        f = lambda logits: bernoulli_log_likelihood(logits, jnp.full((9, 1), value, jnp.float32))  # noqa: B023, E731
        actual, pullback = jax.vjp(f, jnp.asarray(logits)[:, None])
        np.testing.assert_allclose(actual, exact, rtol=5e-7, atol=1e-38)
        gradient = pullback(jnp.ones(9))[0][:, 0]
        np.testing.assert_allclose(
            gradient, value - scipy.special.expit(logits.astype(np.float64)), rtol=1e-6, atol=1e-7
        )


def test_data_that_a_compiled_decoder_cannot_refuse_give_nan():
    x = jnp.asarray([[0.0, 1.0], [0.0, 0.5]])
    np.testing.assert_array_equal(np.isnan(jax.jit(bernoulli_log_likelihood)(x, x)), [False, True])
    classes = jnp.asarray([[0, 2], [-1, 0], [1, 3]])
    log_p = jax.jit(categorical_log_likelihood)(jnp.zeros((3, 2, 3)), classes)
    np.testing.assert_array_equal(np.isnan(log_p), [False, True, True])


@pytest.mark.parametrize("shape", [(3,), (2, 2)])
def test_categorical_is_the_softmax_and_sums_to_one(shape):
    logits, size = RNG.standard_normal((*shape, 4)) * 2, int(np.prod(shape))
    x = np.array(list(itertools.product(range(4), repeat=size))).reshape(-1, *shape)
    p = scipy.special.softmax(logits, axis=-1).reshape(size, 4)
    expected = [np.log([p[i, c] for i, c in enumerate(row)]).sum() for row in x.reshape(-1, size)]
    with jax.enable_x64(True):
        wide = jnp.broadcast_to(jnp.asarray(logits), (len(x), *logits.shape))
        log_p = categorical_log_likelihood(wide, jnp.asarray(x, jnp.int32))
    np.testing.assert_allclose(log_p, expected, rtol=1e-12)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-12)
    shifted = categorical_log_likelihood(jnp.asarray(wide, jnp.float32) + 1e4, jnp.asarray(x, jnp.int32))
    # the shift leaves the logits a rounding of 1e4
    np.testing.assert_allclose(shifted, expected, atol=size * 2 * 1e4 * float(np.finfo(np.float32).eps))


def test_gaussian_is_scipys_with_a_learned_deviation_and_integrates_to_one():
    mean, log_std, x = (0.7 * RNG.standard_normal((4, 2, 3)) for _ in range(3))
    with jax.enable_x64(True):
        arrays = [jnp.asarray(part) for part in (mean, log_std, x)]
        expected = scipy.stats.norm.logpdf(x, mean, np.exp(log_std)).sum((1, 2))
        np.testing.assert_allclose(gaussian_log_likelihood(*arrays), expected, rtol=1e-12)
        shared = gaussian_log_likelihood(arrays[0], jnp.asarray(-0.3), arrays[2])
        np.testing.assert_allclose(shared, scipy.stats.norm.logpdf(x, mean, np.exp(-0.3)).sum((1, 2)), rtol=1e-12)
        for center, spread in ((0.3, -2.0), (-5.0, 1.5)):
            grid = jnp.linspace(center - 12 * np.exp(spread), center + 12 * np.exp(spread), 2001)[:, None]
            law = gaussian_log_likelihood(jnp.full_like(grid, center), jnp.full_like(grid, spread), grid)
            # the trapezoidal rule is exact to rounding for a Gaussian at this step
            total = scipy.integrate.trapezoid(np.exp(law), np.asarray(grid)[:, 0])
            np.testing.assert_allclose(total, 1, rtol=1e-10)
        best = jax.grad(lambda log_std: gaussian_log_likelihood(0 * arrays[2], log_std, arrays[2]).mean())
        maximum = jnp.asarray(np.log(np.sqrt((x**2).mean())))
        np.testing.assert_allclose(best(maximum), 0, atol=1e-12)  # the likeliest variance is the mean square


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize(("mean", "scale"), [(0.1, 0.05), (-0.97, 0.3), (0.4, 0.004), (1.5, 0.08), (0.0, 30.0)])
def test_discretized_logistic_bins_are_scipys_and_sum_to_one(levels, mean, scale):
    """Bins in both tails too; the outermost are open."""
    centres = (2 * np.arange(levels) - (levels - 1)) / (levels - 1)
    with jax.enable_x64(True):
        x = jnp.asarray(centres)[:, None]
        arguments = jnp.full_like(x, mean), jnp.full_like(x, np.log(scale))
        log_p = discretized_logistic_log_likelihood(*arguments, x, levels=levels)
        shared = discretized_logistic_log_likelihood(arguments[0], jnp.asarray(np.log(scale)), x, levels=levels)
        np.testing.assert_allclose(shared, log_p, rtol=1e-14)
    edges = np.concatenate([[-np.inf], (centres[1:] + centres[:-1]) / 2, [np.inf]])
    law = scipy.stats.logistic(mean, scale)
    # the smaller of both tails' differences loses fewest digits
    mass = np.where(centres < mean, np.diff(law.cdf(edges)), -np.diff(law.sf(edges)))
    seen = mass > 1e-250
    np.testing.assert_allclose(log_p[seen], np.log(mass[seen]), rtol=1e-8, atol=1e-11)
    np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-11)
    assert np.isfinite(log_p).all()


def test_discretized_logistic_keeps_its_digits_in_float32():
    """Against itself in float64, at scales from a hundredth of a bin to many times the range, with its gradients."""
    x = jnp.asarray([[-1.0], [0.2], [1.0], [0.6], [-0.2]])

    def total(mean, log_scale):
        values = jnp.full_like(x.astype(mean.dtype), mean), log_scale, (jnp.round(x * 5) / 5).astype(mean.dtype)
        return discretized_logistic_log_likelihood(*values, levels=11).sum()

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
    for mean, log_scale in ((0.9, -6.0), (-3.0, -1.0), (0.0, 5.0), (30.0, -3.0), (0.3, -1.0)):
        single = run(jnp.float32(mean), jnp.float32(log_scale))
        with jax.enable_x64(True):
            precise = run(jnp.float64(mean), jnp.float64(log_scale))
        flat, exact = (np.array(jax.tree.leaves(part), np.float64) for part in (single, precise))
        # distances of x from mean carry a rounding each, times the precision
        rounding = 64 * np.finfo(np.float32).eps * (1 + abs(mean) + np.exp(-log_scale))
        np.testing.assert_allclose(flat, exact, rtol=rounding, atol=rounding)


def test_precision_and_data_of_any_rank():
    every = jax.jit(
        lambda x: [
            bernoulli_log_likelihood(x, x),
            gaussian_log_likelihood(x, x, x),
            discretized_logistic_log_likelihood(x, x, x, levels=3),
            categorical_log_likelihood(jnp.stack([x, -x], axis=-1), x.astype(jnp.int32)),
        ]
    )
    for shape in ((5,), (5, 4), (5, 4, 3, 2)):
        for values in every(jnp.asarray(RNG.integers(0, 2, shape), jnp.float32)):
            assert values.shape == (5,)
            assert values.dtype == jnp.float32
