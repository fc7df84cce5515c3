"""Priors: densities against SciPy, samples against the densities' own moments, and the VampPrior's definition."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from dgm_jax.losses import diagonal_log_density, priors

RNG = np.random.default_rng(0)
MEANS, LOG_STDS, LOGITS = 1.5 * RNG.standard_normal((4, 2)), 0.4 * RNG.standard_normal((4, 2)), RNG.standard_normal(4)


def gain(dtype):
    return jnp.asarray(np.random.default_rng(5).standard_normal((3, 4)), dtype)


def encode(x):
    out = x @ gain(x.dtype)
    return out[:, :2], 0.3 * jnp.tanh(out[:, 2:])


def laws():
    return [scipy.stats.multivariate_normal(m, np.diag(np.exp(2 * s))) for m, s in zip(MEANS, LOG_STDS, strict=True)]


def test_densities_are_scipys():
    z = 2 * RNG.standard_normal((50, 2))
    shares = scipy.special.softmax(LOGITS)
    expected = np.log(sum(share * law.pdf(z) for share, law in zip(shares, laws(), strict=True)))
    with jax.enable_x64(True):
        mixture = priors.mixture(*(jnp.asarray(part) for part in (MEANS, LOG_STDS, LOGITS)))
        np.testing.assert_allclose(jax.jit(mixture.log_prob)(jnp.asarray(z)), expected, rtol=1e-10)
        unit = priors.standard_normal(2).log_prob(jnp.asarray(z))
        np.testing.assert_allclose(unit, scipy.stats.norm.logpdf(z).sum(1), rtol=1e-12)


def test_a_mixture_is_stable_far_from_its_components():
    z = jnp.asarray([[300.0, -300.0]])
    log_prob = priors.mixture(*(jnp.asarray(part, jnp.float32) for part in (MEANS, LOG_STDS, LOGITS))).log_prob
    value, gradient = jax.jit(jax.value_and_grad(lambda z: log_prob(z).sum()))(z)
    each = [np.log(s) + law.logpdf(z[0]) for s, law in zip(scipy.special.softmax(LOGITS), laws(), strict=True)]
    np.testing.assert_allclose(value, scipy.special.logsumexp(each), rtol=1e-5)
    assert np.isfinite(gradient).all()


def moments(z, mean, covariance):
    """Mean and covariance of samples within four standard errors; the fourth moment is the samples' own."""
    n, away = len(z), np.asarray(z) - mean
    np.testing.assert_array_less(np.abs(away.mean(0)), 4 * np.sqrt(np.diag(covariance) / n))
    products = away[:, :, None] * away[:, None]
    np.testing.assert_array_less(np.abs(products.mean(0) - covariance), 4 * products.std(0) / np.sqrt(n))


def test_samples_have_the_moments_and_the_shares():
    n = 20_000
    moments(priors.standard_normal(3).sample(jax.random.key(0), n), np.zeros(3), np.eye(3))
    prior = priors.mixture(*(jnp.asarray(part, jnp.float32) for part in (MEANS, LOG_STDS, LOGITS)))
    shares = scipy.special.softmax(LOGITS)
    mean = shares @ MEANS
    second = sum(p * (np.diag(np.exp(2 * s)) + np.outer(m, m)) for p, m, s in zip(shares, MEANS, LOG_STDS, strict=True))
    z = prior.sample(jax.random.key(1), n)
    moments(z, mean, second - np.outer(mean, mean))
    # E log p over samples is minus the entropy, which a wrong share of a component would move: by importance sampling
    proposal = scipy.stats.multivariate_normal(mean, 2 * (second - np.outer(mean, mean)))
    points = proposal.rvs(n, random_state=0)
    log_p = np.log(sum(p * law.pdf(points) for p, law in zip(shares, laws(), strict=True)))
    weighted = np.exp(log_p - proposal.logpdf(points)) * log_p
    own = np.asarray(prior.log_prob(z))
    error = np.sqrt((own.var() + weighted.var()) / n)
    assert abs(own.mean() - weighted.mean()) < 4 * error


def test_the_vamp_prior_is_the_mean_of_posteriors():
    u, z = RNG.standard_normal((5, 3)), RNG.standard_normal((7, 2))
    with jax.enable_x64(True):
        prior, log_q = priors.vamp(encode, jnp.asarray(u)), jax.jit(diagonal_log_density(encode))
        each = [log_q(jnp.asarray(np.tile(row, (7, 1))), jnp.asarray(z)) for row in u]
        expected = scipy.special.logsumexp(np.asarray(each), axis=0) - np.log(5)
        np.testing.assert_allclose(prior.log_prob(jnp.asarray(z)), expected, rtol=1e-10)
        gradient = jax.jit(jax.grad(lambda u: priors.vamp(encode, u).log_prob(jnp.asarray(z)).sum()))(jnp.asarray(u))
        assert (np.abs(gradient) > 0).all()  # pseudo-inputs learn
        assert prior.sample(jax.random.key(0), 6).dtype == np.float64


def test_a_key_for_each_sample():
    keys = jax.random.split(jax.random.key(0), 8)
    for prior in (
        priors.standard_normal(2),
        priors.mixture(*(jnp.asarray(part, jnp.float32) for part in (MEANS, LOG_STDS, LOGITS))),
    ):
        sample = jax.jit(prior.sample, static_argnums=1)
        whole = sample(jax.random.key(0), 8)
        np.testing.assert_array_equal(sample(keys, 8), whole)
        np.testing.assert_array_equal(sample(keys[2:5], 3), whole[2:5])
