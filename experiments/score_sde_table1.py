"""Score SDE table 1 at this scale: Song et al. 2021 (arXiv:2011.13456), predictors with and without correctors.

    python -m experiments.score_sde_table1            # 4 minutes on 2 CPU cores, after `make demo`
    python -m experiments.score_sde_table1 --smoke    # the same code on tiny sizes, in seconds

The paper's columns at n = 25 levels for its 1,000: P, n predictor steps; P2, 2n of them; C, 2n corrector steps and no
predictor; PC, a predictor and a corrector step at each of n levels. P2, C and PC cost 2n evaluations, P half of it. Its
rows: ancestral sampling, reverse diffusion, the probability flow. Its processes: VE, and VP with "SMLD" and
"DDPM" discretisation, which are grids uniform in t; the signal-to-noise ratios r are its own, 0.16 and 0.01.
Once on 28 x 28 digits by the network of `experiments.quickstart`: it was trained under VP, and serves VE too, as at
equal sigma/alpha the two states differ by a factor alone. Once on three unequal Gaussians in the plane with the exact
denoiser, where what is left is the sampler's error. It writes tables.md and score_sde_table1.png.

Expected, mean +- standard error, on the mixture (exact points 0.039 +- 0.005), P25 | P50 | PC25:

    VE  ancestral           0.188 +- 0.005 | 0.114 +- 0.007 | 0.176 +- 0.004       C50 alone: 14.23 +- 0.04
        reverse diffusion   0.203 +- 0.006 | 0.117 +- 0.004 | 0.194 +- 0.006
        probability flow    0.589 +- 0.006 | 0.306 +- 0.006 | 0.377 +- 0.005
    VP  ancestral           0.151 +- 0.009 | 0.103 +- 0.009 | 0.156 +- 0.005       C50 alone: 0.685 +- 0.002
        reverse diffusion   0.108 +- 0.009 | 0.072 +- 0.010 | 0.105 +- 0.009
        probability flow    0.528 +- 0.006 | 0.321 +- 0.006 | 0.527 +- 0.005

As in the paper correctors alone are worst, and under VE a corrector helps every predictor, the probability flow most.
Unlike there, at so few levels twice the predictor's steps help more, and r = 0.01 does nothing under VP.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from dgm_jax.parameterizations.posterior import posterior_of
from dgm_jax.processes import GaussianProcess, uniform, variance_exploding
from dgm_jax.samplers import (
    Ancestral,
    Hold,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
    Samples,
    sample_sde,
)
from dgm_jax.samplers.coordinates import CoordinateName
from dgm_jax.samplers.reverse import Kernel
from experiments._comparison import MixtureScores, digit_scores, finish, markdown, score_tables
from experiments._network import STAND_IN, denoisers, drawer, labels_of, levels
from experiments._run import Run, begin, parse
from experiments.quickstart import PROCESS, T_MIN


class Setting(NamedTuple):
    """A process, the time at which its samplers end, and the corrector's signal-to-noise ratio."""

    process: GaussianProcess
    t_min: float
    snr: float


class ProbabilityFlow(Kernel):
    """The paper's step of the probability flow: reverse diffusion with half of the score's weight and no noise.

    x_s = (2 - a) x + G^2/2 score, a = alpha_t/alpha_s, G^2 = sigma_t^2 - a^2 sigma_s^2 (appendix D.3). `diffrax.Euler`
    in coordinates "time" has G^2's differential for G^2, and diverges under VE at so few levels.
    """

    coordinates: ClassVar[CoordinateName] = "time"

    def move(self, reverse, s_0, s_1, state, noise, memory):
        """One step."""
        (alpha_t, sigma_t), (alpha_s, _) = reverse.levels(s_0), reverse.levels(s_1)
        added = posterior_of(reverse.process, reverse.time(s_0), reverse.time(s_1)).beta
        _, noise_estimate = reverse.estimates(s_0, state)
        return (2 - alpha_t / alpha_s) * state - added / (2 * sigma_t) * noise_estimate, None


