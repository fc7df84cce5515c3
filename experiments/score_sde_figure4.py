"""Score SDE figure 4 in kind: one model of colour digits made class-conditional, inpainting and colouring.

    python -m experiments.score_sde_figure4            # 10 minutes on 2 CPU cores, after experiments.colour_digits
    python -m experiments.score_sde_figure4 --smoke    # the same code on tiny sizes, in seconds

Song et al. 2021 (arXiv:2011.13456), figure 4 and appendix I, on 16 x 16 digits. The network is asked without a class
throughout: classes come from the gradient of a classifier of noisy digits (eq. 14), hidden pixels from replacing the
known ones at every step (appendix I.2), colours from the same in an orthogonal basis of the three channels, of which
one is the grey (appendix I.3). Steps are ancestral. Replacement draws no exact posterior: moves back and forth in time
(RePaint, arXiv:2201.09865) bring it nearer, and are shown beside it. Digits are 50 held out, as many of each class. It
writes figure4.png, figure4.csv and figure4.md to runs/score_sde_figure4/.

Expected, on 50 digits with 4 draws each, one seed; "+-" is a standard error over digits:

    class right, classifier's gradient at w = 1 | at w = 3 | network told   0.45 +- 0.05 | 0.75 +- 0.04 | 0.86 +- 0.03
    class right, middle hidden, replacement | 4 resamples                   0.58 +- 0.05 | 0.72 +- 0.05 (whole: 0.96)
    spread of colour, middle hidden, replacement | 4 resamples              0.064 +- 0.006 | 0.029 +- 0.002
    known part, RMS error                                                   0.010, which is the last level's noise
"""

import csv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.parameterizations.guidance import classifier_guided
from dgm_jax.processes import log_snr_grid
from dgm_jax.samplers import sample_sde
from dgm_jax.samplers.ancestral import Ancestral
from dgm_jax.samplers.posterior import Replacement, colorization_transform
from dgm_jax.training.parallel import pmap_sampler
from experiments._colour_digits import CLASSES, NULL, SHAPE, brightness, by_class, colour_digits
from experiments._colour_features import ColourFeatures, load_colour_features, right
from experiments._comparison import markdown, plus_minus
from experiments._run import Run, begin, parse
from experiments.colour_digits import PROCESS, STAND_IN, T_MIN, load_conditional

MEASURES = ("known", "accuracy", "spread", "between")
TITLES = ("known part, RMS error", "class accuracy", "spread of colour in a digit", "between draws, RMS")


@dataclass(frozen=True)
class Config:
    """Draw digits of a class, with hidden pixels, in unknown colours."""

    kinds: tuple[str, ...] = ("class", "told", "middle hidden", "right half hidden", "colour hidden")
    inputs: int = 50  # held-out digits, as many of each class
    draws: int = 4  # of each
    steps: int = 100  # of ancestral sampling
    resamples: int = 4  # of RePaint
    scale: float = 3.0  # of the stronger classifier guidance
    trained: str = "runs/colour_digits"  # the run of experiments.colour_digits
    features: int = 2000  # training steps of the classifiers, which are kept beside that network
    seed: int = 0
    run_dir: str = "runs/score_sde_figure4"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    kinds=("class", "middle hidden", "colour hidden"),
    inputs=20,
    draws=2,
    steps=3,
    resamples=1,
    scale=1.0,
    trained=STAND_IN,
    features=0,
    run_dir="runs/score_sde_figure4-smoke",
    smoke=True,
)


# tasks ----------------------------------------------------------------------------------------------------------


def masks() -> dict[str, np.ndarray]:
    """What is known, 1 for known, by task: all but the middle, the left half, the grey of every pixel."""
    middle, half, grey = (np.zeros(SHAPE, np.float32) for _ in range(3))
    middle[:] = half[:, :8] = 1
    middle[5:11, 5:11] = 0
    grey[..., 0] = 1
    return {"middle hidden": middle, "right half hidden": half, "colour hidden": grey}


def to_basis(x: jax.Array) -> jax.Array:
    """Grey and the two colour differences of every pixel, an orthogonal change of axes."""
    return x @ colorization_transform().astype(x.dtype)


def from_basis(z: jax.Array) -> jax.Array:
    """Its inverse."""
    return z @ colorization_transform().astype(z.dtype).T


