"""What the frontier shows: Pareto front, Markdown page, CSV and picture, from the records of a run."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from experiments._frontier_samplers import GRIDS, SAMPLERS

Record = dict[str, Any]
Floor = dict[str, dict[str, float]]

INTRODUCTION = """\
# Price and quality

What a sample costs, in evaluations of the network, and how far it is from the data: every sampler at 5, 10, 20, 50
and 100 evaluations on every grid. Written by `python -m experiments.sampler_frontier --write`; all numbers are in
[frontier.csv](frontier.csv).

- **Exact scores.** The data are mixtures of unequal Gaussians under VP: three in the plane, and six in 64 dimensions
  with weights 0.35 to 0.03. The denoiser is exact, so that errors are the sampler's. The error is the sliced
  Wasserstein-2 distance, over {directions} fixed directions, between {points:,} drawn points and {points:,} exact
  ones, in the plane the mean over {sets} sets, in 64 dimensions one set. All samplers start from the same noise.
- **Noise floor.** The same distance between two sets of exact points, over {repeats} pairs: its mean, and in the
  picture a band up to its 95 % point. Errors are given in units of its mean: 1 is as good as exact points, and what
  is within the band cannot be told from them. Less than 1 is luck: accurate solvers of the ODE all carry the same
  noise to the same points, hence their equal last numbers. Samplers that are both in the band are not ranked here.
- **Weights.** Half the sum over modes of |share - weight|, with the mean posterior probability as a mode's share.
- **Where grids end.** At t = 0.001 with sigma = 0.0105, which widens a mode of std 0.1 by 0.0006, and starts from
  N(0, I) although alpha(1) = 0.0066: both are below the floor. "trailing" is for the chain of 1,000 betas, and ends
  at t = 0 with the denoiser's own estimate, which counts.
- **Evaluations** are those that `Samples.evaluations` returned. Where a step takes two or three, as many steps were
  made as fit: at a budget of 5, two steps of Heun. A dash is a budget too small for the method.
- **Adaptive** samplers have tolerances instead, relative and absolute alike, held by the worst of the points.
"""
DIGITS = """\
- **Digits.** The network of `python -m experiments.quickstart` draws {digits} digits, as many of each class. The error
  is the energy distance on pixels to the 500 digits that it was not trained on; the floor is that of real digits that
  it was trained on. The picture's and the table's error includes the network's own, which more evaluations
  cannot lower. "Unsure or wrong" is the share that a classifier does not take for its class with 95 % certainty.
"""


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The (cost, error) that no other beats in one without losing in the other, by rising cost."""
    front: list[tuple[float, float]] = []
    for cost, error in sorted(points):
        if not front or error < front[-1][1]:
            front.append((cost, error))
    return front


def best_at(records: list[Record], budget: float) -> Record:
    """The record of least error among those that took no more than `budget` evaluations."""
    within = [record for record in records if record["evaluations"] <= budget and record["succeeded"]]
    return min(within, key=lambda record: record["error"])


def front_table(records: list[Record], floor: Floor, measure: str, budgets: Iterable[int]) -> list[str]:
    """The best sampler within each budget, with all its errors, each with its multiple of the floor."""
    names = list(floor)
    lines = [
        "| evaluations at most | best sampler | grid | taken | "
        + " | ".join(f"{name} | / floor" for name in names)
        + " |",
        "|---" * (4 + 2 * len(names)) + "|",
    ]
    for budget in budgets:
        best = best_at(records, budget)
        row = [str(budget), best["sampler"], best["grid"], str(best["evaluations"])]
        for name in names:
            row += [f"{best[name]:.3g}", f"{best[name] / floor[name]['mean']:.2f}"]
        lines.append("| " + " | ".join(row) + " |")
    lines.append("| | floor, mean | | | " + " | ".join(f"{floor[name]['mean']:.3g} | 1" for name in names) + " |")
    highs = (f"{floor[name]['high']:.3g} | {floor[name]['high'] / floor[name]['mean']:.2f}" for name in names)
    lines.append("| | floor, 95 % | | | " + " | ".join(highs) + " |")
    return [f"The error that is best is the {measure}.\n", *lines]


def full_table(records: list[Record], budgets: Iterable[int], floor: float) -> list[str]:
    """Every fixed-step sampler and grid: error over the floor at each budget; within twice the floor in bold."""
    budgets = tuple(budgets)
    cells = {(r["sampler"], r["grid"], r["size"]): r for r in records if r["grid"] != "adaptive"}
    rows = dict.fromkeys((sampler, grid) for sampler, grid, _ in cells)
    lines = ["| sampler | grid | " + " | ".join(map(str, budgets)) + " |", "|---" * (2 + len(budgets)) + "|"]
    for sampler, grid in rows:
        found = (cells.get((sampler, grid, budget)) for budget in budgets)
        lines.append(f"| {sampler} | {grid} | " + " | ".join(_ratio(record, floor) for record in found) + " |")
    return lines


def adaptive_table(records: list[Record], floor: float) -> list[str]:
    """Every adaptive sampler: evaluations and error over the floor at each tolerance."""
    rows = [record for record in records if record["grid"] == "adaptive"]
    if not rows:
        return []
    lines = ["", "| sampler | tolerance | evaluations | error / floor |", "|---|---|---|---|"]
    return lines + [f"| {r['sampler']} | {r['size']:g} | {r['evaluations']} | {_ratio(r, floor)} |" for r in rows]


def _ratio(record: Record | None, floor: float) -> str:
    if record is None:
        return "-"
    if not record["succeeded"]:
        return "failed"
    ratio = record["error"] / floor
    text = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}" if ratio < 1000 else f"{ratio:.0e}"
    return f"**{text}**" if ratio <= 2 else text


def write_csv(records: list[Record], floors: dict[str, Floor], path: Path) -> None:
    """One line per cell, errors in the units of the data."""
    names = list(dict.fromkeys(name for floor in floors.values() for name in floor))
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["mode", "sampler", "grid", "budget or tolerance", "evaluations", "error / floor", *names])
        for record in records:
            mean = floors[record["mode"]][record["measure"]]["mean"]
            ratio = f"{record['error'] / mean:.4g}" if record["succeeded"] else "failed"
            values = [f"{record[name]:.4g}" if record.get(name) is not None else "" for name in names]
            row = [record[name] for name in ("mode", "sampler", "grid", "size", "evaluations")]
            writer.writerow([*row, ratio, *values])


def order_of(record: Record) -> tuple[int, int, float]:
    """Records in the order of the table, whatever the order in which they were made."""
    names = [sampler.name for sampler in SAMPLERS]
    size = record["size"]
    grid = list(GRIDS).index(record["grid"])
    return names.index(record["sampler"]), grid, -size if record["grid"] == "adaptive" else size
