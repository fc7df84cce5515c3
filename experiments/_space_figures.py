"""The figure and the table of latent_spaces."""

import csv
from pathlib import Path

import matplotlib
import numpy as np

from experiments._comparison import markdown
from experiments._digit_attributes import ATTRIBUTES
from experiments._figures import STYLE, figure, save, tiled
from experiments._run import Run

MEASURES = {
    "reconstruction": "reconstruction, RMS of pixels in [-1, 1]",
    "class kept": "class kept by reconstruction",
    "path length": "path length, squared steps of real digits",
    **{f"{name} apart": f"{name} told by a hyperplane, accuracy" for name in ATTRIBUTES},
    "classes apart": "a class told by a hyperplane, H(label, given the side), nats",
    **{f"{name} moved": f"{name} by its direction, std" for name in ATTRIBUTES},
    **{f"{name} alone": f"{name}, share of its own effect" for name in ATTRIBUTES},
    "class kept by edits": "class kept by edits",
}


def write(run: Run) -> None:
    """latent_spaces.csv with every seed, and a table of means and standard deviations over seeds for a page."""
    records = run.records()
    families = list(dict.fromkeys(record["family"] for record in records))
    with (run.directory / "latent_spaces.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["family", "seed", *MEASURES])
        writer.writerows([r["family"], r["seed"], *(f"{r[name]:.5g}" for name in MEASURES)] for r in records)
    rows = []
    for name, title in MEASURES.items():
        cells = []
        for family in families:
            values = np.array([record[name] for record in records if record["family"] == family])
            spread = f" +- {values.std(ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{values.mean():.3f}{spread}")
        rows.append([title, *cells])
    text = markdown(["", *families], rows)
    (run.directory / "latent_spaces.md").write_text(text)
    print(text)


def figure_of(pictures: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """A row for each family: reconstructions, interpolations, edits."""
    columns = {"pairs": 8, "ways": 9, "edits": 7}
    titles = {
        "pairs": "held-out digits, and decoded again",
        "ways": "between two digits, spherical",
        "edits": "along directions of attributes",
    }
    with matplotlib.rc_context(STYLE):
        fig = figure(8.6, 4.6)
        side = next(iter(pictures.values()))["pairs"].shape[1]
        axes = fig.subplots(len(pictures), 3, width_ratios=(8, 9, 10))
        for row, (family, shown) in zip(axes, pictures.items(), strict=True):
            for ax, name in zip(row, columns, strict=True):
                picture = np.clip(tiled(shown[name], columns[name]), -1, 1)
                ax.imshow(-picture, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
                ax.set(xticks=[], yticks=[])
                ax.spines[:].set_visible(False)
            row[0].set_ylabel(family)
            row[2].set_yticks(side * np.arange(len(ATTRIBUTES)) + side / 2, ATTRIBUTES, fontsize=7)
            row[2].tick_params(length=0)
        for ax, title in zip(axes[0], titles.values(), strict=True):
            ax.set_title(title)
        strengths = np.linspace(-2, 2, 7)
        axes[-1, 2].set_xticks(side * np.arange(7) + side / 2, [f"{s:.1f}" for s in strengths], fontsize=7)
        axes[-1, 2].set_xlabel("strength, directions")
        axes[-1, 1].set_xticks(side * np.arange(9) + side / 2, [f"{s:.2g}" for s in np.linspace(0, 1, 9)], fontsize=6)
        axes[-1, 1].set_xlabel("share of the second digit")
        save(fig, path, dpi=140)
