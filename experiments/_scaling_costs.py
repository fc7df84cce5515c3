"""What the papers' training runs would cost: operations counted, chip-hours at a stated share of the peak.

A step takes three times the forward pass's operations: backward, each product becomes two. ADM, which this library
does not have, is stood in for by its U-Net with the paper's widths, depths and resolutions of attention; the
parameters of both say how near it comes. Where a paper says how long it took, the share of the peak that it had
follows.

Reference: DDPM, arXiv:2006.11239, appendix B (10.6 hours on a TPU v3-8, 123e12 operations a second on each of four
chips); Score SDE, arXiv:2011.13456, appendix H; EDM, arXiv:2206.00364, table 7, and the times in its code's README
(8 V100 in float32, of 15.7e12, about 2 days; 32 A100 in float16, about 13 days). Times include what is not training.
More than all of a peak is possible: Winograd's algorithm convolves with fewer products than are counted.
"""

from collections.abc import Sequence
from typing import NamedTuple

from dgm_jax.networks import ScoreUNet, UNet, ddpm_cifar10, ddpmpp_cifar10, edm_ddpmpp_cifar10
from experiments._peaks import A100, CHIPS
from experiments._scaling_programs import Event, parameters
from experiments._throughput import forward_flops

TRAINING = 3  # forward passes' operations in a step


class PaperRun(NamedTuple):
    """A run, its network or what stands in for it, and what its paper says of it."""

    name: str
    net: UNet | ScoreUNet
    event: Event
    images: float  # seen in training, repetitions counted
    parameters: float  # of the paper's network
    published: tuple[str, float] | None = None  # where it ran, and the product of its peak in all and its seconds


CIFAR, IMAGENET = (32, 32, 3), (64, 64, 3)
HOUR = 3600.0
RUNS = (
    PaperRun(
        "DDPM, CIFAR-10, 800k steps of 128",
        ddpm_cifar10(dropout=0.0),
        CIFAR,
        800e3 * 128,
        35.7e6,
        ("TPU v3-8, 10.6 h", 4 * 123e12 * 10.6 * HOUR),
    ),
    PaperRun(
        "Score SDE, DDPM++ cont., 1.3M steps of 128",
        ddpmpp_cifar10(dropout=0.0),
        CIFAR,
        1.3e6 * 128,
        61.8e6,
    ),
    PaperRun(
        "EDM, CIFAR-10, 200M images",
        edm_ddpmpp_cifar10(dropout=0.0),
        CIFAR,
        200e6,
        55.7e6,
        ("8 V100 in float32, 2 days", 8 * 15.7e12 * 48 * HOUR),
    ),
    PaperRun(
        "EDM, ImageNet-64 (ADM), 2500M images",
        UNet(192, (1, 2, 3, 4), 3, (32, 16, 8)),
        IMAGENET,
        2500e6,
        296e6,
        ("32 A100, 13 days", 32 * A100.flops * 13 * 24 * HOUR),
    ),
)


class Cost(NamedTuple):
    """What was counted of a run."""

    run: str
    parameters: int
    stated: float  # parameters, by the paper
    forward: float  # operations for an image
    total: float  # operations of the whole run
    published: str
    share: float | None  # of the peak, where the paper says how long it took


def costs(runs: Sequence[PaperRun] = RUNS) -> list[Cost]:
    """Counted on the programs before compilation, so that no network is ever made."""
    found = []
    for run in runs:
        forward = forward_flops(run.net, run.event)
        total = TRAINING * forward * run.images
        where, peak = run.published or ("", 0.0)
        share = total / peak if peak else None
        found.append(Cost(run.name, parameters(run.net, run.event), run.parameters, forward, total, where, share))
    return found


def chip_hours(total: float, utilisation: float) -> dict[str, float]:
    """On each chip, by its bf16 peak."""
    return {chip.name: total / (utilisation * chip.flops) / HOUR for chip in CHIPS}
