"""Latent diffusion against pixel diffusion at equal compute, on 28 x 28 digits with classes and guidance.

    python -m experiments.latent_diffusion            # 15 minutes on 2 CPU cores
    python -m experiments.latent_diffusion --smoke    # the same code on tiny sizes, in seconds

In kind figure 6 and table 18 of Rombach et al. 2022 (arXiv:2112.10752). A budget of floating-point operations is what
`budget` training steps of a U-Net on pixels cost. The same budget pays, on the other side, for a KL-regularised
autoencoder with latents of 7 x 7 pixels, for encoding the training digits once, and for as many steps of a U-Net on
latents as are left. Both are class-conditional, with a share of classes dropped, and drawn by DPM-Solver++(2M) with
classifier-free guidance. Sets are compared with 500 digits held out, in the features of a small classifier. Beside them
are training digits (the noise floor), and training digits after the autoencoder (what its decoder allows at best).
It writes latent_diffusion.png, latent_diffusion.csv and latent_diffusion.md to runs/latent_diffusion/. Running it again
resumes.

Expected, on 2 sets of 200 digits, +- the standard error over them (one training of each model):

    class accuracy at w = 1, 2    pixels 0.83 +- 0.01, 0.98 +- 0.01    latents 0.89 +- 0.03, 0.99 +- 0.01
    Frechet distance at w = 1, 2  pixels 22.9 +- 2.1, 24.1 +- 3.3      latents 14.9 +- 0.8, 15.1 +- 0.9
    of training digits            7.6 +- 1.0
    seconds of sampling, latents over pixels: 0.37
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.data import from_unit, load, source, to_unit
from dgm_jax.data.records import Source
from dgm_jax.networks import UNet
from dgm_jax.parameterizations.guidance import classifier_free_batched
from dgm_jax.processes import log_snr_grid
from dgm_jax.samplers import dpm_solver_pp_2m
from dgm_jax.training.parallel import pmap_sampler
from experiments._digit_features import load_features
from experiments._latent_models import (
    CLASSES,
    NULL,
    PIXELS,
    PROCESS,
    Trainer,
    autoencoder,
    autoencoder_loss,
    conditional,
    denoising_loss,
    digits_source,
    encoded,
    flops_of,
    latents_of,
    pixels_of,
)
from experiments._latent_scores import labels_of, measures, training_sets
from experiments._run import Run, begin, parse

REAL, THROUGH, PIXEL, LATENT = "training digits", "training digits, decoded", "pixel diffusion", "latent diffusion"
PICTURES = ("latent_diffusion.png",)


@dataclass(frozen=True)
class Config:
    """Train both with the same compute, draw, score."""

    budget: int = 800  # steps of the pixel network, whose operations are the budget
    batch: int = 64
    pixel_channels: int = 24  # of the U-Net on pixels; its levels, of 14 and 7 pixels, have 2 and 3 times as many
    latent_channels: int = 64  # of the U-Net on latents, at 7 x 7
    autoencoder_channels: tuple[int, ...] = (32, 64)
    autoencoder_steps: int = 600
    latent: int = 4  # channels of the latents
    pixel_std: float = 0.15  # of the decoder
    beta: float = 1.0  # weight of the divergence
    learning_rate: float = 2e-3
    ema_decay: float = 0.998
    dropped: float = 0.15  # share of classes that training does not see
    scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    drawn: int = 200  # digits in a set, as many of each class
    sets: int = 2
    sampling_steps: int = 12
    features: str = "runs/family_comparison/features"  # where the classifier is kept; trained where there is none
    feature_steps: int = 900
    seed: int = 0
    run_dir: str = "runs/latent_diffusion"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    budget=12,
    batch=16,
    pixel_channels=8,
    latent_channels=8,
    autoencoder_channels=(8, 8),
    autoencoder_steps=6,
    latent=2,
    scales=(1.0, 3.0),
    drawn=20,
    sampling_steps=3,
    features="runs/latent_diffusion-smoke/features",
    feature_steps=5,
    run_dir="runs/latent_diffusion-smoke",
    smoke=True,
)


# networks -------------------------------------------------------------------------------------------------------


def unet(config: Config, name: str) -> tuple[UNet, tuple[int, ...]]:
    """The U-Net on pixels, or on latents, and the shape of what it denoises."""
    if name == PIXEL:
        net = UNet(config.pixel_channels, (2, 3), blocks=1, groups=8, patch=2, num_classes=CLASSES)
        return net, PIXELS
    net = UNet(config.latent_channels, (1,), blocks=1, attention=(7,), groups=8, num_classes=CLASSES)
    return net, (7, 7, config.latent)


def denoiser_trainer(config: Config, name: str, rows: Source) -> Trainer:
    """Of a U-Net, its whole compute still to be decided."""
    net, shape = unet(config, name)
    params = jax.jit(net.init)(jax.random.key(config.seed), jnp.zeros((1, *shape)), jnp.zeros(1), jnp.zeros(1, int))
    loss = denoising_loss(net, pixels_of if name == PIXEL else latents_of, dropped=config.dropped)
    folder = name.replace(" ", "_")
    return Trainer(folder, loss, params, rows, config.batch, config.learning_rate, config.ema_decay)


def train_both(config: Config, run: Run) -> dict[str, Any]:
    """Parameters of both denoisers and of the autoencoder, the scale; every step is paid from one budget each."""
    rows = digits_source()
    pixel = denoiser_trainer(config, PIXEL, rows)
    model = autoencoder(config.autoencoder_channels, config.latent)
    loss = autoencoder_loss(model, pixel_std=config.pixel_std, beta=config.beta)
    params = jax.jit(model.init)(jax.random.key(config.seed + 3))
    first = Trainer("autoencoder", loss, params, rows, config.batch, config.learning_rate, config.ema_decay)
    auto_params = first.train(run, config.autoencoder_steps, config.seed + 4).ema
    known = load(rows)
    latents, scale = encoded(model, auto_params, known)
    latent = denoiser_trainer(config, LATENT, latents)

    cost = run.measured(
        "flops", lambda: {"pixel": pixel.flops(), "autoencoder": first.flops(), "latent": latent.flops()}
    )
    encoding = flops_of(lambda x: model.encode(auto_params, x), jnp.zeros((1, *PIXELS))) * len(known["image"])
    left = config.budget * cost["pixel"] - config.autoencoder_steps * cost["autoencoder"] - encoding
    steps = int(left / cost["latent"])
    if steps < 1:
        raise SystemExit("Expected a budget above what the autoencoder takes, as the denoiser needs steps too.")
    print(f"operations a step: {cost}; {steps} steps on latents for {config.budget} on pixels", flush=True)
    return {
        PIXEL: pixel.train(run, config.budget, config.seed + 1).ema,
        LATENT: latent.train(run, steps, config.seed + 2).ema,
        "autoencoder": auto_params,
        "scale": scale,
        "steps": {PIXEL: config.budget, LATENT: steps, "autoencoder": config.autoencoder_steps},
    }


# drawing --------------------------------------------------------------------------------------------------------


def drawer(config: Config, name: str, trained: dict[str, Any]) -> Callable[[float, int], tuple[np.ndarray, float]]:
    """(scale, set) -> digits as stored, of the classes 0 .. 9 in turn, and the seconds that they took."""
    net, shape = unet(config, name)
    ts = log_snr_grid(PROCESS, config.sampling_steps, t_min=1e-3, t_max=1.0)
    model = autoencoder(config.autoencoder_channels, config.latent)

    def program(trained: dict[str, Any], keys: jax.Array, labels: jax.Array, scales: jax.Array) -> jax.Array:
        steered = classifier_free_batched(conditional(net, trained["net"]), labels, jnp.asarray(NULL), scales)
        z = dpm_solver_pp_2m(jax.jit(steered), PROCESS, keys, (len(keys), *shape), ts=ts).x
        return z if name == PIXEL else model.decode(trained["autoencoder"], z / trained["scale"])

    mapped = pmap_sampler(program)
    given = {"net": trained[name], "autoencoder": trained["autoencoder"], "scale": jnp.asarray(trained["scale"])}

    def draw(scale: float, seed: int) -> tuple[np.ndarray, float]:
        keys = jax.random.split(jax.random.key(100 + seed), config.drawn)
        begun = time.perf_counter()
        images = np.asarray(mapped(given, keys, labels_of(config.drawn), np.full(config.drawn, scale, np.float32)))
        return np.asarray(from_unit(jnp.clip(jnp.asarray(images), -1, 1))), time.perf_counter() - begun

    return draw


# run ------------------------------------------------------------------------------------------------------------


def compute(config: Config, run: Run) -> dict[str, np.ndarray]:
    """Every record that the run does not have yet, and some digits of each cell."""
    trained = train_both(config, run)
    found = load_features(Path(config.features), steps=config.feature_steps)
    score = partial(measures, found, jnp.asarray(found.features(load(source("mnist5k", "test"))["image"])))
    model = autoencoder(config.autoencoder_channels, config.latent)

    @jax.jit
    def through(images: jax.Array) -> jax.Array:
        mean, _ = model.encode(trained["autoencoder"], to_unit(images))
        return from_unit(jnp.clip(model.decode(trained["autoencoder"], mean), -1, 1))

    made = {(record["method"], record["scale"], record["set"]) for record in run.records()}
    pictures: dict[str, np.ndarray] = {}
    for i, images in enumerate(training_sets(config.drawn, config.sets, config.seed)):
        decoded = np.asarray(through(jnp.asarray(images)))
        for method, part in ((REAL, images), (THROUGH, decoded)):
            pictures.setdefault(method, part[:40])
            if (method, 0.0, i) not in made:
                run.log(method=method, scale=0.0, set=i, seconds=0.0, **score(part))
    for method in (PIXEL, LATENT):
        draw = drawer(config, method, trained)
        draw(config.scales[0], 0)  # compiles
        for scale in config.scales:
            path = run.directory / f"drawn-{method.split()[0]}-{scale:g}.npy"
            for i in range(config.sets):
                if (method, scale, i) not in made:
                    images, seconds = draw(scale, i)
                    if i == 0:
                        np.save(path, images[:40])
                    run.log(method=method, scale=scale, set=i, seconds=seconds, **score(images))
            pictures[f"{method}, w = {scale:g}"] = np.load(path)
            print(f"{method}, w = {scale:g}: {run.records()[-1]}", flush=True)
    run.log(method="steps", scale=0.0, set=0, **trained["steps"])
    return pictures


def main(config: Config) -> None:
    """Train, draw, score, plot."""
    from experiments._latent_figures import latent_figure, write

    run = begin(config)
    if run.said_done(*PICTURES):
        return
    pictures = compute(config, run)
    found = write(run, config.sets)
    latent_figure(found, pictures, run.directory / PICTURES[0])
    run.finish({f"{method} {scale:g}": values for (method, scale), values in found.items()})
    print(f"Look at {run.directory}/latent_diffusion.png")


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
