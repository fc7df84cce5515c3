"""The model of `_scaling_laws` against what processes on this machine do: the same launch for 1, 2 and 4 of them.

Each process has one device and takes its part of the batch; gloo sums the gradients, each array by itself. What the
model is told is measured beside: matrix products and memory traffic of one process, which uses all cores, and the sums
over two processes of few and of many bytes. Of n processes each has 1/n of the machine's products and traffic; where
they outnumber the cores a link carries less in proportion. A hop's latency is a wait, and stays.
"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.networks import MLP
from dgm_jax.training.parallel import data_mesh, mesh_place, mesh_shard, mesh_step
from experiments._peaks import Chip
from experiments._scaling_laws import Latency, step_on
from experiments._scaling_programs import OPTIMIZER, initial, noise_loss, step_counts
from experiments.benchmarks._table import cores
from experiments.benchmarks._timing import rounds

ROOT = Path(__file__).parents[1]
EVENT = (64,)
FEW, MANY = 4, 2**23  # bytes of the sums that give latency and bandwidth


@dataclass(frozen=True)
class Sizes:
    """What is run."""

    processes: tuple[int, ...] = (1, 2, 4)
    widths: tuple[int, ...] = (128, 512)  # of three layers
    batches: tuple[int, ...] = (64, 256, 1024, 4096)  # of all processes together
    repeats: int = 11
    product: int = 1024  # side of the matrices
    moved: int = 2**24  # values
    quick: bool = False  # compiled without most optimisations


def network(width: int) -> MLP:
    """Matrix products, which one process spreads over all cores; small convolutions it does not."""
    return MLP((width,) * 3)


def launch(processes: int, sizes: Sizes) -> dict[str, list[float]]:
    """Seconds of everything that the first of so many processes timed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    settings = json.dumps([sizes.widths, sizes.batches, sizes.repeats, sizes.product, sizes.moved])
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    if sizes.quick:
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    command = [sys.executable, "-m", "experiments._scaling_check", address, str(processes)]
    children = [
        subprocess.Popen(
            [*command, str(rank), settings], env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for rank in range(processes)
    ]
    try:
        outputs = [child.communicate(timeout=600) for child in children]
    finally:
        for child in children:
            child.kill()
    for child, (_, errors) in zip(children, outputs, strict=True):
        if child.returncode:
            raise RuntimeError(f"Expected {processes} processes to finish; one ended so:\n{errors.decode()[-2000:]}")
    return json.loads(outputs[0][0].decode().splitlines()[-1])


def work(address: str, processes: int, rank: int, sizes: Sizes) -> dict[str, list[float]]:
    """One process: everything by turns."""
    jax.config.update("jax_num_cpu_devices", 1)
    jax.distributed.initialize(address, processes, rank, heartbeat_timeout_seconds=30)
    candidates: dict[str, Any] = {}
    total = jax.pmap(lambda x: jax.lax.psum(x, "data"), axis_name="data")
    for size in (FEW, MANY):
        candidates[f"sum {size}"] = lambda x=np.ones((1, size // 4), np.float32): total(x)
    if processes == 1:
        product, add = jax.jit(jnp.matmul), jax.jit(lambda x: x + 1)
        in_place = jax.jit(lambda x: x + 1, donate_argnums=0)
        square, row = jnp.ones((sizes.product, sizes.product)), jnp.ones(sizes.moved)
        grown = [row]  # in place, as fresh memory costs page faults

        def traffic() -> Any:
            grown[0] = in_place(grown[0])
            return grown[0]

        candidates |= {"product": lambda: product(square, square), "traffic": traffic}
        candidates |= {"call": lambda x=jnp.ones(1): add(x)}
    mesh = data_mesh()
    for width in sizes.widths:
        net = network(width)
        state = jax.jit(partial(initial, net, EVENT))()
        step = mesh_step(noise_loss(net), OPTIMIZER, ema_decay=0.999, mesh=mesh)
        for batch in sizes.batches:
            rows = mesh_shard(np.ones((batch // processes, *EVENT), np.float32), mesh)
            candidates[f"step {width} {batch}"] = stepping(step, mesh_place(state, mesh), rows)
    return {name: values.tolist() for name, values in rounds(candidates, repeats=sizes.repeats).items()}


def stepping(step: Any, state: Any, batch: Any) -> Any:
    """A step from where the last one ended, as it donates its state."""
    held = [state]

    def take() -> Any:
        held[0], metrics = step(held[0], batch)
        return metrics

    return take


def machine(timed: dict[int, dict[str, list[float]]], sizes: Sizes) -> tuple[Chip, Latency, float]:
    """This machine as a chip that one process has, the latency of a hop, and what a call of a program takes."""
    alone = {name: float(np.median(values)) for name, values in timed[1].items()}
    pair = {name: float(np.median(values)) for name, values in timed[min(n for n in timed if n > 1)].items()}
    call = alone["call"]
    chip = Chip(
        "this machine",
        2 * sizes.product**3 / (alone["product"] - call),
        8 * sizes.moved / (alone["traffic"] - call),
        MANY / max(pair[f"sum {MANY}"] - pair[f"sum {FEW}"], 1e-9),
        memory=float("nan"),
        group=10**6,
    )
    return chip, Latency(link=max(pair[f"sum {FEW}"] - call, 1e-9) / 2), call  # two hops of a ring of two


def part_of(chip: Chip, processes: int) -> Chip:
    """What one of so many processes has of the machine."""
    crowd = max(1.0, processes / cores())
    return replace(
        chip,
        flops=chip.flops / processes,
        memory_bandwidth=chip.memory_bandwidth / processes,
        link_bandwidth=chip.link_bandwidth / crowd,
    )


def compare(timed: dict[int, dict[str, list[float]]], sizes: Sizes) -> list[dict[str, Any]]:
    """Seconds of a step, measured and on paper, for each network, batch and number of processes."""
    chip, latency, call = machine(timed, sizes)
    rows = []
    for width in sizes.widths:
        counts = step_counts(network(width), EVENT, batches=(64, 128))
        for batch in sizes.batches:
            for processes in sizes.processes:
                shared, each = part_of(chip, processes), batch / processes
                step = step_on(shared, counts, n=processes, batch=each, latency=latency, messages=counts.arrays)
                measured = float(np.median(timed[processes][f"step {width} {batch}"]))
                rows.append(
                    {"width": width, "batch": batch, "processes": processes, "measured": measured}
                    | {"predicted": step.apart + call, "bound": step.bound}
                )
    return rows


if __name__ == "__main__":
    address, processes, rank, settings = sys.argv[1:]
    widths, batches, repeats, product, moved = json.loads(settings)
    sizes = Sizes((), tuple(widths), tuple(batches), repeats, product, moved)
    print(json.dumps(work(address, int(processes), int(rank), sizes)))
