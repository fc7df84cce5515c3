"""What a sampler costs beyond its network: time of a jitted sampler over (steps x time of the jitted denoiser).

Two baselines, both the denoiser as the sampler calls it, with one time for the whole batch:

- calls: the jitted denoiser called `steps` times from Python, each call waited for. This is the required one. It
  pays a dispatch per call, which the sampler does not, so a ratio may fall below 1.
- loop: the same calls in one `lax.fori_loop`, without dispatch and without a solver: the stricter one, for
  information.

The ODE is Euler with one evaluation a step; the SDE is Euler-Maruyama with a key per example. One device.

    python -m experiments.benchmarks.sampler_overhead [--write]

Time: about 5 minutes on 2 cores. Expected: 1.0 to 1.1 for the MLP and 1.0 for the U-Net; bounds 1.10 and 1.03 (ODE),
1.20 and 1.05 (SDE). Measured: see docs/benchmarks.md.
"""

from dataclasses import replace

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Float

from dgm_jax.processes import uniform
from dgm_jax.samplers import sample_ode, sample_sde
from experiments.benchmarks._cases import PROCESS, Case, Config, mlp, tiny_unet, unet
from experiments.benchmarks._table import Row, ratio_row, report
from experiments.benchmarks._timing import rounds


def seconds(case: Case, *, steps: int, repeats: int) -> dict[str, Float[np.ndarray, " repeats"]]:
    """Times of both samplers and of both baselines, per round."""
    ts = uniform(steps, t_min=1e-3)
    key_x, key = jax.random.split(jax.random.key(2))
    keys = jax.random.split(key, case.shape[0])
    x = jax.random.normal(key_x, case.shape)

    @jax.jit
    def denoise(params, x_t, t):
        return case.denoiser(params)(x_t, jnp.full(len(x_t), t))

    def calls():
        # A finished call before the next, or independent calls would overlap.
        return [jax.block_until_ready(denoise(case.params, x, t)) for t in times][-1]

    @jax.jit
    def loop(params, x, ts):
        return jax.lax.fori_loop(0, steps, lambda i, state: denoise(params, state, ts[i]), x)

    @jax.jit
    def ode(params, keys):
        return sample_ode(case.denoiser(params), PROCESS, keys, case.shape, ts=ts, solver=diffrax.Euler()).x

    @jax.jit
    def sde(params, keys):
        return sample_sde(case.denoiser(params), PROCESS, keys, case.shape, ts=ts).x

    times = [jnp.asarray(t) for t in ts[:-1]]
    candidates = {
        "calls": calls,
        "loop": lambda: loop(case.params, x, jnp.asarray(ts)),
        "ode": lambda: ode(case.params, keys),
        "sde": lambda: sde(case.params, keys),
    }
    return rounds(candidates, repeats=repeats)


def rows(case: Case, *, steps: int, repeats: int, ode_bound: float, sde_bound: float) -> list[Row]:
    """The four ratios of one network."""
    s = seconds(case, steps=steps, repeats=repeats)
    label = f"{case.name}: {steps}-step"
    return [
        ratio_row(f"{label} ODE / {steps} calls", s["ode"], s["calls"], at_most=ode_bound),
        ratio_row(f"{label} SDE / {steps} calls", s["sde"], s["calls"], at_most=sde_bound),
        ratio_row(f"{label} ODE / fori_loop of {steps} calls", s["ode"], s["loop"]),
        ratio_row(f"{label} SDE / fori_loop of {steps} calls", s["sde"], s["loop"]),
    ]


def main(config: Config) -> None:
    """Time both networks and print the table."""
    net = tiny_unet() if config.smoke else None
    if config.smoke:
        config = replace(config, steps=3, mlp_batch=8, mlp_repeats=2, unet_batch=1, unet_repeats=1, write=False)
    table = rows(mlp(config.mlp_batch), steps=config.steps, repeats=config.mlp_repeats, ode_bound=1.10, sde_bound=1.20)
    table += rows(
        unet(config.unet_batch, net=net),
        steps=config.steps,
        repeats=config.unet_repeats,
        ode_bound=1.03,
        sde_bound=1.05,
    )
    report("sampler_overhead", "python -m experiments.benchmarks.sampler_overhead", table, write=config.write)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
