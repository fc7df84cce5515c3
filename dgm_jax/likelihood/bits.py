"""Bits per dimension, of a density of dequantised data and of a probability of discrete data. Lower is better."""

import numpy as np

from dgm_jax.typing import PerExample


def bits_per_dim(nats: PerExample, event_size: int, *, levels: int | float) -> PerExample:
    """Bits per dimension of data with `levels` integer values, from log-density in nats of data scaled to [-1, 1].

    A dequantised integer in [0, levels) maps to [-1, 1] with slope 2/levels, whose logarithm is added back per
    dimension. Lower is better; uniform noise over the levels has log2(levels).
    """
    if event_size < 1 or not levels > 1:
        raise ValueError(
            f"Expected event_size >= 1 and levels > 1, as something must be coded; got {event_size=}, {levels=}."
        )
    return -(nats / event_size + float(np.log(2 / levels))) / float(np.log(2))


def discrete_bits_per_dim(nats: PerExample, event_size: int) -> PerExample:
    """Bits per dimension of discrete data, from its log-probability in nats: no volume is added back.

    Of a `Bound` over discrete levels it takes `-bound.total`. Uniform noise over 256 levels has 8.
    """
    if event_size < 1:
        raise ValueError(f"Expected event_size >= 1, as something must be coded; got {event_size=}.")
    return -nats / event_size / float(np.log(2))
