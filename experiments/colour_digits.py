"""A class-conditional network on colour digits, which can be asked without a class too: guidance experiments share it.

    python -m experiments.colour_digits            # 15 minutes on 2 CPU cores
    python -m experiments.colour_digits --smoke    # the same code on tiny sizes, in seconds

A U-Net of 1.5 million parameters learns 4,500 digits of 16 x 16 x 3 pixels, each in one random saturated colour, by
v-prediction on the variance-preserving process. A class is dropped for the null label with probability 0.15, so that
one network has both estimates that classifier-free guidance needs (Ho & Salimans 2022, arXiv:2207.12598, algorithm 1).
It writes digits.png, metrics.jsonl, scores.json, config.json and checkpoints to runs/colour_digits/. Running it again
resumes. Expected: a loss of 0.074 over the last tenth of training, and 0.85 of digits drawn of the class asked for.
"""

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

from dgm_jax.data import batches, source
from dgm_jax.losses import diffusion_loss
from dgm_jax.networks import UNet
from dgm_jax.numerics import expand_to, split
from dgm_jax.parameterizations import as_denoiser, error_ratio
from dgm_jax.parameterizations.guidance import drop_conditions
from dgm_jax.processes import karras_grid, log_normal, variance_preserving
from dgm_jax.samplers import sample_ode
from dgm_jax.training import TrainState, ema_warmup, init_state, load_params
from dgm_jax.training.parallel import pmap_sampler, pmap_step
from dgm_jax.typing import Data, Denoiser, PerExample
from experiments._budget import warmup_cosine
from experiments._colour_digits import CLASSES, NULL, SHAPE, coloured
from experiments._run import Run, begin, parse, read_config
from experiments._training import train_on_devices

T_MIN = 1e-3
PROCESS = variance_preserving()
STAND_IN = "stand-in"  # for a run's directory: no network, for --smoke
Conditional = Callable[[Data, PerExample, jax.Array], Data]  # (x_t, t, labels) -> E[x_0 | x_t, label]


@dataclass(frozen=True)
class Config:
    """Train a small U-Net on colour digits, a share of them without their class."""

    channels: int = 32  # of the U-Net; its two levels, of 8 and 4 pixels, have `multipliers` times as many
    multipliers: tuple[int, ...] = (2, 3)
    batch: int = 64
    steps: int = 4000
    learning_rate: float = 2e-3  # at its highest
    ema_decay: float = 0.998
    dropped: float = 0.15  # share of classes that training does not see
    drawn: int = 100  # digits that are shown, as many of each class
    sampling_steps: int = 24  # of Heun on the probability-flow ODE
    seed: int = 0
    run_dir: str = "runs/colour_digits"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    channels=8,
    multipliers=(1, 1),
    batch=16,
    steps=20,
    drawn=20,
    sampling_steps=3,
    run_dir="runs/colour_digits-smoke",
    smoke=True,
)


# network and loss -----------------------------------------------------------------------------------------------


def network(config: Config) -> UNet:
    """Squares of 2 x 2 pixels enter as one, for speed; label 10 is the null label."""
    return UNet(config.channels, config.multipliers, blocks=1, groups=8, patch=2, num_classes=CLASSES)


def conditional(net: UNet, params: Any) -> Conditional:
    """E[x_0 | x_t, label] as a function of all three; label NULL is no class."""

    def denoise_given(x_t: Data, t: PerExample, labels: jax.Array) -> Data:
        denoise = as_denoiser(lambda x, s: net.apply(params, x, s, labels), PROCESS, prediction="v")  # type: ignore
        return denoise(x_t, t)

    return denoise_given


def v_loss(net: UNet, *, dropped: float) -> Callable[..., jax.Array]:
    """Squared error of v where colours and shapes are decided, log(sigma/alpha) about 0 +- 1.6; hues are drawn anew."""
    weight, times = partial(error_ratio, PROCESS, prediction="v"), log_normal(PROCESS, 0.0, 1.6)

    def loss_fn(params: Any, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        key_hue, key_drop, key_loss = split(keys, 3)
        x_0 = coloured(batch["image"], jax.vmap(jax.random.uniform)(key_hue))
        labels = drop_conditions(batch["label"].reshape(-1), jnp.asarray(NULL), key_drop, rate=dropped)
        denoise_given = conditional(net, params)
        denoise = lambda x_t, t: denoise_given(x_t, t, labels)  # noqa: E731
        return diffusion_loss(denoise, PROCESS, x_0, key_loss, weight=weight, times=times).mean()

    return loss_fn


# training -------------------------------------------------------------------------------------------------------


def train_network(config: Config, run: Run) -> TrainState:
    """Data-parallel over all local devices, from the newest checkpoint where there is one."""
    net = network(config)
    params = jax.jit(net.init)(jax.random.key(config.seed), jnp.zeros((1, *SHAPE)), jnp.zeros(1), jnp.zeros(1, int))
    schedule = warmup_cosine(config.steps, peak=config.learning_rate)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99), schedule)
    loss = v_loss(net, dropped=config.dropped)
    device_step = pmap_step(loss, optimizer, ema_decay=ema_warmup(config.ema_decay))
    state = init_state(params, optimizer, jax.random.key(config.seed + 1))
    digits = batches(source("mnist5k", "train"), config.batch, seed=config.seed)
    return train_on_devices(run, device_step, state, digits, steps=config.steps)


