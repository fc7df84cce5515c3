"""What samplers cost and how good they are: error against evaluations, for every sampler on every grid.

    python -m experiments.sampler_frontier                        # an hour on 2 busy CPU cores
    python -m experiments.sampler_frontier --modes mixture_2d     # the rest later, in the same run
    python -m experiments.sampler_frontier --write                # and copy page, table and picture to docs/
    python -m experiments.sampler_frontier --smoke                # the same code on tiny sizes, in seconds

The survey's question in its chapter 4, what sampling costs against what it yields, answered on data whose denoiser is
exact (mixtures in 2 and in 64 dimensions) and, where `python -m experiments.quickstart` has been run, on its digits.
It writes frontier.md, frontier.csv and frontier.png to runs/sampler_frontier/. Running it again resumes: a cell that
is in metrics.jsonl is not computed again.

Expected: sliced Wasserstein-2 to the data over the noise floor of 10,000 points, the best within so many evaluations,

    evaluations       5      10     20     50     100
    2 dimensions      2.8    1.1    0.74   0.70   0.69    the floor is 0.042, and its 95 % point 1.47 of it
    64 dimensions     2.8    1.3    0.86   0.83   0.77    the floor is 0.0140, and its 95 % point 1.22 of it

At 5 evaluations nothing comes within twice the floor; at 10 Euler and Heun in time and DPM-Solver++(2M) do, at 20 most
solvers of the ODE, and DDPM with the posterior's variance at 50 in 64 dimensions and at 100 in the plane. On digits
the distances include the network's own, which more evaluations cannot lower.
"""

import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from experiments._frontier_page import (
    DIGITS,
    INTRODUCTION,
    Floor,
    Record,
    adaptive_table,
    best_at,
    front_table,
    full_table,
    order_of,
    write_csv,
)
from experiments._run import Run, begin, parse

Mode = Literal["mixture_2d", "mixture_64d", "digits"]
MODES: tuple[Mode, ...] = ("mixture_2d", "mixture_64d", "digits")
DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Config:
    """Every sampler, number of evaluations and grid."""

    modes: tuple[Mode, ...] = MODES  # computed now; what the run already has is shown too
    points: int = 10_000  # of each set, on the mixtures
    sets: int = 3  # in the plane; one in 64 dimensions
    assigned: int = 1_000  # of the points, for the exact Wasserstein-2 distance in the plane
    directions: int = 128  # of the sliced one
    repeats: int = 20  # of the noise floor
    digits: int = 160  # drawn in each cell
    network: str = "runs/quickstart"  # the run of experiments.quickstart
    most: int = 100  # evaluations
    write: bool = False  # copy the page, the table and the picture to docs/
    run_dir: str = "runs/sampler_frontier"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    modes=("mixture_2d",),
    points=200,
    sets=2,
    assigned=50,
    directions=8,
    repeats=3,
    most=5,
    run_dir="runs/sampler_frontier-smoke",
    smoke=True,
)


def mode_of(name: Mode, config: Config) -> Any:
    """The mode's samplers, grids and errors; None where it needs a network that is not there."""
    from experiments._frontier_digits import digits_mode
    from experiments._frontier_exact import exact_mode

    if name == "digits":
        return digits_mode(config.network, config.digits)
    return exact_mode(
        name, points=config.points, sets=config.sets, assigned=config.assigned, directions=config.directions
    )


def cells(mode: Any, most: int) -> list[tuple[Any, str, float, float]]:
    """(sampler, grid, budget or tolerance, steps or tolerance), those that share a program next to each other."""
    found = []
    for sampler in mode.samplers:
        if sampler.tolerances:
            tolerances = sampler.tolerances if most > 5 else sampler.tolerances[:1]
            found += [(sampler, "adaptive", size, size) for size in tolerances]
        for budget in (b for b in mode.budgets if b <= most and not sampler.tolerances):
            steps = sampler.steps(budget)
            grids = [grid for grid in sampler.grids if grid in mode.grids]
            found += [(sampler, grid, budget, steps) for grid in grids if steps is not None]
    return found


