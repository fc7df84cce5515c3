"""Data-parallel training and sampling over many devices, in two back ends with the same numbers.

**pmap** gives each device a replica of the state and a slice of the batch; devices meet only where the gradients are
averaged. The right choice for adaptive solvers, whose number of steps differs between devices:

    step = pmap_step(loss_fn, optimizer, ema_decay=0.999)
    state, metrics = step(replicate(state), shard(batch))     # the state is donated
    sampler = pmap_sampler(lambda params, keys: sample(params, keys).x)
    samples = sampler(unreplicate(state).ema, jax.random.split(key, 64))

**mesh** compiles the single-device step once for the whole mesh and lets XLA place the communication:

    mesh = data_mesh()
    step = mesh_step(loss_fn, optimizer, ema_decay=0.999, mesh=mesh)
    state, metrics = step(mesh_replicate(state, mesh), mesh_shard(batch, mesh))

The numbers agree, up to the order of summation, with each other and with `make_step(with_example_keys(loss_fn), ...)`
on one device, because every example has its own key, split from the step's key at the size of the global batch. This
holds where `loss_fn` and its metrics are means over the examples. Both hand `loss_fn` keys `[batch]`.

With several processes, each passes its own part of the batch, in the order of the processes.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from dgm_jax.numerics import typed_key
from dgm_jax.training.adversarial import Players, make_adversarial_step
from dgm_jax.training.step import (
    Decay,
    LossFn,
    Metrics,
    Step,
    batch_size,
    loss_gradients,
    make_step,
    with_example_keys,
)
from dgm_jax.typing import Keys

AXIS = "data"
Devices = Sequence[jax.Device]
Sampler = Callable[..., PyTree]  # (params, keys, *rest) -> samples


# pmap -----------------------------------------------------------------------------------------------------------


def pmap_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, *, ema_decay: Decay, devices: Devices | None = None
) -> Step:
    """`step(state, batch)` on a replicated state, which is donated, and a sharded batch; metrics come back stacked.

    Args:
        loss_fn: (params, batch, keys) -> scalar or (scalar, metrics); keys `[batch]`, one per example of the slice.
        devices: `None` takes all devices of all processes.
    """
    step = make_step(loss_fn, optimizer, ema_decay=ema_decay, gradients_of=mean_gradients)
    return jax.pmap(step, axis_name=AXIS, devices=devices, donate_argnums=0)


def pmap_adversarial_step(
    losses: Players,
    optimizers: Players,
    *,
    critic_steps: int,
    ema_decay: Decay,
    devices: Devices | None = None,
) -> Step:
    """`make_adversarial_step` as `pmap_step` is `make_step`: both losses receive keys `[batch / critic_steps]`."""
    step = make_adversarial_step(
        losses, optimizers, critic_steps=critic_steps, ema_decay=ema_decay, gradients_of=mean_gradients
    )
    return jax.pmap(step, axis_name=AXIS, devices=devices, donate_argnums=0)


def mean_gradients(loss_fn: LossFn, params: PyTree, batch: PyTree, key: Keys) -> tuple[PyTree, Metrics]:
    """The gradients of the global batch inside `jax.pmap`, each device with its slice and that slice's keys."""
    size = batch_size(batch)
    keys = jax.random.split(key, size * jax.lax.axis_size(AXIS))
    keys = jax.lax.dynamic_slice_in_dim(keys, jax.lax.axis_index(AXIS) * size, size)
    return mean_over_devices(loss_gradients(loss_fn, params, batch, keys))


def mean_over_devices(tree: PyTree) -> PyTree:
    """The mean over the devices of `jax.pmap`, for `unrolled(..., mean=mean_over_devices)`."""
    return jax.lax.pmean(tree, AXIS)


