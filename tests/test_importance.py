"""Importance sampling of log p(x) against probabilistic PCA, whose marginal and posterior are exact."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from latent_proposals import draw_prior, log_joint, log_prob, posterior_draw, simulate

from dgm_jax.likelihood import importance_log_likelihood

BATCH = 16


@pytest.fixture(scope="module")
def data():
    _, x = simulate(np.random.default_rng(0), BATCH)
    return jnp.asarray(x, jnp.float32), log_prob(x)


def test_the_exact_posterior_has_one_weight_and_the_exact_value(data):
    x, exact = data
    out = jax.jit(partial(importance_log_likelihood, posterior_draw(), log_joint, samples=40, chunk=16))(
        x, jax.random.key(0)
    )
    np.testing.assert_allclose(out.log_likelihood, exact, atol=1e-4)  # sums of ten terms up to 1e2 in float32
    np.testing.assert_allclose(out.effective_sample_size, 40, rtol=1e-5)
    assert (out.standard_error < 1e-3).all()


@pytest.mark.parametrize("proposal", [draw_prior, posterior_draw(1.5, 0.3)], ids=["prior", "wide posterior"])
def test_within_its_stated_error_of_the_exact_value(data, proposal):
    x, exact = data
    run = jax.jit(partial(importance_log_likelihood, proposal, log_joint, samples=5000, chunk=500))
    out = jax.device_get(run(x, jax.random.key(1)))
    assert (out.effective_sample_size < 4999).all()
    # four errors, and Jensen's bias of half a squared error
    assert (np.abs(out.log_likelihood - exact) < 4 * out.standard_error + out.standard_error**2 / 2 + 1e-4).all()


def test_the_stated_error_is_the_spread_of_repetitions():
    """Over 2,000 repetitions of one example; a spread's own relative error is 1/sqrt(2 n)."""
    n, samples = 2_000, 400
    _, x = simulate(np.random.default_rng(3), 1)
    run = jax.jit(partial(importance_log_likelihood, posterior_draw(1.5, 0.3), log_joint, samples=samples, chunk=100))
    out = jax.device_get(run(jnp.tile(jnp.asarray(x, jnp.float32), (n, 1)), jax.random.key(2)))
    spread = out.log_likelihood.std()
    # the delta method leaves terms of relative size 1/samples, times moments of the weights of order one
    assert abs(np.sqrt(np.mean(out.standard_error**2)) / spread - 1) < 4 / np.sqrt(2 * n) + 4 / samples


def test_the_mean_weight_is_unbiased_and_its_logarithm_is_below(data):
    n, exact = 4_000, data[1][0]
    x = jnp.tile(data[0][:1], (n, 1))
    run = jax.jit(partial(importance_log_likelihood, posterior_draw(1.5, 0.3), log_joint, samples=2, chunk=2))
    log_w = np.asarray(run(x, jax.random.key(3)).log_likelihood, np.float64) - exact
    weights = np.exp(log_w)
    assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(n)
    assert log_w.mean() < -4 * log_w.std() / np.sqrt(n)


def test_sums_are_numpys_and_no_chunk_changes_the_noise(data):
    x, keys = data[0], jax.random.split(jax.random.key(4), BATCH)
    samples, whole = 7, None
    log_w = []
    for j in range(samples):
        z, log_q = draw_prior(x, jax.vmap(lambda k, j=j: jax.random.fold_in(k, j))(keys))
        log_w.append(log_joint(x, z) - log_q)
    log_w = np.asarray(log_w, np.float64)
    for chunk in (1, 3, 7, 20):
        out = jax.jit(partial(importance_log_likelihood, draw_prior, log_joint, samples=samples, chunk=chunk))(x, keys)
        np.testing.assert_allclose(out.log_likelihood, scipy.special.logsumexp(log_w, 0) - np.log(7), atol=1e-4)
        w = np.exp(log_w - log_w.max(0))
        np.testing.assert_allclose(out.effective_sample_size, w.sum(0) ** 2 / (w**2).sum(0), rtol=1e-4)
        error = w.std(0, ddof=1) / np.sqrt(7) / w.mean(0)
        np.testing.assert_allclose(out.standard_error, error, rtol=1e-4, atol=1e-4)
        whole = out if whole is None else whole
        np.testing.assert_allclose(out.log_likelihood, whole.log_likelihood, atol=2e-5)


def test_one_key_per_example(data):
    x, keys = data[0], jax.random.split(jax.random.key(5), BATCH)
    run = jax.jit(partial(importance_log_likelihood, draw_prior, log_joint, samples=6, chunk=4))
    whole = run(x, keys)
    for a, b in zip(run(x[3:5], keys[3:5]), whole, strict=True):
        np.testing.assert_allclose(a, b[3:5], rtol=1e-5)
    np.testing.assert_allclose(run(x, jax.random.key(5)).log_likelihood, whole.log_likelihood, rtol=1e-5)


def test_extreme_and_empty_weights():
    """Weights of exp(-2000) and exp(2000) neither vanish nor overflow; weights of 0 are counted; one has no spread."""
    x = jnp.array([[-2000.0], [2000.0], [-jnp.inf]])

    def draw(x, key):
        return jnp.zeros_like(x), jnp.zeros(len(x))

    def run(x, **options):
        return importance_log_likelihood(draw, lambda x, z: jnp.where(x > 3000, 0.0, x)[:, 0], x, key, **options)

    key = jax.random.key(0)
    out = jax.jit(lambda x: run(x, samples=5, chunk=2))(x)
    np.testing.assert_allclose(out.log_likelihood, [-2000.0, 2000.0, -np.inf], rtol=1e-6)
    np.testing.assert_allclose(out.effective_sample_size, [5, 5, 0], rtol=1e-6)
    np.testing.assert_array_equal(out.standard_error[2:], np.inf)
    np.testing.assert_array_equal(jax.jit(lambda x: run(x, samples=1, chunk=2))(x).standard_error, np.inf)


@pytest.mark.parametrize("name", ["samples", "chunk"])
@pytest.mark.parametrize("value", [0, -3, 2.0, True])
def test_bad_counts_say_rule_reason_and_value(name, value, untyped):
    def never(*_):
        raise AssertionError("called before the input was checked")

    with pytest.raises(ValueError, match=rf"whole number {name} >= 1, as .*; got {name}={value}\."):
        importance_log_likelihood(
            never, never, jnp.zeros((2, 3)), jax.random.key(0), **({"samples": 4, "chunk": 2} | {name: value})
        )


def test_a_joint_per_coordinate_is_refused(data, untyped):
    with pytest.raises(ValueError, match=r"joint log-density of shape \(16,\).*\(16, 5\)"):
        importance_log_likelihood(draw_prior, lambda x, z: x, data[0], jax.random.key(0), samples=2, chunk=2)
