"""Data-parallel training and sampling over many devices, in two back ends with the same numbers.

**pmap** gives each device a replica of the state and a slice of the batch; devices meet only where the gradients are
averaged. The right choice for adaptive solvers, whose number of steps differs between devices:

    step = pmap_step(loss_fn, optimizer, ema_decay=0.999)
    state, metrics = step(replicate(state), shard(batch))     # the state is donated
    sampler = pmap_sampler(lambda params, keys: sample(params, keys).x)
    samples = sampler(unreplicate(state).ema, jax.random.split(key, 64))

**mesh** compiles the single-device step once for the whole mesh and lets XLA place the communication. With
`data_mesh(parameter_shards=n)` parameters, their average and the optimiser's state are split over n devices (see
`sharded`):

    mesh = data_mesh()
    step = mesh_step(loss_fn, optimizer, ema_decay=0.999, mesh=mesh)
    state, metrics = step(mesh_place(state, mesh), mesh_shard(batch, mesh))

The numbers agree, up to the order of summation, with each other and with `make_step(with_example_keys(loss_fn), ...)`
on one device, because every example has its own key, split from the step's key at the size of the global batch. This
holds where `loss_fn` and its metrics are means over the examples. Both hand `loss_fn` keys `[batch]`.

With several processes, each passes its own part of the batch, in the order of the processes.
"""

from dgm_jax.training.parallel.devices import AXIS, Devices, Sampler
from dgm_jax.training.parallel.mesh import (
    data_mesh,
    mesh_adversarial_step,
    mesh_fetch,
    mesh_place,
    mesh_sampler,
    mesh_shard,
    mesh_step,
)
from dgm_jax.training.parallel.pmap import (
    mean_gradients,
    mean_over_devices,
    pmap_adversarial_step,
    pmap_sampler,
    pmap_step,
    replicate,
    shard,
    unreplicate,
)
