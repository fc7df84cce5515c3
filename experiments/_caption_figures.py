"""The figure and the table of text_to_digits."""

import csv
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments._comparison import markdown, plus_minus
from experiments._figures import STYLE, figure, save
from experiments._run import Run

SEEN, UNSEEN = "pairs seen", "pairs not seen"
MEASURES = ("corner", "digit", "both", "elsewhere")


def write(run: Run) -> dict[tuple[str, float], dict[str, list[float]]]:
    """text_to_digits.csv and a table for a page."""
    found = {(r["pairs"], r["scale"]): {name: r[name] for name in MEASURES} for r in run.records() if "pairs" in r}
    with (run.directory / "text_to_digits.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["pairs", "scale w", "measure", "value", "standard error"])
        for (which, scale), row in found.items():
            shown = scale if scale >= 0 else ""
            writer.writerows([which, shown, name, f"{v:.5g}", f"{e:.2g}"] for name, (v, e) in row.items())
    names = {cell: cell[0] + (f", w = {cell[1]:g}" if cell[1] >= 0 else " digits held out") for cell in found}
    rows = [
        [names[cell], *(plus_minus(row[name][0], row[name][1], 3) for name in MEASURES)] for cell, row in found.items()
    ]
    text = markdown(["", "corner right", "digit right", "both right", "ink elsewhere"], rows)
    (run.directory / "text_to_digits.md").write_text(text)
    print(text)
    return found


def caption_figure(pictures: dict[Any, Any], path: Path) -> None:
    """Pictures of the largest scale, with their captions; above of pairs seen, below of pairs not seen."""
    scale = max(scale for _, scale in pictures)
    with matplotlib.rc_context({**STYLE, "axes.titlesize": 6.5}):
        fig = figure(8.4, 4.6)
        for part, which in zip(fig.subfigures(2, 1, squeeze=False)[:, 0], (SEEN, UNSEEN), strict=True):
            part.suptitle(f"{which} in training, w = {scale:g}", fontsize=9)
            images, captions = pictures[which, scale]
            for ax, i in zip(part.subplots(2, 5).flat, range(10), strict=True):
                ax.imshow(np.clip(images[i, ..., 0], -1, 1), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
                ax.axhline(9.5, color="0.4", lw=0.4)
                ax.axvline(9.5, color="0.4", lw=0.4)
                ax.set_title(captions[i].replace(" in the ", "\nin the ", 1) if len(captions[i]) > 30 else captions[i])
                ax.set(xticks=[], yticks=[])
        save(fig, path, dpi=130)
