"""The figure and the table of latent_diffusion."""

import csv
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments._comparison import markdown, plus_minus
from experiments._figures import BLUE, ORANGE, STYLE, figure, save, tiled
from experiments._run import Run

MEASURES = ("accuracy", "precision", "recall", "density", "coverage", "frechet", "seconds")
Found = dict[tuple[str, float], dict[str, tuple[float, float]]]


def write(run: Run, sets: int) -> Found:
    """Means over sets and their standard errors, as latent_diffusion.csv and a table for a page."""
    rows: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for record in run.records():
        if record["method"] != "steps":
            rows.setdefault((record["method"], record["scale"]), []).append(record)
    found: Found = {}
    for cell, records in rows.items():
        values = {name: np.array([record[name] for record in records]) for name in MEASURES}
        found[cell] = {name: (float(v.mean()), float(v.std(ddof=1) / np.sqrt(sets))) for name, v in values.items()}
    with (run.directory / "latent_diffusion.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["method", "scale w", "measure", "value", "standard error"])
        for (method, scale), row in found.items():
            kept = {name: row[name] for name in MEASURES if scale or name != "seconds"}
            writer.writerows([method, scale or "", name, f"{v:.5g}", f"{e:.2g}"] for name, (v, e) in kept.items())
    lines = []
    for (method, scale), row in found.items():
        cells = [plus_minus(*row[name], 2 if name in ("frechet", "seconds") else 3) for name in MEASURES]
        lines.append([f"{method}, w = {scale:g}" if scale else method, *(cells if scale else [*cells[:-1], ""])])
    header = ["", "class accuracy", "precision", "recall", "density", "coverage", "Frechet distance", "seconds a set"]
    text = markdown(header, lines)
    (run.directory / "latent_diffusion.md").write_text(text)
    print(text)
    return found


def latent_figure(found: Found, pictures: dict[str, np.ndarray], path: Path) -> None:
    """Above, digits of every kind, two of each class; below, measures against the scale beside the training digits'."""
    methods = dict.fromkeys(method for method, scale in found if scale)
    real, through = (method for method, scale in found if not scale)
    panels = {
        "accuracy": "class accuracy",
        "precision": "precision",
        "recall": "recall",
        "coverage": "coverage",
        "frechet": "Frechet (features²)",
    }
    with matplotlib.rc_context(STYLE):
        fig = figure(8.4, 0.4 + 0.36 * len(pictures) + 2.0)
        parts = fig.subfigures(2, 1, squeeze=False, height_ratios=(0.36 * len(pictures) + 0.2, 2.2))
        top, below = parts[:, 0]
        ax = top.subplots()
        ax.imshow(
            tiled(np.concatenate([images[:20] for images in pictures.values()]), 20), cmap="gray", vmin=0, vmax=255
        )
        ax.set_yticks(28 * np.arange(len(pictures)) + 13.5, list(pictures))
        ax.set_xticks(28 * np.arange(20) + 13.5, [str(i % 10) for i in range(20)])
        ax.set_xlabel("class asked for")
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        axes = below.subplots(1, len(panels))
        for ax, (name, title) in zip(axes, panels.items(), strict=True):
            level, error = found[real, 0.0][name]
            ax.axhspan(level - 2 * error, level + 2 * error, color="0.8", lw=0, label=real)
            ax.axhline(level, color="0.5", lw=0.8)
            ax.axhline(found[through, 0.0][name][0], color="k", ls=":", lw=1.2, label=through)
            for method, color, style in zip(methods, (BLUE, ORANGE), ("o-", "s--"), strict=True):
                scales = [scale for m, scale in found if m == method]
                values = np.array([found[method, scale][name] for scale in scales])
                ax.errorbar(scales, values[:, 0], 2 * values[:, 1], fmt=style, color=color, ms=4, lw=1.2, label=method)
            drawn = sorted({scale for _, scale in found if scale})
            ax.set(title=title, xlabel="guidance scale w", xticks=drawn, xlim=(drawn[0] - 0.4, drawn[-1] + 0.4))
            ax.set_ylim(0, None)
        below.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
        save(fig, path, dpi=130)
