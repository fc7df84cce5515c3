"""Every sampler by name: what it costs beyond its network, and what it takes to compile.

- Overhead: time of the jitted sampler over (its evaluations x time of the jitted denoiser, called one by one and
  waited for), for an MLP of 3 x 128 on a batch of 4096. Annealed Langevin dynamics is counted like the others.
- Compilation: tracing, lowering and compiling a sampler of the quickstart's U-Net, over the same for a hand-written
  `lax.scan` of DDIM on that U-Net, which holds one copy of the network. The steps of a sampler are one loop, so that
  what it compiles are its copies of the network: one in most, one more where a corrector or the start has its own.

    python -m experiments.benchmarks.recipes [--write]

Time: about 8 minutes on 2 cores. Bounds: 1.10 for the overhead, 2 for compilation. Measured: see docs/benchmarks.md.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float

from dgm_jax import samplers
from dgm_jax.processes import uniform
from dgm_jax.samplers import Ancestral, Langevin, ReverseDiffusion, UnderdampedLangevin
from experiments.benchmarks._cases import PROCESS, Case, Config, mlp, tiny_unet, unet
from experiments.benchmarks._table import Row, ratio_row, report
from experiments.benchmarks._timing import rounds

CORRECTED = partial(samplers.predictor_corrector, corrector=Langevin(0.16))
RECIPES: dict[str, Callable] = {
    "ddpm, posterior": samplers.ddpm,
    "ddpm, beta": partial(samplers.ddpm, variance="beta"),
    "ddim, eta = 0": samplers.ddim,
    "ddim, eta = 0.5": partial(samplers.ddim, eta=0.5),
    "edm_heun": samplers.edm_heun,
    "edm_heun, churn": partial(samplers.edm_heun, churn=10.0),
    "dpm_solver_pp_2m": samplers.dpm_solver_pp_2m,
    "dpm_solver_pp_2m_sde": samplers.dpm_solver_pp_2m_sde,
    "deis, order 2": partial(samplers.deis, order=2),
    "deis, order 3": samplers.deis,
    "predictor_corrector, Euler-Maruyama": partial(CORRECTED, predictor=diffrax.Euler()),
    "predictor_corrector, reverse diffusion": partial(CORRECTED, predictor=ReverseDiffusion()),
    "predictor_corrector, ancestral": partial(CORRECTED, predictor=Ancestral()),
    "predictor_corrector, underdamped": partial(
        samplers.predictor_corrector, predictor=ReverseDiffusion(), corrector=UnderdampedLangevin(0.5, 2)
    ),
    "annealed_langevin": partial(samplers.annealed_langevin, epsilon=1e-5, steps=2),
}


def overhead_rows(case: Case, *, steps: int, repeats: int) -> list[Row]:
    """The samplers' times over those of their evaluations."""
    ts = uniform(steps, t_min=1e-3)
    keys = jax.random.split(jax.random.key(2), case.shape[0])
    x, t = jax.random.normal(jax.random.key(3), case.shape), jnp.asarray(0.5)
    denoise = jax.jit(lambda params, x, t: case.denoiser(params)(x, jnp.full(len(x), t)))

    def calls() -> None:
        for _ in range(steps):
            jax.block_until_ready(denoise(case.params, x, t))

    candidates: dict[str, Callable] = {"calls": calls}
    evaluations = {}
    for name, recipe in RECIPES.items():
        run = jax.jit(
            lambda params, keys, recipe=recipe: recipe(case.denoiser(params), PROCESS, keys, case.shape, ts=ts)
        )
        evaluations[name] = int(run(case.params, keys).evaluations)
        candidates[name] = lambda run=run: run(case.params, keys).x
    s = rounds(candidates, repeats=repeats)
    return [
        ratio_row(f"{case.name}: `{name}` / its {n} calls", s[name] / n, s["calls"] / steps, at_most=1.10)
        for name, n in evaluations.items()
    ]


def by_hand(case: Case, ts: np.ndarray) -> Callable:
    """DDIM as one `lax.scan`."""
    alpha, sigma = (np.asarray(f(jnp.asarray(ts))) for f in (PROCESS.alpha, PROCESS.sigma))
    levels = tuple(jnp.asarray(v) for v in (ts[:-1], alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]))

    def run(params: Any, keys: jax.Array) -> jax.Array:
        denoise = case.denoiser(params)

        def step(x, now):
            t, a_t, s_t, a_s, s_s = now
            estimate = denoise(x, jnp.full(len(x), t))
            return a_s * estimate + s_s / s_t * (x - a_t * estimate), None

        x = jax.vmap(lambda key: jax.random.normal(key, case.shape[1:]))(keys)
        return jax.lax.scan(step, x, levels)[0]

    return run


def compile_rows(case: Case, *, steps: int, repeats: int) -> list[Row]:
    """Seconds from the function to the executable, over those of the scan; every time anew."""
    ts = np.asarray(uniform(steps, t_min=1e-3))
    keys = jax.random.split(jax.random.key(2), case.shape[0])
    functions: dict[str, Callable] = {"scan": by_hand(case, ts)}
    for name, recipe in RECIPES.items():
        functions[name] = lambda params, keys, recipe=recipe: (
            recipe(case.denoiser(params), PROCESS, keys, case.shape, ts=ts).x
        )

    def seconds(function: Callable) -> float:
        jax.clear_caches()
        start = time.perf_counter()
        jax.jit(function).lower(case.params, keys).compile()
        return time.perf_counter() - start

    seconds(functions["scan"])  # what the first compilation of a process sets up
    s: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            s[name].append(seconds(function))
    times: dict[str, Float[np.ndarray, " repeats"]] = {name: np.array(values) for name, values in s.items()}
    return [
        ratio_row(f"{case.name}, compiling: `{name}` / scan", times[name], times["scan"], at_most=2.0)
        for name in RECIPES
    ]


def main(config: Config) -> None:
    """Time and compile every recipe and print the table."""
    net = tiny_unet() if config.smoke else None
    if config.smoke:
        config = replace(config, steps=4, mlp_batch=8, mlp_repeats=1, unet_batch=1, unet_repeats=1, write=False)
    table = overhead_rows(mlp(config.mlp_batch), steps=config.steps, repeats=max(config.mlp_repeats // 2, 1))
    table += compile_rows(
        unet(config.unet_batch, net=net), steps=config.steps, repeats=max(config.unet_repeats // 2, 1)
    )
    report("recipes", "python -m experiments.benchmarks.recipes", table, write=config.write)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
