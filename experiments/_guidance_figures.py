"""Figures of guidance_strength: measures against the scale, digits of every scale, the exact plane."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import matplotlib
import numpy as np

from experiments._figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, SKY, STYLE, VERMILION, figure, save, tiled
from experiments._guidance_exact import FLOOR, HIGH, LOW, centres, guided_points, tilted_log_density

LINES = {
    "guidance": (BLUE, "o-"),
    "limited interval": (ORANGE, "s--"),
    "static threshold": (PURPLE, "D-."),
    "dynamic threshold": (GREEN, "^:"),
}
PANELS = {
    "accuracy": "class accuracy",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "frechet": "Frechet distance (features squared)",
}


def strength_figure(found: dict[Any, Any], real: dict[str, Any], path: Path) -> None:
    """One panel for each measure; bars are two standard errors, the band is real digits, two standard deviations."""
    scales = sorted({scale for _, scale in found})
    place = {scale: i for i, scale in enumerate(scales)}
    with matplotlib.rc_context(STYLE):
        fig = figure(7.6, 4.6)
        axes = fig.subplots(2, 3).flat
        for ax, (name, title) in zip(axes, PANELS.items(), strict=True):
            level, spread = real[name]
            ax.axhspan(level - 2 * spread, level + 2 * spread, color="0.85", lw=0, label="real digits")
            for shift, (method, (color, style)) in zip((-0.09, -0.03, 0.03, 0.09), LINES.items(), strict=True):
                own = [scale for m, scale in found if m == method]
                if not own:
                    continue
                values = np.array([found[method, scale][name] for scale in own])
                at = [place[scale] + shift for scale in own]
                ax.errorbar(at, values[:, 0], 2 * values[:, 1], fmt=style, color=color, ms=4, lw=1.2, label=method)
            ax.set(title=title, xlabel="guidance scale w")
            if name == "frechet":
                ax.set_yscale("log")
            else:
                ax.set_ylim(0, None)
            ax.set_xticks(range(len(scales)), [f"{scale:g}" for scale in scales])
        fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
        save(fig, path, dpi=130)


def grid_figure(pictures: dict[str, np.ndarray], scales: tuple[float, ...], path: Path) -> None:
    """A row for each scale, from the same noise; ten digits by each method."""
    own = {method: [scale for scale in scales if f"{method} {scale:g}" in pictures] for method in LINES}
    heights = [max(len(own[m]) for m in row) for row in (list(LINES)[:2], list(LINES)[2:])]
    with matplotlib.rc_context(STYLE):
        fig = figure(8.6, 0.3 * sum(map(bool, heights)) + 0.42 * sum(heights))
        for ax, method in zip(
            fig.subplots(2, 2, height_ratios=[max(h, 0.1) for h in heights]).flat, LINES, strict=True
        ):
            ax.set_visible(bool(own[method]))
            if not own[method]:
                continue
            images = np.concatenate([pictures[f"{method} {scale:g}"][:10] for scale in own[method]])
            ax.imshow((np.clip(tiled(images, 10), -1, 1) + 1) / 2, interpolation="nearest")
            ax.set_yticks(16 * np.arange(len(own[method])) + 7.5, [f"{scale:g}" for scale in own[method]], fontsize=7)
            ax.set(title=method, ylabel="w", xticks=[], anchor="N")
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        save(fig, path, dpi=130)


def exact_figure(exact: dict[Any, Any], points: int, steps: int, path: Path) -> None:
    """Left, points of guidance at w = 3 on the tilted density; right, the distance to it against w."""
    methods, scales = list(dict.fromkeys(method for method, _ in exact)), sorted({scale for _, scale in exact})
    colors = dict(zip(methods, (BLACK, VERMILION, BLUE, SKY, GREEN, PURPLE), strict=False))
    styles = dict(zip(methods, (":", "o-", "s-", "^--", "v--", "D--"), strict=False))
    scale, cells = 3.0, 160
    density = np.exp(np.asarray(tilted_log_density(jnp.asarray(centres(cells)), scale), np.float64))
    density = density.reshape(cells, cells) / density.max()
    ticks = (np.arange(cells) + 0.5) / cells * (HIGH - LOW) + LOW
    with matplotlib.rc_context(STYLE):
        fig = figure(8.2, 3.1)
        axes = fig.subplots(1, 3, width_ratios=(1, 1, 1.25))
        for ax, method in zip(axes, ("ODE", methods[-1]), strict=False):
            x = guided_points(method, points, steps)(scale, 0)[:1500]
            ax.plot(*x.T, ".", ms=1.5, color=colors[method], alpha=0.6)
            ax.contour(ticks, ticks, density, levels=(0.02, 0.1, 0.4, 0.8), colors="k", linewidths=0.7)
            ax.set(title=f"{method}, w = {scale:g}", xlabel="$x_1$", ylabel="$x_2$", aspect="equal")
            ax.set(xlim=(-2.6, 1.2), ylim=(-2.2, 2.0))
        ax = axes[2]
        for method in methods:
            values = np.array([exact[method, scale] for scale in scales])
            error = 2 * values.std(1, ddof=1) / np.sqrt(values.shape[1])
            kind = {"ls": styles[method], "marker": ""} if method == FLOOR else {"fmt": styles[method]}
            ax.errorbar(scales, values.mean(1), error, **kind, ms=3, lw=1.1, color=colors[method], label=method)
        ax.set(xlabel="guidance scale w", ylabel="sliced Wasserstein-2 distance", title="from p(x) p(c | x)^w")
        ax.set_ylim(0, None)
        fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=len(methods), frameon=False)
        save(fig, path, dpi=130)