def tasks(config: Config) -> dict[str, tuple[str, float]]:
    """Every row: kind of task, and its strength: the guidance scale, or how often steps are made again."""
    rows = {f"classifier, w = {w:g}": ("class", float(w)) for w in (1, config.scale)}
    rows["network told the class"] = ("told", 1.0)
    for name in masks():
        rows[f"{name}, replacement"] = (name, 1.0)
        if config.resamples > 1:
            rows[f"{name}, {config.resamples} resamples"] = (name, float(config.resamples))
    return {row: (kind, strength) for row, (kind, strength) in rows.items() if kind in config.kinds}


def sampler(config: Config, kind: str, strength: float) -> Callable[[np.ndarray, np.ndarray, int], np.ndarray]:
    """(images, labels, seed) -> one draw for each."""
    from experiments._noisy_classifier import load_noisy_classifier

    denoise_given = load_conditional(config.trained)
    log_prob = load_noisy_classifier(_features(config), steps=config.features) if kind == "class" else None
    ts = log_snr_grid(PROCESS, config.steps, t_min=T_MIN, t_max=1.0)

    def program(x_0: jax.Array, keys: jax.Array, labels: jax.Array) -> jax.Array:
        asked = labels if kind == "told" else jnp.full_like(labels, NULL)
        denoise = jax.jit(lambda x_t, t: denoise_given(x_t, t, asked))
        solver = Ancestral()
        if log_prob is not None:
            denoise = classifier_guided(denoise, PROCESS, log_prob(labels), strength)
        elif kind in masks():
            transform = (to_basis, from_basis) if kind == "colour hidden" else None
            known = jnp.asarray(masks()[kind])
            y = known * (x_0 if transform is None else to_basis(x_0))
            solver = Replacement(known > 0, y, kernel=solver, transform=transform, resamples=int(strength))
        return sample_sde(denoise, PROCESS, keys, x_0.shape, ts=ts, solver=solver).x

    mapped = pmap_sampler(lambda _, keys, x_0, labels: program(x_0, keys, labels))

    def draw(images: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
        keys = jax.random.split(jax.random.key(seed), len(images))
        return np.asarray(mapped({}, keys, images, labels))

    return draw


def _features(config: Config) -> Path:
    return Path(config.run_dir if config.trained == STAND_IN else config.trained) / "features"


# measures -------------------------------------------------------------------------------------------------------


def measured(kind: str, drawn: np.ndarray, images: np.ndarray, labels: np.ndarray, found: ColourFeatures) -> dict:
    """Means over digits with standard errors, of draws [draws, n, 16, 16, 3]."""
    known = masks().get(kind)
    error = np.asarray(to_basis(jnp.asarray(drawn - images))) if kind == "colour hidden" else drawn - images
    seen = np.clip(drawn, -1, 1)
    correct = np.stack([right(found, x, labels) for x in seen]).mean(0)
    values = {
        "accuracy": correct,
        "spread": np.mean([colour_spread(x) for x in seen], 0),
        "between": np.sqrt(seen.var(0, ddof=1).mean((1, 2, 3))),
    }
    if known is not None:
        values["known"] = np.sqrt((known * error**2).sum((0, 2, 3, 4)) / (known.sum() * len(drawn)))
    return {name: (float(v.mean()), float(v.std(ddof=1) / np.sqrt(len(v)))) for name, v in values.items()}


def colour_spread(images: np.ndarray) -> np.ndarray:
    """The RMS over a digit's pixels of their colour about its mean colour, in [0, 1]: 0 where a digit has one colour.

    A pixel's colour is its red, green and blue over the largest of the three; it counts by its brightness.
    """
    bright = brightness(images)
    ink = np.where(bright > 0.2, bright, 0)  # in the dark, colour is rounding
    colours = np.clip((images + 1) / 2, 0, 1) / np.maximum(bright, 1e-6)[..., None]
    total = np.maximum(ink.sum((1, 2)), 1e-6)
    mean = (ink[..., None] * colours).sum((1, 2)) / total[:, None]
    squared = ((colours - mean[:, None, None]) ** 2).mean(-1)
    return np.sqrt((ink * squared).sum((1, 2)) / total)


# run ------------------------------------------------------------------------------------------------------------


def main(config: Config) -> None:
    """Draw every task, measure and show."""
    run = begin(config)
    if run.said_done("figure4.png"):
        return
    digits = by_class(colour_digits("test"))
    images, labels = digits.images[: config.inputs], digits.labels[: config.inputs]
    found = load_colour_features(_features(config), steps=config.features)
    drawn, rows = {}, {}
    for name, (kind, strength) in tasks(config).items():
        path = run.directory / f"{name.replace(',', '').replace(' ', '-')}.npy"
        if not path.exists():
            draw = sampler(config, kind, strength)
            sets = [draw(images, labels, 1000 * config.seed + i) for i in range(config.draws)]
            np.save(path, np.stack(sets).astype(np.float32))
        drawn[name] = np.load(path)
        rows[name] = measured(kind, drawn[name], images, labels, found)
        print(f"{name}: {', '.join(f'{m} {v:.3f}' for m, (v, _) in rows[name].items())}", flush=True)
    accuracy = right(found, images, labels)
    real = {"accuracy": (float(accuracy.mean()), float(accuracy.std() / np.sqrt(len(labels))))}
    spread = colour_spread(images)
    real["spread"] = (float(spread.mean()), float(spread.std() / np.sqrt(len(labels))))
    write(run, {"held-out digits": real, **rows})
    figure4(config, drawn, images, run.directory / "figure4.png")
    run.finish(rows)
    print(f"Look at {run.directory}/figure4.png")


def write(run: Run, rows: dict[str, dict[str, tuple[float, float]]]) -> None:
    """figure4.csv and a table of the same for a page."""
    with (run.directory / "figure4.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["task", "measure", "value", "standard error"])
        for name, row in rows.items():
            writer.writerows([name, measure, f"{v:.5g}", f"{e:.2g}"] for measure, (v, e) in row.items())
    cells = [[name, *(plus_minus(*row[m], 3) if m in row else "" for m in MEASURES)] for name, row in rows.items()]
    text = markdown(["", *TITLES], cells)
    (run.directory / "figure4.md").write_text(text)
    print(text)


def figure4(config: Config, drawn: dict[str, np.ndarray], images: np.ndarray, path: Path) -> None:
    """Three panels: classes; originals, what is known of them, and draws, for hidden pixels; the same for colour."""
    import matplotlib

    from experiments._figures import STYLE, figure, save, tiled

    classes, how = f"classifier, w = {config.scale:g}", list(drawn)[-1].split(", ")[1]
    shown = np.array([3, 5, 8, 4, 2, 7]) + 10 * min(config.inputs // 10 - 1, 3)
    inpainted = [kind for kind in ("middle hidden", "right half hidden") if kind in config.kinds]

    def rows(kind: str, which: np.ndarray) -> list[np.ndarray]:
        grey = np.repeat(images.mean(-1, keepdims=True), 3, -1)
        seen = grey if kind == "colour hidden" else np.where(masks()[kind][None] > 0, images, 0.2)
        return [np.stack([images[i], seen[i], *drawn[f"{kind}, {how}"][:4, i]]) for i in which]

    parts = np.array_split(shown, len(inpainted))
    painted = np.stack([row for kind, part in zip(inpainted, parts, strict=True) for row in rows(kind, part)])
    coloured = np.stack(rows("colour hidden", shown))
    panels = (
        (
            drawn[classes].reshape(-1, CLASSES, *SHAPE)[:6],
            f"class-conditional ({classes})",
            [str(i) for i in range(CLASSES)],
        ),
        (painted, f"inpainting ({how})", ["true", "given", *["drawn"] * (painted.shape[1] - 2)]),
        (coloured, f"colorization ({how})", ["true", "given", *["drawn"] * (coloured.shape[1] - 2)]),
    )
    with matplotlib.rc_context(STYLE):
        fig = figure(8.6, 2.9)
        for ax, (grid, title, ticks) in zip(fig.subplots(1, 3, width_ratios=(10, 6, 6)), panels, strict=True):
            columns = grid.shape[1]
            ax.imshow((np.clip(tiled(grid.reshape(-1, *SHAPE), columns), -1, 1) + 1) / 2, interpolation="nearest")
            ax.set_xticks(16 * np.arange(columns) + 7.5, ticks, fontsize=7, rotation=0 if columns == CLASSES else 40)
            ax.set(title=title, yticks=[])
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        save(fig, path, dpi=150)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
