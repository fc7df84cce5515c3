"""pmap: each device has a replica of the state and a slice of the batch; devices meet at the gradients alone."""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from dgm_jax.numerics import typed_key
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
from dgm_jax.training.parallel.mesh import data_mesh
from dgm_jax.training.step import Decay, LossFn, Metrics, Step, batch_size, loss_gradients, make_step
from dgm_jax.typing import Keys


def pmap_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: Decay,
    devices: Devices | None = None,
    pieces: int = 1,
) -> Step:
    """`step(state, batch)` on a replicated state, which is donated, and a sharded batch; metrics come back stacked.

    Args:
        loss_fn: (params, batch, keys) -> scalar or (scalar, metrics); keys `[batch]`, one per example of the slice.
        devices: `None` takes all devices of all processes.
        pieces: in how many each device takes its slice, one after another, to hold less (see `accumulation`); the
            devices meet once, after the last. The loss and its metrics must be means over the examples.
    """
    if check_pieces(pieces) > 1:
        programs = accumulation(
            loss_fn, optimizer, ema_decay=ema_decay, pieces=pieces, keys_of=_own_keys, mean=mean_over_devices
        )
        compiled = partial(jax.pmap, axis_name=AXIS, devices=devices)
        return in_pieces(
            Accumulation(
                compiled(programs.begin),
                compiled(programs.add, in_axes=(0, 0, 0, None), donate_argnums=1),
                compiled(programs.finish, donate_argnums=0),
            ),
            pieces,
        )
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
    return mean_over_devices(loss_gradients(loss_fn, params, batch, _own_keys(key, batch_size(batch))))


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
    return _drop_axis(jax.tree.map(first_shard, tree))


def shard(batch: PyTree, devices: Devices | None = None) -> PyTree:
    """`[batch, ...] -> [devices, batch / devices, ...]` over the local devices."""
    n = len(jax.local_devices() if devices is None else _local(devices))
    size = check_divisible(batch_size(batch), n)
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
    one_device = on_one_device(sampler, out_axes)
    # One argument, as jax.pmap takes flat axes for those of leaves where there are as many leaves as arguments, which
    # params without arrays and two arrays beside them are.
    mapped = jax.pmap(lambda both: one_device(*both), axis_name=AXIS, devices=devices, in_axes=((None, 0),))

    def sample(params: PyTree, keys: Keys, *rest: PyTree) -> PyTree:
        out = mapped((params, shard((typed_key(keys), *rest), devices)))
        joined = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), out)
        return restore_axes(joined, out_axes)

    return sample


def _own_keys(key: Keys, size: int) -> Keys:
    """The keys of this device's slice of `size` examples, split at the size of the global batch."""
    keys = jax.random.split(key, size * jax.lax.axis_size(AXIS))
    return jax.lax.dynamic_slice_in_dim(keys, jax.lax.axis_index(AXIS) * size, size)


def _local(devices: Devices) -> Devices:
    return [device for device in devices if device.process_index == jax.process_index()]


@jax.jit
def _drop_axis(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[0], tree)
