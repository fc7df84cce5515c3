"""Variational autoencoders: Kingma & Welling 2014 (arXiv:1312.6114), figure 2 (for digits) and figure 4b.

    python -m experiments.vae_digits              # about 6 minutes on 2 CPU cores
    python -m experiments.vae_digits --smoke      # the same code on tiny sizes, in seconds

Figure 2: the bound on training and test digits against the number of training digits seen, for 3, 5, 10, 20 and 200
latents. Figure 4b: the means of the decoder with two latents on a grid of normal quantiles. Networks are the paper's:
one hidden layer of 500 with tanh on either side, Bernoulli decoders, batches of 100, one draw.

Deviations: 4,500 training and 500 test digits for 60,000 and 10,000; pixels drawn anew each epoch with their grey
levels as probabilities, for grey levels; Adam at 1e-3 for Adagrad, and no weight decay: Adagrad at the paper's best
rate, 0.01, reaches a test bound of -123 nats after 80 epochs with 20 latents, Adam -112.

Expected after 200 epochs, seed 0, with standard errors over digits (docs/vaes.md has all): a test bound of
-143.0 +- 2.3 nats with 3 latents, -126.8 +- 2.0 with 5, -113.7 +- 1.6 with 10, -108.5 +- 1.3 with 20 and -109.5 +- 1.2
with 200; training -136.1, -117.7, -101.8, -98.4 and -101.5.
"""

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree
from scipy.stats import norm

from dgm_jax.losses.variational import Elbo, gaussian_elbo
from experiments._run import Run, begin, parse
from experiments._vae import (
    Autoencoder,
    Digits,
    Images,
    dense,
    digits,
    epochs,
    kept,
    make_epoch,
)

PICTURES = ("bound.png", "manifold.png")


@dataclass(frozen=True)
class Config:
    """The bound against digits seen, for each number of latents; the manifold of two."""

    latents: tuple[int, ...] = (3, 5, 10, 20, 200)
    hidden: int = 500
    epochs: int = 200
    batch: int = 100
    rate: float = 1e-3  # Adam's
    observed: int = 16  # epochs, evenly spaced in their logarithm, after which the bound is measured
    grid: int = 20  # decoder means a side
    train: int = 4500  # digits
    seed: int = 0
    run_dir: str = "runs/vae_digits"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    latents=(2, 4),
    hidden=16,
    epochs=4,
    batch=20,
    observed=3,
    grid=5,
    train=100,
    run_dir="runs/vae_digits-smoke",
    smoke=True,
)


def bound(model: Autoencoder, params: PyTree, x: Images, key: Array) -> Elbo:
    """Both terms of the bound of each digit."""
    return gaussian_elbo(partial(model.encode, params), partial(model.log_likelihood, params), x, key)


def observed_epochs(config: Config) -> set[int]:
    """Whole numbers from 1 to `epochs`, about even in their logarithm, both ends included."""
    return {round(epoch) for epoch in np.geomspace(1, config.epochs, config.observed)}


