"""Solvers of our own: orders of convergence, and what they are equal to without noise."""

import chains
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains import X, gaussian_denoiser
from oracles import GAUSSIAN, MIXTURE, PROCESSES, gaussian_flow

from dgm_jax import samplers
from dgm_jax.processes import log_snr_grid, uniform
from dgm_jax.samplers import (
    AdamsBashforth,
    Ancestral,
    ChurnedHeun,
    DPMSolverPP2M,
    DPMSolverPP2MSDE,
    ReverseDiffusion,
    solve_ode,
    solve_sde,
)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


COUNTS = np.array([16, 32, 64])


def kind(solver):
    return type(solver).__name__


def fitted(errors):
    return -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]


@pytest.mark.parametrize("coordinates", ["time", "noise", "data"])
@pytest.mark.parametrize(
    ("solver", "order"),
    [(AdamsBashforth(1), 1), (AdamsBashforth(2), 2), (AdamsBashforth(3), 3), (DPMSolverPP2M(), 2)],
    ids=["AB1", "AB2", "AB3", "2M"],
)
def test_order_of_deterministic_solvers(solver, order, coordinates):
    """The error at the end of the exact flow, on grids whose steps grow, falling and rising."""
    process = PROCESSES["vp"]
    denoise = gaussian_denoiser(process)
    for ends in ((0.8, 0.3), (0.3, 0.8)):
        if ends[0] < ends[1] and coordinates != "noise":
            continue
        errors = []
        for n in 2 * COUNTS:
            ts = ends[0] + (ends[1] - ends[0]) * np.linspace(0, 1, n + 1) ** 1.3
            run = jax.jit(
                lambda x, ts=ts: solve_ode(denoise, process, x, ts=ts, solver=solver, coordinates=coordinates).x
            )
            errors.append(np.abs(run(jnp.asarray(X)) - gaussian_flow(process, X, *ends)).max())
        assert abs(fitted(errors) - order) < 0.3, (ends, errors)


@pytest.mark.parametrize(
    ("chain", "order"),
    [
        (chains.ddpm(0.0), 1),
        (chains.ddpm(1.0), 1),
        (chains.ddim(0.6), 1),
        (chains.dpm_solver_pp_2m_sde, 2),
        (chains.predictor_corrector(chains.reverse_diffusion), 1),
        (chains.edm(0.0), 2),
        (lambda d: chains.edm(4 / d.steps)(d), 2),
    ],
    ids=["ddpm", "ddpm beta", "ddim 0.6", "2M SDE", "reverse diffusion", "edm", "edm churn"],
)
@pytest.mark.parametrize("process_name", ["vp", "ve", "rectified"])
def test_weak_order_of_the_formulas(chain, order, process_name):
    """The end's mean and covariance, started from one state, against the exact reverse transition's."""
    process = PROCESSES[process_name]
    counts = 4 * COUNTS
    # p_{s} is reached from p_t: a Gaussian start of the exact law is the state plus the marginal's own spread
    errors = []
    for n in counts:
        ts = log_snr_grid(process, int(n), t_min=0.2, t_max=0.8)
        t = np.array([0.8, 0.2])
        alpha, sigma = np.asarray(process.alpha(jnp.asarray(t))), np.asarray(process.sigma(t))

        def from_the_law(d, chain=chain, alpha=alpha, sigma=sigma):
            d.x = alpha[0] * d.m * d.one + np.sqrt(alpha[0] ** 2 * d.v + sigma[0] ** 2) * d.noise()
            return chain(d)

        mean, covariance = chains.moments(process, ts, from_the_law)
        exact = alpha[1] ** 2 * GAUSSIAN.covariances[0] + sigma[1] ** 2 * np.eye(2)
        errors.append(max(np.abs(mean - alpha[1] * GAUSSIAN.means[0]).max(), np.abs(covariance - exact).max()))
    found = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(found - order) < 0.25, errors


SLOW = [pytest.param(solver, marks=pytest.mark.slow) for solver in (ReverseDiffusion(), DPMSolverPP2MSDE())]