# both end at sigma = 0.01
SETTINGS = {"VE": Setting(variance_exploding(0.01, 50.0), 0.0, 0.16), "VP": Setting(PROCESS, T_MIN, 0.01)}
PREDICTORS = {
    "ancestral": Ancestral(),
    "reverse diffusion": ReverseDiffusion(),
    "probability flow": ProbabilityFlow(),
}
COLUMNS = ("P", "P2", "C", "PC")
NONE = "correctors alone"  # the row of C


@dataclass(frozen=True)
class Config:
    """Every predictor in every column, under both processes."""

    processes: tuple[str, ...] = tuple(SETTINGS)
    predictors: tuple[str, ...] = tuple(PREDICTORS)
    columns: tuple[str, ...] = COLUMNS
    levels: int = 25  # n; evaluations are n for P and 2n for the others
    digits: int = 120  # drawn in each cell, a multiple of 40
    points: int = 10_000  # of the mixture, in each set
    seeds: int = 5  # sets
    trained: str = "runs/quickstart"  # the run of experiments.quickstart
    known: int = 4500  # real digits that the scores know
    seed: int = 0
    run_dir: str = "runs/score_sde_table1"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    processes=("VE",),
    predictors=("probability flow",),
    columns=("C", "PC"),
    levels=3,
    digits=40,
    points=500,
    seeds=3,
    trained=STAND_IN,
    known=500,
    run_dir="runs/score_sde_table1-smoke",
    smoke=True,
)


def cells(config: Config) -> Iterator[tuple[str, str, str]]:
    """(process, predictor, column); correctors alone are one cell of each process."""
    for setting in config.processes:
        for column in config.columns:
            yield from ((setting, name, column) for name in ((NONE,) if column == "C" else config.predictors))


def sampler(setting: Setting, predictor: str, column: str, n: int) -> Callable[..., Samples]:
    """The sampler of a cell, on a grid uniform in t: of n levels, or of 2n for P2 and C."""
    solver = PREDICTORS.get(predictor, Hold())
    if column in ("C", "PC"):
        solver = PredictorCorrector(solver, Langevin(setting.snr))
    steps = n if column in ("P", "PC") else 2 * n
    return partial(sample_sde, ts=uniform(steps, t_min=setting.t_min), solver=solver)


def compute(config: Config, run: Run) -> None:
    """Every cell that the run does not have yet."""
    made = {(record["data"], record["process"], record["predictor"], record["column"]) for record in run.records()}
    mixture, scores, network = (
        MixtureScores(config.points, config.seeds),
        digit_scores(config.known),
        denoisers(config.trained),
    )
    run.measured("mixture_floor", mixture.floor)
    run.measured("digits_floor", lambda: scores.floor(config.digits))
    for data in ("mixture", "digits"):
        for setting, predictor, column in cells(config):
            if (data, setting, predictor, column) in made:
                continue
            process, sample = SETTINGS[setting].process, sampler(SETTINGS[setting], predictor, column, config.levels)
            if data == "mixture":
                row = mixture.of(process, sample)()
            else:
                drawn = drawer(network, process, sample)({}, config.digits, config.seed)
                row = {**scores(levels(drawn.x), labels_of(config.digits)), "evaluations": drawn.evaluations}
                np.save(run.directory / f"{setting}-{predictor}-{column}.npy", levels(drawn.x[:10]))
            run.log(data=data, process=setting, predictor=predictor, column=column, **row)
            shown = row.get("distance", row.get("energy"))
            print(
                f"{data}, {setting}, {predictor}, {column}: {row['evaluations']} evaluations, {shown:.4f}", flush=True
            )


