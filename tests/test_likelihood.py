"""Log-likelihood against the exact density in nats; dequantisation and bits per dimension against closed forms."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from oracles import GAUSSIAN, MIXTURE, PROCESSES, last_time

from dgm_jax.likelihood import bits_per_dim, dequantize, log_likelihood, log_likelihood_with_error
from dgm_jax.processes import log_snr_grid, uniform


def exact_and_bias(mixture, process, name, x, low):
    """log p at ts[0], and how far the prior N(0, sigma^2) at the last time is from the true marginal there, in nats."""
    exact = mixture.log_prob(process, x, jnp.full(len(x), low))
    alpha, sigma = float(process.alpha(jnp.asarray(last_time(name)))), float(process.sigma(last_time(name)))
    # log-ratio of N(alpha m, alpha^2 C + sigma^2) to N(0, sigma^2) at up to five standard deviations
    reach = alpha / sigma * (np.abs(mixture.means).max() + 1)
    return exact, 2 * (5 * reach + reach**2)


@pytest.mark.parametrize("name", PROCESSES)
def test_exact_trace_gives_the_exact_density(name):
    with jax.enable_x64(True):
        process, low = PROCESSES[name], 1e-3
        rng = np.random.default_rng(0)
        x_0 = jnp.asarray(MIXTURE.sample(rng, 16, np.float64))
        exact, prior_bias = exact_and_bias(MIXTURE, process, name, x_0, low)
        ts = log_snr_grid(process, 200, t_min=low, t_max=last_time(name))[::-1]
        denoise = MIXTURE.denoise(process)
        nats = jax.jit(lambda x: log_likelihood(denoise, process, x, ts=ts, solver=diffrax.Bosh3()))(x_0)
        # stated error of the grid: third order in the log-SNR step
        high, end = (float(process.log_snr(t)) for t in (ts[0], ts[-1]))
        step = (high - end) / 200
        np.testing.assert_array_less(np.abs(nats - exact), prior_bias + step**3)


def test_adaptive_steps_hold_the_tolerance_for_each_example():
    with jax.enable_x64(True):
        process = PROCESSES["vp"]
        x_0 = jnp.asarray(np.concatenate([[[9.0, -7.0]], GAUSSIAN.sample(np.random.default_rng(1), 7, np.float64)]))
        options = {
            "ts": np.array([1e-3, 1.0]),
            "solver": diffrax.Tsit5(),
            "controller": diffrax.PIDController(rtol=1e-7, atol=1e-7),
        }
        evaluate = jax.jit(lambda x: log_likelihood(GAUSSIAN.denoise(process), process, x, **options))
        exact, prior_bias = exact_and_bias(GAUSSIAN, process, "vp", x_0, 1e-3)
        # the outlier ends tens of standard deviations out, where the prior's mismatch counts once more
        far = float(jnp.abs(exact[0]) * float(process.alpha(jnp.asarray(1.0))) ** 2 * 2)
        np.testing.assert_allclose(evaluate(x_0)[1:], exact[1:], atol=prior_bias)
        np.testing.assert_allclose(evaluate(x_0)[0], exact[0], atol=prior_bias * 20 + far)


def test_hutchinson_is_unbiased():
    """The mean over independent probes is within four standard errors of the exact trace's answer."""
    process = PROCESSES["sub_vp"]
    x = jnp.asarray(MIXTURE.sample(np.random.default_rng(2), 1))
    ts = log_snr_grid(process, 40, t_min=1e-2, t_max=1.0)[::-1]
    denoise = MIXTURE.denoise(process)
    exact = jax.jit(lambda x: log_likelihood(denoise, process, x, ts=ts))(x)
    many = jnp.tile(x, (2000, 1))
    estimates = jax.jit(lambda x: log_likelihood(denoise, process, x, jax.random.key(3), ts=ts, probes=1))(many)
    error = float(jnp.mean(estimates) - exact[0])
    assert abs(error) < 4 * float(jnp.std(estimates)) / np.sqrt(2000)
    assert float(jnp.std(estimates)) > 1e-3  # the field's Jacobian is not diagonal: probes do differ
    four = jax.jit(lambda x: log_likelihood(denoise, process, x, jax.random.key(3), ts=ts, probes=4))
    mean_of_four = four(many[:500])
    assert abs(float(jnp.mean(mean_of_four) - exact[0])) < 4 * float(jnp.std(mean_of_four)) / np.sqrt(500)


