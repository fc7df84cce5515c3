"""Underdamped Langevin dynamics, with momentum, as a corrector: diffrax's solvers for it at one time t."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
from diffrax._solver.foster_langevin_srk import SolverState

from dgm_jax.numerics import known_number, normal_like, split
from dgm_jax.samplers.brownian import independent_increments
from dgm_jax.samplers.correctors import Score, check_steps
from dgm_jax.samplers.stepping import GridSteps
from dgm_jax.typing import Data, Keys, Scalar


@dataclass(frozen=True)
class UnderdampedLangevin:
    """Langevin dynamics with momentum, dx = v dt, dv = -friction v dt + score dt + sqrt(2 friction) dW, by diffrax.

    Time is in units of sigma, the velocity starts from N(0, I) and is dropped at the end; at friction 2 a Gaussian of
    std sigma is critically damped. It has no reverse-mode gradient.

    Args:
        time: how long to run, in units of sigma, in `steps` steps.
        solver: `diffrax.ALIGN()` (an evaluation a step, and one more), `diffrax.ShOULD()` or `diffrax.QUICSORT()`.
    """

    time: float
    steps: int
    friction: float = 2.0
    solver: diffrax.ALIGN | diffrax.ShOULD | diffrax.QUICSORT = field(default_factory=diffrax.ALIGN)

    def __post_init__(self):
        for name in ("time", "friction"):
            value = known_number(getattr(self, name))
            if value is not None and not 0 < value < math.inf:
                raise ValueError(
                    f"Expected {name} > 0, as the momentum must move and decay; got {getattr(self, name)}."
                )
        check_steps(self.steps)
        if not isinstance(self.solver, diffrax.ALIGN | diffrax.ShOULD | diffrax.QUICSORT):
            raise ValueError(
                f"Expected ALIGN, ShOULD or QUICSORT, as momentum needs a solver for it; got {self.solver}."
            )

    @property
    def evaluations(self) -> int:
        """ALIGN and ShOULD keep their last gradient."""
        first, each = {diffrax.ALIGN: (1, 1), diffrax.ShOULD: (1, 2), diffrax.QUICSORT: (0, 2)}[type(self.solver)]
        return first + each * self.steps

    def __call__(self, score: Score, x: Data, sigma: Scalar, keys: Keys) -> Data:
        """One solve from t = 0 to `time`."""
        key_velocity, key_path = split(keys)
        event = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        # Rounded once, while tracing, so that samples do not depend on how a program fuses the clock.
        with jax.ensure_compile_time_eval():
            clock = self.time * jnp.linspace(0.0, 1.0, self.steps + 1, dtype=x.dtype)
        path = independent_increments(key_path, event, self.solver)
        friction, one = jnp.asarray(self.friction, x.dtype), jnp.ones((), x.dtype)
        terms = diffrax.MultiTerm(
            diffrax.UnderdampedLangevinDriftTerm(friction, one, lambda y, _: -sigma * score(y * sigma)),
            diffrax.UnderdampedLangevinDiffusionTerm(friction, one, path),
        )
        solution = diffrax.diffeqsolve(
            terms,
            _Unchecked(self.solver),
            t0=clock[0],
            t1=clock[-1],
            dt0=None,
            y0=(x / sigma, normal_like(key_velocity, x)),
            stepsize_controller=GridSteps(clock),
            adjoint=diffrax.ForwardMode(),
            max_steps=self.steps,
            throw=False,
        )
        positions: Any = solution.ys
        return sigma * positions[0][-1]


class _Unchecked(diffrax.AbstractStratonovichSolver):
    """A solver of underdamped Langevin dynamics without its check that drift and diffusion have one friction.

    That check is a host callback, which breaks export. Friction and mass stay scalars here, where the solver's own
    `init` makes arrays of the shape of x of them and of each of their coefficients. Names of diffrax that are not
    public are used, those of 0.7.2; `test_export.py` and `test_lowering.py` fail where a later version has others.
    """

    solver: diffrax.ALIGN | diffrax.ShOULD | diffrax.QUICSORT

    term_structure: ClassVar = diffrax.ALIGN.term_structure
    interpolation_cls: ClassVar = diffrax.ALIGN.interpolation_cls

    @property
    def minimal_levy_area(self) -> type:
        """The solver's."""
        return self.solver.minimal_levy_area

    def order(self, terms):
        """The solver's."""
        return self.solver.order(terms)

    def init(self, terms, t0, t1, y0, args):
        """The coefficients of a step from t0 to t1, and the first gradient where the solver keeps it."""
        drift = terms.terms[0].term  # as diffrax wraps terms in its own time
        h, friction = terms.terms[0].contr(t0, t1), drift.gamma
        taylor = self.solver._tay_coeffs_single(friction)
        return SolverState(
            gamma=friction,
            u=drift.u,
            h=h,
            taylor_coeffs=taylor,
            coeffs=self.solver._recompute_coeffs(h, friction, taylor),
            rho=jnp.sqrt(2 * friction * drift.u),
            prev_f=drift.grad_f(y0[0], args) if self.solver._is_fsal else None,
        )

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        """The solver's."""
        return self.solver.step(terms, t0, t1, y0, args, solver_state, made_jump)

    def func(self, terms, t0, y0, args):
        """The drift."""
        return self.solver.func(terms, t0, y0, args)