def tables(config: Config, run: Run) -> str:
    """A table for each score: rows are predictors, columns the paper's under each process."""
    found = {(r["data"], r["process"], r["predictor"], r["column"]): r for r in run.records()}
    names = {"P": f"P{config.levels}", "P2": f"P{2 * config.levels}"}
    names |= {"C": f"C{2 * config.levels}", "PC": f"PC{config.levels}"}

    def table(data: str, show: Callable[[dict[str, Any]], str]) -> str:
        header = [
            "predictor",
            *(f"{setting} {names[column]}" for setting in config.processes for column in config.columns),
        ]
        rows = []
        for predictor in (*config.predictors, NONE):
            cells = [
                found.get((data, setting, predictor, column))
                for setting in config.processes
                for column in config.columns
            ]
            rows.append([predictor, *("" if cell is None else show(cell) for cell in cells)])
        return markdown(header, rows)

    return score_tables(run, config.digits, table)


def main(config: Config) -> None:
    """Compute what is missing, then show all."""
    run = begin(config)
    compute(config, run)
    scores = {"cells": len(run.records())}
    picture = partial(plot, config, run)
    finish(run, tables(config, run), page="tables.md", picture="score_sde_table1.png", plot=picture, scores=scores)


def plot(config: Config, run: Run, path: Path) -> None:
    """Bars of the exact mixture's distance, and the first ten digits of each cell."""
    import matplotlib
    from matplotlib.patches import Patch

    from experiments._figures import BLUE, GREEN, ORANGE, PURPLE, STYLE, figure, save, tiled

    found = {(r["data"], r["process"], r["predictor"], r["column"]): r for r in run.records()}
    floor = run.measured("mixture_floor", dict)["distance"]
    colors = dict(zip((*PREDICTORS, NONE), (BLUE, ORANGE, GREEN, PURPLE), strict=True))
    sizes = {"P": config.levels, "P2": 2 * config.levels, "C": 2 * config.levels, "PC": config.levels}
    names = {column: f"{column.rstrip('2')}{size}" for column, size in sizes.items()}
    with matplotlib.rc_context(STYLE):
        fig = figure(6.8, 5.2)
        axes = fig.subplots(2, len(config.processes), height_ratios=[1, 1.6], squeeze=False)
        for (bars, pictures), setting in zip(axes.T, config.processes, strict=True):
            place, rows = 0.0, []
            for column in config.columns:
                begin = place
                for predictor in colors:
                    row = found.get(("mixture", setting, predictor, column))
                    if row is None:
                        continue
                    bars.bar(place, row["distance"], 0.9, yerr=row["error"], color=colors[predictor], capsize=2)
                    images = np.load(run.directory / f"{setting}-{predictor}-{column}.npy")
                    rows.append((f"{names[column]} {predictor}", images))
                    place += 1
                middle = (begin + place - 1) / 2
                bars.text(middle, -0.04, names[column], ha="center", va="top", transform=bars.get_xaxis_transform())
                place += 0.7
            bars.axhspan(1e-9, floor, color="0.9", lw=0, zorder=0)
            bars.set(title=f"{setting}, exact denoiser", yscale="log", xticks=[])
            highest = max(row["distance"] for cell, row in found.items() if cell[0] == "mixture")
            bars.set_ylim(floor / 2, 1.5 * highest)
            pictures.imshow(tiled(np.concatenate([images for _, images in rows]), 10), cmap="gray", vmin=0, vmax=255)
            pictures.set_yticks(28 * np.arange(len(rows)) + 14, [name for name, _ in rows], fontsize=7)
            pictures.set(title=f"{setting}, trained network", xticks=[])
            pictures.tick_params(length=0)
            pictures.spines[:].set_visible(False)
        axes[0, 0].set_ylabel("sliced Wasserstein-2")
        handles = [Patch(color=color, label=name) for name, color in colors.items()]
        handles.append(Patch(color="0.9", label="noise floor"))
        fig.legend(handles=handles, loc="outside lower center", ncols=5, frameon=False)
        save(fig, path, dpi=150)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
