"""dgm_jax beside PyTorch and diffusers on a CPU: same networks, same parameters, batch and evaluations, by turns.

- 100-step DDIM of a 3 x 128 MLP: `solve_ode` with Euler in coordinates "noise" against diffusers' `DDIMScheduler` in
  its usual loop over a PyTorch MLP. Both start from the same noise and end at the same samples, which is checked.
- A U-Net of 1.6 M parameters on 64 x 32 x 32 x 3: the forward pass, and a training step (noise prediction, Adam, EMA).
  dgm_jax is data-parallel over one virtual device per core, as every experiment here is. PyTorch is eager, with all
  cores, fused Adam and foreach EMA, in both of its memory formats: the faster one counts.

PyTorch's networks hold the same parameters (see `_torch`) and their outputs are checked. Ratios are PyTorch's time
over dgm_jax's: above 1, dgm_jax is the faster. Each turn rests first, so that no idle thread pool spins beside it.

    pip install "dgm_jax[bench,experiments]"
    python -m experiments.benchmarks.peers [--write]

Time: about 4 minutes on 2 cores. Expected: DDIM at least 1.8, forward above 1, training step at least 1. Measured:
see docs/benchmarks.md.
"""

# pyright: reportMissingImports=false
# torch and diffusers come with the extra "bench" alone.
import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
import tyro
from diffusers import DDIMScheduler

from dgm_jax.losses import diffusion_loss
from dgm_jax.networks import UNet
from dgm_jax.parameterizations import error_ratio
from dgm_jax.processes import from_betas
from dgm_jax.samplers import solve_ode
from dgm_jax.training import init_state
from dgm_jax.training.parallel import pmap_sampler, pmap_step, replicate, shard
from experiments.benchmarks import _torch
from experiments.benchmarks._cases import PROCESS, Case, case, mlp
from experiments.benchmarks._table import Row, cores, ratio_row, report
from experiments.benchmarks._timing import rounds

EMA_DECAY = 0.999
LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Config:
    """Sizes of the run; `--smoke` takes seconds, writes nothing, and its ratios mean nothing."""

    steps: int = 100
    mlp_batch: int = 4096
    unet_batch: int = 64
    channels: int = 32
    multipliers: tuple[int, ...] = (1, 2, 2)
    blocks: int = 2
    attention: tuple[int, ...] = (8,)
    groups: int = 8
    repeats: int = 11
    rest: float = 0.3
    write: bool = False
    smoke: bool = False


def ddim_rows(config: Config) -> list[Row]:
    """DDIM of the MLP: on one device, and split over one virtual device per core."""
    points = mlp(config.mlp_batch)
    network = _torch.MLP(2, (128, 128, 128))
    _torch.load(network, points.params)
    scheduler = DDIMScheduler(num_train_timesteps=1000, clip_sample=False)
    scheduler.set_timesteps(config.steps)
    process = from_betas(scheduler.betas.numpy())
    # diffusers counts its chain from 0, and ends with the estimate of x_0: t = 0 here.
    ts = np.append((scheduler.timesteps.numpy() + 1) / 1000, 0.0).astype(np.float32)
    x = np.random.default_rng(0).normal(size=points.shape).astype(np.float32)

    def ddim(params, x):
        denoise = points.denoiser(params, process, "noise")
        return solve_ode(denoise, process, x, ts=ts, solver=diffrax.Euler(), coordinates="noise").x

    one_device = jax.jit(ddim)
    all_devices = pmap_sampler(lambda params, keys, x: ddim(params, x))
    keys = jax.random.split(jax.random.key(0), len(x))
    start = jnp.asarray(x)

    @torch.inference_mode()
    def diffusers_ddim():
        state = torch.tensor(x)
        for step in scheduler.timesteps:
            noise = network(state, ((step + 1) / 1000).expand(len(state)))
            state = scheduler.step(noise, step, state).prev_sample
        return state

    candidates = {
        "diffusers": diffusers_ddim,
        "one device": lambda: one_device(points.params, start),
        "all devices": lambda: all_devices(points.params, keys, start),
    }
    for name in ("one device", "all devices"):
        check_equal(f"DDIM samples, {name}", candidates[name](), diffusers_ddim().numpy())
    s = rounds(candidates, repeats=config.repeats, rest=config.rest)
    label = f"{config.steps}-step DDIM of {points.name}: diffusers / dgm_jax"
    return [
        ratio_row(f"{label}, {cores()} virtual devices", s["diffusers"], s["all devices"], at_least=1.8),
        ratio_row(f"{label}, one device", s["diffusers"], s["one device"]),
    ]


