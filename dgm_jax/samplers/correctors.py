"""Correctors: Langevin steps at one time t, which leave p_t where it is and repair what a predictor did to it.

A corrector is a callable (score, x, sigma, keys) -> x with an attribute `evaluations`, the calls of the score that it
makes: score maps x [batch, *event] to grad log p_t(x), sigma = sigma(t) is a scalar, keys are one per example.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.numerics import expand_to, is_count, known_number, sum_events
from dgm_jax.typing import Data, Keys, PerExample, Scalar

Score = Callable[[Data], Data]  # x -> grad log p_t(x) at one time


@runtime_checkable
class Corrector(Protocol):
    """A move that leaves p_t as it is, up to the order of its step."""

    @property
    def evaluations(self) -> int:
        """Calls of the score."""
        ...

    def __call__(self, score: Score, x: Data, sigma: Scalar, keys: Keys, /) -> Data:
        """The corrected states."""
        ...


@dataclass(frozen=True)
class _LangevinSteps(abc.ABC):
    """`steps` moves of Langevin dynamics, in one loop."""

    snr: float
    steps: int = 1

    def __post_init__(self):
        value = known_number(self.snr)
        if value is not None and not value > 0:
            raise ValueError(f"Expected snr > 0, as the step is 2 (snr sigma)^2; got {self.snr}.")
        check_steps(self.steps)

    @property
    def evaluations(self) -> int:
        """One a step."""
        return self.steps

    @abc.abstractmethod
    def move(self, gradient: Data, x: Data, sigma: Scalar, noise: Data) -> Data:
        """One step, given the score at x and standard normal noise."""

    def __call__(self, score: Score, x: Data, sigma: Scalar, keys: Keys) -> Data:
        """All steps."""

        def move(x: Data, noise: Data) -> tuple[Data, None]:
            return self.move(score(x), x, sigma, noise), None

        return jax.lax.scan(move, x, noise_of_moves(keys, x, self.steps))[0]


class Langevin(_LangevinSteps):
    """`steps` times x + e score(x) + sqrt(2 e) z with e = 2 (snr sigma)^2: one step changes p_t by O(e^2).

    e is the paper's 2 (snr |z|/|score|)^2 with both norms at their size for the perturbation kernel, sqrt(dim) and
    sqrt(dim)/sigma. It depends on neither z nor x, without which p_t would not be left as it is.

    Reference: Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5; the latter's factor 1 - beta_i, within 2 % of
    1, belongs to the chain of 1,000 steps and is left out.
    """

    def move(self, gradient: Data, x: Data, sigma: Scalar, noise: Data) -> Data:
        """One step of fixed size, given the score at x and standard normal noise."""
        return _step(x, gradient, noise, 2 * (self.snr * sigma) ** 2)


class NormalizedLangevin(_LangevinSteps):
    """The paper's step to the letter, with each example's norms: e = 2 (snr |z|/|score(x)|)^2.

    For images it differs from `Langevin` by the estimate's shrinkage only. In few dimensions it does not leave p_t as
    it is, as the step depends on x and z: in the plane even its variance is infinite where the score vanishes.

    Reference: Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5.
    """

    def move(self, gradient: Data, x: Data, sigma: Scalar, noise: Data) -> Data:
        """One step of each example's own size, given the score at x and standard normal noise."""
        size = 2 * (self.snr * _norm(noise) / _norm(gradient)) ** 2
        return _step(x, gradient, noise, expand_to(size, x))


def _step(x: Data, gradient: Data, noise: Data, size: Array) -> Data:
    """Euler-Maruyama on the Langevin SDE."""
    return x + size * gradient + jnp.sqrt(2 * size) * noise


def noise_of_moves(keys: Keys, x: Data, steps: int) -> Float[Array, "steps batch *event"]:
    """Standard normal noise for every move, from one key per example."""
    draws = jax.vmap(lambda key: jax.random.normal(key, (steps, *x.shape[1:]), x.dtype))(keys)
    return jnp.moveaxis(draws, 1, 0)


def _norm(x: Data) -> PerExample:
    return jnp.sqrt(sum_events(x**2))


def check_steps(steps: int) -> None:
    """Raise `ValueError` unless a corrector makes one step or more."""
    if not is_count(steps):
        raise ValueError(f"Expected an integer steps >= 1, as a corrector moves by steps; got {steps}.")
