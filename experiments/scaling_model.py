"""Past this machine, on paper: step time and efficiency of data-parallel training on 1 to 4,096 chips.

    python -m experiments.scaling_model            # 4 minutes on 2 CPU cores
    python -m experiments.scaling_model --smoke    # the same code on tiny sizes, in seconds

ESTIMATES, but for the check. XLA counts what a training step of DDPM's CIFAR-10 network computes and moves on one
device, and the gradients that eight devices sum; with public peaks of TPU and GPU a roofline and a ring's all-reduce
follow (see `_scaling_laws`, `_scaling_programs`, `_peaks`), for 128 images in all (strong scaling) and 128 on each
chip (weak). The same model, told what this machine's matrix products, memory and sums take, is checked against the
steps of 1, 2 and 4 processes on it (`_scaling_check`). Last, what the papers' runs would cost (`_scaling_costs`).
It writes scaling.csv, tables.md and scaling_model.png.

EXPECTED
"""

import csv
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from scipy.stats import spearmanr

from dgm_jax.networks import MLP, ddpm_cifar10
from experiments._comparison import finish, markdown
from experiments._peaks import CHIPS
from experiments._run import Run, begin, parse
from experiments._scaling_check import Sizes, compare, launch
from experiments._scaling_costs import RUNS, Cost, chip_hours, costs
from experiments._scaling_figure import plot
from experiments._scaling_laws import Counts, Latency, step_on
from experiments._scaling_programs import Event, step_counts

NETWORKS: dict[str, tuple[nn.Module, Event]] = {
    "ddpm_cifar10": (ddpm_cifar10(dropout=0.0), (32, 32, 3)),
    "tiny": (MLP((64, 64)), (8, 8, 3)),
}
ASSUMED = """\
ESTIMATES. Assumed:
- arrays are float32 and products run at the bf16 peak, as JAX does on a TPU by default (a GPU needs dtype=bfloat16);
- a step takes the longer of its operations at the peak and its bytes at the memory's full bandwidth, nothing else;
- operations and bytes are XLA's counts of the program compiled for this CPU, at 2 and at 4 images, and a line through
  them; other compilers fuse more, and move fewer bytes;
- gradients ({megabytes:.1f} MB) are summed in one all-reduce by rings on all links of a chip at full bandwidth, with
  {link:g} us a hop; among nodes of 8 GPU, and pods of 256 TPU v5e or v6e, by the network, with {network:g} us a hop;
- with overlap, the sum hides behind the backward pass, two thirds of the computation;
- one process feeds each chip without delay; memory is not looked at, nor is whether so large a batch trains as well.
"""


@dataclass(frozen=True)
class Config:
    """Which step on how many chips, and what is run here for comparison."""

    network: str = "ddpm_cifar10"
    batch: int = 128  # in all for strong scaling, on each chip for weak scaling
    most: int = 4096  # chips
    link_latency: float = 1e-6  # seconds a hop, inside a group of chips
    network_latency: float = 5e-6  # among groups
    utilisation: float = 0.35  # of the peak, for the papers' runs
    papers: int = len(RUNS)  # how many of them
    processes: tuple[int, ...] = (1, 2, 4)  # of the check, which needs 1 and another number
    widths: tuple[int, ...] = (128, 512)
    batches: tuple[int, ...] = (64, 256, 1024, 4096)
    repeats: int = 11
    run_dir: str = "runs/scaling_model"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    network="tiny",
    papers=1,
    processes=(1, 2),
    widths=(16,),
    batches=(16, 64),
    repeats=2,
    run_dir="runs/scaling_model-smoke",
    smoke=True,
)


def predictions(config: Config, counts: Counts) -> list[dict[str, Any]]:
    """A row for each chip, number of chips and kind of scaling; strong scaling ends where each chip has one image."""
    latency, rows = Latency(config.link_latency, config.network_latency), []
    for chip in CHIPS:
        for kind in ("strong", "weak"):
            last = min(config.most, config.batch) if kind == "strong" else config.most
            numbers = [2**k for k in range(last.bit_length())]
            alone = step_on(chip, counts, n=1, batch=config.batch, latency=latency).apart
            for n in numbers:
                each = config.batch / n if kind == "strong" else config.batch
                step = step_on(chip, counts, n=n, batch=each, latency=latency)
                ideal = alone / n if kind == "strong" else alone
                rows.append(
                    {"chip": chip.name, "scaling": kind, "chips": n, "images_per_chip": each}
                    | {"operations_ms": 1e3 * step.by_flops, "memory_ms": 1e3 * step.by_bytes}
                    | {"summing_ms": 1e3 * step.summing, "bound": step.bound}
                    | {"step_ms": 1e3 * step.apart, "overlapped_ms": 1e3 * step.overlapped}
                    | {"efficiency": ideal / step.apart, "overlapped_efficiency": ideal / step.overlapped}
                )
    return rows


def check(config: Config) -> list[dict[str, Any]]:
    """Steps of processes on this machine, measured and predicted."""
    sizes = Sizes(config.processes, config.widths, config.batches, config.repeats)
    if config.smoke:
        sizes = replace(sizes, product=128, moved=2**16, quick=True)
    return compare({n: launch(n, sizes) for n in config.processes}, sizes)


