"""A run that ends on time: how many steps fit, and a learning rate that warms up and decays over just those.

The number of steps is part of the optimiser's state, not of the compiled step. So the step is compiled once, its time
is measured, the number is fixed, and a resumed run follows the same schedule.
"""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from dgm_jax.training import TrainState
from dgm_jax.training.parallel import replicate
from dgm_jax.training.step import Step


class Budget(NamedTuple):
    """Where a run is in its schedule."""

    made: Any
    steps: Any


def warmup_cosine(steps: int, *, peak: float, warmup: float = 0.05) -> optax.GradientTransformation:
    """Minus the learning rate times the updates: it rises to `peak` over a share `warmup` of `steps`, then falls to 0.

    The rate is that of optax.warmup_cosine_decay_schedule, whose length must be known when the step is compiled.
    """

    def init(params: PyTree) -> Budget:
        return Budget(jnp.zeros((), jnp.int32), jnp.asarray(steps, jnp.int32))

    def update(updates: PyTree, state: Budget, params: PyTree = None) -> tuple[PyTree, Budget]:
        share = (state.made + 1) / state.steps
        falling = (1 + jnp.cos(jnp.pi * (share - warmup) / (1 - warmup))) / 2
        rate = peak * jnp.where(share < warmup, share / warmup, falling)
        return jax.tree.map(lambda u: -rate * u, updates), Budget(state.made + 1, state.steps)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]


def steps_that_fit(step: Step, state: TrainState, batch: PyTree, *, seconds: float, reserve: float) -> int:
    """How many steps fit into `seconds` from now, compilation and what comes after training included.

    Args:
        step: data-parallel; it is given a copy of `state`.
        reserve: work after training, in units of a step's time; twice the step's compilation is set aside for the
            programs that it compiles.

    Returns:
        At least 20, even where the time is up.
    """
    begun = time.perf_counter()
    copy = replicate(state)
    copy, metrics = jax.block_until_ready(step(copy, batch))
    compiling = time.perf_counter() - begun
    lap = time.perf_counter()
    measured = 10
    for _ in range(measured):
        copy, metrics = step(copy, batch)
    jax.block_until_ready(metrics)
    each = (time.perf_counter() - lap) / measured
    left = seconds - (time.perf_counter() - begun) - 2 * compiling
    return max(round(left / each - reserve), 20)
