"""Timing by turns: each round runs every candidate once, so that what slows the machine slows all of them.

Ratios are taken within a round, and their median and quartiles over the rounds are what is reported: a single slow
round moves neither. The first call of each candidate, which compiles, is not timed.
"""

import time
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jaxtyping import Float


def rounds(
    candidates: Mapping[str, Callable[[], object]], *, repeats: int, rest: float = 0.0
) -> dict[str, Float[np.ndarray, " repeats"]]:
    """Seconds of each candidate in each round; outputs are waited for.

    Args:
        rest: seconds of sleep, followed by an untimed call, before each timing. Needed where two libraries share the
            process: thread pools spin for up to 0.2 s after work, and a pool that slept needs waking.
    """
    if repeats < 1:
        raise ValueError(f"Expected repeats >= 1, as a median needs a value; got {repeats=}.")
    for candidate in candidates.values():
        jax.block_until_ready(candidate())
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for i in range(repeats):
        start = i % len(names)  # nobody is always first
        for name in names[start:] + names[:start]:
            if rest > 0:
                time.sleep(rest)
                jax.block_until_ready(candidates[name]())
            seconds[name].append(_seconds(candidates[name]))
    return {name: np.array(values) for name, values in seconds.items()}


def _seconds(candidate: Callable[[], object]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(candidate())
    return time.perf_counter() - start
