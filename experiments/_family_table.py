"""The tables of family_comparison: a row a score, a column a sampler, mean +- standard deviation over seeds."""

import csv
from pathlib import Path
from typing import Any

import numpy as np

from experiments._family_samplers import SAMPLERS

REAL = "real data"
NO_DENSITY = ("VAE, means", "IWAE, means", "VP, SDE", "VP, DDIM")  # the log-density is another sampler's
COLUMNS = [*(name for names in SAMPLERS.values() for name in names), REAL]
Records = list[dict[str, Any]]
Summary = dict[str, dict[str, tuple[float, float, float, float]]]  # sampler -> score -> mean, std, least, largest
COSTS = (
    "loss",
    "evaluations",
    "seconds_per_sample",
    "parameters",
    "trained_parameters",
    "steps",
    "flops",
    "train_seconds",
)
UNITS = {"grid": "nats", "digits": "bits/dim"}
ROWS: dict[str, tuple[str, str]] = {
    "mmd": ("MMD^2 x 1,000", "{:.2f}"),
    "mmd_p": ("its p-value", "p"),
    "c2st": ("C2ST, accuracy", "{:.3f}"),
    "c2st_p": ("its p-value", "p"),
    "precision": ("precision", "{:.2f}"),
    "recall": ("recall", "{:.2f}"),
    "density": ("density", "{:.2f}"),
    "coverage": ("coverage", "{:.2f}"),
    "frechet": ("Frechet distance", "{:.3g}"),
    "modes": ("modes of 25", "{:.1f}"),
    "high_quality": ("high-quality share", "{:.3f}"),
    "reverse_kl": ("reverse KL over modes, nats", "{:.3f}"),
    "pixel_mmd": ("MMD^2 of pixels x 1,000", "{:.2f}"),
    "pixel_mmd_p": ("its p-value", "p"),
    "classes": ("classes of 10", "{:.1f}"),
    "class_kl": ("KL of the classes, nats", "{:.3f}"),
    "loss": ("NLL", "{:.2f}"),
    "evaluations": ("evaluations per sample", "{:.0f}"),
    "seconds_per_sample": ("microseconds per sample", "{:,.1f}"),
    "parameters": ("parameters that generate", "{:,.0f}"),
    "trained_parameters": ("parameters trained", "{:,.0f}"),
    "steps": ("training steps", "{:,.0f}"),
    "flops": ("training flops, 10^12", "{:.3f}"),
    "train_seconds": ("training, processor seconds", "{:.1f}"),
}
SCALE = {"mmd": 1e3, "pixel_mmd": 1e3, "seconds_per_sample": 1e6, "flops": 1e-12}


def summaries(records: Records) -> Summary:
    """Of each sampler and score: mean, standard deviation, least and largest over seeds."""
    found: Summary = {}
    for sampler in COLUMNS:
        mine = [record for record in records if record["sampler"] == sampler]
        if mine:
            own = [name for name in COSTS if name != "loss" or sampler not in NO_DENSITY]
            rows = [{**r["scores"], **{name: r[name] for name in own if name in r}} for r in mine]
            columns = {name: np.array([row[name] for row in rows], float) for name in rows[0]}
            found[sampler] = {name: _four(values) for name, values in columns.items()}
    return found


def table(summary: Summary, unit: str) -> str:
    """The Markdown table."""
    names = [name for name in ROWS if any(name in row for row in summary.values())]
    lines = ["| | " + " | ".join(summary) + " |", "| --- |" + " ---: |" * len(summary)]
    for name in names:
        title, form = ROWS[name]
        title = f"{title}, {unit}" if name == "loss" else title
        cells = [_cell(row[name], form, SCALE.get(name, 1.0)) if name in row else "" for row in summary.values()]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def into_page(page: Path, name: str, table: str) -> None:
    """Put a table into a page, in place of what is between its marks."""
    begin, end = f"<!-- table of {name} -->", f"<!-- end of {name} -->"
    before, begun, rest = page.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (begun and ended):
        raise ValueError(f"Expected {begin} and {end} in {page}, as the table goes between them; got other text.")
    page.write_text(f"{before}{begin}\n\n{table}\n{end}{after}")


def write_csv(records: Records, path: Path) -> None:
    """Every cell: a row for each sampler and seed."""
    records = sorted(records, key=lambda record: (COLUMNS.index(record["sampler"]), record["seed"]))
    rows = [{**{k: v for k, v in record.items() if k != "scores"}, **record["scores"]} for record in records]
    names = list(dict.fromkeys(name for row in sorted(rows, key=len, reverse=True) for name in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})


def _four(values: np.ndarray) -> tuple[float, float, float, float]:
    spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
    return float(values.mean()), spread, float(values.min()), float(values.max())


def _cell(found: tuple[float, float, float, float], form: str, scale: float) -> str:
    mean, std, least, largest = found
    if form == "p":
        ends = [f"{value:.3f}" if value >= 0.001 else "< 0.001" for value in (least, largest)]
        return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
    if std == 0:
        return form.format(scale * mean)
    return f"{form.format(scale * mean)} +- {form.format(scale * std)}"