def replicate(tree: PyTree, devices: Devices | None = None) -> PyTree:
    """One copy of `tree` on each local device, stacked along a new leading axis; shares no buffer with `tree`."""
    devices = jax.local_devices() if devices is None else _local(devices)
    mesh = data_mesh(devices)

    def stack(leaf: Array) -> Array:
        return jnp.broadcast_to(leaf[None], (len(devices), *leaf.shape))

    # Placed first and stacked there, so that no device ever holds more than its own copy.
    tree = jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))
    return jax.jit(lambda t: jax.tree.map(stack, t), out_shardings=NamedSharding(mesh, PartitionSpec(AXIS)))(tree)


def unreplicate(tree: PyTree) -> PyTree:
    """The first local device's copy, as it was before `replicate`."""
    return _drop_axis(jax.tree.map(_first_shard, tree))


def shard(batch: PyTree, devices: Devices | None = None) -> PyTree:
    """`[batch, ...] -> [devices, batch / devices, ...]` over the local devices."""
    n = len(jax.local_devices() if devices is None else _local(devices))
    size = _check_divisible(batch_size(batch), n)
    return jax.tree.map(lambda leaf: leaf.reshape(n, size // n, *leaf.shape[1:]), batch)


def pmap_sampler(sampler: Sampler, devices: Devices | None = None, *, out_axes: PyTree = 0) -> Sampler:
    """`sampler(params, keys, *rest)` with the samples split over the local devices, each solving on its own.

    Args:
        sampler: params, keys `[n]` with one key per sample, and arrays with a leading sample axis -> any pytree.
        out_axes: the position of the sample axis in each output, an integer or a prefix of the output's tree as in
            `jax.vmap`; for samples with a path whose first axis is time, `Samples(x=0, path=1, ...)`.

    Returns:
        The same function of the same arguments. Outputs are whole arrays in the order of the keys, except scalars
        (say, counts of evaluations), which come back as `[devices]`, as each device has its own.
    """
    devices = jax.local_devices() if devices is None else _local(devices)
    one_device = _on_one_device(sampler, out_axes)
    # One argument, as jax.pmap takes flat axes for those of leaves where there are as many leaves as arguments, which
    # params without arrays and two arrays beside them are.
    mapped = jax.pmap(lambda both: one_device(*both), axis_name=AXIS, devices=devices, in_axes=((None, 0),))

    def sample(params: PyTree, keys: Keys, *rest: Array | np.ndarray) -> PyTree:
        out = mapped((params, shard((typed_key(keys), *rest), devices)))
        joined = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), out)
        return _restore_axes(joined, out_axes)

    return sample


# mesh -----------------------------------------------------------------------------------------------------------


def data_mesh(devices: Devices | None = None) -> Mesh:
    """A one-dimensional mesh over `devices`, all of them by default, whose shardings XLA propagates by itself."""
    return Mesh(np.array(jax.devices() if devices is None else devices), (AXIS,))


def mesh_step(loss_fn: LossFn, optimizer: optax.GradientTransformation, *, ema_decay: Decay, mesh: Mesh) -> Step:
    """`step(state, batch)` on a state replicated over the mesh, which is donated, and a batch sharded over it.

    Args:
        loss_fn: (params, batch, keys) -> scalar or (scalar, metrics); keys `[batch]`, one per example.
    """
    return _on_mesh(make_step(with_example_keys(loss_fn), optimizer, ema_decay=ema_decay), mesh)


def mesh_adversarial_step(
    losses: Players, optimizers: Players, *, critic_steps: int, ema_decay: Decay, mesh: Mesh
) -> Step:
    """`make_adversarial_step` as `mesh_step` is `make_step`: both losses receive keys `[batch / critic_steps]`."""
    losses = Players(*map(with_example_keys, losses))
    return _on_mesh(make_adversarial_step(losses, optimizers, critic_steps=critic_steps, ema_decay=ema_decay), mesh)


def mesh_replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """One copy of `tree` on each device of the mesh; shares no buffer with `tree`."""
    # Copied once more, as on a CPU the placed arrays may be views of the caller's memory.
    return _copy(_from_process_data(tree, NamedSharding(mesh, PartitionSpec())))


