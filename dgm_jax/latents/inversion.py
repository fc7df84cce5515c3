"""From data to the noise that gives them: the probability-flow ODE backwards, and the exact inverse of DDIM's steps.

`encode` and `decode` walk one falling grid, from noise to data, in both directions. What a round trip misses is the
discretisation error of both ways, which falls with the solver's order. DDIM's step from noise level c_1 to c_0, with
y = x/alpha, c = sigma/alpha and E the noise estimate,

    y_0 = y_1 - (c_1 - c_0) E(y_1, c_1),

has an exact inverse: y_1 solves an equation. `ddim_invert` starts at the explicit guess y_0 + (c_1 - c_0) E(y_0, c_0),
the usual DDIM inversion, and makes `corrections` fixed-point iterations y_1 <- y_0 + (c_1 - c_0) E(y_1, c_1). Each
multiplies the error by at most q = (1 - c_0/c_1) |1 - J|, with J = dD/dy. For Gaussian data of any width 0 <= J < 1, so
that q < 1 on every grid; between modes J is large where c is small, and finer steps are needed there.

Reference: Song et al. 2020, arXiv:2010.02502, section 4.3 and eq. 14; Pan et al. 2023, arXiv:2309.04907, eq. 7;
Garibi et al. 2024, arXiv:2403.14602.
"""

from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp

from dgm_jax.numerics import is_count
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.samplers import Samples, solve_ode
from dgm_jax.samplers.coordinates import CoordinateName
from dgm_jax.samplers.grid import Grid, check_points
from dgm_jax.typing import Data, Denoiser


class FixedPointEuler(diffrax.AbstractSolver):
    """Implicit Euler in coordinates "noise", solved by fixed-point iterations from explicit Euler's step.

    Attributes:
        corrections: iterations a step, one evaluation each; 0 is explicit Euler.
    """

    corrections: int = eqx.field(static=True)

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation
    coordinates: ClassVar[CoordinateName] = "noise"

    def __check_init__(self):
        """Refuse what is no number of iterations."""
        if not is_count(self.corrections, least=0):
            raise ValueError(f"Expected a whole number of corrections >= 0, as they are made; got {self.corrections}.")

    @property
    def evaluations_per_step(self) -> int:
        """The explicit step's, and one for each correction."""
        return 1 + self.corrections

    def order(self, terms):
        """The order of convergence."""
        return 1

    def init(self, terms, t0, t1, y0, args):
        """Nothing is remembered."""
        return

    def step(self, terms, t0: Any, t1: Any, y0, args, solver_state, made_jump):
        """The explicit step, corrected."""
        control = terms.contr(t0, t1)

        def moved(i, y_1):
            # one call of the network serves both: the guess is the slope at the step's start
            at = jnp.where(i == 0, t0, t1)
            return y0 + terms.prod(terms.vf(at, y_1, args), control)

        y1 = jax.lax.fori_loop(0, 1 + self.corrections, moved, y0)
        return y1, None, {"y0": y0, "y1": y1}, None, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """The slope."""
        return terms.vf(t0, y0, args)


def encode(denoise: Denoiser, process: GaussianProcess, x_0: Data, *, ts: Grid, **options: Any) -> Samples:
    """The state at ts[0] from which the probability-flow ODE leads to `x_0` at ts[-1].

    Args:
        ts: falling, as for samplers, to a last point where sigma > 0, whose noise the data are taken to have.
        options: of `solve_ode`, the same as for `decode`.

    Reference: Song et al. 2021, arXiv:2011.13456, section 4.3 and appendix D.2.
    """
    return solve_ode(denoise, process, x_0, ts=_rising(ts), **options)


def decode(denoise: Denoiser, process: GaussianProcess, x_t: Data, *, ts: Grid, **options: Any) -> Samples:
    """The way back: the probability-flow ODE from the state `x_t` at ts[0] to ts[-1]."""
    _rising(ts)
    return solve_ode(denoise, process, x_t, ts=ts, **options)


def ddim_invert(
    denoise: Denoiser, process: GaussianProcess, x_0: Data, *, ts: Grid, corrections: int, save_path: bool = False
) -> Samples:
    """The state at ts[0] from which DDIM's steps on `ts` lead to `x_0`: exactly so with enough corrections.

    Args:
        ts: falling, to a last point where sigma > 0, and from one where alpha > 0.
        corrections: 0 is the usual, explicit inversion; each costs one more evaluation a step.
    """
    return solve_ode(denoise, process, x_0, ts=_rising(ts), solver=FixedPointEuler(corrections), save_path=save_path)


def _rising(ts: Grid) -> Grid:
    values = check_points(ts)
    if values is not None and values[-1] > values[0]:
        raise ValueError(
            "Expected falling ts, from noise to data, as encoding and decoding share one grid; got "
            f"{values[0]} to {values[-1]}."
        )
    return ts[::-1]