def test_the_spread_over_probes_is_the_error_of_their_mean():
    """Over many draws of 64 probes, (estimate - exact)/standard error has mean 0 and Student's variance, 63/61."""
    process, n, probes = PROCESSES["vp"], 1000, 64
    x = jnp.asarray(MIXTURE.sample(np.random.default_rng(6), 1))
    ts = log_snr_grid(process, 20, t_min=1e-2, t_max=1.0)[::-1]
    denoise = MIXTURE.denoise(process)
    exact = jax.jit(lambda x: log_likelihood(denoise, process, x, ts=ts))(x)
    many, keys = jnp.tile(x, (n, 1)), jax.random.split(jax.random.key(7), n)
    estimate = jax.jit(lambda x, k: log_likelihood_with_error(denoise, process, x, k, ts=ts, probes=probes))(many, keys)
    z = np.asarray((estimate.nats - exact[0]) / estimate.standard_error)
    assert abs(z.mean()) < 4 / np.sqrt(n)
    # z^2 has variance about 2, and a discrete law of 64 signs is normal to 1/64
    assert abs(z.var() - 63 / 61) < 4 * np.sqrt(2 / n) + 1 / probes
    assert estimate.evaluations == 20 * 2
    assert estimate.result == diffrax.RESULTS.successful
    same = jax.jit(lambda x, k: log_likelihood(denoise, process, x, k, ts=ts, probes=probes))(many[:5], keys[:5])
    np.testing.assert_allclose(same, estimate.nats[:5], rtol=1e-5)


def test_a_failed_solve_shows():
    """The result says so, the numbers are NaN."""
    process, ts = PROCESSES["vp"], np.array([1e-3, 1.0], np.float32)
    estimate = jax.jit(
        lambda x: log_likelihood_with_error(
            lambda x, t: jnp.where(t[:, None] > 0.5, jnp.nan, x),
            process,
            x,
            jax.random.key(0),
            ts=ts,
            probes=2,
            solver=diffrax.Tsit5(),
            controller=diffrax.PIDController(rtol=1e-3, atol=1e-3),
        )
    )(jnp.ones((2, 2)))
    assert estimate.result != diffrax.RESULTS.successful
    assert np.isnan(estimate.nats).all()
    assert np.isnan(estimate.standard_error).all()


def test_densities_of_images_sum_over_every_axis():
    """An image is an event of any rank: the density is that of the flattened vector."""
    process, ts = PROCESSES["vp"], uniform(30, t_min=0.05)[::-1]

    def flat(x, t):  # independent pixels with mean 0.3 and variance 0.25
        alpha, variance = process.alpha(t)[:, None], process.variance(t)[:, None]
        return 0.3 + alpha * 0.25 / (alpha**2 * 0.25 + variance) * (x - alpha * 0.3)

    def images(x, t):
        return flat(x.reshape(len(x), -1), t).reshape(x.shape)

    x = 0.3 + 0.5 * jax.random.normal(jax.random.key(4), (3, 2, 2, 1))
    nats = jax.jit(lambda x: log_likelihood(images, process, x, ts=ts))(x)
    as_vector = jax.jit(lambda x: log_likelihood(flat, process, x, ts=ts))(x.reshape(3, -1))
    np.testing.assert_allclose(nats, as_vector, rtol=1e-5)


def test_bits_per_dim_of_a_uniform_code_is_its_logarithm():
    """Uniform density on [-1, 1]^d codes 256 levels in 8 bits and 17 levels in log2(17)."""
    for levels in (256, 17):
        nats = jnp.full(3, 10 * np.log(1 / 2))
        np.testing.assert_allclose(bits_per_dim(nats, 10, levels=levels), np.log2(levels), rtol=1e-6)


def test_bits_per_dim_bounds_the_entropy_of_discretised_noise():
    """A Gaussian model of a discretised Gaussian: the bound is at or above its entropy, by the dequantisation gap."""
    levels, std = 32, 4.0
    rng = np.random.default_rng(5)
    values = np.clip(np.floor(16 + std * rng.standard_normal((20000, 1))), 0, 31).astype(np.uint8)
    x = np.asarray(dequantize(jnp.asarray(values), jax.random.key(5), levels=levels))
    center, scale = 16.0 * 2 / levels - 1, std * 2 / levels
    nats = jnp.asarray(scipy.stats.norm.logpdf(x[:, 0], center, scale))
    bits = float(bits_per_dim(nats, 1, levels=levels).mean())
    edges = scipy.stats.norm.cdf(np.arange(33), 16, std)
    mass = np.diff(edges)
    entropy = -np.sum(mass * np.log2(mass)) / mass.sum()
    noise = float(np.std(bits_per_dim(nats, 1, levels=levels))) / np.sqrt(20000)
    assert entropy - 4 * noise < bits < entropy + 0.02 + 4 * noise


def test_dequantize_keeps_each_level_in_its_bin():
    x = np.arange(17, dtype=np.uint8)[:, None]
    y = np.asarray(dequantize(jnp.asarray(x), jax.random.key(6), levels=17))
    assert y.min() >= -1
    assert y.max() < 1
    np.testing.assert_array_equal(np.floor((y + 1) * 17 / 2), x)
    keys = jax.random.split(jax.random.key(6), 17)
    np.testing.assert_array_equal(y[3:5], dequantize(jnp.asarray(x[3:5]), keys[3:5], levels=17))