@pytest.mark.parametrize("solver", [Ancestral(), *SLOW], ids=kind)
def test_strong_order_on_a_shared_brownian_path(solver):
    """Order 1, against 512 steps of the same solver on the same path; the noise is additive."""
    process, n = PROCESSES["vp"], 24
    denoise = gaussian_denoiser(process)
    x = jnp.asarray(np.tile(X, (n // 3, 1)))
    ratio = 1 / np.asarray(process.noise_ratio(np.array([0.8, 0.3])))
    ends = (0.0, 0.5) if solver.coordinates == "time" else tuple(ratio)
    path = diffrax.VirtualBrownianTree(
        *ends, tol=2.0**-13, shape=jax.ShapeDtypeStruct(x.shape, x.dtype), key=jax.random.key(5)
    )

    def end(steps):
        points = np.linspace(*ends, steps + 1)
        ts = np.array(0.8 - points if solver.coordinates == "time" else process.time_at(1 / points))
        ts[0], ts[-1] = 0.8, 0.3
        options = {"ts": ts, "solver": solver, "brownian": path}
        return np.asarray(jax.jit(lambda x: solve_sde(denoise, process, x, jax.random.key(0), **options).x)(x))

    reference = end(512)
    errors = [np.sqrt(np.mean((end(int(k)) - reference) ** 2)) for k in COUNTS]
    assert abs(fitted(errors) - 1) < 0.25, errors


# equalities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "ode", "coordinates"),
    [
        (Ancestral(0.0), diffrax.Euler(), "noise"),
        (ChurnedHeun(0.0), diffrax.Heun(), "noise"),
        (DPMSolverPP2MSDE(0.0), DPMSolverPP2M(), "data"),
    ],
    ids=["eta = 0", "churn = 0", "2M"],
)
@pytest.mark.parametrize("process_name", ["vp", "ve"])
def test_without_noise_kernels_are_ode_solvers(kernel, ode, coordinates, process_name):
    process = PROCESSES[process_name]
    denoise, ts = MIXTURE.denoise(process), log_snr_grid(process, 8, t_min=0.05, t_max=0.9)
    x = float(process.sigma(0.9)) * jnp.asarray(X)

    @jax.jit
    def both(x):
        options = {"ts": ts, "coordinates": coordinates, "save_path": True}
        by_kernel = solve_sde(denoise, process, x, jax.random.key(0), solver=kernel, **options).path
        return by_kernel, solve_ode(denoise, process, x, solver=ode, **options).path

    np.testing.assert_allclose(*both(x), rtol=1e-9, atol=1e-9)


def test_the_recipes_without_noise_take_the_key_as_sample_ode_does():
    process, ts = PROCESSES["vp"], uniform(4, t_min=1e-2)
    denoise, shape = gaussian_denoiser(process), (5, 2)

    @jax.jit
    def every(key):
        options = {"ts": ts, "coordinates": "noise"}
        euler = samplers.sample_ode(denoise, process, key, shape, solver=diffrax.Euler(), **options).x
        heun = samplers.sample_ode(denoise, process, key, shape, solver=diffrax.Heun(), **options).x
        ddim = samplers.ddim(denoise, process, key, shape, ts=ts).x
        return (euler, heun), (ddim, samplers.edm_heun(denoise, process, key, shape, ts=ts).x)

    solvers, recipes = every(jax.random.key(4))
    np.testing.assert_allclose(np.stack(recipes), np.stack(solvers), rtol=1e-9)


@pytest.mark.parametrize("solver", [Ancestral, DPMSolverPP2MSDE, ChurnedHeun], ids=lambda cls: cls.__name__)
def test_gradients_at_no_noise_are_finite(solver):
    """d/d eta and d/d gamma at 0, where a root would have an infinite one: against a difference."""
    process, ts = PROCESSES["vp"], uniform(4, t_min=0.1, t_max=0.9)

    @jax.jit
    def total(amount):
        kernel = solver(amount) if solver is not ChurnedHeun else eqx.tree_at(lambda s: s.gamma, solver(0.1), amount)
        return solve_sde(gaussian_denoiser(process), process, jnp.asarray(X), jax.random.key(0), ts=ts, solver=kernel).x

    value, gradient = jax.jvp(total, (jnp.asarray(0.0),), (jnp.asarray(1.0),))
    assert np.isfinite(gradient).all()
    if solver is not ChurnedHeun:  # churn adds noise with the root of gamma, from the right
        np.testing.assert_allclose(gradient, (total(jnp.asarray(1e-6)) - value) / 1e-6, rtol=1e-3, atol=1e-4)
