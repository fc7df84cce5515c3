"""Samplers that are kernels from one time to another, such as DDPM's posterior, as diffrax solvers.

diffrax hands a solver terms, a drift and a noise, of which a kernel needs only the noise. What else it asks, the
denoiser's estimates and the levels at both times, `solve_sde` passes as diffrax's `args`, a `Reverse`.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from dgm_jax.numerics import check_like, expand_to, rounded
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.samplers.coordinates import CoordinateName, Coordinates, estimates
from dgm_jax.typing import Data, Denoiser, Keys, Scalar


@dataclass(frozen=True, eq=False)  # diffrax hashes it, and arrays have no hash
class Reverse:
    """One reverse solve: the model, the coordinates, and the clock s >= 0 with clock c = origin + direction s.

    keys: one per example, for draws beside the Brownian path; fold the step's number in.
    """

    denoise: Denoiser
    process: GaussianProcess
    system: Coordinates
    origin: Scalar
    direction: float
    keys: Keys

    def clock(self, s: Scalar) -> Scalar:
        """t, sigma/alpha or alpha/sigma at the solver's clock."""
        return self.origin + self.direction * s

    def time(self, s: Scalar) -> Scalar:
        """t at the solver's clock."""
        return self.system.time(self.clock(s))

    def scale(self, s: Scalar) -> Scalar:
        """What x is multiplied by to give the state."""
        return rounded(self.system.scale(self.time(s)))

    def levels(self, s: Scalar) -> tuple[Scalar, Scalar]:
        """(alpha, sigma) at the solver's clock."""
        t = self.time(s)
        return rounded((self.process.alpha(t), self.process.sigma(t)))

    def estimates(self, s: Scalar, state: Data) -> tuple[Data, Data]:
        """(D, E): the denoiser's estimate of x_0 and of the noise at a state."""
        return estimates(self.denoise, self.process, self.system, self.clock(s), state)

    def score(self, s: Scalar) -> Callable[[Data], Data]:
        """x -> grad log p_t(x) at the solver's clock, in data units."""
        t = rounded(self.time(s))
        alpha, sigma = self.levels(s)

        def score(x: Data) -> Data:
            estimate = check_like(self.denoise(x, jnp.full(x.shape[0], t)), x, "denoiser")
            return (alpha * estimate - x) / sigma**2

        return score

    def keys_of(self, step: Int[Array, ""]) -> Keys:
        """One key per example for the step of this number."""
        return jax.vmap(lambda key: jax.random.fold_in(key, step))(self.keys)


class Kernel(diffrax.AbstractItoSolver):
    """A solver of one `move` from clock s_0 to s_1; weak order 1 unless it says another."""

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation
    coordinates: ClassVar[CoordinateName]  # in which the state is handed to `move`
    evaluations_per_step: ClassVar[int] = 1
    from_pure_noise: ClassVar[bool] = False  # whether it may start where alpha = 0

    def order(self, terms) -> int | None:
        """The weak order."""
        return 1

    def init(self, terms, t0, t1, y0, args) -> Any:
        """Nothing is remembered."""
        return

    @abc.abstractmethod
    def move(
        self, reverse: Reverse, s_0: Scalar, s_1: Scalar, state: Data, noise: Data, memory: Any
    ) -> tuple[Any, Any]:
        """(the next state, what is remembered) from the state at s_0 and standard normal noise."""

    def step(self, terms, t0: Any, t1: Any, y0, args: Any, solver_state, made_jump):
        """The move, with the step's Brownian increment as its noise."""
        y1, memory = self.move(args, t0, t1, y0, brownian_noise(terms, t0, t1), solver_state)
        return y1, None, {"y0": y0, "y1": y1}, memory, diffrax.RESULTS.successful

    def func(self, terms, t0, y0, args):
        """The drift."""
        return terms.vf(t0, y0, args)


def brownian_noise(terms: Any, s_0: Any, s_1: Any) -> Data:
    """The step's Brownian increment as standard normal noise."""
    _, increment = terms.contr(s_0, s_1)
    return increment / expand_to(jnp.sqrt(s_1 - s_0), increment)
