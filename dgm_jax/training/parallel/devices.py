"""What both back ends share: the axis of the data, divisibility, and a sampler of one device's slice."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

AXIS = "data"
Devices = Sequence[jax.Device]
Sampler = Callable[..., PyTree]  # (params, keys, *rest) -> samples


def check_divisible(size: int, n_devices: int) -> int:
    """The size, or `ValueError` where devices would take unequal shares."""
    if size % n_devices:
        raise ValueError(
            f"Expected a batch divisible by the {n_devices} devices, as each takes an equal share; got {size=}."
        )
    return size


def first_shard(leaf: Array) -> Array:
    """What the first local device holds of the array."""
    return leaf.addressable_shards[0].data  # thousands of times faster than leaf[0], which gathers over devices


def on_one_device(sampler: Sampler, out_axes: PyTree) -> Callable[[PyTree, tuple[Any, ...]], PyTree]:
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


def restore_axes(out: PyTree, out_axes: PyTree) -> PyTree:
    """The sample axes back where `on_one_device` found them."""

    def restore(leaf: Array, axis: int) -> Array:
        return jnp.moveaxis(leaf, 0, axis) if leaf.ndim > 1 else leaf

    return jax.tree.map(restore, out, jax.tree.broadcast(out_axes, out))
