"""The frontier as a picture: error against evaluations, one panel per mode."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from experiments._figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, VERMILION, figure, save
from experiments._frontier_page import Floor, Record, pareto_front

# each is drawn at its best grid; all others are dots
DRAWN = {
    "ODE, Heun in time": ("0.35", "P"),
    "DDPM, posterior variance": (VERMILION, "s"),
    "SDE, Euler in time": (ORANGE, "^"),
    "DDIM": (SKY, "o"),
    "EDM Heun": (BLUE, "D"),
    "DPM-Solver++(2M)": (GREEN, "v"),
    "adaptive Tsit5 in time": (PURPLE, "X"),
}
HIGHEST = 40.0  # of the panels, in noise floors


def picture(panels: dict[str, tuple[list[Record], Floor]], path: Path) -> None:
    """One panel per title, with the records and the floor of its mode."""
    with matplotlib.rc_context(STYLE):
        fig = figure(3.2 * len(panels) + 0.3, 4.3)
        axes = fig.subplots(1, len(panels), squeeze=False)[0]
        for ax, (title, (records, floor)) in zip(axes, panels.items(), strict=True):
            measure = records[0]["measure"]
            _panel(ax, records, floor[measure])
            ax.set_title(title)
            ax.set_ylabel(f"{measure} to data" + (" (pixels)" if measure.startswith("energy") else " (data units)"))
        handles: list[Any] = [
            Line2D([], [], color=color, marker=marker, ms=5, lw=1.3, label=name)
            for name, (color, marker) in DRAWN.items()
        ]
        handles += [
            Line2D([], [], color="0.72", marker=".", lw=0, label="all samplers and grids"),
            Line2D([], [], color=BLACK, lw=2.2, label="Pareto front"),
            Patch(color="0.85", label="noise floor, mean to 95 %"),
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
        save(fig, path, dpi=130)


def _panel(ax: Any, records: list[Record], floor: dict[str, float]) -> None:
    records = [record for record in records if record["succeeded"]]
    cost, error = (np.array([record[name] for record in records]) for name in ("evaluations", "error"))
    ax.axhspan(floor["mean"], floor["high"], color="0.85", lw=0)
    ax.axhline(floor["mean"], color="0.55", lw=0.8)
    ax.scatter(cost, error, s=7, color="0.72", lw=0, zorder=1)
    for name, (color, marker) in DRAWN.items():
        best: dict[int, float] = {}
        for record in records:
            if record["sampler"] == name:
                at = record["evaluations"]
                best[at] = min(best.get(at, np.inf), record["error"])
        if best:
            ax.plot(*zip(*sorted(best.items()), strict=True), color=color, marker=marker, ms=5, lw=1.3, zorder=3)
    highest, last = HIGHEST * floor["mean"], 1.15 * max(cost.max(initial=1), 100)
    front = pareto_front(zip(cost.tolist(), error.tolist(), strict=True))
    if front:
        front = [(front[0][0], 2 * highest), *front, (last, front[-1][1])]
        ax.plot(*zip(*front, strict=True), color=BLACK, lw=2.2, drawstyle="steps-post", zorder=2)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlim(3.5, min(last, 300))
    ax.set_ylim(min(0.6 * floor["mean"], 0.9 * error.min(initial=np.inf)), highest)
    ax.set_xticks([5, 10, 20, 50, 100, 200], ["5", "10", "20", "50", "100", "200"])
    ticks = [digit * 10.0**power for power in range(-4, 4) for digit in (1, 2, 5)]
    low, high = ax.get_ylim()
    shown = [tick for tick in ticks if low <= tick <= high]
    ax.set_yticks(shown, [f"{tick:g}" for tick in shown])
    ax.minorticks_off()
    ax.set_xlabel("evaluations of the denoiser")
