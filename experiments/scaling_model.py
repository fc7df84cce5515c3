"""Past this machine, on paper: step time and efficiency of data-parallel training on 1 to 4,096 chips.

    python -m experiments.scaling_model            # 6 minutes on 2 CPU cores
    python -m experiments.scaling_model --smoke    # the same code on tiny sizes, in seconds

ESTIMATES, but for the check. XLA counts what a training step of DDPM's CIFAR-10 network computes and moves on one
device, and the gradients that eight devices sum; with public peaks of TPU and GPU a roofline and a ring's all-reduce
follow (see `_scaling_laws`, `_scaling_programs`, `_peaks`), for 128 images in all (strong scaling) and 128 on each
chip (weak). The same model, told what this machine's matrix products, memory and sums take, is checked against the
steps of 1, 2 and 4 processes on it (`_scaling_check`). Last, what the papers' runs would cost (`_scaling_costs`).
It writes scaling.csv, tables.md and scaling_model.png.

Expected; all but the check is arithmetic, the same on any machine with the same jax. The check is of four runs, on
2 cores shared with others:

    a step of 128 images on one chip   TPU v4 70 ms, v5e 103, v5p 30, v6e 51, A100 41, H100 25, H200 18; all by memory
    strong, 128 chips, 1 image each    efficiency 0.06 to 0.12, and 0.09 to 0.16 with overlap
    weak, 4,096 chips                  0.98 to 0.99 on TPU, 0.93 to 0.95 on GPU, and 1.00 with overlap
    rank correlation of times          0.94 to 0.99; of speed-ups 0.96 to 0.98; predicted over measured 0.4 to 1.6
    DDPM on a TPU v3-8                 30 ms on paper, 48 published, 19 % of the peak; EDM, ImageNet-64: 13 %
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
from scipy.stats import rankdata

from dgm_jax.networks import MLP, ddpm_cifar10
from experiments._comparison import finish
from experiments._peaks import CHIPS
from experiments._run import Run, begin, parse
from experiments._scaling_check import Sizes, compare, launch
from experiments._scaling_costs import RUNS, Cost, costs
from experiments._scaling_figure import plot
from experiments._scaling_laws import Counts, Latency, step_on
from experiments._scaling_page import page
from experiments._scaling_programs import Event, step_counts

NETWORKS: dict[str, tuple[nn.Module, Event]] = {
    "ddpm_cifar10": (ddpm_cifar10(dropout=0.0), (32, 32, 3)),
    "tiny": (MLP((64, 64)), (8, 8, 3)),
}


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
    times = rank_correlation([row["predicted"] for row in rows], [row["measured"] for row in rows])
    speedups = rank_correlation(*([one[name] / row[name] for row, one in many] for name in ("predicted", "measured")))
    low, middle, high = np.quantile([row["predicted"] / row["measured"] for row in rows], [0.25, 0.5, 0.75])
    return {
        "rank_of_times": times,
        "rank_of_speedups": speedups,
        "ratio_low": float(low),
        "ratio": float(middle),
        "ratio_high": float(high),
    }


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's."""
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


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
    text = page(config, counts, rows, checked, found, priced)
    picture = partial(plot, rows, checked)
    scores = {**found, "predictions": len(rows)}
    finish(run, text, page="tables.md", picture="scaling_model.png", plot=picture, scores=scores)


def write_csv(run: Run, rows: Sequence[dict[str, Any]]) -> None:
    """Every prediction."""
    with Path(run.directory / "scaling.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()} for row in rows)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
