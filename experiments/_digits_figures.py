"""The quickstart's pictures: real beside drawn digits, the way from noise to digit, the loss."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from experiments._figures import BLUE, ORANGE, STYLE, figure, save, tiled


def digits_figure(real: np.ndarray, drawn: dict[str, np.ndarray], path: Path, *, rows: int = 8) -> None:
    """Real held-out digits, and those drawn by the SDE and the ODE; one class in each column."""
    panels = {
        "real, held out": real[: 10 * rows] / 127.5 - 1,
        "drawn by the reverse SDE": drawn["sde"][: 10 * rows],
        "drawn by the probability-flow ODE": drawn["ode"][: 10 * rows],
    }
    with matplotlib.rc_context(STYLE):
        fig = figure(9.6, 2.9)
        for ax, (title, images) in zip(fig.subplots(1, 3), panels.items(), strict=True):
            ax.imshow(tiled(images, 10), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
            ax.set_title(title)
            ax.axis("off")
        save(fig, path)


def path_figure(drawn: dict[str, np.ndarray], path: Path, *, digits: int = 4) -> None:
    """From noise (left) to digit: for each digit the state x_t, and below it the estimate of x_0 at that time."""
    picked = [0, 4, 7, 9][:digits]
    strips = [part[:, i] for i in picked for part in (drawn["states"], drawn["estimates"])]
    with matplotlib.rc_context(STYLE):
        fig = figure(5.4, 4.4)
        axes = fig.subplots()
        axes.imshow(tiled(np.concatenate(strips), 10), cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
        side = drawn["states"].shape[2]
        axes.set_yticks(side * (np.arange(2 * digits) + 0.5), ["$x_t$", r"$\mathrm{E}[x_0|x_t]$"] * digits, fontsize=8)
        axes.set_xticks([side / 2, 9.5 * side], ["noise", "digit"])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        save(fig, path)


def loss_figure(records: list[dict[str, Any]], path: Path) -> None:
    """The loss of single batches, and its running mean over a twentieth of the run."""
    steps = np.array([record["step"] for record in records])
    losses = np.array([record["loss"] for record in records])
    window = max(len(losses) // 20, 1)
    mean = np.convolve(losses, np.ones(window) / window, mode="valid")
    with matplotlib.rc_context(STYLE):
        fig = figure(4.5, 2.8)
        ax = fig.subplots()
        ax.plot(steps, losses, ".", color=BLUE, alpha=0.3, markersize=3, label="one batch")
        ax.plot(steps[window - 1 :], mean, color=ORANGE, label="running mean")
        ax.set_yscale("log")
        ax.set_xlabel("step")
        ax.set_ylabel("squared error of v")
        ax.legend(frameon=False)
        save(fig, path)
