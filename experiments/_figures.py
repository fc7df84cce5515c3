"""One style for all figures: readable at a column's width, in colours that colour-blind readers can tell apart."""

from pathlib import Path
from typing import Any

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

from experiments._tiles import tiled as tiled

# Okabe and Ito 2008, "Color universal design"
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=[BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK]),
}


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches, outside pyplot, so that no window and no backend is involved."""
    with matplotlib.rc_context(STYLE):
        return Figure(figsize=(width, height), layout="constrained")


def save(fig: Figure, path: str | Path, *, dpi: int = 120, limit: int = 200_000) -> None:
    """Write a PNG with a palette of 256 colours, or of as many fewer as keep it below `limit` bytes."""
    from PIL import Image

    fig.savefig(path, dpi=dpi, facecolor="white")
    with Image.open(path) as image:
        full = image.convert("RGB")
    for colors in (256, 128, 64, 32, 16):
        full.quantize(colors, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(path, optimize=True)
        if Path(path).stat().st_size < limit:
            return
