"""Handwritten digits from noise: data, process, network, loss, training, sampling and scores, in this order.

    python -m experiments.quickstart                   # 4 minutes on 2 CPU cores
    python -m experiments.quickstart --minutes 20 --run-dir runs/better
    python -m experiments.quickstart --smoke           # the same code on tiny sizes, in seconds

A U-Net learns 4,500 digits of 28 x 28 pixels, each with its class, by denoising score matching (Song et al. 2021,
arXiv:2011.13456) on the variance-preserving process, with v-prediction (Salimans and Ho 2022, arXiv:2202.00512).
Digits are then drawn by the reverse SDE and by the probability-flow ODE, and scored against 500 digits held out.
It writes digits.png, path.png, loss.png, metrics.jsonl, scores.json, config.json and checkpoints to runs/quickstart/.
Running it again resumes. Expected after 1,000 steps, on 80 digits by each sampler (one seed, standard errors):

    bits/dim of held-out digits given their class      2.79 +- 0.09
    classifier sure and right, real | SDE | ODE        0.69 | 0.51 +- 0.06 | 0.40 +- 0.05
    energy distance to real digits, floor | SDE | ODE  0.033 | -0.007 | -0.014 (the floor is the 95 % point)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax

from dgm_jax.data import batches, from_unit, load, source
from dgm_jax.likelihood import bits_per_dim, dequantize, log_likelihood
from dgm_jax.losses import diffusion_loss
from dgm_jax.networks import UNet
from dgm_jax.numerics import split
from dgm_jax.parameterizations import as_denoiser, error_ratio
from dgm_jax.processes import karras_grid, log_normal, log_snr_grid, variance_preserving
from dgm_jax.samplers import sample_ode, sample_sde
from dgm_jax.training import TrainState, ema_warmup, init_state, load_params
from dgm_jax.training.parallel import pmap_sampler, pmap_step, shard
from dgm_jax.typing import Denoiser
from experiments._budget import steps_that_fit, warmup_cosine
from experiments._digits import certainty, energy_distance, fit_classifier, noise_floor, show
from experiments._run import Run, open_run, parse, read_config, virtual_devices
from experiments._training import train_on_devices

BEGUN = time.monotonic()
LEVELS = 256
SHAPE = (28, 28, 1)
T_MIN = 1e-3
PROCESS = variance_preserving()


@dataclass(frozen=True)
class Config:
    """Train a small U-Net on handwritten digits, draw some, and score them."""

    minutes: float = 4.0  # for everything; more of them go into training
    channels: int = 32  # of the U-Net; its two levels, of 14 and 7 pixels, have `multipliers` times as many
    multipliers: tuple[int, ...] = (2, 3)
    batch: int = 32
    learning_rate: float = 3e-3  # at its highest
    ema_decay: float = 0.99
    sde_steps: int = 40  # of Heun, as for the ODE: two evaluations of the network each
    ode_steps: int = 18
    drawn: int = 80  # digits by each sampler
    coded: int = 32  # held-out digits whose bits/dim are measured
    coding_steps: int = 24  # of Bosh3, three evaluations each
    steps: int | None = None  # of training; None: as many as fit in `minutes`
    seed: int = 0
    run_dir: str = "runs/quickstart"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    minutes=0.1,
    channels=8,
    multipliers=(1, 1),
    batch=16,
    sde_steps=4,
    ode_steps=3,
    drawn=40,
    coded=8,
    coding_steps=4,
    run_dir="runs/quickstart-smoke",
    smoke=True,
)


# network and loss -----------------------------------------------------------------------------------------------


def network(config: Config) -> UNet:
    """Squares of 2 x 2 pixels enter as one, which makes it four times faster; `labels` are the digits' classes."""
    return UNet(config.channels, config.multipliers, blocks=1, groups=8, patch=2, num_classes=10)


def denoiser(net: UNet, params: Any, labels: jax.Array) -> Denoiser:
    """E[x_0 | x_t] for a batch of these classes: conditioning is closed over."""
    return as_denoiser(lambda x_t, t: net.apply(params, x_t, t, labels), PROCESS, prediction="v")  # type: ignore


def v_loss(net: UNet) -> Callable[..., jax.Array]:
    """Squared error of v at noise levels where digits take shape, log(sigma/alpha) about -0.4 +- 1.4."""
    weight, times = partial(error_ratio, PROCESS, prediction="v"), log_normal(PROCESS, -0.4, 1.4)

    def loss_fn(params: Any, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        key_levels, key_loss = split(keys)
        x_0 = dequantize(batch["image"], key_levels, levels=LEVELS)
        denoise = denoiser(net, params, batch["label"])
        return diffusion_loss(denoise, PROCESS, x_0, key_loss, weight=weight, times=times).mean()

    return loss_fn


# training -------------------------------------------------------------------------------------------------------


def train_network(config: Config, run: Run) -> TrainState:
    """Data-parallel over all local devices, from the newest checkpoint where there is one."""
    net = network(config)
    params = jax.jit(net.init)(jax.random.key(config.seed), jnp.zeros((1, *SHAPE)), jnp.zeros(1), jnp.zeros(1, int))

    def optimizer(steps: int) -> optax.GradientTransformation:
        schedule = warmup_cosine(steps, peak=config.learning_rate)
        return optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99), schedule)

    key = jax.random.key(config.seed + 1)
    digits = batches(source("mnist5k", "train"), config.batch, seed=config.seed)
    device_step = pmap_step(v_loss(net), optimizer(1), ema_decay=ema_warmup(config.ema_decay))

    def fitting() -> int:
        seconds = 60 * config.minutes - (time.monotonic() - BEGUN)
        evaluations = 2 * config.drawn * (config.sde_steps + config.ode_steps) + 9 * config.coded * config.coding_steps
        example = shard({"image": np.zeros((config.batch, *SHAPE), np.uint8), "label": np.zeros(config.batch, int)})
        state = init_state(params, optimizer(1), key)
        return steps_that_fit(device_step, state, example, seconds=seconds, reserve=evaluations / (3 * config.batch))

    steps = config.steps or run.measured("steps", fitting)
    return train_on_devices(run, device_step, init_state(params, optimizer(steps), key), digits, steps=steps)


