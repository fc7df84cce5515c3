"""Inverse problems: each method on each measurement, where the posterior is known and on colour digits.

    python -m experiments.inverse_problems            # 40 minutes on 2 CPU cores, after experiments.colour_digits
    python -m experiments.inverse_problems --smoke    # the same code on tiny sizes, in seconds

In kind tables 1 and 2 of Chung et al. 2022 (DPS, arXiv:2209.14687) and figure 4 of Song et al. 2021 (arXiv:2011.13456),
beside what those cannot have, the exact posterior. Part A: a mixture in eight dimensions with its exact denoiser, so
that what errs is the method: errors of the posterior's mean and covariance, and coverage of central 90 % intervals.
Part B: digits of 16 x 16 pixels in colour and a trained network: PSNR, coverage of pixels' 90 % intervals over draws,
calls of the network. All methods take the same ancestral steps, on the same measurements. It writes exact.csv,
images.csv, inverse_problems.md and inverse_problems.png to runs/inverse_problems/. Running it again resumes.

Expected in part A, over measurements: SMC has the posterior's mean to 0.1 of its standard deviations and covers 90 %;
PiGDM 0.13 to 0.17 and 90 %; DPS 0.2 to 0.3 and 82 to 87 %; replacement, RePaint and projection, which take y for
noiseless, 0.5 to 1.2 and 35 to 80 %. In part B the mean of PiGDM's draws has the best PSNR of missing parts, blur and
smaller digits, with RePaint's that of random sums, and behind RePaint's that of grey digits, whose colour is a guess.
Numbers: docs/3-inverse-problems.md.
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import _inverse_exact as exact
from experiments import _inverse_images as pictures
from experiments._comparison import finish, markdown, plus_minus
from experiments._inverse_methods import METHODS, Sizes, operators_of
from experiments._run import Run, begin, parse
from experiments.colour_digits import SHAPE, STAND_IN, load_conditional

LABELS = {
    "mask": "missing part",
    "blur": "blur",
    "downsample": "2 x smaller",
    "grayscale": "grey",
    "compressed": "random sums",
}
REPLACED = ("exact", "SMC")  # of part A alone


@dataclass(frozen=True)
class Config:
    """Measure, draw, score."""

    operators: tuple[str, ...] = tuple(LABELS)
    methods: tuple[str, ...] = METHODS
    noise_std: float = 0.3  # part A, in units of data of width about 1
    measured: int = 64  # points of part A
    points: int = 256  # posterior draws of each, and particles
    steps: int = 250  # of part A
    size: float = 0.05  # of DPS's normalised step in part A
    image_noise: float = 0.1  # part B, of pixels in [-1, 1]
    image_width: float = 0.5  # of pixels about their mean, for PiGDM
    images: int = 4
    image_steps: int = 30
    image_size: float = 1.0
    resamples: int = 3  # of RePaint
    trained: str = "runs/colour_digits"  # the run of experiments.colour_digits
    run_dir: str = "runs/inverse_problems"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    operators=("mask", "grayscale"),
    methods=("replacement", "DPS steps", "PiGDM"),
    measured=3,
    points=8,
    steps=3,
    images=2,
    image_steps=3,
    trained=STAND_IN,
    run_dir="runs/inverse_problems-smoke",
    smoke=True,
)


def compute(config: Config, run: Run) -> None:
    """Every cell that the run does not have yet."""
    made = {(r["part"], r["operator"], r["method"]) for r in run.records()}
    sizes = Sizes(config.noise_std, exact.DATA_STD, config.resamples, config.size)
    for name, operator in _chosen(config, operators_of(exact.EVENT, rows=3, box=0.5)).items():
        x_0, y = exact.measured(operator, config.noise_std, config.measured)
        posteriors = [exact.posterior(operator, one, config.noise_std) for one in y]
        for method in (*config.methods, "SMC", "exact"):
            if ("exact", name, method) not in made:
                found, calls = exact.draws(method, operator, y, sizes, steps=config.steps, points=config.points)
                _log(run, "exact", name, method, calls, exact.scores(found, x_0, posteriors))
    if not config.images:
        return
    network, x_0 = load_conditional(config.trained), pictures.images(config.images)
    sizes = Sizes(config.image_noise, config.image_width, config.resamples, config.image_size)
    rows = int(np.prod(SHAPE)) // 4
    for name, operator in _chosen(config, operators_of(SHAPE, rows=rows, box=0.5)).items():
        y = pictures.measured(operator, x_0, config.image_noise)
        np.save(run.directory / f"{name}-y.npy", y)
        for method in config.methods:
            if method != "DPS" and ("images", name, method) not in made:  # stiff at this noise: its steps stand for it
                found, calls = pictures.draws(method, network, operator, y, sizes, steps=config.image_steps)
                np.save(run.directory / f"{name}-{method}.npy", found[:, 0])
                _log(run, "images", name, method, calls, pictures.scores(found, x_0, operator, y))


def _chosen(config: Config, found: dict[str, Any]) -> dict[str, Any]:
    return {name: found[name] for name in config.operators}


def _log(run: Run, part: str, operator: str, method: str, calls: int, scores: dict[str, float]) -> None:
    run.log(part=part, operator=operator, method=method, calls=calls, **scores)
    print(f"{part}, {operator}, {method}: " + ", ".join(f"{k} {v:.3g}" for k, v in scores.items() if "_se" not in k))


# tables and figure ----------------------------------------------------------------------------------------------


def tables(config: Config, run: Run) -> str:
    """Both parts: a row for each method, a column for each measurement; and CSV beside them."""
    found = {(r["part"], r["operator"], r["method"]): r for r in run.records()}
    for part, name in (("exact", "exact.csv"), ("images", "images.csv")):
        rows = [r for r in found.values() if r["part"] == part]
        if rows:
            with (run.directory / name).open("w", newline="") as file:
                writer = csv.DictWriter(file, [key for key in rows[0] if key != "part"], extrasaction="ignore")
                writer.writeheader()
                writer.writerows({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in r.items()} for r in rows)
    parts = [
        _table(config, found, "exact", "error of the mean, in posterior standard deviations", "mean_error", 2),
        _table(config, found, "exact", "error of the covariance, relative", "covariance_error", 2),
        _table(config, found, "exact", "coverage of 90 % intervals", "coverage", 2),
        _table(config, found, "images", "PSNR of the draws' mean, dB", "psnr_of_mean", 1),
        _table(config, found, "images", "PSNR of one draw, dB", "psnr", 1),
        _table(config, found, "images", "coverage of pixels' 90 % intervals", "coverage", 2),
    ]
    return "\n".join(part for part in parts if part)


def _table(config: Config, found: dict[Any, Any], part: str, title: str, measure: str, digits: int) -> str:
    methods = [m for m in (*config.methods, *REPLACED[::-1]) if (part, config.operators[0], m) in found]
    rows = []
    for method in methods:
        records = [found[part, operator, method] for operator in config.operators]
        cells = [plus_minus(r[measure], r[f"{measure}_se"], digits) for r in records]
        rows.append([method, str(records[0]["calls"]), *cells])
    return f"{title}\n\n" + markdown(["method", "calls", *(LABELS[o] for o in config.operators)], rows) if rows else ""


def plot(config: Config, run: Run, path: Path) -> None:
    """Rows: measurements. Columns: the digit, what is measured, and one draw of each method."""
    import matplotlib

    from experiments._figures import STYLE, figure, save

    methods = [m for m in config.methods if m != "DPS"]
    x_0 = pictures.images(config.images)
    columns = ("digit", "measured", *methods)
    with matplotlib.rc_context(STYLE):
        fig = figure(1.0 * len(columns), 0.56 * len(config.operators) + 0.3)
        axes = fig.subplots(len(config.operators), len(columns), squeeze=False)
        for row, name in zip(axes, config.operators, strict=True):
            y = np.load(run.directory / f"{name}-y.npy")
            images = [x_0, y, *(np.load(run.directory / f"{name}-{m}.npy") for m in methods)]
            for ax, kind, image in zip(row, columns, images, strict=True):
                two = image[: min(2, len(image))]
                if kind == "measured":
                    two = _seen(name, two, x_0.shape[1:])
                ax.imshow((np.clip(np.concatenate(list(two), axis=1), -1, 1) + 1) / 2, interpolation="nearest")
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
            row[0].set_ylabel(LABELS[name], rotation=0, ha="right", va="center")
        for ax, kind in zip(axes[0], columns, strict=True):
            ax.set_title(kind)
        save(fig, path, dpi=150)


def _seen(name: str, y: np.ndarray, event: tuple[int, ...]) -> np.ndarray:
    """A measurement as a picture: grey where nothing is known; of random sums, the shortest x that has them."""
    from dgm_jax.parameterizations.operators import pseudo_inverse

    operator = operators_of(event, rows=int(np.prod(event)) // 4, box=0.5)[name]
    if name == "mask":
        return np.where(np.asarray(operator.observed), y, 0.0)
    if name == "compressed":
        return np.asarray(pseudo_inverse(operator, jnp.asarray(y)))
    return np.broadcast_to(y, (*y.shape[:-1], 3))


def main(config: Config) -> None:
    """Draw, score and show."""
    run = begin(config, devices=2)
    compute(config, run)
    picture: Callable[[Path], None] = partial(plot, config, run)
    scores = {"cells": len(run.records())}
    finish(
        run,
        tables(config, run),
        page="inverse_problems.md",
        picture="inverse_problems.png",
        plot=picture,
        scores=scores,
    )


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
