"""What a data-parallel step takes on paper, from what it computes, moves and sums, on n chips of known peaks.

    computing   max(operations / peak, bytes / memory bandwidth)                      the roofline
    summing     2 (n - 1)/n bytes / bandwidth + hops latency                          a ring's all-reduce
    a step      computing + summing, or, with overlap, computing/3 + max(2/3 computing, summing)

Among n chips of several groups (nodes, pods) the sum is scattered within each group, summed over the groups, every
chip its own part, and gathered within each group. A ring around every axis of a torus of n chips takes
2 axes (n^(1/axes) - 1) hops, as if the torus were a cube, and uses all links; groups are joined by trees, which take
2 log2(groups) hops at a ring's bandwidth. Overlap hides the sum behind the backward pass, two thirds of a step.

Reference: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms"; Williams et al. 2009, "Roofline".
"""

import math
from dataclasses import dataclass

from experiments._peaks import Chip

BACKWARD = 2 / 3  # of a step's operations; the optimiser's are few


@dataclass(frozen=True)
class Latency:
    """Seconds of one hop."""

    link: float = 1e-6
    network: float = 5e-6


@dataclass(frozen=True)
class Counts:
    """Of one chip's part of a step, each as (constant, per example), and the bytes of the gradients that are summed."""

    flops: tuple[float, float]
    bytes: tuple[float, float]
    summed: float
    arrays: int = 1  # in which they lie

    def of(self, batch: float) -> tuple[float, float]:
        """Operations and bytes with so many examples on the chip."""
        return self.flops[0] + batch * self.flops[1], self.bytes[0] + batch * self.bytes[1]


@dataclass(frozen=True)
class Step:
    """Seconds of a step's parts."""

    by_flops: float
    by_bytes: float
    summing: float

    @property
    def computing(self) -> float:
        """The roofline."""
        return max(self.by_flops, self.by_bytes)

    @property
    def apart(self) -> float:
        """Computing, then summing."""
        return self.computing + self.summing

    @property
    def overlapped(self) -> float:
        """Summing hidden behind the backward pass, as far as that lasts."""
        return (1 - BACKWARD) * self.computing + max(BACKWARD * self.computing, self.summing)

    @property
    def bound(self) -> str:
        """What takes longest."""
        parts = {"operations": self.by_flops, "memory": self.by_bytes, "links": self.summing}
        return max(parts, key=lambda name: parts[name])


def ring_seconds(size: float, n: int, bandwidth: float) -> float:
    """An all-reduce of `size` bytes over n chips that each send `bandwidth` bytes a second, without latency."""
    return 2 * (n - 1) / n * size / bandwidth


def summing_seconds(size: float, n: int, chip: Chip, latency: Latency, *, messages: int = 1) -> float:
    """All-reduces of `size` bytes in all over n chips: within groups by their links, among groups by the network."""
    inner = min(n, chip.group)
    outer = math.ceil(n / inner)
    hops = 2 * chip.axes * (inner ** (1 / chip.axes) - 1)
    seconds = ring_seconds(size, inner, chip.link_bandwidth) + messages * hops * latency.link
    if outer > 1:
        if chip.network is None:
            raise ValueError(
                f"Expected at most {chip.group} chips of {chip.name}, as its network beyond is not public; got {n=}."
            )
        seconds += ring_seconds(size / inner, outer, chip.network) + messages * 2 * math.log2(outer) * latency.network
    return seconds


def step_on(chip: Chip, counts: Counts, *, n: int, batch: float, latency: Latency, messages: int = 1) -> Step:
    """A step with `batch` examples on each of n chips, whose gradients are summed in so many messages."""
    flops, moved = counts.of(batch)
    summing = summing_seconds(counts.summed, n, chip, latency, messages=messages)
    return Step(flops / chip.flops, moved / chip.memory_bandwidth, summing)
