"""Hamiltonian Monte Carlo: moves that leave a density p(x) known up to a constant exactly as it is.

With momenta p ~ N(0, I) and the energy H(x, p) = -log p(x) + |p|^2/2, Hamilton's equations dx/ds = p,
dp/ds = grad log p(x) keep H. Their leapfrog steps of size h keep the volume and can be run back, and change H by
O(h^2), which is undone by accepting the end point with probability min(1, exp(H_0 - H_1)).

Each example of a batch is a chain of its own, with its own momenta, step size and acceptance.

Reference: Neal 2011, "MCMC using Hamiltonian dynamics", arXiv:1206.1901, sections 2 and 3.
"""

from collections.abc import Callable
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.numerics import check_data, example_keys, expand_to, is_count, known, normal_like, split, sum_events
from dgm_jax.samplers.stepping import integrate
from dgm_jax.typing import Data, Keys, PerExample, Size

LogDensity = Callable[[Data], PerExample]  # log p(x) up to a constant, nats; each value from its own row of x
StepSize = float | np.floating | Float[Array, "*batch"]  # one, or one per example


class Move(NamedTuple):
    """The state after a move.

    x: [batch, *event]. log_density: [batch], of x. acceptance: [batch], the probability with which the proposal was
    accepted, 0 where its energy is not finite.
    """

    x: Data
    log_density: PerExample
    acceptance: PerExample


def leapfrog(
    gradient: Callable[[Data], Data], x: Data, momentum: Data, *, step_size: StepSize, steps: int
) -> tuple[Data, Data]:
    """`steps` leapfrog steps of dx/ds = momentum, dmomentum/ds = gradient(x): the position and momentum at their end.

    Half a drift, then kicks and drifts in turn, the last drift a half one: `gradient` is called `steps` times, once
    less than where the halves are kicks. Run with -momentum it returns to where it came from.

    Reference: Neal 2011, arXiv:1206.1901, section 2.3, with the parts of position and momentum exchanged.
    """
    check_steps(step_size, steps, x.shape[0])
    h = expand_to(jnp.asarray(step_size, x.dtype), x)
    h = jnp.broadcast_to(h, x.shape)
    # semi-implicit Euler kicks, then drifts with the new momentum: leapfrog but for the half drifts at the two ends
    (momentum, x), *_ = integrate(
        (diffrax.ODETerm(lambda t, x, _: h * gradient(x)), diffrax.ODETerm(lambda t, p, _: h * p)),
        (momentum, x + h / 2 * momentum),
        jnp.arange(steps + 1, dtype=x.dtype),
        solver=diffrax.SemiImplicitEuler(),
        controller=None,
        adjoint=None,
        max_steps=None,
        save_path=False,
    )
    return x[-1] - h / 2 * momentum[-1], momentum[-1]


def hmc_step(log_density: LogDensity, x: Data, key: Keys, *, step_size: StepSize, steps: int) -> Move:
    """One move: fresh momenta, a leapfrog path, and the choice between its two ends. It leaves the density invariant.

    Args:
        key: one key, or one key per example.
        step_size: one, or one per example. It must not depend on the states that the same chain has visited, or the
            density is no longer invariant. An acceptance of 0.65 is best for many dimensions (Neal 2011, section 4.4).
        steps: of the path; `log_density` is differentiated `steps` times, and evaluated at both ends.
    """
    check_data(x, "the state x")
    check_steps(step_size, steps, x.shape[0])
    before = check_density(log_density(x), x)
    key_momentum, key_choice = split(example_keys(key, x.shape[0]))
    momentum = normal_like(key_momentum, x)
    gradient = jax.grad(lambda x: jnp.sum(log_density(x)))
    proposal, last = leapfrog(gradient, x, momentum, step_size=step_size, steps=steps)
    after = log_density(proposal)
    log_ratio = (after - _kinetic(last)) - (before - _kinetic(momentum))
    uniform = jax.vmap(lambda k: jax.random.uniform(k, (), x.dtype))(key_choice)
    accepted = jnp.log(uniform) < log_ratio  # never where the ratio is NaN
    acceptance = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
    x = jnp.where(accepted.reshape((-1,) + (1,) * (x.ndim - 1)), proposal, x)
    return Move(x, jnp.where(accepted, after, before), acceptance)


def check_steps(step_size: StepSize, steps: int, batch: Size) -> None:
    """Raise `ValueError` unless there is one step, or more, of one positive size or of one per example."""
    if not is_count(steps):
        raise ValueError(f"Expected a whole number of steps >= 1, as a path is made of them; got {steps=}.")
    if np.shape(step_size) not in {(), (batch,)}:
        raise ValueError(
            f"Expected one step_size, or one per example {(batch,)}, as each is a chain; "
            f"got shape {np.shape(step_size)}."
        )
    size = known(step_size)
    if size is not None and not ((size > 0) & (size < np.inf)).all():
        raise ValueError(f"Expected 0 < step_size < inf, as a path goes forward; got {step_size=}.")


def check_density(values: Array, x: Data) -> PerExample:
    """The values, or `ValueError` where they are not one for each example: their sum would hide it."""
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"Expected one log-density per example, shape {x.shape[:1]}, as each is a chain; got shape {values.shape}."
        )
    return values


def _kinetic(momentum: Data) -> PerExample:
    return sum_events(momentum**2) / 2
