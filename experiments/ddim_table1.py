"""DDIM table 1 at this scale: Song, Meng & Ermon 2020 (arXiv:2010.02502), noise eta against number of steps.

    python -m experiments.ddim_table1             # 4 minutes on 2 CPU cores, after `make demo`
    python -m experiments.ddim_table1 --smoke     # the same code on tiny sizes, in seconds

The paper's rows, eta = 0 (DDIM), 0.2, 0.5, 1 (DDPM with the posterior's variance) and DDPM's larger variance beta (its
sigma-hat), at 5 to 100 steps, twice: on 28 x 28 digits by the network of `experiments.quickstart`, where the paper has
CIFAR-10 and CelebA by networks of a chain of 1,000, and on three unequal Gaussians in the plane with the exact
denoiser. Grids are quadratic as the paper's for CIFAR-10, from t = 1 to t = 0, and the step to t = 0 is the
denoiser's own estimate, so that evaluations equal steps. Scores stand in for FID: the energy distance to held-out
digits, and the sliced Wasserstein-2 distance to exact points. It writes tables.md and ddim_table1.png.

Expected, mean +- standard error over parts of the drawn digits and over 5 seeds: at 5 steps the energy distance, less
real digits' (95 % of which are below 0.013), is 0.066 +- 0.012 for DDIM, 0.139 +- 0.018 for DDPM, 0.219 +- 0.011 with
the larger variance; at 100 steps 0.014 +- 0.009, 0.038 +- 0.009 and 0.037 +- 0.010. On the mixture, of floor 0.039,
DDIM falls from 0.318 +- 0.003 to 0.042 +- 0.008 and DDPM from 0.445 +- 0.006 to 0.064 +- 0.008, but the larger variance
is best up to 20 steps (0.187 +- 0.003 at 5).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from dgm_jax.processes import quadratic
from dgm_jax.samplers import Samples, ddim, ddpm
from experiments._comparison import MixtureScores, digit_scores, finish, markdown, score_tables
from experiments._network import STAND_IN, denoisers, drawer, labels_of, levels
from experiments._run import Run, begin, parse
from experiments.quickstart import PROCESS

Sampler = Callable[..., Samples]
Program = Callable[..., Any]
ETAS = {"0 (DDIM)": 0.0, "0.2": 0.2, "0.5": 0.5, "1 (DDPM)": 1.0, "beta (DDPM)": None}  # None: the larger variance


@dataclass(frozen=True)
class Config:
    """Every eta at every number of steps."""

    steps: tuple[int, ...] = (5, 10, 20, 50, 100)
    digits: int = 120  # drawn in each cell, a multiple of 40
    points: int = 10_000  # of the mixture, in each set
    seeds: int = 5  # sets
    trained: str = "runs/quickstart"  # the run of experiments.quickstart
    known: int = 4500  # real digits that the scores know
    seed: int = 0
    run_dir: str = "runs/ddim_table1"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    steps=(4,),
    digits=40,
    points=500,
    seeds=3,
    trained=STAND_IN,
    known=500,
    run_dir="runs/ddim_table1-smoke",
    smoke=True,
)


def missing(
    config: Config, run: Run, data: str, compiled: Callable[[Sampler], Program]
) -> Iterator[tuple[str, int, Program, dict[str, Any]]]:
    """(eta, steps, program, options) of each cell that the run does not have yet; one program serves all eta."""
    made = {(record["data"], record["eta"], record["steps"]) for record in run.records()}
    for steps in config.steps:
        ts = quadratic(steps, t_min=0.0)
        by_eta, by_beta = compiled(partial(ddim, ts=ts)), compiled(partial(ddpm, ts=ts, variance="beta"))
        for name, eta in ETAS.items():
            if (data, name, steps) not in made:
                options = {} if eta is None else {"eta": jnp.asarray(eta)}
                yield name, steps, by_beta if eta is None else by_eta, options


def compute(config: Config, run: Run) -> None:
    """Every cell that the run does not have yet."""
    mixture = MixtureScores(config.points, config.seeds)
    run.measured("mixture_floor", mixture.floor)
    for name, steps, program, options in missing(config, run, "mixture", partial(mixture.of, PROCESS)):
        run.log(data="mixture", eta=name, steps=steps, **program(**options))
    network, scores = denoisers(config.trained), digit_scores(config.known)
    run.measured("digits_floor", lambda: scores.floor(config.digits))
    for name, steps, program, options in missing(
        config, run, "digits", lambda sample: drawer(network, PROCESS, sample)
    ):
        drawn = program(options, config.digits, config.seed)
        row = scores(levels(drawn.x), labels_of(config.digits))
        run.log(data="digits", eta=name, steps=steps, evaluations=drawn.evaluations, **row)
        print(f"eta {name}, {steps} steps: energy distance {row['energy']:.4f}", flush=True)


def tables(config: Config, run: Run) -> str:
    """A table for each score, one row for each eta."""
    records = {(record["data"], record["eta"], record["steps"]): record for record in run.records()}

    def table(data: str, show: Callable[[dict[str, Any]], str]) -> str:
        rows = [[name, *(show(records[data, name, steps]) for steps in config.steps)] for name in ETAS]
        return markdown(["eta", *(f"{steps} steps" for steps in config.steps)], rows)

    return score_tables(run, config.digits, table)


def main(config: Config) -> None:
    """Compute what is missing, then show all."""
    run = begin(config)
    compute(config, run)
    scores = {"cells": len(run.records())}
    picture = partial(plot, config, run)
    finish(run, tables(config, run), page="tables.md", picture="ddim_table1.png", plot=picture, scores=scores)


def plot(config: Config, run: Run, path: Path) -> None:
    """Distance against steps for each eta: digits, and the mixture."""
    import matplotlib

    from experiments._figures import BLUE, GREEN, ORANGE, STYLE, VERMILION, figure, save

    styles = dict(zip(ETAS, [("black", "o"), (BLUE, "s"), (GREEN, "^"), (ORANGE, "D"), (VERMILION, "v")], strict=True))
    panels = {
        "digits": ("trained network, 28 x 28 digits", "energy distance, less real digits'", "energy", "energy_error"),
        "mixture": ("exact denoiser, mixture in the plane", "sliced Wasserstein-2", "distance", "error"),
    }
    real = run.measured("digits_floor", dict)
    floors = {"digits": real["energy_95"] - real["energy"], "mixture": run.measured("mixture_floor", dict)["distance"]}
    shifts = {"digits": real["energy"], "mixture": 0.0}
    with matplotlib.rc_context(STYLE):
        fig = figure(6.8, 3.0)
        for ax, (data, (title, label, value, error)) in zip(fig.subplots(1, 2), panels.items(), strict=True):
            ax.axhspan(0, floors[data], color="0.9", lw=0, label="noise floor")
            for name, (color, marker) in styles.items():
                rows = [row for row in run.records() if (row["data"], row["eta"]) == (data, name)]
                points = sorted((row["steps"], row[value] - shifts[data], row[error]) for row in rows)
                ax.errorbar(*zip(*points, strict=True), color=color, marker=marker, ms=4, lw=1.2, capsize=2, label=name)
            ax.set_xscale("log")
            ax.set_xticks(config.steps, map(str, config.steps))
            ax.set(title=title, xlabel="steps = evaluations", ylabel=label)
            if data == "mixture":
                ax.set_yscale("log")
                ax.set_yticks([0.02, 0.05, 0.1, 0.2, 0.5], ["0.02", "0.05", "0.1", "0.2", "0.5"])
                ax.set_ylim(floors[data] / 2, 0.55)
            else:
                ax.set_ylim(bottom=0)
            ax.minorticks_off()
        handles, names = fig.axes[0].get_legend_handles_labels()
        names = [f"eta = {name}" if name in ETAS else name for name in names]
        fig.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        save(fig, path, dpi=150)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
