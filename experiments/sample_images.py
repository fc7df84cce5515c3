"""Images from a run of `train_images`: any number of them, in files of equal parts, by any number of hosts and devices.

    python -m experiments.sample_images --trained runs/ddpm --samples 50000
    python -m experiments.sample_images --trained runs/ddpm --sampler ddpm --steps 1000 --run-dir runs/ddpm-ancestral
    python -m experiments.sample_images --smoke

Image i is drawn with the key fold_in(seed, i), in a program of --chunk images that is the same on every device. So the
files are the same, to the bit, for any number of devices and hosts of one kind, and a run that was cut short goes on
with the files that are missing. File samples-<j>.npz has "images", uint8 [chunk, height, width, channels], and "labels"
where there are classes, which take turns. On several hosts start it as `train_images` is; each draws its share.

At the end the first process scores the images against real ones, the run's test images unless --real-split names others
(papers take the training images: --real-split train --real 50000): the Frechet distance of Inception's features where
--inception names their weights (see `dgm_jax.metrics.load_inception`), and always the sliced Wasserstein distance of
pixels in [-1, 1], of as many images as half of the real ones, beside its floor: the same distance between two halves of
the real ones. It writes config.json, samples-<j>.npz, samples.png and scores.json to runs/sample_images/.
Where scores.json is taken away, the same command scores the files anew, with its --inception, --real-split and --real.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.data import from_unit
from dgm_jax.data.records import read
from dgm_jax.metrics import frechet_of, load_inception, noise_floor, sliced_wasserstein
from dgm_jax.processes import karras_grid, log_snr_grid, uniform
from dgm_jax.samplers import Samples, ddim, ddpm, dpm_solver_pp_2m, edm_heun, final_denoising, sample_sde
from dgm_jax.training import load_params, reconstruct, reconstruction_error, saved_steps
from dgm_jax.training.parallel import pmap_sampler
from dgm_jax.typing import Denoiser
from experiments import train_images
from experiments._cluster import HEARTBEAT, first, join, open_together, wait_for_all
from experiments._image_data import image_records, png
from experiments._image_files import ImageFiles
from experiments._image_models import ImageModel
from experiments._run import Run, parse, read_config, write_aside

PROJECTIONS = 256


@dataclass(frozen=True)
class Config:
    """Draw images from a trained model and score them."""

    trained: str = "runs/train_images"  # the run of train_images
    samples: int = 50_000
    chunk: int = 50  # images in a file, and in one program on one device
    sampler: Literal["heun", "ddim", "ddpm", "dpm-solver++", "sde"] = "heun"
    steps: int = 18
    scale: float = 1.0  # of classifier-free guidance; 1 is the conditional model
    width: float | None = None  # reconstruct the average of this relative width; None: the run's own average
    inception: str | None = None  # file of Inception's weights
    real_split: str | None = None  # of the images to compare with; None: the run's test split
    real: int = 10_000  # of them, at most
    seed: int = 0
    data_dir: str | None = None
    coordinator: str | None = None  # host:port of process 0
    process_id: int | None = None
    num_processes: int | None = None
    heartbeat: int = HEARTBEAT
    run_dir: str = "runs/sample_images"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes: a network that knows nothing

    NOT_SCIENCE: ClassVar[tuple[str, ...]] = (
        *("data_dir", "inception", "real_split", "real"),  # the images are the same
        *("coordinator", "process_id", "num_processes", "heartbeat"),
    )


SMOKE = Config(samples=20, chunk=4, steps=2, real=40, run_dir="runs/sample_images-smoke", smoke=True)


def sampler_of(config: Config, model: ImageModel) -> Callable[..., Samples]:
    """(denoise, key, shape) -> Samples, from which the last noise is taken by one call of the denoiser."""
    process, t_min, steps = model.process, model.t_min, config.steps
    chain = model.process_name == "ddpm"  # its own steps end without noise
    even = uniform(steps, t_min=0.0 if chain else t_min)
    karras = karras_grid(process, steps, t_min=t_min)

    def draw(denoise: Denoiser, key: jax.Array, shape: tuple[int, ...]) -> Samples:
        match config.sampler:
            case "heun":
                drawn = edm_heun(denoise, process, key, shape, ts=karras)
            case "ddim":
                drawn = ddim(denoise, process, key, shape, ts=even)
            case "ddpm":
                drawn = ddpm(denoise, process, key, shape, ts=even, variance="posterior")
            case "dpm-solver++":
                ts = log_snr_grid(process, steps, t_min=max(t_min, 1e-5), t_max=1.0)
                drawn = dpm_solver_pp_2m(denoise, process, key, shape, ts=ts)
            case "sde":
                drawn = sample_sde(denoise, process, key, shape, ts=karras, coordinates="noise")
        if chain and config.sampler in ("ddim", "ddpm"):
            return drawn
        return final_denoising(denoise, drawn, t_min)

    return draw


def parameters_of(config: Config) -> Path:
    """The folder of the parameters to draw with."""
    return Path(config.trained) / ("checkpoints" if config.width is None else "averages")


def trained_model(config: Config) -> tuple[ImageModel, train_images.Config]:
    """The model of the run and its configuration; what cannot be drawn is refused."""
    settings = train_images.SMOKE if config.smoke else read_config(config.trained, train_images.Config)
    if config.scale != 1 and not (settings.classes and settings.dropped > 0):
        raise SystemExit(
            f"Expected --scale 1, as guidance needs a model that was trained with classes of which some were dropped; "
            f"got scale={config.scale}, classes={settings.classes}, dropped={settings.dropped}."
        )
    if min(config.samples, config.chunk, config.steps, config.real) < 1:
        raise SystemExit("Expected samples, chunk, steps and real >= 1, as they count.")
    if not 0 <= config.seed < 2**32:
        raise SystemExit(f"Expected seed in [0, 2^32), as keys are made of 32 bits; got {config.seed}.")
    if not math.isfinite(config.scale) or (config.width is not None and not 0 < config.width <= 12**-0.5):
        raise SystemExit(
            f"Expected a finite scale, and 0 < width <= 12^(-1/2), as an average over all steps has; got "
            f"scale={config.scale}, width={config.width}."
        )
    if config.inception is not None and not Path(config.inception).is_file():
        raise SystemExit(f"Expected a file of Inception's weights; got --inception {config.inception}.")
    steps = saved_steps(parameters_of(config))
    if not config.smoke and (not steps or (config.width is not None and not settings.widths)):
        raise SystemExit(
            f"Expected parameters in {parameters_of(config)}, as images are drawn with them (averages: train_images "
            f"--widths); got steps={steps}, widths={settings.widths}."
        )
    shape = read(real_images(config, settings), [0])["image"].shape[1:]
    return train_images.model_of(settings, shape), settings


def real_images(config: Config, settings: train_images.Config) -> Any:
    """The records to compare with, prepared as the run's own."""
    split = config.real_split or settings.test_split
    return image_records(settings.dataset, split, size=settings.size, classes=0, data_dir=config.data_dir)