def unet_rows(config: Config) -> list[Row]:
    """Forward pass and training step of the U-Net."""
    options = (config.channels, config.multipliers, config.blocks, config.attention)
    images = case("U-Net", UNet(*options, groups=config.groups), (config.unet_batch, 32, 32, 3))
    network = _torch.UNet((32, 3), *options, config.groups)
    _torch.load(network, images.params)
    size = sum(leaf.size for leaf in jax.tree.leaves(images.params))
    peer_size = sum(parameter.numel() for parameter in network.parameters())
    if size != peer_size:
        raise ValueError(f"Expected equal parameter counts, as the networks are the same; got {size}, {peer_size}.")

    x = np.random.default_rng(1).normal(size=images.shape).astype(np.float32)
    formats = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
    forward: dict[str, Callable[[], Any]] = {"dgm_jax": jax_forward(images, x)}
    step: dict[str, Callable[[], Any]] = {"dgm_jax": jax_step(images, x)}
    for name, memory_format in formats.items():
        forward[name] = torch_forward(network, x, memory_format)
        step[name] = torch_step(network, x, memory_format)
        check_equal(f"U-Net outputs, {name}", forward["dgm_jax"](), forward[name]().permute(0, 2, 3, 1).numpy())

    label = f"U-Net of {size / 1e6:.2f} M parameters, {' x '.join(map(str, images.shape))}"
    table = []
    for what, candidates, bound in (("forward", forward, {"above": 1.0}), ("training step", step, {"at_least": 1.0})):
        s = rounds(candidates, repeats=config.repeats, rest=config.rest)
        best = min(formats, key=lambda name: np.median(s[name]))
        table += [
            ratio_row(
                f"{label}: {what}, PyTorch ({name}) / dgm_jax", s[name], s["dgm_jax"], **bound if name == best else {}
            )
            for name in formats
        ]
    return table


def jax_forward(images: Case, x: np.ndarray) -> Callable[[], jax.Array]:
    """The network, data-parallel over all devices."""
    apply = pmap_sampler(lambda params, keys, x_t, t: images.net.apply(params, x_t, t))
    keys = jax.random.split(jax.random.key(0), len(x))
    params, x_t, t = images.params, jnp.asarray(x), jnp.full(len(x), 0.5)
    return lambda: apply(params, keys, x_t, t)


def jax_step(images: Case, x: np.ndarray) -> Callable[[], object]:
    """One optimiser step, data-parallel over all devices; every call trains on."""

    def loss_fn(params, x_0, keys):
        weight = partial(error_ratio, PROCESS, prediction="noise")
        return diffusion_loss(images.denoiser(params, PROCESS, "noise"), PROCESS, x_0, keys, weight=weight).mean()

    optimizer = optax.adam(LEARNING_RATE)
    train = pmap_step(loss_fn, optimizer, ema_decay=EMA_DECAY)
    state = replicate(init_state(images.params, optimizer, jax.random.key(0)))
    batch = shard(jnp.asarray(x))

    def step():
        nonlocal state
        state, metrics = train(state, batch)
        return state, metrics

    return step


def torch_forward(
    network: _torch.UNet, x: np.ndarray, memory_format: torch.memory_format
) -> Callable[[], torch.Tensor]:
    """The network in evaluation."""
    network = copy.deepcopy(network).to(memory_format=memory_format)
    x_t = torch.tensor(x).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)
    t = torch.full((len(x),), 0.5)

    @torch.inference_mode()
    def forward():
        return network(x_t, t)

    return forward


def torch_step(network: _torch.UNet, x: np.ndarray, memory_format: torch.memory_format) -> Callable[[], torch.Tensor]:
    """One step of noise prediction under VP with beta(t) = 0.1 + 19.9 t, Adam and EMA; every call trains on."""
    network = copy.deepcopy(network).to(memory_format=memory_format)
    average = [parameter.detach().clone() for parameter in network.parameters()]
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE, fused=True)
    x_0 = torch.tensor(x).permute(0, 3, 1, 2).contiguous(memory_format=memory_format)

    def step():
        t = 1e-3 + (1 - 1e-3) * torch.rand(len(x_0))
        log_alpha = -(0.1 * t + 19.9 * t**2 / 2) / 2
        alpha, sigma = (c[:, None, None, None] for c in (log_alpha.exp(), (-torch.expm1(2 * log_alpha)).sqrt()))
        noise = torch.randn_like(x_0)
        loss = torch.nn.functional.mse_loss(network(alpha * x_0 + sigma * noise, t), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch._foreach_lerp_(average, [parameter.detach() for parameter in network.parameters()], 1 - EMA_DECAY)
        return loss.detach()

    return step


def check_equal(what: str, ours: jax.Array, theirs: np.ndarray) -> None:
    """Raise `ValueError` unless both libraries computed the same."""
    difference = np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs)
    if not difference < 1e-3:
        raise ValueError(f"Expected equal {what}, as both run one algorithm; got relative {difference=}.")


def main(config: Config) -> None:
    """Time both networks and print the table."""
    if config.smoke:
        config = replace(
            config,
            steps=10,
            mlp_batch=16,
            unet_batch=4,
            channels=8,
            multipliers=(1,),
            blocks=1,
            attention=(),
            repeats=1,
            rest=0.0,
        )
    jax.config.update("jax_num_cpu_devices", cores())
    torch.set_num_threads(cores())
    rows = ddim_rows(config) + unet_rows(config)
    command = "python -m experiments.benchmarks.peers"
    report("peers", command, rows, write=config.write and not config.smoke, packages=("torch", "diffusers"))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
