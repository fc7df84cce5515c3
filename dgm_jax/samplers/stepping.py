"""The one call of diffrax that every sampler shares: how to step, what to keep, and what it cost."""

from typing import NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from dgm_jax.numerics import known
from dgm_jax.typing import Data


class Samples(NamedTuple):
    """What every sampler returns.

    x: the state at the last point of the grid. path: the states at all points, [points, batch, *event], or None.
    evaluations: batched calls of the network. result: `diffrax.RESULTS.successful` unless a step failed or x is not
    finite.
    """

    x: Data
    path: Float[Array, "points batch *event"] | None
    evaluations: Int[Array, ""]
    result: diffrax.RESULTS


def integrate(
    terms: diffrax.AbstractTerm | tuple[diffrax.AbstractTerm, ...],
    state: PyTree,
    clock: Float[Array, " points"],
    *,
    solver: diffrax.AbstractSolver,
    controller: diffrax.AbstractStepSizeController | None,
    adjoint: diffrax.AbstractAdjoint | None,
    max_steps: int | None,
    save_path: bool,
    args: PyTree = None,
) -> tuple[PyTree, Int[Array, ""], diffrax.RESULTS]:
    """Solve from clock[0] to clock[-1]: the states kept (with a leading axis), the evaluations, the result.

    Args:
        controller: None steps exactly on the clock; an adaptive one measures the worst example of the batch.
        adjoint: None is forward-mode only and the fastest; `diffrax.DirectAdjoint()` for reverse-mode gradients.
        max_steps: bounds the steps of a controller, None is 4,096; on a grid they are the grid's.
        args: what terms and solver are handed, such as `Reverse`.
    """
    fixed = controller is None
    needed = getattr(solver, "steps_needed", 1)
    if fixed and len(clock) - 1 < needed:
        raise ValueError(
            f"Expected a grid of at least {needed} steps, not counting one to a noiseless t = 0, as "
            f"{type(solver).__name__} needs as many to reach its order; got {len(clock) - 1}."
        )
    check_controller(controller)
    adaptive = isinstance(controller, diffrax.PIDController | diffrax.ClipStepSizeController)
    if adaptive and not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise ValueError(
            "Expected a solver with an error estimate (Heun, Tsit5, SPaRK, ...), as a controller adapts steps to it; "
            f"got {solver}."
        )
    if not save_path:
        saveat = diffrax.SaveAt(t1=True)
    elif fixed:
        saveat = diffrax.SaveAt(t0=True, steps=True)  # as many slots as steps, so that none is padding
    else:
        saveat = diffrax.SaveAt(ts=clock)
    solution = diffrax.diffeqsolve(
        terms,
        solver,
        t0=clock[0],
        t1=clock[-1],
        dt0=None,
        y0=state,
        args=args,
        saveat=saveat,
        stepsize_controller=GridSteps(clock) if fixed else per_example(controller),
        adjoint=diffrax.ForwardMode() if adjoint is None else adjoint,
        max_steps=len(clock) - 1 if fixed else 4096 if max_steps is None else max_steps,
        throw=False,  # a throw is a host callback: it breaks export and pmap; the result is handed back instead
    )
    first, each = evaluations_of(solver)
    evaluations = first + each * jnp.asarray(solution.stats["num_steps"], jnp.int32)
    return solution.ys, evaluations, solution.result


def check_controller(controller: diffrax.AbstractStepSizeController | None) -> None:
    """Raise `ValueError` for fixed steps, and where tolerances are known and below 0 or both 0."""
    if isinstance(controller, diffrax.ClipStepSizeController):
        check_controller(controller.controller)
    if isinstance(controller, diffrax.StepTo | diffrax.ConstantStepSize):
        raise ValueError(
            "Expected a controller that adapts steps, such as diffrax.PIDController, or None, as fixed steps are those "
            f"of ts; got {controller}."
        )
    if isinstance(controller, diffrax.PIDController):
        values = known((controller.rtol, controller.atol))
        if values is not None and (values.min() < 0 or values.max() == 0):
            raise ValueError(
                "Expected rtol >= 0 and atol >= 0, not both 0, as no step is without error; got "
                f"rtol={controller.rtol}, atol={controller.atol}."
            )


class GridSteps(diffrax.StepTo):
    """`diffrax.StepTo` on a clock that was checked before: its own checks are host callbacks, which break export."""

    def wrap(self, direction):
        """The same steps on diffrax's own, increasing time."""
        return type(self)(self.ts * direction)

    def init(self, *_, **__):
        """The end of the first step, and where the second ends."""
        return self.ts[1], 2


def per_example(controller: diffrax.AbstractStepSizeController) -> diffrax.AbstractStepSizeController:
    """Measure the worst example where a PID controller has its default norm, the mean over the whole batch."""
    if isinstance(controller, diffrax.ClipStepSizeController):
        return eqx.tree_at(lambda c: c.controller, controller, per_example(controller.controller))
    if isinstance(controller, diffrax.PIDController) and controller.norm is diffrax.PIDController(1.0, 1.0).norm:
        return eqx.tree_at(lambda c: c.norm, controller, worst_example)
    return controller


def worst_example(error: PyTree) -> Float[Array, ""]:
    """The largest root mean square over the batch: a tolerance that holds for each example."""

    def leaf_norm(leaf: Float[Array, " batch *event"]) -> Float[Array, ""]:
        return jnp.sqrt(jnp.max(jnp.mean(leaf**2, axis=tuple(range(1, leaf.ndim)))))

    return jnp.max(jnp.stack([leaf_norm(leaf) for leaf in jax.tree.leaves(error)]))


def evaluations_of(solver: diffrax.AbstractSolver) -> tuple[int, int]:
    """Evaluations of the drift before the first step, and in each step.

    Solvers of one's own say theirs in attributes `evaluations_before` and `evaluations_per_step`; without them and
    without a tableau (Euler, ItoMilstein, LeapfrogMidpoint) it is none and one.
    """
    tableau = getattr(solver, "tableau", None)
    if isinstance(tableau, diffrax.ButcherTableau):
        return (1, tableau.num_stages - 1) if tableau.fsal else (0, tableau.num_stages)
    if tableau is not None:  # a stochastic tableau
        return 0, len(tableau.c) + 1
    return getattr(solver, "evaluations_before", 0), getattr(solver, "evaluations_per_step", 1)
