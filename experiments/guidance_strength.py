"""Guidance strength against fidelity and diversity, on colour digits, and what guidance draws where all is exact.

    python -m experiments.guidance_strength            # 30 minutes on 2 CPU cores, after experiments.colour_digits
    python -m experiments.guidance_strength --smoke    # the same code on tiny sizes, in seconds

In kind figure 1 and table 1 of Ho & Salimans 2022 (arXiv:2207.12598), figure 1 of Kynkaanniemi et al. 2024
(arXiv:2404.07724), where guidance acts on an interval of noise levels alone, and figure 9 of Saharia et al. 2022
(arXiv:2205.11487), where estimates are clipped. Here w = 0 is no guidance and w = 1 the conditional
model, as in the last two; the first one's w is one less. Digits are drawn by DPM-Solver++(2M) from the same noise for
all w, and each set is compared with 500 digits held out, in the features of a small classifier; digits of the training
set in new colours, drawn as often, are the noise floor. It writes guidance_strength.png, guidance_grid.png,
guidance_exact.png, guidance_strength.csv and guidance_strength.md to runs/guidance_strength/. Running it again resumes.

Expected, means over three sets of 500 digits with standard errors (docs/steering.md has all):

    w                                  1             2             3             5              8              real
    class right                        0.85 +- 0.01  1.00 +- 0.00  1.00 +- 0.00  1.00 +- 0.00   1.00 +- 0.00   0.99
    precision                          0.85 +- 0.01  0.95 +- 0.00  0.95 +- 0.00  0.91 +- 0.00   0.76 +- 0.01   0.92
    recall                             0.80 +- 0.01  0.68 +- 0.01  0.54 +- 0.02  0.40 +- 0.02   0.28 +- 0.06   0.89
    recall, limited interval                         0.73 +- 0.00  0.67 +- 0.01  0.56 +- 0.01   0.47 +- 0.01
    Frechet distance                   37.6 +- 2.8   14.0 +- 0.5   44.7 +- 2.9   168.5 +- 4.5   417.0 +- 3.3   6.6
    Frechet distance, limited interval               15.8 +- 1.4   14.1 +- 0.2   38.9 +- 3.0    119.5 +- 8.3
    plane: ODE to the tilted density   0.02          0.15          0.26          0.44           0.63           0.02
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.metrics import density_coverage, frechet_of, precision_recall
from dgm_jax.parameterizations.guidance import (
    classifier_free_batched,
    dynamic_threshold,
    limited_interval,
    static_threshold,
)
from dgm_jax.processes import log_snr_grid
from dgm_jax.samplers import dpm_solver_pp_2m
from dgm_jax.training.parallel import pmap_sampler
from dgm_jax.typing import Denoiser
from experiments._colour_digits import CLASSES, NULL, SHAPE, ColourDigits, by_class, colour_digits, coloured
from experiments._colour_features import ColourFeatures, load_colour_features, right
from experiments._comparison import markdown, plus_minus
from experiments._distances import fixed_directions, sliced_wasserstein_2
from experiments._guidance_exact import FLOOR, guided_points, methods, tilted_points
from experiments._run import Run, begin, parse
from experiments.colour_digits import PROCESS, STAND_IN, T_MIN, Conditional, load_conditional

# scales above which a method is drawn
ABOVE = {"guidance": -1.0, "limited interval": 1.0, "static threshold": 2.0, "dynamic threshold": 2.0}
METHODS = tuple(ABOVE)
MEASURES = ("accuracy", "precision", "recall", "density", "coverage", "frechet", "beyond")
TITLES = {
    "accuracy": "class accuracy",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "frechet": "Frechet distance",
    "beyond": "beyond [-1, 1], RMS",
}
REAL = "real digits"
PICTURES = ("guidance_strength.png", "guidance_grid.png", "guidance_exact.png")


@dataclass(frozen=True)
class Config:
    """Draw digits with guidance of many strengths, and score them."""

    scales: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
    methods: tuple[str, ...] = METHODS
    low: float = 0.3  # noise levels sigma/alpha between which the limited guidance acts
    high: float = 3.0
    quantile: float = 0.995  # of the dynamic threshold
    drawn: int = 500  # digits in a set, as many of each class
    sets: int = 3
    steps: int = 20  # of DPM-Solver++(2M)
    points: int = 4000  # of the exact panel
    exact_steps: int = 200
    exact_sets: int = 3
    moves: tuple[int, ...] = (4, 16, 64)  # Langevin moves at each time
    cells: int = 1600  # a side, from which exact points are drawn
    trained: str = "runs/colour_digits"  # the run of experiments.colour_digits
    features: int = 2000  # training steps of the classifier, which is kept beside that network
    run_dir: str = "runs/guidance_strength"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    scales=(0.0, 1.0, 3.0),
    methods=("guidance", "limited interval"),
    drawn=40,
    sets=2,
    steps=3,
    points=100,
    exact_steps=4,
    exact_sets=2,
    moves=(),
    cells=100,
    trained=STAND_IN,
    features=0,
    run_dir="runs/guidance_strength-smoke",
    smoke=True,
)


# drawing --------------------------------------------------------------------------------------------------------


def guided(method: str, config: Config, denoise_given: Conditional, labels: jax.Array, scale: jax.Array) -> Denoiser:
    """The denoiser of a method for these labels."""
    steered = classifier_free_batched(denoise_given, labels, jnp.asarray(NULL), scale)
    if method == "limited interval":
        conditional = lambda x_t, t: denoise_given(x_t, t, labels)  # noqa: E731
        return limited_interval(steered, conditional, PROCESS, low=config.low, high=config.high)
    if method == "static threshold":
        return static_threshold(steered, low=-1.0, high=1.0)
    return dynamic_threshold(steered, quantile=config.quantile, bound=1.0) if method == METHODS[-1] else steered


def drawer(method: str, config: Config) -> Callable[[float, int], np.ndarray]:
    """(scale, set) -> digits of the classes 0 .. 9 in turn; one program for all scales."""
    denoise_given = load_conditional(config.trained)
    ts = log_snr_grid(PROCESS, config.steps, t_min=T_MIN, t_max=1.0)

    def program(scale: jax.Array, keys: jax.Array, labels: jax.Array) -> jax.Array:
        denoise = jax.jit(guided(method, config, denoise_given, labels, scale))
        return dpm_solver_pp_2m(denoise, PROCESS, keys, (len(keys), *SHAPE), ts=ts).x

    mapped = pmap_sampler(program)

    def draw(scale: float, seed: int) -> np.ndarray:
        keys = jax.random.split(jax.random.key(seed), config.drawn)
        return np.asarray(mapped(jnp.asarray(scale, jnp.float32), keys, labels_of(config.drawn)))

    return draw


def labels_of(n: int) -> np.ndarray:
    """0 .. 9 in turn."""
    return np.arange(n) % CLASSES


# scores ---------------------------------------------------------------------------------------------------------


def scorer(config: Config) -> Callable[[np.ndarray], dict[str, float]]:
    """Images of the classes 0 .. 9 in turn -> their measures against the digits held out."""
    found, held_out = features_of(config), by_class(colour_digits("test"))
    real = jnp.asarray(found.features(held_out.images))
    return partial(measures, found, real)


def features_of(config: Config) -> ColourFeatures:
    """The classifier, which is kept beside the network; with the stand-in, beside this run."""
    beside = config.run_dir if config.trained == STAND_IN else config.trained
    return load_colour_features(Path(beside) / "features", steps=config.features)


def measures(found: ColourFeatures, real: jax.Array, images: np.ndarray) -> dict[str, float]:
    """Everything of a set, as images are seen: in [-1, 1]."""
    seen = np.clip(images, -1, 1)
    values = {name: float(value) for name, value in _of_features(real, jnp.asarray(found.features(seen))).items()}
    return {
        "accuracy": float(right(found, seen, labels_of(len(seen))).mean()),
        **values,
        "beyond": float(np.sqrt(((images - seen) ** 2).mean())),
    }


@jax.jit
def _of_features(real: jax.Array, drawn: jax.Array) -> dict[str, jax.Array]:
    near, dense = precision_recall(real, drawn, k=3), density_coverage(real, drawn, k=5)
    return {**near._asdict(), **dense._asdict(), "frechet": frechet_of(real, drawn)}


def real_sets(config: Config, known: ColourDigits, grey: np.ndarray) -> list[np.ndarray]:
    """Sets of training digits in new colours, as many of each class: what a perfect model would draw."""
    rng, n = np.random.default_rng(1), config.drawn
    of_class = [np.flatnonzero(known.labels == label) for label in range(CLASSES)]
    chosen = [np.array([rng.choice(of_class[label]) for label in labels_of(n)]) for _ in range(2 * config.sets)]
    return [np.asarray(coloured(grey[rows], jnp.asarray(rng.uniform(size=n), jnp.float32))) for rows in chosen]


# run ------------------------------------------------------------------------------------------------------------


def compute_digits(config: Config, run: Run) -> dict[str, np.ndarray]:
    """Every record of digits that the run does not have yet, and a few digits of each cell of the first set."""
    from dgm_jax.data import load, source

    made = {
        (record["method"], record["scale"], record["set"]) for record in run.records() if record["part"] == "digits"
    }
    score = scorer(config)
    if (REAL, 0.0, 0) not in made:
        known, grey = colour_digits("train"), load(source("mnist5k", "train"))["image"]
        for i, images in enumerate(real_sets(config, known, grey)):
            run.log(part="digits", method=REAL, scale=0.0, set=i, **score(images))
    pictures = {}
    for method in config.methods:
        draw = drawer(method, config)
        for scale in (w for m, w in cells(config) if m == method):
            path = run.directory / f"drawn-{method.replace(' ', '-')}-{scale:g}.npy"
            for i in range(config.sets):
                if (method, scale, i) not in made:
                    images = draw(scale, i)
                    if i == 0:
                        np.save(path, images[:40].astype(np.float16))
                    run.log(part="digits", method=method, scale=scale, set=i, **score(images))
            print(f"{method}, w = {scale:g}: {line(run, method, scale)}", flush=True)
            pictures[f"{method} {scale:g}"] = np.load(path).astype(np.float32)
    return pictures


def compute_exact(config: Config, run: Run) -> None:
    """Every record of the plane that the run does not have yet: sliced Wasserstein distances to the tilted density."""
    made = {(record["method"], record["scale"]) for record in run.records() if record["part"] == "exact"}
    directions = fixed_directions(2, 32)
    for method in (FLOOR, *methods(config.moves)):
        if all((method, scale) in made for scale in config.scales):
            continue
        if method == FLOOR:
            draw = lambda scale, seed: tilted_points(scale, config.points, seed, config.cells)  # noqa: E731
        else:
            draw = guided_points(method, config.points, config.exact_steps)
        for scale in config.scales:
            if (method, scale) in made:
                continue
            sets = [draw(scale, seed) for seed in range(config.exact_sets)]
            truth = [tilted_points(scale, config.points, 1000 + i, config.cells) for i in range(config.exact_sets)]
            distances = [sliced_wasserstein_2(x, y, directions) for x, y in zip(sets, truth, strict=True)]
            run.log(part="exact", method=method, scale=scale, distances=distances, mean=np.mean(sets, (0, 1)).tolist())
        print(f"exact, {method}: done", flush=True)


def summary(run: Run, method: str, scale: float) -> dict[str, tuple[float, float]]:
    """Mean and standard error over sets; of real digits, the standard deviation of a set."""
    rows = [r for r in run.records() if r["part"] == "digits" and (r["method"], r["scale"]) == (method, scale)]
    root = 1 if method == REAL else np.sqrt(len(rows))
    values = {name: np.array([row[name] for row in rows]) for name in MEASURES}
    return {name: (float(v.mean()), float(v.std(ddof=1) / root)) for name, v in values.items()}


def line(run: Run, method: str, scale: float) -> str:
    """The measures of a cell in words."""
    return ", ".join(f"{name} {value:.3f}" for name, (value, _) in summary(run, method, scale).items())


def cells(config: Config) -> list[tuple[str, float]]:
    """All methods and scales that are computed: up to w = 1 there is nothing to limit, and little to clip up to 2."""
    return [(method, w) for method in config.methods for w in config.scales if w > ABOVE[method]]


def main(config: Config) -> None:
    """Draw, score, compare with the exact answers, plot."""
    from experiments._guidance_figures import exact_figure, grid_figure, strength_figure

    run = begin(config)
    if run.said_done(*PICTURES):
        return
    compute_exact(config, run)
    pictures = compute_digits(config, run)
    found = {(m, w): summary(run, m, w) for m, w in cells(config)}
    real = summary(run, REAL, 0.0)
    exact = {(r["method"], r["scale"]): r["distances"] for r in run.records() if r["part"] == "exact"}
    write(config, run, found, real, exact)
    strength_figure(found, real, run.directory / PICTURES[0])
    grid_figure(pictures, config.scales, run.directory / PICTURES[1])
    exact_figure(exact, config.points, config.exact_steps, run.directory / PICTURES[2])
    run.finish({f"{m} {w:g}": values for (m, w), values in found.items()} | {REAL: real})
    print(f"Look at {run.directory}/guidance_strength.png")


def write(config: Config, run: Run, found: dict[Any, Any], real: dict[str, Any], exact: dict[Any, Any]) -> None:
    """guidance_strength.csv with every number, and tables of the same for a page."""
    with (run.directory / "guidance_strength.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["data", "method", "scale w", "measure", "value", "standard error"])
        for (method, scale), row in {(f"{REAL}, +- of one set", "-"): real, **found}.items():
            writer.writerows(
                ["colour digits", method, scale, name, f"{v:.5g}", f"{e:.2g}"] for name, (v, e) in row.items()
            )
        for (method, scale), distances in exact.items():
            value, error = np.mean(distances), np.std(distances, ddof=1) / np.sqrt(len(distances))
            writer.writerow(["plane", method, scale, "sliced Wasserstein-2", f"{value:.5g}", f"{error:.2g}"])
    rows = [[f"{m}, w = {w:g}", *(plus_minus(*found[m, w][name], digits=3) for name in MEASURES)] for m, w in found]
    rows.insert(0, ["real digits, +- of one set", *(plus_minus(*real[name], digits=3) for name in MEASURES)])
    text = markdown(["", *TITLES.values()], rows)
    exact_rows = [[m, *(f"{np.mean(exact[m, w]):.3f}" for w in config.scales)] for m in (FLOOR, *methods(config.moves))]
    text += "\n" + markdown(["", *(f"w = {w:g}" for w in config.scales)], exact_rows)
    (run.directory / "guidance_strength.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
