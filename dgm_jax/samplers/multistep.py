"""Solvers that remember slopes: Adams-Bashforth with variable steps, and DPM-Solver++(2M).

Each calls the network once a step. In coordinates "noise" the slope is the noise estimate, and Adams-Bashforth is
DEIS in its rho form (Zhang & Chen 2022, arXiv:2204.13902, rhoAB-DEIS); in "data" the slope is the data estimate.
"""

from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from dgm_jax.numerics import is_count
from dgm_jax.samplers.coordinates import CoordinateName
from dgm_jax.typing import Scalar


class AdamsBashforth(diffrax.AbstractSolver):
    """The explicit method of order 1, 2 or 3 whose slope is the polynomial through the last `order` slopes.

    The first step is Euler's; of order 3 it is Heun's, at the price of one evaluation, as Euler's error would leave
    the whole solve at order 2. Needs as many steps as its order.
    """

    method_order: int = eqx.field(static=True)

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation
    evaluations_per_step: ClassVar[int] = 1

    def __init__(self, order: int = 3):
        if not is_count(order) or order > 3:
            raise ValueError(f"Expected an order of 1, 2 or 3, as higher ones lose stability; got {order}.")
        self.method_order = order

    @property
    def evaluations_before(self) -> int:
        """Evaluations before the first step."""
        return int(self.method_order == 3)

    @property
    def steps_needed(self) -> int:
        """The fewest steps of a grid that reach the order."""
        return self.method_order

    def order(self, terms):
        """The order of convergence."""
        return self.method_order

    def init(self, terms, t0, t1, y0, args):
        """(steps made, (time, slope) of the last step, the same of the step before)."""
        last = terms.vf(t0, y0, args) if self.method_order == 3 else jax.tree.map(jnp.zeros_like, y0)
        return jnp.zeros((), jnp.int32), (t0 - (t1 - t0), last), (t0 - 2 * (t1 - t0), last)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """y + h times the mean over the step of the polynomial, in Newton's form."""
        made, (t_last, last), (t_before, before) = solver_state
        control, h = terms.contr(t0, t1), t1 - t0
        starting = (made == 0) if self.method_order == 3 else jnp.asarray(False)
        at, y_at = t0, y0
        if self.method_order == 3:
            predicted = jax.tree.map(jnp.add, y0, terms.prod(last, control))
            at, y_at = jax.tree.map(lambda a, b: jnp.where(starting, a, b), (t1, predicted), (t0, y0))
        slope = terms.vf(at, y_at, args)
        since, further = t0 - t_last, t0 - t_before
        of_first = jnp.where(made >= 1, h / (2 * since), 0.0)
        of_second = jnp.where(made >= 2, (h * h / 3 + since * h / 2) / further, 0.0)

        def mean_slope(f, f_1, f_2):
            if self.method_order == 1:
                return f
            average = f + of_first * (f - f_1)
            if self.method_order == 2:
                return average
            second = (f - f_1) / since - (f_1 - f_2) / (t_last - t_before)
            return jnp.where(starting, (f + f_1) / 2, average + of_second * second)

        y1 = jax.tree.map(jnp.add, y0, terms.prod(jax.tree.map(mean_slope, slope, last, before), control))
        kept = jax.tree.map(lambda a, b: jnp.where(starting, a, b), last, slope)
        state = (made + 1, (t0, kept), (t_last, last))
        return y1, None, {"y0": y0, "y1": y1}, state, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """The slope."""
        return terms.vf(t0, y0, args)


class DPMSolverPP2M(diffrax.AbstractSolver):
    """DPM-Solver++(2M): two-step Adams-Bashforth in coordinates "data", with the ratio of steps taken in log-SNR.

    Order 2; the first step is Euler's. Reference: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation
    coordinates: ClassVar[CoordinateName] = "data"
    evaluations_per_step: ClassVar[int] = 1
    steps_needed: ClassVar[int] = 2

    def order(self, terms):
        """The order of convergence."""
        return 2

    def init(self, terms, t0, t1, y0, args):
        """(whether no step was made, the clock and the estimate of the last step)."""
        return jnp.asarray(True), t0, jax.tree.map(jnp.zeros_like, y0)

    def step(self, terms, t0: Any, t1: Any, y0, args, solver_state, made_jump):
        """z + (u_1 - u_0) (D + h/(2 h_last) (D - D_last)), h = log(u_1/u_0)."""
        first, last_clock, last = solver_state
        estimate = terms.vf(t0, y0, args)
        slope = extrapolated(estimate, last, first, last_clock, t0, t1)
        y1 = jax.tree.map(jnp.add, y0, terms.prod(slope, terms.contr(t0, t1)))
        return y1, None, {"y0": y0, "y1": y1}, (jnp.asarray(False), t0, estimate), diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """The slope."""
        return terms.vf(t0, y0, args)


def extrapolated(
    estimate: PyTree, last: PyTree, first: Bool[Array, ""], u_last: Scalar, u_0: Scalar, u_1: Scalar
) -> PyTree:
    """The data estimate carried half a step ahead along log u, from this step's and the last one's.

    A falling clock reaches a solver with its sign turned, which cancels in the ratios.
    """
    passed = jnp.where(first, 1.0, jnp.log(u_0 / jnp.where(first, u_0, u_last)))
    weight = jnp.where(first, 0.0, jnp.log(u_1 / jnp.where(first, u_1, u_0)) / (2 * passed))
    return jax.tree.map(lambda now, before: now + weight * (now - before), estimate, last)
