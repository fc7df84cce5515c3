"""Rows of the oracle table for the named samplers and the solvers of our own.

On Gaussian data every sampler is affine in its start and its noise, so that its paper's formula gives exact moments,
discretisation error included (`tests.chains`): only Monte Carlo error is left to allow. How fast those moments
approach the exact law is the formula's weak order.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax import samplers
from dgm_jax.processes import GaussianProcess, log_snr_grid
from dgm_jax.samplers import (
    AdamsBashforth,
    Ancestral,
    DPMSolverPP2M,
    Hold,
    Langevin,
    ReverseDiffusion,
    UnderdampedLangevin,
    solve_ode,
)
from experiments._oracle_rows import ALL, Row, paper, worst
from experiments._oracle_solves import fitted, moments, state_at
from tests import chains
from tests.oracles import GAUSSIAN, PROCESSES, gaussian_flow, last_time

N, STEPS, SNR = 4000, 9, 0.2
HO, DDIM, EDM, LU, DEIS, SONG = "2006.11239", "2010.02502", "2206.00364", "2211.01095", "2204.13902", "2011.13456"
CORRECTED = samplers.predictor_corrector
WITH = {"corrector": Langevin(SNR)}


def half(x_t: Any, t: Any) -> Any:
    """A learned share of DDPM's two variances."""
    return jnp.full_like(x_t, 0.5)


# (label, paper, recipe, formula, weak order or None)
RECIPES: list[tuple[str, str, Any, Any, int | None]] = [
    ('`ddpm`, "posterior"', paper(HO, "alg. 2"), samplers.ddpm, chains.ddpm(0.0), 1),
    ('`ddpm`, "beta"', paper(HO, "alg. 2"), partial(samplers.ddpm, variance="beta"), chains.ddpm(1.0), 1),
    (
        "`ddpm`, learned variance",
        paper("2102.09672", "eq. 15"),
        partial(samplers.ddpm, variance=half),
        chains.ddpm(0.5),
        1,
    ),
    ("`ddim`, eta = 0", paper(DDIM, "eq. 12"), samplers.ddim, chains.ddim(0.0), 1),
    ("`ddim`, eta = 0.6", paper(DDIM, "eq. 16"), partial(samplers.ddim, eta=0.6), chains.ddim(0.6), 1),
    ("`edm_heun`", paper(EDM, "alg. 1"), samplers.edm_heun, chains.edm(0.0), 2),
    (
        "`edm_heun`, churn",
        paper(EDM, "alg. 2"),
        partial(samplers.edm_heun, churn=0.2 * STEPS, churn_min=0.1, churn_max=4.0, churn_noise=1.1),
        chains.edm(0.2, 0.1, 4.0, 1.1),
        None,
    ),
    ("`dpm_solver_pp_2m`", paper(LU, "alg. 2"), samplers.dpm_solver_pp_2m, chains.dpm_solver_pp_2m, 2),
    ("`dpm_solver_pp_2m_sde`", paper(LU, "SDE (2M)"), samplers.dpm_solver_pp_2m_sde, chains.dpm_solver_pp_2m_sde, 2),
    ("`deis`, order 2", paper(DEIS, "rhoAB"), partial(samplers.deis, order=2), chains.adams_bashforth(2), 2),
    ("`deis`, order 3", paper(DEIS, "rhoAB"), samplers.deis, chains.adams_bashforth(3), 3),
    (
        "`predictor_corrector`, Euler-Maruyama",
        paper(SONG, "alg. 1"),
        partial(CORRECTED, predictor=diffrax.Euler(), **WITH),
        chains.predictor_corrector(chains.euler_maruyama(1), SNR),
        None,
    ),
    (
        "`predictor_corrector`, ODE",
        paper(SONG, "alg. 1"),
        partial(CORRECTED, predictor=diffrax.Euler(), stochasticity=0.0, **WITH),
        chains.predictor_corrector(chains.euler_maruyama(0), SNR),
        None,
    ),
    (
        "`predictor_corrector`, reverse diffusion",
        paper(SONG, "eq. 46"),
        partial(CORRECTED, predictor=ReverseDiffusion(), **WITH),
        chains.predictor_corrector(chains.reverse_diffusion, SNR),
        None,
    ),
    (
        "`predictor_corrector`, ancestral, two corrections",
        paper(SONG, "eq. 47"),
        partial(CORRECTED, predictor=Ancestral(), corrector=Langevin(SNR, 2)),
        chains.predictor_corrector(chains.ancestral, SNR, 2),
        None,
    ),
    (
        "`predictor_corrector`, corrector alone",
        paper(SONG, "alg. 4"),
        partial(CORRECTED, predictor=Hold(), **WITH),
        chains.predictor_corrector(chains.hold, SNR),
        None,
    ),
]
SOLVERS = {
    "`solve_ode`, `AdamsBashforth(1)`": (AdamsBashforth(1), 1, DEIS),
    "`solve_ode`, `AdamsBashforth(2)`": (AdamsBashforth(2), 2, DEIS),
    "`solve_ode`, `AdamsBashforth(3)`": (AdamsBashforth(3), 3, DEIS),
    "`solve_ode`, `DPMSolverPP2M()`": (DPMSolverPP2M(), 2, LU),
}


