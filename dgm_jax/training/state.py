"""The state of a training run: everything that the next step depends on, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from dgm_jax.numerics import typed_key
from dgm_jax.typing import Keys


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Parameters, their moving average, the optimiser's state and the run's key.

    Fields are pytrees rather than arrays of fixed shape, as a state stacked over devices is a state too.
    """

    step: PyTree  # int32, the number of updates made
    params: PyTree
    ema: PyTree  # exponential moving average of params: what samplers use
    opt_state: PyTree
    key: PyTree  # never changes: step n draws from fold_in(key, n)


def init_state(params: PyTree, optimizer: optax.GradientTransformation, key: Keys) -> TrainState:
    """The state before the first step; its buffers are copies, so that it may be donated without harm to `params`."""
    state = TrainState(
        step=jnp.zeros((), jnp.int32), params=params, ema=params, opt_state=optimizer.init(params), key=typed_key(key)
    )
    return jax.tree.map(jnp.copy, state)
