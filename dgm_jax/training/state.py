"""The state of a training run: everything that the next step depends on, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from dgm_jax.numerics import is_count, typed_key
from dgm_jax.typing import Keys


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Parameters, their moving average, the optimiser's state and the run's key.

    Fields are pytrees rather than arrays of fixed shape, as a state stacked over devices is a state too.
    """

    step: PyTree  # int32, the number of updates made
    params: PyTree
    ema: PyTree  # exponential moving average of params, what samplers use; or a tuple of several
    opt_state: PyTree
    key: PyTree  # never changes: step n draws from fold_in(key, n)


def init_state(
    params: PyTree, optimizer: optax.GradientTransformation, key: Keys, *, averages: int | None = None
) -> TrainState:
    """The state before the first step; its buffers are copies, so that it may be donated without harm to `params`.

    Args:
        averages: how many moving averages `ema` is a tuple of; `None` is one that is not in a tuple.
    """
    if averages is not None and not is_count(averages):
        raise ValueError(f"Expected averages >= 1, as samplers use one; got {averages=}.")
    ema = params if averages is None else (params,) * averages
    state = TrainState(
        step=jnp.zeros((), jnp.int32), params=params, ema=ema, opt_state=optimizer.init(params), key=typed_key(key)
    )
    return jax.tree.map(jnp.copy, state)
