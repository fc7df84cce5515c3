"""What many devices, the input pipeline and checkpoints cost a training run.

- A data-parallel step on 2 virtual devices, in both back ends, over the step of one of them at the same batch: a U-Net,
  whose small convolutions use one core a device, and an MLP, whose products use all cores on one device already. One of
  two devices has the threads that a sole one has, so that one process serves for both.
- The input pipeline of the quickstart: the time that the loop waits for a batch over the time of all. Steps are queued
  ahead, so that the device is idle for no larger a share.
- A checkpoint every 100 steps of the quickstart over none: the seconds that one adds to 20 steps, during which it is
  written in the background, over those of 100 steps.

    python -m experiments.benchmarks.parallel [--write]

Time: about 6 minutes on 2 cores. Expected: at most 1.1, under 5 %, at most 1.03; for an MLP of 1,024 examples the
first may not hold, as each device updates all parameters with its share of the cores. Measured: see
docs/benchmarks.md.
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from dgm_jax.data import batches, source
from dgm_jax.losses import diffusion_loss
from dgm_jax.parameterizations import error_ratio
from dgm_jax.training import Checkpoints, TrainState, ema_warmup, init_state, make_step, with_example_keys
from dgm_jax.training.parallel import (
    data_mesh,
    mesh_place,
    mesh_shard,
    mesh_step,
    pmap_step,
    replicate,
    shard,
    unreplicate,
)
from experiments import quickstart
from experiments.benchmarks._cases import PROCESS, Case, mlp, tiny_unet, unet
from experiments.benchmarks._table import Row, ratio_row, report
from experiments.benchmarks._timing import rounds

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
PERIOD = 100  # steps from one checkpoint to the next


@dataclass(frozen=True)
class Config:
    """Sizes of the run; `--smoke` takes seconds, writes nothing, and its ratios mean nothing."""

    unet_batch: int = 32
    mlp_batches: tuple[int, ...] = (1024, 4096)
    steps: int = 20  # timed together, of the quickstart; a checkpoint is written within so many
    repeats: int = 15
    write: bool = False
    smoke: bool = False


def stepping(step: Callable[..., Any], state: Any, batch: Any) -> Callable[[], Any]:
    """A step from where the last one ended, as it donates its state."""
    held = [state]

    def take() -> Any:
        held[0], metrics = step(held[0], batch)
        return metrics

    return take


def device_rows(case: Case, *, repeats: int) -> list[Row]:
    """Both back ends on all devices over one device."""

    def loss_fn(params: Any, x_0: jax.Array, keys: jax.Array) -> jax.Array:
        def weight(t: jax.Array) -> jax.Array:
            return error_ratio(PROCESS, t, "v")

        return diffusion_loss(case.denoiser(params), PROCESS, x_0, keys, weight=weight).mean()

    state, batch, mesh = (
        init_state(case.params, OPTIMIZER, jax.random.key(1)),
        np.zeros(case.shape, "float32"),
        data_mesh(),
    )
    alone = jax.jit(make_step(with_example_keys(loss_fn), OPTIMIZER, ema_decay=0.999), donate_argnums=0)
    seconds = rounds(
        {
            "one": stepping(alone, jax.tree.map(jnp.copy, state), jnp.asarray(batch)),
            "pmap": stepping(pmap_step(loss_fn, OPTIMIZER, ema_decay=0.999), replicate(state), shard(batch)),
            "mesh": stepping(
                mesh_step(loss_fn, OPTIMIZER, ema_decay=0.999, mesh=mesh),
                mesh_place(state, mesh),
                mesh_shard(batch, mesh),
            ),
        },
        repeats=repeats,
    )
    name = f"{case.name}: step of {{}} on {mesh.size} devices / on one"
    return [ratio_row(name.format(end), seconds[end], seconds["one"], at_most=1.1) for end in ("pmap", "mesh")]


def quickstart_step(config: quickstart.Config) -> tuple[Callable[..., Any], TrainState]:
    """The quickstart's step on a sharded batch, and its state at the start, replicated."""
    net = quickstart.network(config)
    params = jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, *quickstart.SHAPE)), jnp.zeros(1), jnp.zeros(1, int))
    step = pmap_step(quickstart.v_loss(net), OPTIMIZER, ema_decay=ema_warmup(config.ema_decay))
    return step, replicate(init_state(params, OPTIMIZER, jax.random.key(1)))


def waiting_share(
    step: Callable[..., Any],
    state: TrainState,
    stream: Iterator[Any],
    *,
    steps: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[TrainState, float]:
    """The share of the time of so many steps that is spent in `next(stream)`."""
    waited, begun, metrics = 0.0, clock(), None
    for _ in range(steps):
        asked = clock()
        batch = next(stream)
        waited += clock() - asked
        state, metrics = step(state, batch)
    jax.block_until_ready(metrics)
    return state, waited / (clock() - begun)


def quickstart_rows(config: quickstart.Config, *, steps: int, repeats: int) -> list[Row]:
    """The pipeline, then checkpoints: one step, compiled once."""
    step, state = quickstart_step(config)
    stream = map(shard, batches(source("mnist5k", "train"), config.batch, seed=0))
    state, _ = waiting_share(step, state, stream, steps=2)  # compiles, and opens the files
    shares = []
    for _ in range(repeats):
        state, share = waiting_share(step, state, stream, steps=steps)
        shares.append(100 * share)
    low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75])
    measured = f"{middle:.2f} % ({low:.2f} to {high:.2f})"
    waiting = Row("quickstart: waiting for batches / training", measured, "under 5 %", bool(middle < 5))
    return [waiting, checkpoint_row(step, state, next(stream), steps=steps, repeats=repeats)]


def checkpoint_row(step: Callable[..., Any], state: TrainState, batch: Any, *, steps: int, repeats: int) -> Row:
    """`PERIOD` steps and a checkpoint over as many steps."""
    held, saved = [state], [0]

    def train() -> Any:
        metrics = None
        for _ in range(steps):
            held[0], metrics = step(held[0], batch)
        return jax.block_until_ready(metrics)

    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=2) as checkpoints:

        def train_and_save() -> None:
            saved[0] += 1
            checkpoints.save(saved[0], unreplicate(held[0]))
            train()
            checkpoints.wait()

        seconds = rounds({"without": train, "with": train_and_save}, repeats=repeats)
    many = seconds["without"] * PERIOD / steps
    added = seconds["with"] - seconds["without"]
    what = f"quickstart: {PERIOD} steps and a checkpoint, which adds {1e3 * np.median(added):.0f} ms, / {PERIOD} steps"
    return ratio_row(what, many + added, many, at_most=1.03)


def main(config: Config) -> None:
    """Time all three and print the table."""
    jax.config.update("jax_num_cpu_devices", 2)
    small = quickstart.SMOKE if config.smoke else quickstart.Config()
    if config.smoke:
        jax.config.update("jax_disable_most_optimizations", True)
        config = replace(config, unet_batch=4, mlp_batches=(16,), steps=2, repeats=1)
    found = []
    cases = [unet(config.unet_batch, net=tiny_unet() if config.smoke else None)]
    cases += [mlp(batch, (512,) * 3) for batch in config.mlp_batches]
    for case in cases:
        found += device_rows(case, repeats=config.repeats)
    found += quickstart_rows(small, steps=config.steps, repeats=config.repeats)
    report("parallel", "python -m experiments.benchmarks.parallel", found, write=config.write and not config.smoke)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
