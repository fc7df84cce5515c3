"""The pictures of family_comparison: a dot for each seed, sampler and score; and what the samplers draw."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from experiments._family_table import COLUMNS, REAL, SCALE, Records
from experiments._figures import BLACK, BLUE, GREEN, ORANGE, STYLE, VERMILION, figure, save, tiled

COLORS = {"GAN": VERMILION, "VAE": ORANGE, "IWAE": ORANGE, "VP": BLUE, "rectified flow": GREEN, REAL: BLACK}
SHOWN = {
    "grid": {
        "high_quality": "high-quality share",
        "reverse_kl": "reverse KL, nats",
        "c2st": "C2ST accuracy",
        "coverage": "coverage",
        "seconds_per_sample": "µs per sample",
    },
    "digits": {
        "frechet": "Frechet distance",
        "c2st": "C2ST accuracy",
        "precision": "precision",
        "coverage": "coverage",
        "seconds_per_sample": "µs per sample",
    },
}
LOGARITHMIC = ("reverse_kl", "frechet", "seconds_per_sample")


def dots(records: dict[str, Records], path: Path) -> None:
    """A column for each score, a line for each sampler, a mark for each seed; the band is real data's range."""
    with matplotlib.rc_context(STYLE):
        fig = figure(7.4, 2.9 * len(records))
        axes = fig.subplots(len(records), 5, squeeze=False)
        for row, (name, mine) in zip(axes, records.items(), strict=True):
            for ax, (score, title) in zip(row, SHOWN[name].items(), strict=True):
                _panel(ax, mine, score)
                ax.set_xlabel(title)
                ax.set_yticks(range(len(COLUMNS)), COLUMNS if ax is row[0] else [""] * len(COLUMNS))
            row[0].set_title({"grid": "25 Gaussians", "digits": "digits"}[name], loc="left", fontweight="bold")
        save(fig, path)


def samples(drawn: dict[str, dict[str, np.ndarray]], path: Path, *, points: int = 1000, side: int = 5) -> None:
    """Points and digits of the first seed, and real ones."""
    with matplotlib.rc_context(STYLE):
        fig = figure(7.4, 3.0 * len(drawn))
        for part, (name, sets) in zip(fig.subfigures(len(drawn), 1, squeeze=False)[:, 0], drawn.items(), strict=True):
            axes = part.subplots(2, 6)
            for ax in axes.flat:
                ax.axis("off")
            for ax, (sampler, x) in zip(axes.flat, sets.items(), strict=False):
                ax.set_title(sampler)
                if name == "grid":
                    ax.plot(*x[:points].T, ".", color=color_of(sampler), ms=1.2, mew=0)
                    ax.set(xlim=(-5, 5), ylim=(-5, 5), aspect="equal")
                else:
                    shown = tiled(x[: side**2] / 127.5 - 1, side)
                    ax.imshow(shown, cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
        save(fig, path)


def color_of(sampler: str) -> str:
    """The colour of a sampler's family."""
    return next(color for name, color in COLORS.items() if name in sampler)


def _panel(ax: Any, records: Records, score: str) -> None:
    floor: list[float] = []
    for i, sampler in enumerate(COLUMNS):
        mine = [record for record in records if record["sampler"] == sampler]
        values = [{**record, **record["scores"]}.get(score) for record in mine]
        known = [SCALE.get(score, 1.0) * value for value in values if value is not None]
        color = color_of(sampler)
        marker = {VERMILION: "o", ORANGE: "s", BLUE: "^", GREEN: "D", BLACK: "x"}[color]
        ax.plot(known, [i] * len(known), marker, color=color, ms=4, mfc="none", ls="")
        floor = known if sampler == REAL else floor
    if floor:
        ax.axvspan(min(floor), max(floor), color="0.85", lw=0)
    if score in LOGARITHMIC:
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(numticks=4))
        ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_ylim(len(COLUMNS) - 0.5, -0.5)
    ax.grid(axis="y", color="0.92", lw=0.6)
