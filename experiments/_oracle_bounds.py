"""Rows of the oracle table for variational bounds, probes and dequantisation.

The chain's terms are compared one by one: kernels conditioned from the joint law, KLs of two Gaussians, expectations
over data on 17 levels by sums and quadrature. The continuous bound has a closed form on Gaussian data.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

from dgm_jax.likelihood import (
    bits_per_dim,
    continuous_bound,
    discrete_bits_per_dim,
    log_likelihood_with_error,
    variational_bound,
    variational_dequantize,
)
from dgm_jax.losses import decoder_log_likelihood, prior_kl, transition_kl, weights
from dgm_jax.networks import MonotoneSchedule
from dgm_jax.parameterizations import posterior_of
from dgm_jax.processes import from_log_snr, log_snr_grid
from experiments._oracle_rows import DOUBLE, Row, paper, relative, standard_errors, worst
from tests.exact_bounds import (
    CENTRES,
    EDGES,
    LEVELS,
    MASS,
    affine,
    analytic_terms,
    conditioned,
    continuous_terms,
    scales,
)
from tests.oracles import GAUSSIAN, MIXTURE, PROCESSES, last_time

HO, NICHOL, KINGMA, FLOW = "2006.11239", "2102.09672", "2107.00630", "1902.00275"
LOW, STEPS, POINTS, DIM = 0.05, 4, 4_000, 2  # LOW is sigma/alpha at the last time


def bound_rows(names: Sequence[str]) -> Iterator[Row]:
    """Kernels, terms, both bounds, the error of probes, a learned schedule; then what depends on no process."""
    for name in names:
        yield from term_rows(name)
    for name in names:
        yield from expectation_rows(name)
    yield from discrete_rows()


def term_rows(name: str) -> Iterator[Row]:
    """Each term at given x_0, noise and times, to rounding."""
    process, rng, n = PROCESSES[name], np.random.default_rng(0), 6
    t, s = np.linspace(0.3, last_time(name), n), np.linspace(0.05, 0.9, n) * np.linspace(0.3, last_time(name), n)
    x_0, noise = (jnp.asarray(rng.standard_normal((n, DIM))) for _ in range(2))
    v = jnp.asarray(rng.uniform(size=(n, DIM)))
    guess, learned = 0.8 * x_0 + 0.1, (lambda x_t, t: v)
    levelled = jnp.asarray(rng.choice(CENTRES, (n, DIM)))
    spread = rng.uniform(0.02, 0.4, n)

    @jax.jit
    def run(t: Any, s: Any) -> Any:
        rules: Any = ("posterior", "beta", learned)
        terms = [transition_kl(lambda *_: guess, process, x_0, t, s, noise, variance=rule) for rule in rules]
        decoder = [
            decoder_log_likelihood(
                lambda *_: guess, process, levelled, t, noise, levels=count, variance=jnp.asarray(spread**2)
            )
            for count in (LEVELS, None)
        ]
        weight = [
            weights.variational(process, jnp.arange(2, 21) / 20, steps=20, event_size=DIM, variance=rule)
            for rule in ("posterior", "beta")
        ]
        return posterior_of(process, t, s), terms, decoder, weight, prior_kl(process, x_0, t=0.8)

    kernel, terms, decoder, weight, prior = jax.device_get(run(jnp.asarray(t), jnp.asarray(s)))
    exact = np.array([conditioned(process, *pair) for pair in zip(t, s, strict=True)]).T
    oracle = "conditional of the joint Gaussian law"
    yield Row("`posterior_of`", paper(HO, "eq. 7"), name, oracle, worst(relative(kernel, exact), 1e-9))
    x_t = np.asarray(process.perturb(x_0, jnp.asarray(t), noise))
    of_state, of_data, posterior, beta = exact[:, :, None]
    gap = of_state * x_t + of_data * np.asarray(x_0) - (of_state * x_t + of_data * np.asarray(guess))
    labels = {'"posterior"': HO, '"beta"': HO, "learned": NICHOL}
    share = np.asarray(v)
    of_model = [posterior + 0 * share, beta + 0 * share, beta**share * posterior ** (1 - share)]
    for (label, source), actual, variance in zip(labels.items(), terms, of_model, strict=True):
        kl = np.sum(np.log(variance / posterior) + (posterior + gap**2) / variance - 1, 1) / 2
        where = "eq. 5" if source == HO else "eq. 15"
        measured = worst(relative(actual, kl), 1e-9)
        yield Row(f"`transition_kl`, {label}", paper(source, where), name, "KL of two Gaussians", measured)
    (alpha, sigma), *_ = scales(process, 0.8)
    expected = np.sum(alpha**2 * np.asarray(x_0) ** 2, 1) / sigma**2 / 2
    yield Row("`prior_kl`", paper(HO, "eq. 5"), name, "KL of two Gaussians", worst(relative(prior, expected), 1e-9))
    law = scipy.stats.norm(np.asarray(guess), spread[:, None])
    index = np.searchsorted(CENTRES, np.asarray(levelled) - 1e-6)
    mass = (law.cdf(EDGES[index + 1]) - law.cdf(EDGES[index])).prod(1)
    usable = mass > 1e-9  # below, SciPy's own difference of two masses loses its digits
    measured = worst(relative(decoder[0][usable], np.log(mass[usable])), 1e-6)
    yield Row("`decoder_log_likelihood`, levels", paper(HO, "eq. 13"), name, "SciPy's mass of each bin", measured)
    density = scipy.stats.norm.logpdf(np.asarray(levelled), np.asarray(guess), spread[:, None]).sum(1)
    measured = worst(relative(decoder[1], density), 1e-9)
    yield Row("`decoder_log_likelihood`, density", paper(HO, "eq. 13"), name, "SciPy's density", measured)
    kernels = np.array([conditioned(process, i / 20, (i - 1) / 20) for i in range(2, 21)]).T
    for rule, actual, variance in zip(("posterior", "beta"), weight, kernels[2:], strict=True):
        expected = 20 * DIM * kernels[1] ** 2 / (2 * variance)
        measured = worst(actual / expected - 1, 1e-9)
        yield Row(f'`weights.variational`, "{rule}"', paper(HO, "eq. 8"), name, "conditional of the joint", measured)


def expectation_rows(name: str) -> Iterator[Row]:
    """Both bounds term by term in standard errors, and the standard errors that probes report."""
    process, high, rng = PROCESSES[name], last_time(name), np.random.default_rng(1)
    low = float(process.time_at(LOW))
    ts = log_snr_grid(process, STEPS, t_min=low, t_max=high)
    levelled = jnp.asarray(rng.choice(CENTRES, (POINTS, DIM), p=MASS))
    x_0, many = jnp.asarray(GAUSSIAN.sample(rng, POINTS, DOUBLE)), 128
    point = jnp.asarray(MIXTURE.sample(rng, 1, DOUBLE))
    rising = log_snr_grid(process, 5, t_min=low, t_max=high)[::-1]

    @jax.jit
    def run(levelled: Any, x_0: Any, point: Any) -> Any:
        chain = variational_bound(
            affine(process)[0], process, levelled, jax.random.key(0), ts=ts, variance="beta", levels=LEVELS
        )
        density = continuous_bound(
            GAUSSIAN.denoise(process), process, x_0, jax.random.key(1), t_min=low, t_max=high, levels=None, draws=4
        )
        denoise = MIXTURE.denoise(process)
        probed = log_likelihood_with_error(
            denoise,
            process,
            jnp.tile(point, (many, 1)),
            jax.random.key(2),
            ts=rising,
            probes=32,
            solver=diffrax.Euler(),
        )
        return chain, density, probed[:2]

    chain, density, probed = jax.device_get(run(levelled, x_0, point))
    prior, transitions, reconstruction = analytic_terms(process, ts, "beta")
    actual = [chain.prior, *chain.transitions, chain.reconstruction]
    pairs = zip(actual, [prior, *transitions, reconstruction], strict=True)
    errors, allowed = zip(*(standard_errors(term, float(DIM * mean)) for term, mean in pairs), strict=True)
    oracle = "each of 6 terms, levels; worst, standard errors"
    yield Row('`variational_bound`, "beta"', paper(HO, "eq. 5"), name, oracle, worst(errors, allowed))
    pairs = zip(
        [density.prior, density.transitions.sum(0), density.reconstruction],
        continuous_terms(process, GAUSSIAN, low, high),
        strict=True,
    )
    errors, allowed = zip(*(standard_errors(term, float(mean)) for term, mean in pairs), strict=True)
    oracle = "each of 3 terms in closed form; worst, standard errors"
    yield Row("`continuous_bound`", paper(KINGMA, "eq. 11"), name, oracle, worst(errors, allowed))
    z = (probed[0] - probed[0].mean()) / probed[1]
    # Student's law with 31 degrees of freedom; its square has variance about 2, and 32 signs are normal to 1/32
    oracle = "variance of (estimate - mean)/error, Student's; standard errors"
    measured = float(abs(z.var() - 31 / 29) / np.sqrt(2 / many)), float(4 + np.sqrt(many / 2) / 32)
    yield Row("`log_likelihood_with_error`", paper("1810.01367", "sec. 3.1"), name, oracle, measured)


def discrete_rows() -> Iterator[Row]:
    """Codes of discrete data, the noise of variational dequantisation, and the learned schedule's ends."""
    code = discrete_bits_per_dim(jnp.full(3, 10 * np.log(1 / 256)), 10)
    yield Row("`discrete_bits_per_dim`", paper(HO), "none", "uniform code: log2 of 256", worst(code - 8.0, 1e-12))
    levels, i, center, std, mean, noise_std = 8, 3, 3.7, 0.6, 0.4, 1.3
    integers = jnp.full((POINTS, 1), i, jnp.uint8)
    encode = lambda x: (jnp.full_like(x, mean), jnp.full_like(x, np.log(noise_std)))  # noqa: E731
    dequantized = jax.jit(lambda x, key: variational_dequantize(encode, x, key, levels=levels))
    x, log_q = dequantized(integers, jax.random.key(3))
    log_p = jax.scipy.stats.norm.logpdf(x[:, 0], center * 2 / levels - 1, std * 2 / levels)
    bits = bits_per_dim(log_p - log_q, 1, levels=levels)
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(100)
    u = scipy.special.expit(mean + noise_std * nodes)
    log_law = scipy.stats.norm.logpdf(nodes) - np.log(noise_std * u * (1 - u))
    each = scipy.stats.norm.logpdf(i + u, center, std) - log_law
    expected = -float(node_weights @ each) / np.sqrt(2 * np.pi) / np.log(2)
    oracle = "bits of a Gaussian by quadrature; standard errors"
    yield Row("`variational_dequantize`", paper(FLOW, "sec. 3.1.2"), "none", oracle, standard_errors(bits, expected))
    vp = PROCESSES["vp"]
    same = from_log_snr(lambda t: 2 * jnp.log(vp.alpha(t)) - jnp.log(vp.variance(t)))
    t = jnp.asarray([1e-3, 0.2, 0.7, 1.0])
    parts = jax.jit(lambda t: [getattr(p, part)(t) for p in (same, vp) for part in ("alpha", "sigma", "diffusion")])(t)
    errors = np.array(parts[:3]) / np.array(parts[3:]) - 1
    oracle = "VP from its own log-SNR: alpha, sigma, g"
    yield Row("`from_log_snr`", paper(KINGMA, "eq. 3"), "vp", oracle, worst(errors, 1e-9))
    schedule = MonotoneSchedule(log_snr_max=7.3, log_snr_min=-6.1)
    rng, params = np.random.default_rng(2), jax.jit(schedule.init)(jax.random.key(0), t)
    params = jax.tree.map(lambda p: p + 3 * jnp.asarray(rng.standard_normal(p.shape), p.dtype), params)
    ends = jax.jit(schedule.apply)(params, jnp.asarray([0.0, 1.0])) - np.array([7.3, -6.1])
    yield Row("`MonotoneSchedule`", paper(KINGMA, "app. H"), "none", "its ends, to the last bit", worst(ends, 1e-300))
