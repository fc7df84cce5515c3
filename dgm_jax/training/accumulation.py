"""Gradient accumulation: the step of a batch in pieces, with the memory of one piece and the numbers of the whole.

    sums  <- 0
    sums  <- sums + gradients of piece i / pieces      for each piece, one compiled call after another
    state <- one update with `sums`, of the optimiser and of the moving average

Every example has the key that it has in the whole batch, so that the number of pieces changes nothing but the order of
summation. The loop over pieces is Python's, as XLA's convolution gradients are many times slower inside `lax.scan`.
`optax.MultiSteps` serves no average that moves once an update, and draws other noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree

from dgm_jax.numerics import example_keys, is_count
from dgm_jax.training.state import TrainState
from dgm_jax.training.step import (
    Decay,
    GradientsOf,
    LossFn,
    Metrics,
    Step,
    batch_size,
    check_decay,
    loss_gradients,
    update,
)
from dgm_jax.typing import Keys

Piece = int | Int[Array, ""]
Sums = tuple[PyTree, Metrics]  # means over all pieces of the gradients and of the metrics, so far


class Accumulation(NamedTuple):
    """The three programs of a step in pieces, to be compiled for one device or many."""

    begin: Callable[[TrainState, PyTree], Sums]
    add: Callable[[TrainState, Sums, PyTree, Piece], Sums]  # may donate the sums
    finish: Callable[[TrainState, Sums], tuple[TrainState, Metrics]]  # may donate the state


def accumulation(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: Decay,
    pieces: int,
    gradients_of: GradientsOf = loss_gradients,
    keys_of: Callable[[Keys, int], Keys] = example_keys,
    mean: Callable[[PyTree], PyTree] = lambda sums: sums,
    groups: int = 1,
) -> Accumulation:
    """`make_step` in pieces. `loss_fn` and its metrics are means over the examples, each of which has its own key.

    Args:
        keys_of: the step's key and the size of the batch that is seen -> the keys of its examples.
        mean: of the sums over the devices, where `gradients_of` does not take it.
        groups: parts of the batch of which each piece takes an equal share: the devices, so that rows stay where
            they are.
    """
    check_decay(ema_decay)

    def piece_gradients(state: TrainState, batch: PyTree, piece: Piece) -> Sums:
        keys = keys_of(jax.random.fold_in(state.key, state.step), batch_size(batch))
        batch, keys = _piece((batch, keys), piece, pieces, groups)
        return gradients_of(loss_fn, state.params, batch, keys)

    def begin(state: TrainState, batch: PyTree) -> Sums:
        like = jax.eval_shape(piece_gradients, state, batch, jnp.zeros((), jnp.int32))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

    def add(state: TrainState, sums: Sums, batch: PyTree, piece: Piece) -> Sums:
        return jax.tree.map(lambda s, new: s + new / pieces, sums, piece_gradients(state, batch, piece))

    def finish(state: TrainState, sums: Sums) -> tuple[TrainState, Metrics]:
        gradients, metrics = mean(sums)
        return update(state, gradients, metrics, optimizer, ema_decay)

    return Accumulation(begin, add, finish)


def in_pieces(compiled: Accumulation, pieces: int) -> Step:
    """The step of a state and a whole batch, from the three programs."""

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        sums = compiled.begin(state, batch)
        for piece in range(pieces):
            sums = compiled.add(state, sums, batch, piece)
        return compiled.finish(state, sums)

    return step


def check_pieces(pieces: int) -> int:
    """The number of pieces, or `ValueError`."""
    if not is_count(pieces):
        raise ValueError(f"Expected pieces >= 1, as a batch is cut into so many; got {pieces=}.")
    return pieces


def _piece(tree: PyTree, piece: Piece, pieces: int, groups: int) -> PyTree:
    """Rows `piece` of `pieces` of each of `groups` neighbouring parts of the leading axis."""
    size = batch_size(tree)
    if size % (groups * pieces):
        raise ValueError(
            f"Expected a batch divisible by the {groups} groups of {pieces} pieces each, as pieces are equal; "
            f"got {size=}."
        )

    def cut(leaf: Array) -> Array:
        parts = leaf.reshape(groups, pieces, size // (groups * pieces), *leaf.shape[1:])
        chosen = jax.lax.dynamic_index_in_dim(parts, piece, axis=1, keepdims=False)
        return chosen.reshape(size // pieces, *leaf.shape[1:])

    return jax.tree.map(cut, tree)
