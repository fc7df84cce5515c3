"""A small training run to be killed: python killable.py folder address processes rank steps.

Resumes from what the folder holds, appends each finished step to a file of its own, and ends by writing its parameters.
"""

import sys
import time
from functools import partial
from pathlib import Path

import jax
import numpy as np

STEPS = 60
LONG = 400  # for twenty kills


def main(folder, address, processes, rank, steps):
    jax.config.update("jax_num_cpu_devices", 2)
    if processes:
        jax.distributed.initialize(address, processes, rank, heartbeat_timeout_seconds=10, initialization_timeout=30)
    import test_sharded as one

    from dgm_jax.data import batches
    from dgm_jax.training import Checkpoints, train
    from dgm_jax.training.parallel import data_mesh, mesh_fetch, mesh_place, mesh_shard, mesh_step

    shards = max(processes, 1)
    mesh = data_mesh()
    compiled = mesh_step(one.loss_fn, one.OPTIMIZER, ema_decay=0.9, mesh=mesh)
    source = [{"x": row} for row in np.random.default_rng(0).normal(size=(160, 3)).astype(np.float32)]
    stream = batches(source, one.BATCH // shards, seed=3, shard_index=rank, shard_count=shards, prefetch=0)

    def step(state, batch):
        time.sleep(0.02)  # so that a step takes as long as one of use, and a save lasts for several
        return compiled(state, mesh_shard(batch["x"], mesh))

    def on_metrics(made, values):
        with (folder / f"steps-{rank}").open("a") as file:
            file.write(f"{made}\n")

    with Checkpoints(folder / "checkpoints") as checkpoints:
        state = train(
            step,
            one.fresh(),
            stream,
            steps=steps,
            checkpoints=checkpoints,
            save_every=3,
            log_every=1,
            on_metrics=on_metrics,
            place=partial(mesh_place, mesh=mesh),
            fetch=mesh_fetch,
        )
    np.savez(folder / f"last-{rank}.npz", *jax.tree.leaves(state.params), *jax.tree.leaves(state.ema))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:6]))
