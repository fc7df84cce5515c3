"""Eight devices in one process, in two and in four, with gloo on the CPU: the same run."""

import os
import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest
import test_sharded as one

from dgm_jax.data import batches
from dgm_jax.training.parallel import data_mesh, mesh_place, mesh_sampler, mesh_shard

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
HEAD = """
import sys
import jax
import numpy as np
address, processes, rank, folder = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
jax.config.update("jax_num_cpu_devices", 8 // processes)
jax.distributed.initialize(address, processes, rank, heartbeat_timeout_seconds=10)
from dgm_jax.data import batches
from dgm_jax.training import parallel
from tests import test_sharded as one
assert jax.device_count() == 8 and jax.local_device_count() == 8 // processes
"""


def launch(program, processes, folder):
    """Run the program in so many processes, which share eight devices, and wait for all of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([ROOT, ROOT + "/tests"]),
    }
    command = [sys.executable, "-c", HEAD + textwrap.dedent(program), address, str(processes)]
    children = [subprocess.Popen([*command, str(rank), str(folder)], env=env, cwd=ROOT) for rank in range(processes)]
    try:
        assert [child.wait(timeout=300) for child in children] == [0] * processes
    finally:
        for child in children:
            child.kill()
    return [np.load(folder / f"{rank}.npz") for rank in range(processes)]


SAME_RUN = """
own = slice(one.BATCH // processes * rank, one.BATCH // processes * (rank + 1))
options = {"ema_decay": 0.9}

stacked, step = parallel.replicate(one.fresh()), parallel.pmap_step(one.loss_fn, one.OPTIMIZER, **options)
for n in range(20):
    stacked, _ = step(stacked, parallel.shard(one.batch(n)[own]))
found = {"pmap": parallel.unreplicate(stacked)}

for shards in (1, 2, 8):
    mesh = parallel.data_mesh(parameter_shards=shards)
    step = parallel.mesh_step(one.loss_fn, one.OPTIMIZER, mesh=mesh, **options)
    state = parallel.mesh_place(one.fresh(), mesh)
    for n in range(20):
        state, _ = step(state, parallel.mesh_shard(one.batch(n)[own], mesh))
    found[f"{shards} shards"] = parallel.mesh_fetch(state)

mesh = parallel.data_mesh()
keys = jax.random.split(jax.random.key(1), 24)[24 // processes * rank : 24 // processes * (rank + 1)]
drawn = parallel.mesh_sampler(one.draw, mesh)(parallel.mesh_place(one.params(), mesh), parallel.mesh_shard(keys, mesh))
samples = np.concatenate([shard.data for shard in drawn.addressable_shards])
source = [{"index": np.int64(i)} for i in range(320)]
stream = batches(source, 16 // processes, seed=3, shard_index=rank, shard_count=processes)
seen = np.stack([next(stream)["index"] for _ in range(20)])
leaves = {name: jax.tree.leaves(state.params) for name, state in found.items()}
arrays = {f"{name}: {i}": leaf for name, each in leaves.items() for i, leaf in enumerate(each)}
np.savez(f"{folder}/{rank}.npz", samples=samples, seen=seen, **arrays)
"""

one_device = one.one_device


@pytest.fixture(scope="module")
def drawn():
    mesh, keys = data_mesh(), jax.random.split(jax.random.key(1), 24)
    return mesh_sampler(one.draw, mesh)(mesh_place(one.params(), mesh), mesh_shard(keys, mesh))


@pytest.fixture(scope="module")
def order():
    stream = batches([{"index": np.int64(i)} for i in range(320)], 16, seed=3)
    return np.stack([next(stream)["index"] for _ in range(20)])


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_train_and_draw_as_one(one_device, drawn, order, processes, tmp_path):
    """Both back ends and two ways of splitting parameters, across processes too; samples to the bit."""
    files = launch(SAME_RUN, processes, tmp_path)
    want = jax.tree.leaves(one_device[0].params)
    for file in files:
        for back_end in ("pmap", "1 shards", "2 shards", "8 shards"):
            got = [file[f"{back_end}: {i}"] for i in range(len(want))]
            one.assert_close(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(np.concatenate([file["samples"] for file in files]), drawn)
    seen = np.concatenate([file["seen"] for file in files], axis=1)
    np.testing.assert_array_equal(np.sort(seen, axis=None), np.arange(320))  # an epoch: each example once
    np.testing.assert_array_equal(seen, order)  # in batches that do not depend on the number of processes