def chosen(names: Sequence[str], index: Any) -> GaussianProcess:
    """The process of a traced index, so that one program serves all."""
    every = [PROCESSES[name] for name in names]
    choose = partial(jax.lax.switch, index)
    return GaussianProcess(
        alpha=lambda t: choose([p.alpha for p in every], t),
        variance=lambda t: choose([p.variance for p in every], t),
        inverse=lambda ratio: choose([p.time_at for p in every], ratio),
    )


def recipe_rows(names: Sequence[str]) -> Iterator[Row]:
    """Every recipe against its paper's formula, from a prior below t = 1; the formula's weak order."""
    for label, source, recipe, formula, order in RECIPES:

        @jax.jit
        def run(index, ts, key, recipe=recipe):
            process = chosen(names, index)
            return recipe(GAUSSIAN.denoise(process), process, key, (N, 2), ts=ts).x

        found = []
        for index, name in enumerate(names):
            ts = log_snr_grid(PROCESSES[name], STEPS, t_min=0.05, t_max=0.7 * last_time(name))
            x = run(index, ts, jax.random.key(index))
            found.append(moments(x, *chains.moments(PROCESSES[name], ts, formula)))
        errors, tolerances = zip(*found, strict=True)
        oracle = "the formula's exact moments; standard errors"
        yield Row(label, source, ALL, oracle, worst(errors, tolerances))
        if order is not None and "vp" in names:
            yield weak_order_row(label, source, formula, order)


def weak_order_row(label: str, source: str, formula: Any, order: int) -> Row:
    """The formula's mean and covariance at t = 0.2 from the exact law at t = 0.8 under VP."""
    process, counts, errors = PROCESSES["vp"], np.array([64, 128, 256]), []
    t = jnp.array([0.8, 0.2])
    alpha, sigma = np.asarray(process.alpha(t)), np.asarray(process.sigma(t))

    def from_the_law(direction: Any) -> Any:
        spread = np.sqrt(alpha[0] ** 2 * direction.v + sigma[0] ** 2)
        direction.x = alpha[0] * direction.m * direction.one + spread * direction.noise()
        return formula(direction)

    for n in counts:
        mean, covariance = chains.moments(process, log_snr_grid(process, int(n), t_min=0.2, t_max=0.8), from_the_law)
        exact = alpha[1] ** 2 * GAUSSIAN.covariances[0] + sigma[1] ** 2 * np.eye(2)
        errors.append(max(np.abs(mean - alpha[1] * GAUSSIAN.means[0]).max(), np.abs(covariance - exact).max()))
    found = fitted(counts, errors)
    return Row(label, source, "vp", f"weak order {order} of the formula", (abs(found - order), 0.25), order=found)


def solver_rows(names: Sequence[str]) -> Iterator[Row]:
    """Orders of the multistep solvers towards the closed-form flow, and correctors on draws from p_t."""
    for name in names:
        if name not in ("vp", "ve"):
            continue
        process = PROCESSES[name]
        x, denoise = state_at(process, 0.8), GAUSSIAN.denoise(process)
        counts = np.array([32, 64, 128]) if name == "vp" else np.array([128, 256, 512])
        for label, (solver, order, source) in SOLVERS.items():
            errors = []
            for n in counts:
                ts = log_snr_grid(process, int(n), t_min=0.3, t_max=0.8)
                end = jax.jit(
                    lambda x, ts=ts, solver=solver, denoise=denoise, process=process: (
                        solve_ode(denoise, process, x, ts=ts, solver=solver, coordinates="noise").x
                    )
                )(x)
                errors.append(np.abs(end - gaussian_flow(process, x, 0.8, 0.3)).max())
            found = fitted(counts, errors)
            oracle = f"order {order} towards the closed-form flow"
            yield Row(label, paper(source), name, oracle, (abs(found - order), 0.35), order=found)
    for name in names:
        yield from corrector_rows(name)


def corrector_rows(name: str) -> Iterator[Row]:
    """One move from exact draws at t = 0.4: Langevin's law is known, underdamped Langevin's up to its step squared."""
    process, n, t = PROCESSES[name], 20_000, jnp.asarray(0.4)
    alpha, sigma = float(process.alpha(t)), float(process.sigma(t))
    mean, covariance = alpha * GAUSSIAN.means[0], alpha**2 * GAUSSIAN.covariances[0] + sigma**2 * np.eye(2)
    precision = np.linalg.inv(covariance)
    x = jnp.asarray(np.random.default_rng(0).multivariate_normal(mean, covariance, n))
    keys = jax.random.split(jax.random.key(1), n)

    def score(x: Any) -> Any:
        return -(x - jnp.asarray(mean)[None]) @ precision

    size = 2 * (0.3 * sigma) ** 2
    moved = jax.jit(lambda x: Langevin(0.3)(score, x, jnp.asarray(sigma), keys))(x)
    expected = covariance + size**2 * precision
    oracle = "C + e^2/C after a step e from N(m, C); standard errors"
    yield Row("`Langevin`", paper(SONG, "alg. 4"), name, oracle, moments(moved, mean, expected))
    others = (diffrax.ShOULD(), diffrax.QUICSORT()) if name == "vp" else ()
    for solver in (diffrax.ALIGN(), *others):
        corrector = UnderdampedLangevin(1.0, 8, solver=solver)
        moved = jax.jit(lambda x, corrector=corrector: corrector(score, x, jnp.asarray(sigma), keys))(x)
        label = f"`UnderdampedLangevin`, {type(solver).__name__}"
        oracle = "p_t itself; standard errors"
        yield Row(label, paper("2101.03446"), name, oracle, moments(moved, mean, covariance, bias=1 / 64))
