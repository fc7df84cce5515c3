"""The probability-flow ODE, dx/dt = alpha' D + sigma' (x - alpha D)/sigma, solved by diffrax.

The ODE has the process's marginals (Song et al. 2021, arXiv:2011.13456, eq. 13). A sampler is a coordinate system
(see `coordinates`), a diffrax solver and a grid: `diffrax.Euler()` in coordinates "noise" is DDIM, `diffrax.Heun()`
there is EDM's sampler, `diffrax.Tsit5()` with a controller in "time" is the adaptive sampler.
"""

import diffrax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgm_jax.numerics import expand_to, normal, rounded
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.samplers.coordinates import CoordinateName, Coordinates, clock_of, coordinates_of, estimates, traced_once
from dgm_jax.samplers.grid import Grid, GridPlan, check_points, ode_grid
from dgm_jax.samplers.predictor_corrector import PredictorCorrector
from dgm_jax.samplers.reverse import Kernel
from dgm_jax.samplers.stepping import Samples, integrate
from dgm_jax.typing import Data, Denoiser, Keys, Shape


def solve_ode(
    denoise: Denoiser,
    process: GaussianProcess,
    x: Data,
    *,
    ts: Grid,
    solver: diffrax.AbstractSolver = diffrax.Heun(),
    coordinates: CoordinateName = "time",
    controller: diffrax.AbstractStepSizeController | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int | None = None,
    save_path: bool = False,
) -> Samples:
    """Carry the state `x` at ts[0] along the probability-flow ODE to ts[-1].

    Args:
        x: [batch, *event], in data units.
        ts: falling from noise to data, or rising to encode data. A falling grid may end at t = 0 where sigma(0) = 0:
            the last step is then the denoiser's own estimate. A grid whose values are traced (made by `jnp.linspace`
            under `jit`) is not looked at, and must end before t = 0; those of `dgm_jax.processes` are never traced.
        coordinates: of the equation; a solver that is made for one of them (`DPMSolverPP2M`) is given that.
        controller: None steps exactly on `ts`; else adaptive, with the tolerance held by each example of the batch.
        adjoint: None allows forward-mode gradients only; pass `diffrax.DirectAdjoint()` for reverse mode.
    """
    if isinstance(solver, Kernel | PredictorCorrector):
        raise ValueError(f"Expected a solver of ODEs, as this one adds noise (use `solve_sde`); got {solver}.")
    coordinates = getattr(solver, "coordinates", coordinates)
    plan = ode_grid(process, x, ts, coordinates)
    system, denoise = coordinates_of(coordinates, process), traced_once(denoise)

    def field(clock, state: Data, _) -> Data:
        estimate, noise = estimates(denoise, process, system, clock, state)
        of_estimate, of_noise = rounded(system.slopes(system.time(clock)))
        return of_estimate * estimate + of_noise * noise

    states, evaluations, result = integrate(
        diffrax.ODETerm(field),
        x * system.scale(plan.ts[0]),
        clock_of(system, plan.ts),
        solver=solver,
        controller=controller,
        adjoint=adjoint,
        max_steps=max_steps,
        save_path=save_path,
    )
    return finish(denoise, states, plan, system, evaluations, result, save_path=save_path)


def sample_ode(denoise: Denoiser, process: GaussianProcess, key: Keys, shape: Shape, *, ts: Grid, **options) -> Samples:
    """`solve_ode` from the prior N(0, sigma(ts[0])^2 I) at ts[0]; `shape` is (batch, *event)."""
    return solve_ode(denoise, process, draw_prior(process, key, shape, ts), ts=ts, **options)


def draw_prior(process: GaussianProcess, key: Keys, shape: Shape, ts: Grid) -> Data:
    """sigma(ts[0]) times standard normal noise, in the grid's precision."""
    values = check_points(ts)
    if values is not None and values[-1] > values[0]:
        raise ValueError(
            "Expected falling ts, as samples come from noise (data to noise: solve_ode or simulate_forward); got "
            f"{values[0]} to {values[-1]}."
        )
    start = jnp.asarray(ts)[0]
    return process.sigma(start) * normal(key, shape, start.dtype)


def finish(
    denoise: Denoiser,
    states: Float[Array, "points batch *event"],
    plan: GridPlan,
    system: Coordinates,
    evaluations: Int[Array, ""],
    result: diffrax.RESULTS,
    *,
    save_path: bool,
) -> Samples:
    """Back from the solver's states to x, with the last step to t = 0 where the grid asked for one."""
    saved = plan.ts if save_path else plan.ts[-1:]
    path = states / expand_to(system.scale(saved), states)
    if plan.to_zero:
        last = denoise(path[-1], jnp.full(path.shape[1], plan.ts[-1]))
        path = jnp.concatenate([path, last[None]])
        evaluations = evaluations + 1
    finite = jnp.isfinite(path[-1]).all()  # a step through a pole is no failure to diffrax
    result = diffrax.RESULTS.where(finite, result, diffrax.RESULTS.nonfinite)  # type: ignore[arg-type]
    return Samples(path[-1], path if save_path else None, evaluations, result)