def agreement(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Spearman's rank correlation of times, and of speed-ups over one process; quartiles of predicted over measured."""
    alone = {(row["width"], row["batch"]): row for row in rows if row["processes"] == 1}
    many = [(row, alone[row["width"], row["batch"]]) for row in rows if row["processes"] > 1]
    names = ("predicted", "measured")
    times, speedups = (
        spearmanr(*([row[name] for row in rows] for name in names)).statistic,
        spearmanr(*([one[name] / row[name] for row, one in many] for name in names)).statistic,
    )
    low, middle, high = np.quantile([row["predicted"] / row["measured"] for row in rows], [0.25, 0.5, 0.75])
    return {
        "rank_of_times": float(times),
        "rank_of_speedups": float(speedups),
        "ratio_low": float(low),
        "ratio": float(middle),
        "ratio_high": float(high),
    }


def efficiency_table(config: Config, rows: Sequence[dict[str, Any]], kind: str) -> str:
    """Time on one chip, and efficiency without and with overlap."""
    most = min(config.most, config.batch) if kind == "strong" else config.most
    numbers = [n for n in (1, 8, 32, 64, 128, 256, 1024, 4096) if n <= most]
    found = {(row["chip"], row["chips"]): row for row in rows if row["scaling"] == kind}

    def cell(name: str, n: int) -> str:
        row = found[name, n]
        if n == 1:
            return f"{row['step_ms']:.3g} ms, {row['bound']}"
        return f"{row['efficiency']:.2f}, {row['overlapped_efficiency']:.2f}"

    lines = [[chip.name, *(cell(chip.name, n) for n in numbers)] for chip in CHIPS]
    return markdown(["chip", "1 chip", *(f"{n:,}" for n in numbers[1:])], lines)


def check_table(rows: Sequence[dict[str, Any]]) -> str:
    """Measured and predicted milliseconds by the number of processes."""
    numbers = sorted({row["processes"] for row in rows})
    found = {(row["width"], row["batch"], row["processes"]): row for row in rows}
    cells = [
        [f"3 x {width}", batch]
        + [f"{1e3 * (row := found[width, batch, n])['measured']:.3g}, {1e3 * row['predicted']:.3g}" for n in numbers]
        for width, batch in dict.fromkeys((row["width"], row["batch"]) for row in rows)
    ]
    return markdown(["MLP", "batch", *(f"{n} process{'es' * (n > 1)}" for n in numbers)], cells)


def cost_table(found: Sequence[Cost], utilisation: float) -> str:
    """Operations and chip-hours of the papers' runs."""
    rows = []
    for cost in found:
        where = f"{cost.published}: {100 * cost.share:.0f} %" if cost.share else "not stated"
        hours = [
            f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
            for value in chip_hours(cost.total, utilisation).values()
        ]
        size = f"{cost.parameters / 1e6:.1f} M ({cost.stated / 1e6:.1f} M)"
        rows.append([cost.run, size, f"{cost.forward / 1e9:.1f}", f"{cost.total:.2g}", *hours, where])
    names = [chip.name for chip in CHIPS]
    return markdown(
        ["run", "parameters (paper's)", "GFLOP an image, forward", "FLOP in all", *names, "published"], rows
    )


def main(config: Config) -> None:
    """Count, predict, check, and show."""
    if config.network not in NETWORKS:
        raise SystemExit(
            f"Expected a network among {sorted(NETWORKS)}, as they are what is counted; got {config.network}."
        )
    jax.config.update("jax_num_cpu_devices", 8)  # for the text of a step with an all-reduce; nothing runs on them
    run = begin(config)
    if run.said_done("scaling_model.png", "tables.md"):
        return
    counts = Counts(**run.measured("counts", lambda: asdict(step_counts(*NETWORKS[config.network]))))
    rows = predictions(config, counts)
    checked = run.measured("check", lambda: check(config))
    priced = [Cost(*cost) for cost in run.measured("costs", lambda: costs(RUNS[: config.papers]))]
    write_csv(run, rows)
    found = agreement(checked)
    text = "\n".join(report(config, counts, rows, checked, found, priced))
    picture = partial(plot, rows, checked)
    scores = {**found, "predictions": len(rows)}
    finish(run, text, page="tables.md", picture="scaling_model.png", plot=picture, scores=scores)


def report(
    config: Config,
    counts: Counts,
    rows: Sequence[dict[str, Any]],
    checked: Sequence[dict[str, Any]],
    found: dict[str, float],
    priced: Sequence[Cost],
) -> list[str]:
    """The page, in parts."""
    latency = {"link": 1e6 * config.link_latency, "network": 1e6 * config.network_latency}
    flops, moved = ([value / 1e9 for value in pair] for pair in (counts.flops, counts.bytes))
    return [
        ASSUMED.format(megabytes=counts.summed / 1e6, **latency),
        f"A step of {config.network}: {flops[0]:.3g} + {flops[1]:.3g} GFLOP and {moved[0]:.3g} + {moved[1]:.3g} GB "
        "for each image.\n",
        f"Strong scaling, {config.batch} images in all: time on one chip and what bounds it, then efficiency without "
        f"and with overlap:\n\n{efficiency_table(config, rows, 'strong')}",
        f"Weak scaling, {config.batch} images on each chip:\n\n{efficiency_table(config, rows, 'weak')}",
        f"Measured here, milliseconds of a step, measured and predicted:\n\n{check_table(checked)}",
        f"Rank correlation (Spearman) of predicted and measured times {found['rank_of_times']:.3f}, of speed-ups over "
        f"one process {found['rank_of_speedups']:.3f}; predicted over measured {found['ratio']:.2f} (quartiles "
        f"{found['ratio_low']:.2f} to {found['ratio_high']:.2f}).\n",
        f"ESTIMATES: chip-hours of the papers' runs at {100 * config.utilisation:.0f} % of the peak, and the share "
        f"of it that the published times had:\n\n{cost_table(priced, config.utilisation)}",
    ]


def write_csv(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """Every prediction."""
    with Path(run.directory / "scaling.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