def load_denoiser(run_dir: str | Path = "runs/quickstart") -> Callable[[jax.Array], Denoiser]:
    """The trained network of a run, as labels [batch] in 0 .. 9 -> denoiser; see README for the three lines."""
    net, params = network(read_config(run_dir, Config)), load_params(Path(run_dir) / "checkpoints")
    return partial(denoiser, net, params)


# sampling and likelihood ----------------------------------------------------------------------------------------


def draw(config: Config, params: Any, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Digits of the classes `labels` by the SDE and by the ODE, and ten states and estimates along the ODE."""
    net = network(config)
    ts_sde, ts = (karras_grid(PROCESS, steps, t_min=T_MIN) for steps in (config.sde_steps, config.ode_steps))
    shown = np.linspace(config.ode_steps // 3, config.ode_steps, 10).round().astype(int)

    def sampler(params: Any, keys: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        denoise, shape = denoiser(net, params, labels), (len(keys), *SHAPE)
        key_sde, key_ode = split(keys)
        by_sde = sample_sde(denoise, PROCESS, key_sde, shape, ts=ts_sde, solver=diffrax.Heun(), coordinates="noise")
        by_ode = sample_ode(denoise, PROCESS, key_ode, shape, ts=ts, coordinates="noise", save_path=True)
        states = jnp.asarray(by_ode.path)[shown]
        estimates = jax.lax.map(lambda at: denoise(at[0], jnp.full(len(keys), at[1])), (states, jnp.asarray(ts[shown])))
        return {"sde": by_sde.x, "ode": by_ode.x, "states": states, "estimates": estimates}

    out_axes = {"sde": 0, "ode": 0, "states": 1, "estimates": 1}
    keys = jax.random.split(jax.random.key(config.seed + 2), len(labels))
    return jax.tree.map(np.asarray, pmap_sampler(sampler, out_axes=out_axes)(params, keys, labels))


def bits(config: Config, params: Any, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Bits per dimension of each image given its class, by the probability-flow ODE with Hutchinson's trace."""
    net = network(config)
    ts = log_snr_grid(PROCESS, config.coding_steps, t_min=T_MIN, t_max=1.0)[::-1]

    def measure(params: Any, keys: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
        key_levels, key_probes = split(keys)
        x_0 = dequantize(images, key_levels, levels=LEVELS)
        denoise = denoiser(net, params, labels)
        # third order on equal steps of log-SNR: within 0.01 of the limit; Heun on karras_grid is 0.6 below it
        nats = log_likelihood(denoise, PROCESS, x_0, key_probes, ts=ts, probes=1, solver=diffrax.Bosh3())
        return bits_per_dim(nats, x_0[0].size, levels=LEVELS)

    keys = jax.random.split(jax.random.key(config.seed + 3), len(labels))
    return np.asarray(pmap_sampler(measure)(params, keys, images, labels))


def main(config: Config) -> None:
    """Train, draw, score, and show."""
    from experiments._digits_figures import digits_figure, loss_figure, path_figure

    virtual_devices()
    run = open_run(config)
    if run.done:
        print(f"{run.directory} is done: look at {run.directory}/digits.png. Another run: --run-dir, or --fresh.")
        return
    state = train_network(config, run)
    known, held_out = load(source("mnist5k", "train")), load(source("mnist5k", "test"))
    order = (
        np.argsort(held_out["label"].reshape(-1), kind="stable").reshape(10, -1).T.reshape(-1)
    )  # 0 .. 9, 0 .. 9, ...
    real, labels = held_out["image"][order], held_out["label"][order]

    print("Drawing and scoring ...", flush=True)
    drawn = draw(config, state.ema, labels[: config.drawn])
    coded = bits(config, state.ema, real[: config.coded], labels[: config.coded])
    classify = fit_classifier(known["image"], known["label"])
    floor, worst = noise_floor(np.concatenate([known["image"], real]), (config.drawn, len(real)))
    scores = {
        "bits_per_dim": float(coded.mean()),
        "bits_standard_error": float(coded.std(ddof=1) / np.sqrt(len(coded))),
        "real": {**certainty(classify(real), labels), "energy_distance": floor, "energy_distance_95": worst},
    }
    for name in ("sde", "ode"):
        images = np.asarray(from_unit(drawn[name]))
        certain = certainty(classify(images), labels[: config.drawn])
        scores[name] = {**certain, "energy_distance": energy_distance(images, real)}
    digits_figure(real, drawn, run.directory / "digits.png")
    path_figure(drawn, run.directory / "path.png")
    loss_figure(run.records(), run.directory / "loss.png")
    show(scores)
    run.finish(scores)
    print(f"{(time.monotonic() - BEGUN) / 60:.1f} minutes. Look at {run.directory}/digits.png and path.png")


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