def mesh_unreplicate(tree: PyTree) -> PyTree:
    """The first local device's copy, as it was before `mesh_replicate`."""
    return _copy(jax.tree.map(_first_shard, tree))


def mesh_shard(batch: PyTree, mesh: Mesh) -> PyTree:
    """The batch split over the mesh along its leading axis; several processes each pass their own part."""
    _check_divisible(batch_size(batch), mesh.local_mesh.size)
    return _from_process_data(batch, NamedSharding(mesh, PartitionSpec(AXIS)))


def mesh_sampler(sampler: Sampler, mesh: Mesh, *, out_axes: PyTree = 0) -> Sampler:
    """As `pmap_sampler`, compiled for the mesh, with params from `mesh_replicate` and the rest from `mesh_shard`.

    Devices solve on their own here too: XLA's automatic partition of a solve would have them meet at every step.
    """
    split, mapped = PartitionSpec(AXIS), _on_one_device(sampler, out_axes)

    def one_device(params: PyTree, args: tuple[Any, ...]) -> PyTree:
        return jax.tree.map(jnp.atleast_1d, mapped(params, args))

    def sample(params: PyTree, keys: Keys, *rest: Array | np.ndarray) -> PyTree:
        args = (typed_key(keys), *rest)
        _check_divisible(batch_size(args), mesh.size)
        # The check of varying axes refuses the loops of diffrax.
        spread = jax.shard_map(
            one_device, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split, check_vma=False
        )
        return _restore_axes(spread(params, args), out_axes)

    return jax.jit(sample)


# ----------------------------------------------------------------------------------------------------------------


def _on_mesh(step: Step, mesh: Mesh) -> Step:
    everywhere, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(AXIS))
    return jax.jit(step, in_shardings=(everywhere, split), out_shardings=everywhere, donate_argnums=0)


def _local(devices: Devices) -> Devices:
    return [device for device in devices if device.process_index == jax.process_index()]


def _from_process_data(tree: PyTree, sharding: NamedSharding) -> PyTree:
    def place(leaf: Array | np.ndarray) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(place(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        return jax.make_array_from_process_local_data(sharding, np.asarray(leaf))

    return jax.tree.map(place, tree)


def _first_shard(leaf: Array) -> Array:
    return leaf.addressable_shards[0].data  # thousands of times faster than leaf[0], which gathers over devices


@jax.jit
def _drop_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[0], tree)


@jax.jit
def _copy(tree: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, tree)


def _check_divisible(size: int, n_devices: int) -> int:
    if size % n_devices:
        raise ValueError(
            f"Expected a batch divisible by the {n_devices} devices, as each takes an equal share; got {size=}."
        )
    return size


def _on_one_device(sampler: Sampler, out_axes: PyTree) -> Callable[[PyTree, tuple[Any, ...]], PyTree]:
    """The sampler of one device's slice, with the sample axis of each output first."""

    def sample(params: PyTree, args: tuple[Any, ...]) -> PyTree:
        samples = len(args[0])

        def sample_axis_first(path: Any, leaf: Array, axis: int) -> Array:
            if leaf.ndim and (leaf.ndim <= axis or leaf.shape[axis] != samples):
                raise ValueError(
                    f"Expected the sampler's output{jax.tree_util.keystr(path)} to have {samples} samples along axis "
                    f"{axis}, as outputs are joined along it (another axis: out_axes); got shape {leaf.shape}."
                )
            return jnp.moveaxis(leaf, axis, 0) if leaf.ndim else leaf

        out = sampler(params, *args)
        return jax.tree_util.tree_map_with_path(sample_axis_first, out, jax.tree.broadcast(out_axes, out))

    return sample


def _restore_axes(out: PyTree, out_axes: PyTree) -> PyTree:
    def restore(leaf: Array, axis: int) -> Array:
        return jnp.moveaxis(leaf, 0, axis) if leaf.ndim > 1 else leaf

    return jax.tree.map(restore, out, jax.tree.broadcast(out_axes, out))