def compute(name: Mode, mode: Any, config: Config, run: Run) -> None:
    """Every cell of a mode that the run does not have yet."""
    floor: Floor = run.measured(f"floor of {name}", lambda: mode.floor(config.repeats))
    made = {(r["sampler"], r["grid"], r["size"]) for r in run.records() if r["mode"] == name}
    missing = [cell for cell in cells(mode, config.most) if (cell[0].name, cell[1], cell[2]) not in made]
    print(f"{mode.title}: {len(made)} cells are there, {len(missing)} are missing", flush=True)
    begun = time.monotonic()
    for i, (sampler, grid, size, steps) in enumerate(missing, 1):
        sets, evaluations, succeeded = mode.draw(sampler, grid, steps)
        if grid != "adaptive" and evaluations != sampler.first + sampler.each * steps:
            raise RuntimeError(f"Expected {sampler} to take {steps} steps; got {evaluations} evaluations.")
        errors: dict[str, Any] = {}
        if succeeded:
            rows = [mode.errors(x, j) for j, x in enumerate(sets)]
            errors = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        error = errors.get(mode.measure)
        cell = {"sampler": sampler.name, "grid": grid, "size": size, "evaluations": evaluations}
        run.log(mode=name, measure=mode.measure, **cell, succeeded=succeeded, error=error, **errors)
        left = (time.monotonic() - begun) / i * (len(missing) - i)
        shown = f"{error / floor[mode.measure]['mean']:.2f} floors" if error is not None else "failed"
        print(
            f"{i}/{len(missing)} {sampler.name} | {grid} | {size:g}: {evaluations} evaluations, {shown}, "
            f"{left / 60:.0f} min left",
            flush=True,
        )


def show(config: Config, run: Run) -> dict[str, Any]:
    """Write page, table and picture of all that the run has, and return the ratio at 20 evaluations of each mode."""
    from experiments._frontier_picture import picture

    records = sorted(run.records(), key=lambda record: (MODES.index(record["mode"]), *order_of(record)))
    modes = {name: mode_of(name, config) for name in MODES if any(record["mode"] == name for record in records)}
    modes = {name: mode for name, mode in modes.items() if mode is not None}
    floors: dict[str, Floor] = {name: run.measured(f"floor of {name}", dict) for name in modes}
    lines, panels, claims = [INTRODUCTION.format(**vars(config))], {}, {}
    if "digits" in modes:
        lines.append(DIGITS.format(digits=config.digits))
    lines.append("![Error against evaluations, with the Pareto front and the noise floor](images/frontier.png)\n")
    for name, mode in modes.items():
        own: list[Record] = [record for record in records if record["mode"] == name]
        budgets = [budget for budget in mode.budgets if budget <= config.most]
        floor, best = floors[name], best_at(own, 20)
        mean = floor[mode.measure]["mean"]
        claims[name] = best["error"] / mean
        claim = (
            f"Within 20 evaluations {best['sampler']} on the {best['grid']} grid comes closest, to {claims[name]:.2f} "
            f"times the noise floor, {mean:.3g}."
        )
        print(f"{mode.title}: {claim}")
        panels[mode.title] = (own, floor)
        lines += [f"## {mode.title[0].upper()}{mode.title[1:]}\n", f"{claim}\n"]
        lines += [*front_table(own, floor, mode.measure, budgets), "\nError over the floor, at most 2 in bold:\n"]
        lines += [*full_table(own, budgets, mean), *adaptive_table(own, mean), ""]
    (run.directory / "frontier.md").write_text("\n".join(lines))
    write_csv(records, floors, run.directory / "frontier.csv")
    picture(panels, run.directory / "frontier.png")
    return claims


def main(config: Config) -> None:
    """Compute what is missing, then show all."""
    # which modes are computed now, and what is copied, changes nothing in the cells
    run = begin(replace(config, modes=MODES, write=False))
    for name in config.modes:
        mode = mode_of(name, config)
        if mode is not None:
            compute(name, mode, config, run)
    run.finish({"error / floor within 20 evaluations": show(config, run)})
    if config.write:
        for name, to in (("frontier.md", "."), ("frontier.csv", "."), ("frontier.png", "images")):
            shutil.copyfile(run.directory / name, DOCS / to / name)
    print(f"Look at {run.directory}/frontier.png and frontier.md")


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