def trained_params(config: Config, settings: train_images.Config, run: Run, model: ImageModel) -> Any:
    """The parameters to draw with: those of the step that was the newest when the first file was drawn."""
    if config.smoke:
        return model.init(jax.random.key(0))
    directory = parameters_of(config)
    steps = saved_steps(directory)
    if first():
        run.measured("step", lambda: steps[-1])
    wait_for_all("the step is known")
    step = run.measured("step", lambda: steps[-1])
    if config.width is None:
        return load_params(directory, step=step, part="ema/0" if settings.widths else "ema")
    return average_of_width(directory, settings.widths, [s for s in steps if s <= step], config.width)


def average_of_width(directory: Path, widths: tuple[float, ...], steps: list[int], width: float) -> Any:
    """The average of relative width `width` at the last of the steps, from all that are stored until then."""
    stored = [(step, k) for step in steps for k in range(len(widths))]
    trees = [load_params(directory, step=step, part=f"averages/{k}") for step, k in stored]
    of_steps, of_widths = [step for step, _ in stored], [widths[k] for _, k in stored]
    if first():
        error = reconstruction_error(of_steps, of_widths, step=steps[-1], width=width)
        print(f"width {width} at step {steps[-1]}: its profile is missed by {error:.1%} of its norm", flush=True)
    return reconstruct(trees, of_steps, of_widths, step=steps[-1], width=width)


