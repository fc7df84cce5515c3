"""The picture of `experiments.scaling_model`: efficiency against chips, and the check on this machine."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes

from experiments._figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, VERMILION, figure, save

CHIPS = {
    "TPU v4": (BLUE, "o"),
    "TPU v5e": (SKY, "s"),
    "TPU v5p": (GREEN, "^"),
    "TPU v6e": (BLACK, "v"),
    "A100": (ORANGE, "D"),
    "H100": (VERMILION, "x"),
}


def plot(rows: Sequence[dict[str, Any]], checked: Sequence[dict[str, Any]], path: Path) -> None:
    """Left strong, middle weak scaling, solid without and dashed with overlap; right predicted against measured."""
    with matplotlib.rc_context(STYLE):
        fig = figure(7.6, 3.4)
        strong, weak, check = fig.subplots(1, 3)
        for axes, kind in ((strong, "strong"), (weak, "weak")):
            for i, (name, (color, marker)) in enumerate(CHIPS.items()):
                part = [row for row in rows if (row["chip"], row["scaling"]) == (name, kind)]
                numbers = [row["chips"] for row in part]
                style = {"color": color, "marker": marker, "ms": 3.5, "lw": 1.2, "markevery": (i % 3, 3)}
                axes.plot(numbers, [row["efficiency"] for row in part], label=name, **style)
                axes.plot(numbers, [row["overlapped_efficiency"] for row in part], **style | {"ls": ":", "mfc": "none"})
            first = next(row["images_per_chip"] for row in rows if row["chips"] == 1)
            title = f"{kind}: {first:g} images " + ("in all" if kind == "strong" else "a chip")
            lowest = min(row["efficiency"] for row in rows if row["scaling"] == kind)
            bottom = 0.9 if lowest > 0.9 else 0.0
            axes.set(xscale="log", xlabel="chips", title=title, ylim=(bottom, 1 + 0.04 * (1 - bottom)))
            most = max(row["chips"] for row in rows if row["scaling"] == kind)
            ticks = [n for n in (1, 8, 32, 128, 512, 4096) if n <= most and (most <= 128 or n not in (32, 128))]
            axes.set_xticks(ticks, [f"{n:,}" for n in ticks])
            axes.minorticks_off()
        strong.set_ylabel("efficiency (estimate)")
        strong.text(1, 0.05, "dotted: the sum\noverlaps the\nbackward pass", fontsize=8)
        measured_panel(check, checked)
        handles, names = strong.get_legend_handles_labels()
        fig.legend(handles, names, loc="outside lower center", ncols=6, frameon=False)
        save(fig, path, dpi=150)


def measured_panel(axes: Axes, checked: Sequence[dict[str, Any]]) -> None:
    """Each network, batch and number of processes as a point."""
    numbers = sorted({row["processes"] for row in checked})
    for n, color, marker in zip(numbers, (BLUE, ORANGE, PURPLE, GREEN), "os^v", strict=False):
        part = [row for row in checked if row["processes"] == n]
        seconds = [[1e3 * row[name] for row in part] for name in ("measured", "predicted")]
        axes.plot(*seconds, color=color, marker=marker, ms=4, ls="", label=f"{n} process{'es' * (n > 1)}")
    ends = [1e3 * end(row[name] for row in checked for name in ("measured", "predicted")) for end in (min, max)]
    axes.plot(ends, ends, color="0.6", lw=1)
    axes.set(xscale="log", yscale="log", xlabel="measured, ms", ylabel="predicted, ms", title="this machine: a check")
    axes.legend(frameon=False, loc="lower right")
