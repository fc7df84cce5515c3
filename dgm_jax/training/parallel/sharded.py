"""Fully sharded data parallelism: a mesh's second axis, over which parameters and optimiser states are split.

    a step:  whole parameters <- all-gather of their shards
             shard of the gradient <- reduce-scatter of the gradients, mean over all devices
             optimiser and moving average on shards alone

Memory for the state falls with the axis; a device holds whole parameters and gradients only while it computes them.

Reference: Rajbhandari et al. 2020, ZeRO, arXiv:1910.02054, stage 3; Zhao et al. 2023, arXiv:2304.11277.
"""

import math
from typing import Any

import jax
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import PyTree

from dgm_jax.numerics import example_keys
from dgm_jax.training.parallel.devices import AXIS
from dgm_jax.training.step import GradientsOf, LossFn, Metrics, batch_size, loss_gradients
from dgm_jax.typing import Keys

PARAMETERS = "parameters"
LEAST = 1024  # values: below, a collective costs more than the memory that it saves
COPIED = -1


def spec_of(leaf: Any, mesh: Mesh) -> PartitionSpec:
    """How the mesh holds a leaf of the state: split along the axis of `split_axis`, or a copy on each device."""
    axis = split_axis(leaf.shape, mesh)
    return PartitionSpec() if axis == COPIED else PartitionSpec(*[None] * axis, PARAMETERS)


def split_axis(shape: tuple[int, ...], mesh: Mesh) -> int:
    """The longest axis that shards divide evenly, the last of several; `COPIED` where none is or the leaf is small.

    The shape alone decides, so that an optimiser's moments are split as their parameters are.
    """
    shards = mesh.shape.get(PARAMETERS, 1)
    even = [(size, axis) for axis, size in enumerate(shape) if size % shards == 0]
    return max(even)[1] if shards > 1 and even and math.prod(shape) >= LEAST else COPIED


def sharded_gradients(mesh: Mesh) -> GradientsOf:
    """Gradients for `make_step` on parameters that are split over the mesh, in the same parts."""

    def gradients_of(loss_fn: LossFn, params: PyTree, batch: PyTree, key: Keys) -> tuple[PyTree, Metrics]:
        keys = example_keys(key, batch_size(batch))
        axes = jax.tree.map(lambda leaf: split_axis(leaf.shape, mesh), params)
        specs = jax.tree.map(lambda leaf: spec_of(leaf, mesh), params)

        def on_one_device(shards: PyTree, batch: PyTree, keys: Keys) -> tuple[PyTree, Metrics]:
            gradients, metrics = loss_gradients(loss_fn, jax.tree.map(_gathered, shards, axes), batch, keys)
            return _mean_of_shards(gradients, axes, mesh), jax.lax.pmean(metrics, mesh.axis_names)

        split = PartitionSpec(mesh.axis_names)
        # The check of varying axes would sum the gradients of whole parameters over the devices once more.
        spread = jax.shard_map(
            on_one_device,
            mesh=mesh,
            in_specs=(specs, split, split),
            out_specs=(specs, PartitionSpec()),
            check_vma=False,
        )
        return spread(params, batch, keys)

    return gradients_of


def _gathered(shard: jax.Array, axis: int) -> jax.Array:
    return shard if axis == COPIED else jax.lax.all_gather(shard, PARAMETERS, axis=axis, tiled=True)


def _mean_of_shards(gradients: PyTree, axes: PyTree, mesh: Mesh) -> PyTree:
    """Each device's shards of the mean over all devices; leaves that are copies are averaged whole."""

    def summed(gradient: jax.Array, axis: int) -> jax.Array:
        if axis == COPIED:
            return jax.lax.psum(gradient, PARAMETERS)
        return jax.lax.psum_scatter(gradient, PARAMETERS, scatter_dimension=axis, tiled=True)

    shards = jax.tree.map(summed, gradients, axes)
    return jax.tree.map(lambda leaf: leaf / mesh.size, jax.lax.psum(shards, AXIS))