def draw_files(config: Config, files: ImageFiles, model: ImageModel, params: Any) -> None:
    """This process's share of the files that are missing, as many at once as it has devices."""
    solve, devices = sampler_of(config, model), jax.local_device_count()

    def draw(params: Any, keys: jax.Array, labels: jax.Array) -> jax.Array:
        denoise = model.guided(params, labels if model.classes else None, config.scale)
        return from_unit(solve(denoise, keys, (keys.shape[0], *model.shape)).x)

    program, key = pmap_sampler(draw), jax.random.key(config.seed)
    keys_of = jax.jit(jax.vmap(lambda number: jax.random.fold_in(key, number)))
    mine = range(jax.process_index(), files.count, jax.process_count())
    missing = [j for j in mine if not files.is_there(j)]
    for start in range(0, len(missing), devices):
        turn = missing[start : start + devices]
        # The last turn draws some files twice, as the program is one of all devices.
        numbers = np.concatenate([files.numbers(j) for j in np.resize(turn, devices)])
        labels = (numbers % max(model.classes, 1)).astype(np.int32)
        images = np.asarray(program(params, keys_of(jnp.asarray(numbers)), labels))
        for j, rows in zip(turn, np.split(np.arange(len(numbers)), devices), strict=False):
            files.write(j, images=images[rows], **({"labels": labels[rows]} if model.classes else {}))
        if first():
            print(f"{start + len(turn)} of {len(missing)} files of this process", flush=True)


def score(config: Config, settings: train_images.Config, fake: np.ndarray, features: Any) -> dict[str, Any]:
    """Distances of drawn images to real ones; the Frechet distance too, where there are Inception's features."""
    records = real_images(config, settings)
    real = read(records, range(min(config.real, len(records))))["image"]
    factor = 255 / (train_images.levels_of(settings.dataset) - 1)
    real = np.rint(real * factor).astype(np.uint8)
    key = jax.random.key(config.seed)

    def distance(x: Any, y: Any) -> jax.Array:
        return sliced_wasserstein(x, y, key, projections=PROJECTIONS)

    n = min(len(fake), len(real) // 2)
    real_unit, fake_unit = (jnp.asarray(images, jnp.float32) / 127.5 - 1 for images in (real, fake[:n]))
    compared = jax.jit(distance)
    floor = noise_floor(compared, real_unit, key, points=n)
    scores = {
        "images": len(fake),
        "real_images": len(real),
        "compared": n,
        "sliced_wasserstein": float(compared(real_unit[:n], fake_unit)),
        "floor": float(floor.mean),
        "floor_std": float(floor.std),
    }
    if features is not None:
        channels = [np.repeat(images, 3, axis=3) if images.shape[3] == 1 else images for images in (real, fake)]
        scores["frechet"] = float(frechet_of(*(features(images).astype(np.float64) for images in channels)))
    return scores


def main(config: Config) -> None:
    """Draw what is missing, then score."""
    join(config.coordinator, config.process_id, config.num_processes, heartbeat=config.heartbeat)
    if config.smoke:
        jax.config.update("jax_disable_most_optimizations", True)
    model, settings = trained_model(config)
    features = None if config.inception is None else load_inception(config.inception)
    run = open_together(config)
    if run.said_done("samples.png", "scores.json"):
        return
    params = trained_params(config, settings, run, model)
    files = ImageFiles(run.directory, -(-config.samples // config.chunk), config.chunk, model.shape)
    draw_files(config, files, model, params)
    wait_for_all("all files drawn")
    if first():
        fake = files.images()[: config.samples]
        write_aside(run.directory / "samples.png", png(fake[:100], 10 if len(fake) >= 100 else len(fake)))
        scores = score(config, settings, fake, features)
        run.finish(scores)
        print({name: value if isinstance(value, int) else round(value, 4) for name, value in scores.items()})


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
