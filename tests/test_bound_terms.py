"""The terms of variational bounds at given noise: kernels, KLs, decoders, the weight of a chain, by NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from exact_bounds import conditioned, scales
from oracles import PROCESSES, last_time

from dgm_jax.losses import decoder_log_likelihood, prior_kl, transition_kl, weights
from dgm_jax.parameterizations import posterior_of, reverse_variance

ALL = pytest.mark.parametrize("name", PROCESSES)
BETAS = np.linspace(1e-4, 0.02, 1000)


@ALL
def test_the_kernel_is_the_conditional_of_the_joint_law(name):
    process = PROCESSES[name]
    with jax.enable_x64(True):
        for t, s in ((last_time(name), 0.6), (0.5, 0.2), (0.03, 0.01)):
            np.testing.assert_allclose(posterior_of(process, t, s), conditioned(process, t, s), rtol=1e-9)


def test_the_kernel_is_ddpms_on_its_chain():
    """Ho et al. 2020, eq. 7, from cumulative products; the first step has mean x_0 and no variance."""
    alpha_bar = np.cumprod(1 - BETAS)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    expected = (
        np.sqrt(1 - BETAS) * (1 - before) / (1 - alpha_bar),
        np.sqrt(before) * BETAS / (1 - alpha_bar),
        (1 - before) / (1 - alpha_bar) * BETAS,
        BETAS,
    )
    with jax.enable_x64(True):
        i = jnp.arange(1, 1001) / 1000
        kernel = posterior_of(PROCESSES["from_betas"], i, i - 1 / 1000)
        np.testing.assert_allclose(kernel, expected, rtol=1e-8, atol=1e-12)
    i = jnp.arange(1, 1001, dtype=jnp.float32)
    single = posterior_of(PROCESSES["from_betas"], i / 1000, (i - 1) / 1000)
    # the quotient's two exponentials have arguments log alpha with three roundings each, and six factors one each
    share, eps = BETAS / (1 - alpha_bar), float(np.finfo(np.float32).eps)
    rounding = eps * (8 - 6 * np.log(np.sqrt(alpha_bar)))
    for actual, exact in zip(single[1:], expected[1:], strict=True):
        np.testing.assert_array_less(np.abs(actual - exact), exact * rounding * (1 / share + 2) + 1e-30)


def test_the_learned_variance_interpolates_logarithms():
    process, x = PROCESSES["vp"], jnp.asarray(np.random.default_rng(0).standard_normal((4, 3)), jnp.float32)
    kernel = posterior_of(process, jnp.full(4, 0.3), jnp.full(4, 0.2))
    v = jax.nn.sigmoid(x)
    actual = reverse_variance(kernel, lambda x_t, t: v, x, jnp.full(4, 0.3))
    beta, posterior = (np.asarray(part, np.float64)[:, None] for part in (kernel.beta, kernel.posterior))
    expected = np.exp(np.asarray(v) * np.log(beta) + (1 - np.asarray(v)) * np.log(posterior))
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    for value, name in ((0.0, "posterior"), (1.0, "beta")):
        end = reverse_variance(kernel, lambda x_t, t, value=value: jnp.full_like(x_t, value), x, jnp.full(4, 0.3))
        named = reverse_variance(kernel, name, x, jnp.full(4, 0.3))
        np.testing.assert_allclose(end, np.broadcast_to(named, x.shape), rtol=1e-6)
    at_zero = posterior_of(process, jnp.full(4, 0.3), jnp.zeros(4))
    gradient = jax.grad(lambda v: reverse_variance(at_zero, lambda *_: v * jnp.ones((4, 3)), x, jnp.ones(4)).sum())
    assert np.isfinite(gradient(0.5))


@ALL
def test_transition_terms_are_the_kl_of_two_gaussians(name):
    """Means and variances from `conditioned`, with x_0 for q and an estimate for p."""
    process, rng, n = PROCESSES[name], np.random.default_rng(1), 4
    t, s = np.array([last_time(name), 0.6, 0.3, 0.02]), np.array([0.7, 0.55, 0.1, 0.01])
    with jax.enable_x64(True):
        x_0, noise, v = (jnp.asarray(rng.standard_normal((n, 2, 3))) for _ in range(3))
        v = jax.nn.sigmoid(v)
        guess = 0.8 * x_0 + 0.1
        x_t = np.asarray(process.perturb(x_0, jnp.asarray(t), noise))
        rules = {
            "posterior": lambda p, b, v: p,
            "beta": lambda p, b, v: b,
            "learned": lambda p, b, v: b**v * p ** (1 - v),
        }
        for rule, combine in rules.items():
            variance = (lambda *_: v) if rule == "learned" else rule
            actual = transition_kl(
                lambda *_: guess, process, x_0, jnp.asarray(t), jnp.asarray(s), noise, variance=variance
            )
            for k in range(n):
                of_state, of_data, posterior, beta = conditioned(process, t[k], s[k])
                mean_q, mean_p = (of_state * x_t[k] + of_data * np.asarray(x[k]) for x in (x_0, guess))
                of_p = combine(posterior, beta, np.asarray(v[k]))
                expected = np.log(of_p / posterior) + (posterior + (mean_q - mean_p) ** 2) / of_p - 1
                np.testing.assert_allclose(actual[k], np.sum(expected * np.ones((2, 3))) / 2, rtol=1e-7)
        alpha, sigma = scales(process, 0.8)[0]
        expected = [sum(alpha**2 * np.ravel(x) ** 2) / sigma**2 / 2 for x in np.asarray(x_0)]
        np.testing.assert_allclose(prior_kl(process, x_0, t=0.8), expected, rtol=1e-9)


@pytest.mark.parametrize("count", [2, 17, 256])
def test_decoder_bins_are_scipys_and_sum_to_one(count):
    """Bins around every level, in both tails too; the outermost are open."""
    process, t = PROCESSES["vp"], jnp.full(count, 0.01)
    with jax.enable_x64(True):
        centres = (2 * np.arange(count) - (count - 1)) / (count - 1)
        x_0, t = jnp.asarray(centres)[:, None], jnp.full(count, 0.01)
        for mean, std in ((0.1, 0.05), (-0.97, 0.3), (0.4, 0.004), (1.5, 0.08)):
            log_p = decoder_log_likelihood(
                lambda x, t, mean=mean: jnp.full_like(x, mean),
                process,
                x_0,
                t,
                jnp.zeros_like(x_0),
                levels=count,
                variance=jnp.full(count, std**2),
            )
            edges = np.concatenate([[-np.inf], (centres[1:] + centres[:-1]) / 2, [np.inf]])
            law = scipy.stats.norm(mean, std)
            # the smaller of both tails' differences loses no digits
            left, right = np.diff(law.cdf(edges)), -np.diff(law.sf(edges))
            mass = np.where(centres < mean, left, right)
            seen = mass > 1e-280
            np.testing.assert_allclose(log_p[seen], np.log(mass[seen]), rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(np.exp(log_p).sum(), 1, rtol=1e-10)
            assert np.isfinite(log_p).all()
        density = decoder_log_likelihood(
            lambda x, t: 0 * x + 0.1, process, x_0, t, 0 * x_0, levels=None, variance=jnp.full(count, 0.09)
        )
        np.testing.assert_allclose(density, scipy.stats.norm.logpdf(centres, 0.1, 0.3), rtol=1e-10)


def test_decoder_gradients_are_finite_in_float32():
    x_0 = jnp.asarray([[-1.0], [0.0], [1.0], [1.0], [-1.0]])

    def total(mean, log_std):
        return decoder_log_likelihood(
            lambda x, t: jnp.full_like(x, mean),
            PROCESSES["vp"],
            x_0,
            jnp.full(5, 0.1),
            jnp.zeros_like(x_0),
            levels=3,
            variance=jnp.full(5, jnp.exp(2 * log_std)),
        ).sum()

    for mean, log_std in ((0.9, -6.0), (-30.0, -3.0), (0.0, 3.0), (30.0, -3.0), (0.3, -1.0)):
        values = jax.value_and_grad(total, argnums=(0, 1))(mean, log_std)
        assert np.isfinite(jax.tree.leaves(values)).all(), (mean, log_std)


@pytest.mark.parametrize("variance", ["posterior", "beta"])
def test_the_variational_weight_is_the_chains_bound(variance):
    """The mean of the weighted loss is the sum of the terms that depend on the denoiser: by pinned noise, exactly.

    Two denoisers are compared, so that what does not depend on them cancels.
    """
    process, steps, rng = PROCESSES["from_betas"], 1000, np.random.default_rng(5)
    chosen = np.array([1, 2, 3, 500, 999, 1000])
    with jax.enable_x64(True):
        x_0 = jnp.asarray(rng.standard_normal((6, 3)))
        noise = jnp.asarray(rng.standard_normal((6, 3)))
        t = jnp.asarray(chosen / steps)
        weight = weights.variational(process, t, steps=steps, event_size=3, variance=variance)
        other = 0.9 * x_0 + 0.05
        mean_error = jnp.mean((other - x_0) ** 2, 1)
        s = jnp.asarray((chosen - 1) / steps)
        after = slice(1, None)
        terms = [
            transition_kl(
                lambda *_, d=d: d[after], process, x_0[after], t[after], s[after], noise[after], variance=variance
            )
            for d in (other, x_0)
        ]
        np.testing.assert_allclose((weight * mean_error / steps)[after], terms[0] - terms[1], rtol=1e-9)
        np.testing.assert_allclose(weight[0] / steps, 3 / (2 * BETAS[0]), rtol=1e-8)
        weight = np.asarray(weight)
    single = weights.variational(
        process, jnp.asarray(chosen / steps, jnp.float32), steps=steps, event_size=3, variance=variance
    )
    np.testing.assert_allclose(single, weight, rtol=1e-4)