def load_conditional(run_dir: str | Path = "runs/colour_digits") -> Conditional:
    """The trained network of a run as denoise_given(x_t, t, labels [batch] in 0 .. 9, or NULL for no class).

    `STAND_IN` is the exact denoiser of pixels N(m, 1/4), with a mean m of its own for each class.
    """
    if str(run_dir) == STAND_IN:
        return _stand_in
    if not (Path(run_dir) / "checkpoints").exists():
        raise SystemExit(
            f"Expected a trained network in {run_dir}, as colour digits are drawn from it; got none. "
            f"First: python -m experiments.colour_digits --run-dir {run_dir}"
        )
    return conditional(network(read_config(run_dir, Config)), load_params(Path(run_dir) / "checkpoints"))


def load_colour_denoiser(run_dir: str | Path = "runs/colour_digits") -> Callable[[jax.Array], Denoiser]:
    """The trained network of a run, as labels [batch] -> denoiser under PROCESS."""
    denoise_given = load_conditional(run_dir)
    return lambda labels: lambda x_t, t: denoise_given(x_t, t, labels)


def _stand_in(x_t: Data, t: PerExample, labels: jax.Array) -> Data:
    mean = expand_to(jnp.where(labels == NULL, -0.5, labels / 10.0 - 1.0), x_t).astype(x_t.dtype)
    alpha, variance = PROCESS.alpha(t), PROCESS.variance(t)
    gain = expand_to(alpha / (alpha**2 + 4 * variance), x_t)
    return mean + gain * (x_t - expand_to(alpha, x_t) * mean)


# sampling -------------------------------------------------------------------------------------------------------


def draw(config: Config, denoise_given: Conditional) -> np.ndarray:
    """Digits of the classes 0 .. 9 in turn, [drawn, 16, 16, 3], by the probability-flow ODE."""
    ts = karras_grid(PROCESS, config.sampling_steps, t_min=T_MIN)

    def sampler(_: Any, keys: jax.Array, labels: jax.Array) -> jax.Array:
        denoise = jax.jit(lambda x_t, t: denoise_given(x_t, t, labels))
        shape = (len(keys), *SHAPE)
        return sample_ode(denoise, PROCESS, keys, shape, ts=ts, coordinates="noise", solver=diffrax.Heun()).x

    keys = jax.random.split(jax.random.key(config.seed + 2), config.drawn)
    return np.asarray(pmap_sampler(sampler)({}, keys, np.arange(config.drawn) % CLASSES))


def main(config: Config) -> None:
    """Train, draw and show."""
    run = begin(config)
    if run.said_done("digits.png"):
        return
    state = train_network(config, run)
    images = draw(config, conditional(network(config), state.ema))
    digits_figure(images, run.directory / "digits.png")
    losses = [record["loss"] for record in run.records()]
    late = losses[-max(len(losses) // 10, 1) :]
    scores = {"loss, last tenth of training": [float(np.mean(late)), float(np.std(late) / np.sqrt(len(late)))]}
    run.finish(scores)
    print(f"{scores}. Look at {run.directory}/digits.png")


def digits_figure(images: np.ndarray, path: Path) -> None:
    """Ten columns, one for each class."""
    import matplotlib

    from experiments._figures import STYLE, figure, save, tiled

    with matplotlib.rc_context(STYLE):
        fig = figure(4.0, 0.3 + 0.4 * (len(images) // 10))
        ax = fig.subplots()
        ax.imshow((np.clip(tiled(images, 10), -1, 1) + 1) / 2, interpolation="nearest")
        ax.set_xticks(16 * np.arange(10) + 7.5, [str(i) for i in range(10)])
        ax.set(xlabel="class asked for", yticks=[])
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        save(fig, path)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
