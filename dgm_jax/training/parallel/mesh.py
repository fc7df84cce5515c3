"""mesh: the step of one device, compiled for all of them.

XLA places the communication where each device has a whole state; `sharded` does where states are split.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from dgm_jax.numerics import is_count, typed_key
from dgm_jax.training.accumulation import Accumulation, accumulation, check_pieces, in_pieces
from dgm_jax.training.adversarial import Players, make_adversarial_step
from dgm_jax.training.parallel.devices import (
    AXIS,
    Devices,
    Sampler,
    check_divisible,
    first_shard,
    on_one_device,
    restore_axes,
)
from dgm_jax.training.parallel.sharded import PARAMETERS, sharded_gradients, spec_of
from dgm_jax.training.state import TrainState
from dgm_jax.training.step import Decay, LossFn, Metrics, Step, batch_size, loss_gradients, make_step, with_example_keys
from dgm_jax.typing import Keys


def data_mesh(devices: Devices | None = None, *, parameter_shards: int = 1) -> Mesh:
    """A mesh over `devices`, all of them by default: one axis of data, and a second one where parameters are split.

    Args:
        parameter_shards: over how many neighbouring devices states are split (see `sharded`). Every device takes its
            own part of the batch all the same.
    """
    row = np.array(jax.devices() if devices is None else devices)
    if not is_count(parameter_shards) or len(row) % parameter_shards:
        raise ValueError(
            f"Expected parameter_shards that divide the {len(row)} devices, as each group of so many holds one "
            f"state; got {parameter_shards=}."
        )
    if parameter_shards == 1:
        return Mesh(row, (AXIS,))
    return Mesh(row.reshape(-1, parameter_shards), (AXIS, PARAMETERS))


def mesh_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, *, ema_decay: Decay, mesh: Mesh, pieces: int = 1
) -> Step:
    """`step(state, batch)` on a state from `mesh_place`, which is donated, and a batch from `mesh_shard`.

    A state that another mesh holds is refused by JAX.

    Args:
        loss_fn: (params, batch, keys) -> scalar or (scalar, metrics); keys `[batch]`, one per example. On a mesh that
            splits parameters it sees one device's part of the batch at a time, as under `pmap_step`, and the scalar
            metrics are averaged.
        pieces: in how many the batch is taken, one after another, to hold less (see `accumulation`); the devices meet
            at each. The loss and its metrics must be means over the examples.
    """
    if check_pieces(pieces) > 1:
        return _in_pieces(loss_fn, optimizer, ema_decay, mesh, pieces)
    if PARAMETERS not in mesh.axis_names:
        return _on_mesh(make_step(with_example_keys(loss_fn), optimizer, ema_decay=ema_decay), mesh)
    step = make_step(loss_fn, optimizer, ema_decay=ema_decay, gradients_of=sharded_gradients(mesh))

    def in_place(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        state, metrics = step(state, batch)
        return jax.lax.with_sharding_constraint(state, _as_held(state, mesh)), metrics

    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.jit(in_place, in_shardings=(None, split), donate_argnums=0)


def mesh_adversarial_step(
    losses: Players, optimizers: Players, *, critic_steps: int, ema_decay: Decay, mesh: Mesh
) -> Step:
    """`make_adversarial_step` as `mesh_step` is `make_step`: both losses receive keys `[batch / critic_steps]`."""
    if PARAMETERS in mesh.axis_names:
        raise ValueError(
            "Expected a mesh of data alone, as each player's loss takes the other's whole parameters; got "
            f"{dict(mesh.shape)}."
        )
    losses = Players(*map(with_example_keys, losses))
    return _on_mesh(make_adversarial_step(losses, optimizers, critic_steps=critic_steps, ema_decay=ema_decay), mesh)


def mesh_place(tree: PyTree, mesh: Mesh) -> PyTree:
    """A state or parameters as the mesh holds them: a copy on each device, or its shard; shares no buffer with `tree`.

    Every process passes the whole `tree`.
    """

    def place(leaf: Array | np.ndarray, sharding: NamedSharding) -> Array:
        whole = np.asarray(leaf)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    tree = jax.tree.map(lambda leaf: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf), tree)
    # Copied once more, as on a CPU the placed arrays may be views of the caller's memory.
    return _copy(_keys_as_data(place, tree, _as_held(tree, mesh)))


def mesh_fetch(tree: PyTree) -> PyTree:
    """The whole arrays, as they were before `mesh_place`: on the first local device, or on the host if they were split.

    Split arrays are gathered one at a time, so that no device ever holds a whole state.
    """

    def whole(leaf: Array | np.ndarray) -> Array | np.ndarray:
        if getattr(leaf, "is_fully_addressable", True):
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    leaves, structure = jax.tree.flatten(tree)
    split = [not getattr(leaf, "is_fully_replicated", False) for leaf in leaves]
    copies = iter(_copy([first_shard(leaf) for leaf, is_split in zip(leaves, split, strict=True) if not is_split]))
    found = [whole(leaf) if is_split else next(copies) for leaf, is_split in zip(leaves, split, strict=True)]
    return jax.tree.unflatten(structure, found)


def mesh_shard(batch: PyTree, mesh: Mesh) -> PyTree:
    """The batch split over the mesh along its leading axis; several processes each pass their own part."""
    check_divisible(batch_size(batch), mesh.local_mesh.size)
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))

    def place(leaf: Array | np.ndarray) -> Array:
        return jax.make_array_from_process_local_data(split, np.asarray(leaf))

    return _keys_as_data(place, batch)


def mesh_sampler(sampler: Sampler, mesh: Mesh, *, out_axes: PyTree = 0) -> Sampler:
    """As `pmap_sampler`, compiled for the mesh, with params from `mesh_place` and the rest from `mesh_shard`.

    Devices solve on their own here too: XLA's automatic partition of a solve would have them meet at every step.
    """
    split, mapped = PartitionSpec(mesh.axis_names), on_one_device(sampler, out_axes)

    def one_device(params: PyTree, args: tuple[Any, ...]) -> PyTree:
        return jax.tree.map(jnp.atleast_1d, mapped(params, args))

    def sample(params: PyTree, keys: Keys, *rest: PyTree) -> PyTree:
        args = (typed_key(keys), *rest)
        check_divisible(batch_size(args), mesh.size)
        # The check of varying axes refuses the loops of diffrax.
        spread = jax.shard_map(
            one_device, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False
        )
        return restore_axes(spread(params, args), out_axes)

    return jax.jit(sample)


def _on_mesh(step: Step, mesh: Mesh) -> Step:
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.jit(step, in_shardings=(everywhere, split), out_shardings=everywhere, donate_argnums=0)


def _in_pieces(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, ema_decay: Decay, mesh: Mesh, pieces: int
) -> Step:
    gradients_of = sharded_gradients(mesh) if PARAMETERS in mesh.axis_names else loss_gradients
    programs = accumulation(
        loss_fn, optimizer, ema_decay=ema_decay, pieces=pieces, gradients_of=gradients_of, groups=mesh.size
    )

    def held(program: Callable[..., Any]) -> Callable[..., Any]:
        def in_place(*args: Any) -> Any:
            tree = program(*args)
            return jax.lax.with_sharding_constraint(tree, _as_held(tree, mesh))

        return in_place

    return in_pieces(
        Accumulation(
            jax.jit(held(programs.begin)),
            jax.jit(held(programs.add), donate_argnums=1),
            jax.jit(held(programs.finish), donate_argnums=0),
        ),
        pieces,
    )


def _as_held(tree: PyTree, mesh: Mesh) -> PyTree:
    return jax.tree.map(lambda leaf: NamedSharding(mesh, spec_of(leaf, mesh)), tree)


def _keys_as_data(place: Callable[..., Array], tree: PyTree, *rest: PyTree) -> PyTree:
    """`place` mapped over the leaves, to which typed keys are shown as the integers that they are."""

    def placed(leaf: Array | np.ndarray, *others: Any) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf), *others), impl=jax.random.key_impl(leaf))
        return place(leaf, *others)

    return jax.tree.map(placed, tree, *rest)


@jax.jit
def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)
