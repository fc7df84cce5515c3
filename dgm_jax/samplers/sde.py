"""The reverse SDE and its family, and the forward SDE, solved by diffrax.

Every reverse solve runs on an increasing clock, as some of diffrax's solvers are silently wrong on a falling one. In
coordinates "time" that clock is s = ts[0] - t, on [0, ts[0] - ts[-1]], and

    dX = [-f + (1 + eta^2)/2 g^2 score] ds + eta g dW

with eta the stochasticity: 1 is the reverse SDE (Song et al. 2021, arXiv:2011.13456, eq. 6; the survey's eq. 10), 0
the probability-flow ODE, and every eta has the process's marginals. In coordinates "noise" the clock is -sigma/alpha,
in "data" alpha/sigma.
"""

import diffrax
import jax
import jax.numpy as jnp
import lineax
from jaxtyping import Array, Float

from dgm_jax.numerics import example_keys, in_order, known_number, rounded, split
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.samplers.brownian import brownian_tree, independent_increments
from dgm_jax.samplers.coordinates import CoordinateName, clock_of, coordinates_of, estimates, traced_once
from dgm_jax.samplers.grid import Grid, forward_grid, reverse_grid
from dgm_jax.samplers.multistep import AdamsBashforth, DPMSolverPP2M
from dgm_jax.samplers.ode import draw_prior, finish
from dgm_jax.samplers.predictor_corrector import PredictorCorrector
from dgm_jax.samplers.reverse import Kernel, Reverse
from dgm_jax.samplers.stepping import Samples, integrate
from dgm_jax.typing import Data, Denoiser, Keys, Shape


def solve_sde(
    denoise: Denoiser,
    process: GaussianProcess,
    x: Data,
    key: Keys,
    *,
    ts: Grid,
    stochasticity: float | Float[Array, ""] = 1.0,
    solver: diffrax.AbstractSolver = diffrax.Euler(),
    coordinates: CoordinateName = "time",
    controller: diffrax.AbstractStepSizeController | None = None,
    brownian: diffrax.AbstractBrownianPath | None = None,
    adjoint: diffrax.AbstractAdjoint | None = None,
    max_steps: int | None = None,
    save_path: bool = False,
) -> Samples:
    """Carry the state `x` at ts[0] along the reverse SDE to ts[-1].

    Args:
        x: [batch, *event], in data units.
        key: one key, or one key per example [batch]; an example's path depends on its own key alone.
        ts: falling. It may end at t = 0 where sigma(0) = 0: the last step is then the denoiser's own estimate. A
            traced grid is not looked at, and must end before t = 0 (see `solve_ode`).
        stochasticity: eta >= 0; 1 for solvers that are kernels of their own, such as `Ancestral`.
        coordinates: of the equation; kernels of their own are the same in all, and solved in theirs.
        controller: None steps exactly on `ts`; an adaptive one needs a solver with an error estimate, such as
            `diffrax.Heun()` or `diffrax.SPaRK()`.
        brownian: a path of shape [batch, *event] on the increasing clock, from 0 to ts[0] - ts[-1] in "time", from
            -sigma/alpha to -sigma/alpha in "noise", alpha/sigma in "data"; None draws one from `key`.
        adjoint: None allows forward-mode gradients only; `diffrax.DirectAdjoint()` allows reverse mode.
    """
    if isinstance(solver, AdamsBashforth | DPMSolverPP2M):
        raise ValueError(
            "Expected a solver of SDEs, such as diffrax.Euler() or DPMSolverPP2MSDE(), as slopes kept from the last "
            f"step say nothing of its noise; got {solver}."
        )
    own = getattr(solver, "coordinates", None)
    plan = reverse_grid(process, x, ts, from_pure_noise=getattr(solver, "from_pure_noise", False))
    eta = known_number(stochasticity)
    if not in_order(0, stochasticity):
        raise ValueError(f"Expected stochasticity >= 0, as it scales the noise; got {stochasticity}.")
    if own is not None and (eta is None or eta != 1):
        raise ValueError(
            f"Expected stochasticity = 1 with {type(solver).__name__}, as a kernel says itself how much noise it adds; "
            f"got {stochasticity}."
        )
    coordinates = coordinates if own is None else own
    stochasticity = jnp.asarray(stochasticity, x.dtype)
    system, denoise = coordinates_of(coordinates, process), traced_once(denoise)
    direction = 1.0 if coordinates == "data" else -1.0
    with jax.ensure_compile_time_eval():
        origin = plan.ts[0] if coordinates == "time" else jnp.zeros((), x.dtype)
        clock = direction * (clock_of(system, plan.ts) - origin)

    def drift(s, state: Data, _) -> Data:
        clock = origin + direction * s
        estimate, noise = estimates(denoise, process, system, clock, state)
        of_estimate, of_noise = system.slopes(system.time(clock))
        langevin = stochasticity**2 / 2 * system.spread(clock) / system.std(clock)
        of_estimate, of_noise = rounded((direction * of_estimate, direction * of_noise - langevin))
        return of_estimate * estimate + of_noise * noise

    def diffusion(s, state: Data, _) -> lineax.AbstractLinearOperator:
        scale = rounded(stochasticity * jnp.sqrt(system.spread(origin + direction * s)))
        return scale * lineax.IdentityLinearOperator(jax.eval_shape(lambda: state))

    keys = example_keys(key, x.shape[0])
    if isinstance(solver, PredictorCorrector):
        keys, keys_corrector = split(keys)
    else:
        keys_corrector = keys
    if brownian is None:
        consistent = controller is not None or isinstance(adjoint, diffrax.BacksolveAdjoint)
        brownian = _brownian_path(x, keys, clock, solver, consistent=consistent)
    else:
        increment = jax.eval_shape(lambda: brownian.evaluate(clock[0], clock[1]))
        if increment.shape != x.shape:
            raise ValueError(
                f"Expected brownian of the shape of x, {x.shape}, as each example has noise of its own; got "
                f"{increment.shape}."
            )
    states, evaluations, result = integrate(
        diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, brownian)),
        x * system.scale(plan.ts[0]),
        clock,
        solver=solver,
        controller=controller,
        adjoint=adjoint,
        max_steps=max_steps,
        save_path=save_path,
        args=Reverse(denoise, process, system, origin, direction, keys_corrector),
    )
    return finish(denoise, states, plan, system, evaluations, result, save_path=save_path)


