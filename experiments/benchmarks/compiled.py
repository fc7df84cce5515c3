"""What compiled programs show without a clock: memory of samplers, collectives, traces; and the time of the import.

- Temporary memory of a sampler (`compiled.memory_analysis()`) does not grow with its steps; the only difference
  allowed is the longer grid itself, one float32 a step and a few copies of it.
- A data-parallel optimiser step holds one all-reduce, of the gradients and the loss together; a sampler with fixed
  steps holds no collective at all (counted in the optimised HLO for 8 devices, which are virtual).
- Two calls of a jitted sampler with other parameters and keys trace it once.
- The time that importing `dgm_jax` and all its public modules adds to jax, flax, optax and diffrax, in fresh
  processes. The TFDS builders, which are classes of TFDS, are imported on use.

    python -m experiments.benchmarks.compiled [--write]

Time: about 1 minute on 2 cores. Expected: equal memory, 1, 1, 0, 0, 1, under 0.3 s. Measured: see docs/benchmarks.md.
"""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from dgm_jax.losses import diffusion_loss
from dgm_jax.parameterizations import error_ratio
from dgm_jax.processes import uniform
from dgm_jax.samplers import sample_ode, sample_sde
from dgm_jax.training import init_state
from dgm_jax.training.parallel import data_mesh, mesh_sampler, mesh_step, pmap_sampler, pmap_step, replicate, shard
from experiments.benchmarks._cases import PROCESS, Case, mlp
from experiments.benchmarks._table import Row, report

SAMPLERS = {"ODE": sample_ode, "SDE": sample_sde}
GRID_COPIES = 4  # of the grid: the times, the clock, the clock from its start, and the solver's own
IMPORT_TIME = """
import time
import diffrax, flax.linen, jax, optax
start = time.perf_counter()
import importlib, pkgutil
import dgm_jax
for module in pkgutil.iter_modules(dgm_jax.__path__, "dgm_jax."):
    importlib.import_module(module.name)
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Config:
    """Sizes of the run; `--smoke` imports once and writes nothing."""

    batch: int = 4096
    imports: int = 5
    write: bool = False
    smoke: bool = False


def sampler(case: Case, sample: Callable, steps: int) -> Callable[[Any, jax.Array], jax.Array]:
    """(params, keys) -> samples in `steps` fixed steps."""
    ts = uniform(steps, t_min=1e-3)

    def draw(params, keys):
        return sample(case.denoiser(params), PROCESS, keys, (len(keys), *case.shape[1:]), ts=ts).x

    return draw


def temporary_bytes(case: Case, sample: Callable, steps: int) -> int:
    """Temporary memory of the compiled sampler."""
    keys = jax.random.split(jax.random.key(0), case.shape[0])
    compiled = jax.jit(sampler(case, sample, steps)).lower(case.params, keys).compile()
    analysis = compiled.memory_analysis()
    if analysis is None:
        raise ValueError(f"Expected a backend that states its memory use; got {jax.default_backend()}.")
    return analysis.temp_size_in_bytes


def collectives(lowered: jax.stages.Lowered) -> list[str]:
    """The kinds of all collective operations in the optimised program."""
    kinds = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    return re.findall(
        rf"^\s+(?:ROOT )?%\S+ = .* ({kinds})(?:-start)?\(", lowered.compile().as_text() or "", re.MULTILINE
    )


def lowered_programs(case: Case, *, steps: int) -> dict[str, Callable[[], jax.stages.Lowered]]:
    """A training step and a sampler in both back ends, over all devices."""
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))

    def loss_fn(params, x_0, keys):
        weight = partial(error_ratio, PROCESS, prediction="v")
        return diffusion_loss(case.denoiser(params), PROCESS, x_0, keys, weight=weight).mean()

    state = init_state(case.params, optimizer, jax.random.key(1))
    batch = jnp.zeros(case.shape)
    keys = jax.random.split(jax.random.key(2), case.shape[0])
    mesh = data_mesh()
    draw = sampler(case, sample_sde, steps)
    by_pmap: Any = pmap_step(loss_fn, optimizer, ema_decay=0.999)
    by_mesh: Any = mesh_step(loss_fn, optimizer, ema_decay=0.999, mesh=mesh)
    return {
        "pmap_step": lambda: by_pmap.lower(replicate(state), shard(batch)),
        "mesh_step": lambda: by_mesh.lower(state, batch),
        "pmap_sampler": lambda: jax.jit(pmap_sampler(draw)).lower(case.params, keys),
        "mesh_sampler": lambda: jax.jit(mesh_sampler(draw, mesh)).lower(case.params, keys),
    }


def traces(case: Case, sample: Callable, *, steps: int) -> int:
    """Traces of a jitted sampler in two calls with other parameters and other keys."""
    count = []
    draw = sampler(case, sample, steps)

    @jax.jit
    def counted(params, keys):
        count.append(1)
        return draw(params, keys)

    for seed in (0, 1):
        params = jax.tree.map(lambda leaf, scale=1.0 + seed: scale * leaf, case.params)
        counted(params, jax.random.split(jax.random.key(seed), case.shape[0]))
    return len(count)


def import_seconds(repeats: int) -> list[float]:
    """Seconds that importing `dgm_jax` adds, each in a fresh process; the first, which reads the disk, is dropped."""
    outputs = [
        subprocess.run([sys.executable, "-c", IMPORT_TIME], check=True, capture_output=True, text=True).stdout
        for _ in range(1 + repeats)
    ]
    return [float(output) for output in outputs[1:]]


def main(config: Config) -> None:
    """Read everything off the compiled programs and print the table."""
    jax.config.update("jax_num_cpu_devices", 8)
    case = mlp(16 if config.smoke else config.batch)
    rows = []
    for name, sample in SAMPLERS.items():
        few, many = (temporary_bytes(case, sample, steps) for steps in (10, 1000))
        grid = GRID_COPIES * 4 * (1000 - 10)
        measured = f"{few:,} and {many:,} bytes"
        rows.append(
            Row(
                f"temporary memory of {name}, 10 and 1,000 steps",
                measured,
                f"grows by at most the grid, {grid:,} bytes",
                many - few <= grid,
            )
        )
    for name, lowered in lowered_programs(case, steps=10).items():
        found = collectives(lowered())
        expected = ["all-reduce"] if name.endswith("step") else []
        rows.append(
            Row(f"collectives in {name}, 8 devices", str(len(found)), f"exactly {len(expected)}", found == expected)
        )
    for name, sample in SAMPLERS.items():
        count = traces(case, sample, steps=10)
        rows.append(Row(f"traces of {name} in two calls", str(count), "exactly 1", count == 1))
    seconds = import_seconds(1 if config.smoke else config.imports)
    low, middle, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    rows.append(
        Row("import of dgm_jax", f"{middle:.3f} s ({low:.3f} to {high:.3f})", "under 0.3 s", bool(middle < 0.3))
    )
    report("compiled", "python -m experiments.benchmarks.compiled", rows, write=config.write and not config.smoke)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
