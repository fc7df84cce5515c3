"""Rows of the oracle table for inverse problems: Kalman's posteriors, dense matrices, recursions of moments."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from dgm_jax.parameterizations import (
    dps,
    gaussian_likelihood,
    gaussian_twist,
    inpaint,
    operators,
    pigdm,
    pigdm_forward,
    project,
)
from dgm_jax.parameterizations.operators import pseudo_inverse, solved
from dgm_jax.processes import log_snr_grid
from dgm_jax.samplers import Replacement, colorization_transform, resample, sample_sde, smc
from experiments._oracle_rows import ALL, EYE, Row, paper, relative, standard_errors, worst
from experiments._oracle_solves import moments
from tests.exact_posterior import (
    MASKED,
    affine_denoiser,
    ancestral_moments,
    chain_posterior,
    condition,
    isotropic,
    levels_of,
)
from tests.oracles import GAUSSIAN, PROCESSES, last_time

DOUBLE: Any = np.float64
PIGDM, DPS, DDNM = "Song et al. 2023, eq. 7", paper("2209.14687", "eq. 16"), paper("2212.00490", "eq. 13")
SONG, REPAINT, TWISTED = paper("2011.13456", "app. I"), paper("2201.09865", "alg. 1"), paper("2306.17775", "alg. 1")
STD, S, ROWS, Y = 0.7, 0.3, np.array([[0.8, -0.6, 0.3], [0.2, 0.5, -1.0]]), np.array([0.9, -0.4])
KNOWN, MEASURED, POINTS = np.array([True, False]), np.array([2.3]), 20_000


def inverse_rows(names: Sequence[str]) -> Iterator[Row]:
    """Operators, denoisers that know a measurement, and the samplers of posteriors."""
    yield from operator_rows()
    for name in names:
        yield from denoiser_rows(name)
    for name in names:
        yield from sampler_rows(name)


def operator_rows() -> Iterator[Row]:
    """Pseudo-inverses and inverses of a A A^T + b I against those of dense matrices."""
    event, rng = (4, 6, 3), np.random.default_rng(0)
    made = {
        "mask": operators.mask(rng.random(event) < 0.6),
        "blur": operators.blur(rng.random((3, 3))),
        "downsample": operators.downsample((2, 3)),
        "grayscale": operators.grayscale(np.array([0.3, 0.6, 0.1])),
        "matrix": operators.matrix(rng.standard_normal((5, *event))),
        "linear": operators.linear(lambda x: x[:, 1:] + x[:, :-1] / 2, event),
    }
    x = jnp.asarray(rng.standard_normal((1, *event)))
    for name, operator in made.items():
        dense = np.asarray(operator(jnp.eye(x.size).reshape(-1, *event))).reshape(x.size, -1).T
        y = np.asarray(operator(x)).reshape(-1)
        inverse = np.linalg.solve(0.7 * dense @ dense.T + 0.2 * np.eye(len(dense)), y)
        errors = [
            relative(pseudo_inverse(operator, operator(x)).reshape(-1), np.linalg.pinv(dense) @ y),
            relative(solved(operator, operator(x), 0.7, 0.2).reshape(-1), inverse),
        ]
        oracle = "NumPy on its dense matrix"
        yield Row(f"`operators.{name}`", "", ALL, oracle, worst(np.concatenate(errors), 1e-9))
    m = np.asarray(colorization_transform())
    error = np.abs(np.concatenate([(m.T @ m - np.eye(3)).reshape(-1), m[:, 0] - 3**-0.5]))
    yield Row("`colorization_transform`", SONG, ALL, "orthogonal, grey first", worst(error, 1e-12))


def denoiser_rows(name: str) -> Iterator[Row]:
    """Rules where they are exact, and DPS by its known excess over what is."""
    process, data, rng = PROCESSES[name], isotropic(3, STD), np.random.default_rng(5)
    t = jnp.linspace(0.1, 0.95 * last_time(name), 8, dtype=DOUBLE)
    x = process.perturb(jnp.asarray(data.sample(rng, 8, DOUBLE)), t, jnp.asarray(rng.standard_normal((8, 3))))
    denoise, operator, first = data.denoise(process), operators.matrix(ROWS), np.array([True, False, False])

    def posterior(rows: np.ndarray, y: np.ndarray, std: float) -> Any:
        return condition(data, rows, y, std).posterior.denoise(process)(x, t)

    oracle = "Kalman's posterior of isotropic data"
    for rule in (pigdm, pigdm_forward):
        found = rule(denoise, process, operator, Y, noise_std=S, data_std=STD)(x, t)
        yield Row(f"`{rule.__name__}`", PIGDM, name, oracle, worst(relative(found, posterior(ROWS, Y, S)), 1e-9))
    twist = gaussian_twist(process, operator, Y, noise_std=S, data_std=STD)
    gradient = jax.grad(lambda x: twist(denoise(x, t), t).sum())(x)
    found = denoise(x, t) + (process.variance(t) / process.alpha(t))[:, None] * gradient
    yield Row("`gaussian_twist`", TWISTED, name, oracle, worst(relative(found, posterior(ROWS, Y, S)), 1e-9))
    found = project(denoise, operator, Y)(x, t)
    yield Row("`project`", DDNM, name, f"{oracle}, no noise", worst(relative(found, posterior(ROWS, Y, 1e-9)), 1e-8))
    found = inpaint(denoise, first, np.array([Y[0], np.nan, np.nan]))(x, t)
    exact = posterior(np.eye(3)[:1], Y[:1], 1e-9)
    yield Row("`inpaint`", SONG, name, f"{oracle}, no noise", worst(relative(found, exact), 1e-8))
    density = scipy.stats.multivariate_normal.logpdf(np.asarray(x) @ ROWS.T, Y, S**2 * EYE)  # type: ignore
    error = relative(gaussian_likelihood(operator, Y, noise_std=S)(x), density)
    yield Row("`gaussian_likelihood`", "", name, "SciPy's density", worst(error, 1e-12))

    plain, one = np.asarray(denoise(x, t)), operators.matrix(ROWS[:1])
    excess = np.asarray(dps(denoise, process, one, Y[:1], noise_std=S)(x, t)) - plain
    exact = np.asarray(condition(data, ROWS[:1], Y[:1], S).posterior.denoise(process)(x, t)) - plain
    ratio = np.asarray(process.alpha(t) / process.sigma(t), DOUBLE) ** 2
    ignored = (ROWS[0] @ ROWS[0]) / (1 / STD**2 + ratio)  # A Cov[x_0 | x_t] A'
    error = relative(excess, (1 + ignored / S**2)[:, None] * exact)
    yield Row("`dps`", DPS, name, "Kalman's gain, by the variance that it ignores", worst(error, 1e-8))


def sampler_rows(name: str) -> Iterator[Row]:
    """Replacement's own moments; particles of Gaussian data, over independent runs. All in standard errors."""
    process = PROCESSES[name]
    denoise = GAUSSIAN.denoise(process)
    ts = log_snr_grid(process, 24, t_min=1e-2, t_max=last_time(name))
    for resamples, source in ((1, SONG), (3, REPAINT)):
        solver = Replacement(KNOWN, np.array([2.3, np.nan]), resamples=resamples)
        draw = jax.jit(lambda key, s=solver: sample_sde(denoise, process, key, (POINTS, 2), ts=ts, solver=s).x)
        options = {"known": KNOWN, "y": np.array([2.3, 0.0]), "resamples": resamples}
        exact = ancestral_moments(levels_of(process, ts), lambda a, s: affine_denoiser(GAUSSIAN, a, s), 2, **options)
        method = "`Replacement`" if resamples == 1 else "`Replacement`, RePaint"
        yield Row(method, source, name, "exact moments of its steps", moments(draw(jax.random.key(0)), *exact))

    runs, particles = 64, 64
    ts = log_snr_grid(process, 50, t_min=1e-3, t_max=last_time(name))
    operator, exact = operators.matrix(MASKED), chain_posterior(process, ts, GAUSSIAN, MASKED, MEASURED, S)
    likelihood = gaussian_likelihood(operator, MEASURED, noise_std=S)
    twist = gaussian_twist(process, operator, MEASURED, noise_std=S, data_std=0.5)
    draw = jax.jit(jax.vmap(lambda key: smc(denoise, process, likelihood, twist, key, (particles, 2), ts=ts)))
    found = draw(jax.random.split(jax.random.key(1), runs))
    points = jax.vmap(lambda p, key: resample(p, key, particles))(found, jax.random.split(jax.random.key(2), runs))
    # a run's mean is not unbiased, as its weights sum to 1; its evidence is, and so is their product
    evidence = np.exp(np.asarray(found.log_evidence) - exact.log_evidence)
    mean, spread = exact.posterior.mean, np.sqrt(np.diag(exact.posterior.covariance))
    weighted = np.sum(np.exp(found.log_weights)[..., None] * np.asarray(found.x), 1)
    oracle = "Kalman's posterior of the chain's own law"
    yield Row("`smc`, evidence", TWISTED, name, oracle, standard_errors(evidence, 1.0))
    for method, each in (("`smc`", weighted), ("`resample`", np.asarray(points).mean(1))):
        errors = evidence[:, None] * (each - mean) / spread
        measured = [standard_errors(column, 0.0) for column in errors.T]
        yield Row(method, TWISTED, name, oracle, worst(*np.array(measured).T))