def sample_sde(denoise: Denoiser, process: GaussianProcess, key: Keys, shape: Shape, *, ts: Grid, **options) -> Samples:
    """`solve_sde` from the prior N(0, sigma(ts[0])^2 I) at ts[0]; `shape` is (batch, *event)."""
    key_prior, key_path = split(key)
    return solve_sde(denoise, process, draw_prior(process, key_prior, shape, ts), key_path, ts=ts, **options)


def simulate_forward(
    process: GaussianProcess,
    x: Data,
    key: Keys,
    *,
    ts: Grid,
    solver: diffrax.AbstractSolver = diffrax.Euler(),
    save_path: bool = False,
) -> Samples:
    """The forward SDE dX = f dt + g dW from the state `x` at ts[0], along rising ts; no network is called.

    From ts[0] = a to t the transition is Gaussian with mean alpha(t)/alpha(a) x and variance
    sigma(t)^2 - (alpha(t)/alpha(a))^2 sigma(a)^2.
    """
    if isinstance(solver, Kernel | PredictorCorrector | AdamsBashforth | DPMSolverPP2M):
        raise ValueError(f"Expected a solver of SDEs, such as diffrax.Euler(), as no network is asked; got {solver}.")
    ts = forward_grid(process, x, ts)

    def drift(t, state: Data, _) -> Data:
        return rounded(process.log_alpha_rate(t)) * state

    def diffusion(t, state: Data, _) -> lineax.AbstractLinearOperator:
        return rounded(process.diffusion(t)) * lineax.IdentityLinearOperator(jax.eval_shape(lambda: state))

    path = _brownian_path(x, key, ts, solver, consistent=False)
    states, _, result = integrate(
        diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path)),
        x,
        ts,
        solver=solver,
        controller=None,
        adjoint=None,
        max_steps=None,
        save_path=save_path,
    )
    return Samples(states[-1], states if save_path else None, jnp.zeros((), jnp.int32), result)


def _brownian_path(
    x: Data, key: Keys, clock: Float[Array, " points"], solver: diffrax.AbstractSolver, *, consistent: bool
) -> diffrax.AbstractBrownianPath:
    """A path per example: adaptive steps and reverse mode need one that can be asked twice, at ten times the price of
    the fresh increments that fixed steps do with."""
    keys = example_keys(key, x.shape[0])
    event = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    if consistent:
        return brownian_tree(keys, event, solver, t0=clock[0], t1=clock[-1])
    return independent_increments(keys, event, solver)
