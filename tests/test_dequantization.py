"""Variational dequantisation of a discretised Gaussian: every expectation by quadrature, the bound by exact masses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats

from dgm_jax.likelihood import bits_per_dim, dequantize, variational_dequantize

LEVELS, CENTER, STD = 8, 3.7, 0.6  # in units of one level: narrow, so that a bin is far from flat
MASS = np.diff(scipy.stats.norm.cdf(np.arange(LEVELS + 1), CENTER, STD))
SEEN = MASS > 1e-6
U = (np.arange(200_000) + 0.5) / 200_000  # the midpoint rule on (0, 1)


def law(mean, std):
    """The logit-normal density on (0, 1), from its distribution function."""
    edges = scipy.stats.norm.cdf(scipy.special.logit(np.arange(200_001) / 200_000), mean, std)
    return np.diff(edges) * 200_000


def expectation(i, mean, std):
    """E_q[log p(i + u) - log q(u)] in nats, p being the density per level."""
    q = law(mean, std)
    log_p = scipy.stats.norm.logpdf(i + U, CENTER, STD)
    return np.mean(q * (log_p - np.log(np.where(q > 0, q, 1.0))))


def fitted(i):
    """The best (mean, std) of level i."""
    best = scipy.optimize.minimize(lambda p: -expectation(i, p[0], np.exp(p[1])), [0.0, 0.4], method="Nelder-Mead")
    return best.x[0], np.exp(best.x[1])


@pytest.fixture(scope="module")
def parameters():
    """Parameters of each level: fitted where it has mass, else near the uniform law."""
    return np.array([fitted(i) if SEEN[i] else (0.0, 1.6) for i in range(LEVELS)])


def table(parameters):
    """An encoder that looks its level up, from the bins' centres that it is given."""

    def encode(x):
        level = jnp.round(((x + 1) * LEVELS - 1) / 2).astype(jnp.int32)
        return tuple(jnp.asarray(column, x.dtype)[level] for column in (parameters[:, 0], np.log(parameters[:, 1])))

    return encode


@pytest.mark.parametrize("kind", ["fitted", "wide"])
def test_the_bound_has_its_value_by_quadrature_and_is_below_the_mass(kind, parameters):
    n = 40_000
    if kind == "wide":
        parameters = np.tile([0.2, 2.5], (LEVELS, 1))
    levels = np.repeat(np.arange(LEVELS)[SEEN], n)[:, None]
    with jax.enable_x64(True):
        x, log_q = jax.device_get(
            jax.jit(lambda x, key: variational_dequantize(table(parameters), x, key, levels=LEVELS))(
                jnp.asarray(levels, jnp.uint8), jax.random.key(0)
            )
        )
        log_p = scipy.stats.norm.logpdf(x[:, 0], CENTER * 2 / LEVELS - 1, STD * 2 / LEVELS)
        bits = np.asarray(bits_per_dim(jnp.asarray(log_p - log_q), 1, levels=LEVELS))
    assert x.min() >= -1
    np.testing.assert_array_equal(np.floor((x + 1) * LEVELS / 2), levels)
    for i in np.arange(LEVELS)[SEEN]:
        of_level = bits[levels[:, 0] == i]
        expected = -expectation(i, *parameters[i]) / np.log(2)
        assert abs(of_level.mean() - expected) < 4 * of_level.std() / np.sqrt(n)
        assert expected > -np.log2(MASS[i])  # above the bits of the mass itself: a bound


def test_a_fitted_law_is_tighter_than_uniform_noise(parameters):
    """Its gap to the entropy is the mean KL(q(u | x) | p(u | x)): below a fifth of that of uniform noise."""
    of_uniform = np.array([scipy.stats.norm.logpdf(i + U, CENTER, STD).mean() for i in range(LEVELS)])
    of_fitted = np.array([expectation(i, *parameters[i]) for i in range(LEVELS)])
    gaps = [np.sum((MASS * (np.log(MASS) - bound))[SEEN]) for bound in (of_uniform, of_fitted)]
    assert 0 < gaps[1] < gaps[0] / 5


def test_uniform_noise_has_log_q_near_zero():
    """Theis et al.'s case: the logit-normal nearest to the uniform law is within 0.02 nats of it, and never it."""
    gap = scipy.optimize.minimize_scalar(lambda s: np.mean(law(0, s) * np.log(law(0, s) + 1e-300)), bounds=(1, 3))
    assert 0 < gap.fun < 0.02
    n = 40_000
    zeros = jnp.zeros((n, 1), jnp.uint8)
    encode = lambda x: (jnp.zeros_like(x), jnp.full_like(x, np.log(gap.x)))  # noqa: E731
    x, log_q = jax.jit(lambda x, key: variational_dequantize(encode, x, key, levels=256))(zeros, jax.random.key(1))
    assert abs(float(log_q.mean()) - gap.fun) < 4 * float(log_q.std()) / np.sqrt(n)
    plain = dequantize(zeros, jax.random.key(2), levels=256)
    assert abs(float(x.mean() - plain.mean())) < 4 * float(np.hypot(x.std(), plain.std())) / np.sqrt(n)


def test_integers_come_back_and_the_event_is_summed():
    """Steep noise stays in its bin in float32 at level 255; log q is summed over every axis of an image."""
    pixels = jnp.asarray(np.random.default_rng(0).integers(0, 256, (5, 4, 3, 2)), jnp.uint8).at[0].set(255)

    def encode(x):
        assert x.shape == pixels.shape
        return jnp.full_like(x, 3.0), jnp.full_like(x, 2.0)

    x, log_q = variational_dequantize(encode, pixels, jax.random.key(3), levels=256)
    assert x.max() < 1
    np.testing.assert_array_equal(np.floor((np.asarray(x, np.float64) + 1) * 128), pixels)
    assert log_q.shape == (5,)
    assert np.isfinite(log_q).all()
    keys = jax.random.split(jax.random.key(3), 5)
    part = variational_dequantize(lambda x: (x, 0 * x), pixels[2:4], keys[2:4], levels=256)
    whole = variational_dequantize(lambda x: (x, 0 * x), pixels, keys, levels=256)
    np.testing.assert_array_equal(part[0], whole[0][2:4])


def test_the_noise_is_reparametrised():
    """The gradient of the bound in the encoder's parameters is that of finite differences of the expectation."""
    i, n = 3, 40_000
    with jax.enable_x64(True):

        def bound(p):
            x, log_q = variational_dequantize(
                lambda x: (jnp.full_like(x, p[0]), jnp.full_like(x, p[1])),
                jnp.full((n, 1), i, jnp.uint8),
                jax.random.key(4),
                levels=LEVELS,
            )
            log_p = jax.scipy.stats.norm.logpdf(x[:, 0], CENTER * 2 / LEVELS - 1, STD * 2 / LEVELS)
            return log_p - log_q

        p = jnp.array([0.3, 0.1])
        each = np.asarray(jax.jit(jax.jacfwd(bound))(p))
    for k, step in enumerate(np.eye(2) * 1e-4):
        ends = [expectation(i, 0.3 + sign * step[0], np.exp(0.1 + sign * step[1])) for sign in (1, -1)]
        difference = (ends[0] - ends[1]) / 2e-4
        assert abs(each[:, k].mean() - difference) < 4 * each[:, k].std() / np.sqrt(n) + 1e-4
