"""The page that `experiments.scaling_model` writes: what is assumed, and tables of predictions, check and costs."""

from collections.abc import Sequence
from typing import Any

from experiments._comparison import markdown
from experiments._peaks import CHIPS, Chip
from experiments._scaling_costs import Cost, chip_hours
from experiments._scaling_laws import Counts, Latency, step_on

# Half a chip of 123e12 operations and 900e9 bytes a second (docs.cloud.google.com/tpu/docs/v3); one sums nothing.
V3_CORE = Chip("TPU v3, a core", 61.5e12, 450e9, float("nan"), 16 * 2**30, group=1)
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


def page(
    config: Any,
    counts: Counts,
    rows: Sequence[dict[str, Any]],
    checked: Sequence[dict[str, Any]],
    found: dict[str, float],
    priced: Sequence[Cost],
) -> str:
    """Assumptions, then tables."""
    latency = {"link": 1e6 * config.link_latency, "network": 1e6 * config.network_latency}
    flops, moved = ([value / 1e9 for value in pair] for pair in (counts.flops, counts.bytes))
    parts = [
        ASSUMED.format(megabytes=counts.summed / 1e6, **latency),
        f"A step of {config.network}: {flops[0]:.3g} + {flops[1]:.3g} GFLOP and {moved[0]:.3g} + {moved[1]:.3g} GB "
        "for each image.\n",
        f"Strong scaling, {config.batch} images in all: time on one chip and what bounds it, then efficiency without "
        f"and with overlap:\n\n{efficiency_table(config, rows, 'strong')}",
        f"Weak scaling, {config.batch} images on each chip:\n\n{efficiency_table(config, rows, 'weak')}",
        published_step(counts) if config.network == "ddpm_cifar10" else "",
        f"Measured here, milliseconds of a step, measured and predicted:\n\n{check_table(checked)}",
        f"Rank correlation (Spearman) of predicted and measured times {found['rank_of_times']:.3f}, of speed-ups over "
        f"one process {found['rank_of_speedups']:.3f}; predicted over measured {found['ratio']:.2f} (quartiles "
        f"{found['ratio_low']:.2f} to {found['ratio_high']:.2f}).\n",
        f"ESTIMATES: chip-hours of the papers' runs at {100 * config.utilisation:.0f} % of the peak, and the share "
        f"of it that the published times had:\n\n{cost_table(priced, config.utilisation)}",
    ]
    return "\n".join(part for part in parts if part)


def published_step(counts: Counts) -> str:
    """The one step whose time is published with its network, batch and chips: DDPM's, arXiv:2006.11239, appendix B."""
    step = step_on(V3_CORE, counts, n=1, batch=16, latency=Latency())
    return (
        f"DDPM's authors made 21 such steps a second on the 8 cores of a TPU v3-8, 47.6 ms each; on paper a core takes "
        f"{1e3 * step.computing:.1f} ms for its 16 images ({step.bound}), without the sum.\n"
    )


def efficiency_table(config: Any, rows: Sequence[dict[str, Any]], kind: str) -> str:
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
