"""Every KL against numerical integration, determinants and solves, or its own mean over draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.stats
from exact_latent import CORRELATED, kl_of_gaussians

from dgm_jax.losses import (
    diagonal_posterior,
    full_covariance_kl,
    full_covariance_posterior,
    gaussian_kl,
    gaussian_kl_between,
    gaussian_kl_per_latent,
    monte_carlo_kl,
    priors,
)
from dgm_jax.losses.divergences import cholesky_factor

RNG = np.random.default_rng(0)
MEAN, LOG_STD, MEAN_2, LOG_STD_2 = (0.7 * RNG.standard_normal((4, 3)) for _ in range(4))
ENTRIES = np.concatenate([LOG_STD, 0.6 * RNG.standard_normal((4, 3))], axis=1)


def by_quadrature(q, p):
    """Integral of q log(q/p) over 12 standard deviations; what is beyond is below 1e-30."""
    low, high = q.mean() - 12 * q.std(), q.mean() + 12 * q.std()
    return scipy.integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), low, high, epsabs=1e-12, limit=200)[0]


def test_diagonal_kls_are_their_integrals():
    with jax.enable_x64(True):
        q, p = (jnp.asarray(MEAN), jnp.asarray(LOG_STD)), (jnp.asarray(MEAN_2), jnp.asarray(LOG_STD_2))
        each, whole, between = jax.jit(
            lambda q, p: (gaussian_kl_per_latent(*q), gaussian_kl(*q), gaussian_kl_between(*q, *p))
        )(q, p)
        np.testing.assert_array_equal(gaussian_kl_between(*q, *q), 0)
    law = lambda mean, log_std: scipy.stats.norm(mean, np.exp(log_std))  # noqa: E731
    unit = scipy.stats.norm()
    expected = np.array([[by_quadrature(law(*pair), unit) for pair in zip(*row)] for row in zip(MEAN, LOG_STD)])  # noqa: B905
    np.testing.assert_allclose(each, expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(whole, expected.sum(1), rtol=1e-9)
    quadruples = zip(MEAN.flat, LOG_STD.flat, MEAN_2.flat, LOG_STD_2.flat, strict=True)
    expected = [by_quadrature(law(m, s), law(m_2, s_2)) for m, s, m_2, s_2 in quadruples]
    np.testing.assert_allclose(between, np.reshape(expected, (4, 3)).sum(1), rtol=1e-9)


def test_full_covariance_kl_is_that_of_determinants():
    with jax.enable_x64(True):
        factor, kl, diagonal = jax.jit(
            lambda mean, entries: (
                cholesky_factor(entries, 3),
                full_covariance_kl(mean, entries),
                full_covariance_kl(mean, entries.at[:, 3:].set(0)),
            )
        )(jnp.asarray(MEAN), jnp.asarray(ENTRIES))
        np.testing.assert_allclose(diagonal, gaussian_kl(jnp.asarray(MEAN), jnp.asarray(LOG_STD)), rtol=1e-12)
    factor = np.asarray(factor)
    np.testing.assert_array_equal(np.triu(factor, 1), 0)
    np.testing.assert_allclose(np.diagonal(factor, axis1=1, axis2=2), np.exp(LOG_STD), rtol=1e-12)
    rows = [[L[1, 0], L[2, 0], L[2, 1]] for L in factor]
    np.testing.assert_array_equal(rows, ENTRIES[:, 3:])
    expected = [kl_of_gaussians(m, L @ L.T, np.zeros(3), np.eye(3)) for m, L in zip(MEAN, factor, strict=True)]
    np.testing.assert_allclose(kl, expected, rtol=1e-10)


def test_kls_are_precise_near_zero_and_far_away_in_float32():
    """Where q is almost p the terms cancel; far away they must not overflow before they are due."""
    log_std = np.array([[1e-3, -1e-3, 0.0], [-40.0, 20.0, 5.0]])
    mean = np.array([[1e-3, 0.0, 0.0], [0.0, 1e3, -1e3]])
    exact = (mean**2 + np.expm1(2 * log_std)) / 2 - log_std
    actual = gaussian_kl_per_latent(jnp.asarray(mean, jnp.float32), jnp.asarray(log_std, jnp.float32))
    eps = float(np.finfo(np.float32).eps)
    np.testing.assert_array_less(np.abs(actual - exact), eps * (3 * np.abs(log_std) + 4 * exact) + 1e-30)


def test_draws_estimate_the_kl():
    """Diagonal and full covariance from N(0, I), and a mixture prior by quadrature: within 4 standard errors."""
    n = 20_000
    unit = priors.standard_normal(3).log_prob
    with jax.enable_x64(True):
        x = jnp.asarray(MEAN)
        diagonal = diagonal_posterior(lambda x: (x, jnp.asarray(LOG_STD)))
        full = full_covariance_posterior(lambda x: (x, jnp.asarray(ENTRIES)))
        cases = [(diagonal, gaussian_kl(x, jnp.asarray(LOG_STD))), (full, full_covariance_kl(x, jnp.asarray(ENTRIES)))]
        for draw, exact in cases:
            estimate = jax.jit(partial(monte_carlo_kl, draw, unit, samples=20))
            values = np.stack([estimate(x, key) for key in jax.random.split(jax.random.key(0), n // 20 // 4)])
            error = values.std(0, ddof=1) / np.sqrt(len(values))
            np.testing.assert_array_less(np.abs(values.mean(0) - exact), 4 * error)
        means, stds, shares = np.array([-1.0, 2.0]), np.array([0.5, 1.2]), np.array([0.3, 0.7])
        prior = priors.mixture(*(jnp.asarray(part) for part in (means[:, None], np.log(stds)[:, None], np.log(shares))))
        draw = diagonal_posterior(lambda x: (x, jnp.full_like(x, -0.5)))
        values = np.asarray(
            jax.jit(partial(monte_carlo_kl, draw, prior.log_prob, samples=1))(jnp.full((n, 1), 0.4), jax.random.key(1))
        )
    q = scipy.stats.norm(0.4, np.exp(-0.5))
    log_p = lambda z: np.log(shares @ scipy.stats.norm.pdf(z, means, stds))  # noqa: E731
    expected, _ = scipy.integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - log_p(z)), -8, 8, epsabs=1e-12)
    assert abs(values.mean() - expected) < 4 * values.std() / np.sqrt(n)


def test_the_exact_posteriors_mean_kl_is_the_mutual_information():
    """E_x KL(q(z | x) || p(z)) = I(x; z) = log det(I + W^T W/std^2)/2 for the exact posterior."""
    x = CORRELATED.sample(np.random.default_rng(3), 4000)
    with jax.enable_x64(True):
        kl = np.asarray(jax.jit(lambda x: full_covariance_kl(*CORRELATED.encode_full(x)))(jnp.asarray(x)))
    expected = -np.linalg.slogdet(CORRELATED.covariance)[1] / 2
    assert abs(kl.mean() - expected) < 4 * kl.std() / np.sqrt(len(kl))