def train(config: Config, latent: int, known: Digits, held_out: Digits) -> tuple[PyTree, list[dict[str, float]]]:
    """Parameters after the last epoch, and the mean bound with its standard error over digits along the way."""
    model, optimizer = dense((config.hidden,), latent), optax.adam(config.rate)
    epoch = make_epoch(lambda params, x, key: -bound(model, params, x, key).value.mean(), optimizer, batch=config.batch)
    measure = jax.jit(lambda params, x, key: bound(model, params, x, key))
    sets = {"train": known.binary(), "test": held_out.binary()}
    key_init, key_train, key_score = jax.random.split(jax.random.key(config.seed), 3)
    curve, watched = [], observed_epochs(config)
    params = initial = model.init(key_init)
    for number, params in epochs(epoch, optimizer, initial, known.grey, key_train, count=config.epochs):
        if number in watched:
            row: dict[str, float] = {"seen": number * (len(known.grey) // config.batch) * config.batch}
            for name, x in sets.items():
                terms = measure(params, x, key_score)
                row[name], row[f"{name}_kl"] = float(terms.value.mean()), float(terms.kl.mean())
                row[f"{name}_error"] = float(terms.value.std() / math.sqrt(len(x)))
            curve.append(row)
    return params, curve


def manifold(params: PyTree, model: Autoencoder, side: int) -> Images:
    """Decoder means at z with normal quantiles (i + 1/2)/side: the first latent from left to right, rows downwards."""
    ticks = norm.ppf((np.arange(side) + 0.5) / side)
    across, down = np.meshgrid(ticks, ticks[::-1])
    z = jnp.asarray(np.stack([across, down], axis=-1).reshape(-1, 2), jnp.float32)
    return jax.nn.sigmoid(model.decode(params, z))


def compute(config: Config, run: Run) -> Images:
    """Every curve that the run does not have yet, and the manifold."""
    known, held_out = digits(f"train[:{config.train}]"), digits("test")
    made = {record["latent"] for record in run.records()}
    for latent in config.latents:
        if latent not in made:
            _, curve = train(config, latent, known, held_out)
            run.log(latent=latent, curve=curve)
            print(f"{latent} latents: {_best(curve)}", flush=True)
    params = kept(run, "manifold", lambda: train(config, 2, known, held_out)[0])
    return manifold(params, dense((config.hidden,), 2), config.grid)


def _best(curve: list[dict[str, float]]) -> str:
    best, last = max(curve, key=lambda row: row["test"]), curve[-1]
    return (
        f"test {best['test']:.1f} +- {best['test_error']:.1f} at best, after {best['seen']:,} digits; "
        f"in the end test {last['test']:.1f}, train {last['train']:.1f}, KL {last['test_kl']:.1f}"
    )


def main(config: Config) -> None:
    """Train, measure and plot."""
    run = begin(config, devices=1)
    if run.said_done(*PICTURES):
        return
    means = compute(config, run)
    curves = {record["latent"]: record["curve"] for record in run.records()}
    plot_bound(curves, run.directory / "bound.png")
    plot_manifold(means, config.grid, run.directory / "manifold.png")
    for latent, curve in curves.items():
        print(f"{latent:4} latents: {_best(curve)}")
    run.finish({str(latent): {"best": max(row["test"] for row in c), "last": c[-1]} for latent, c in curves.items()})
    print(f"Look at {run.directory}/bound.png and manifold.png")


def plot_bound(curves: dict[int, list[dict[str, Any]]], path: Path) -> None:
    """Figure 2: one panel for each number of latents."""
    import matplotlib

    from experiments._figures import BLUE, STYLE, VERMILION, figure, save

    with matplotlib.rc_context(STYLE):
        fig = figure(8.2, 2.5)
        axes = fig.subplots(1, len(curves), sharey=True, squeeze=False)[0]
        for ax, (latent, curve) in zip(axes, curves.items(), strict=True):
            seen = [row["seen"] for row in curve]
            for name, color, style in (("train", BLUE, "--"), ("test", VERMILION, "-")):
                ax.plot(seen, [row[name] for row in curve], style, color=color, label=name)
            ax.set(title=f"{latent} latents", xscale="log", xlabel="digits seen")
            ax.grid(color="0.9", lw=0.6)
        low = max(-175.0, min(row["test"] for curve in curves.values() for row in curve) - 5)
        axes[0].set(ylabel="bound on log p(x), nats", ylim=(low, None))
        axes[0].legend(frameon=False, loc="upper left")
        save(fig, path, dpi=150)


def plot_manifold(means: Images, side: int, path: Path) -> None:
    """Figure 4b."""
    import matplotlib

    from experiments._figures import STYLE, figure, save
    from experiments._vae import show_images

    with matplotlib.rc_context(STYLE):
        fig = figure(5.0, 5.0)
        show_images(fig.subplots(), means, side)
        save(fig, path)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
