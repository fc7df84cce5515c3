"""The training loop: a Python loop over a compiled step, which resumes where it stopped.

The loop stays in Python, as XLA's convolution gradients are many times slower inside `lax.scan`. It waits for the
device only where metrics are read or a checkpoint is written; between those, steps are queued ahead.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
from jaxtyping import PyTree

from dgm_jax.training.checkpoint import Checkpoints
from dgm_jax.training.finiteness import check_finite
from dgm_jax.training.preemption import Preempted, never, watch_for_preemption
from dgm_jax.training.state import TrainState
from dgm_jax.training.step import Step


def train(
    step: Step,
    state: TrainState,
    batches: Iterator[PyTree],
    *,
    steps: int,
    checkpoints: Checkpoints | None = None,
    save_every: int = 1000,
    log_every: int = 100,
    on_metrics: Callable[[int, dict[str, Any]], None] | None = None,
    place: Callable[[TrainState], TrainState] = lambda state: state,
    fetch: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> TrainState:
    """Train until `state.step == steps`, from the newest checkpoint where there is one.

    With `checkpoints`, SIGTERM ends the run between two steps, on every host at the same one: that step is saved (see
    `preemption`).

    Args:
        step: compiled; may donate its state, so the `state` passed here is used up unless `place` copies it.
        batches: one batch per step. With `get_state` and `set_state` (grain's iterators have them) its position is
            saved and resumed; a plain iterator starts anew on resumption.
        save_every: also saved after the last step.
        on_metrics: called with (number of steps made, the last step's metrics on the host), every `log_every` steps
            and after the last.
        place: from a single state to what `step` takes (`parallel.replicate`).
        fetch: from what `step` returns to a single state or single metrics (`parallel.unreplicate`).

    Returns:
        The last state, a single one whatever `place` did.

    Raises:
        Preempted: SIGTERM was received and the step is saved; it is a SystemExit of status 75.
        FloatingPointError: the loss or the parameters are no longer finite; nothing is saved from then on.
    """
    if min(log_every, save_every) < 1:
        raise ValueError(
            f"Expected log_every and save_every >= 1, as they count steps; got {log_every=}, {save_every=}."
        )
    state = _resume(state, batches, checkpoints)
    start = int(state.step)
    if start >= steps:
        return state
    current = place(state)
    with nullcontext(never) if checkpoints is None else watch_for_preemption() as preempted:
        for made in range(start + 1, steps + 1):
            current, metrics = step(current, _next(batches, made, steps))
            last, stop = made == steps, preempted()
            log = made % log_every == 0 or last
            saver = checkpoints if made % save_every == 0 or last or stop else None
            if log or saver is not None:
                values = {name: np.asarray(value)[()] for name, value in fetch(metrics).items()}
                if log and on_metrics is not None:
                    on_metrics(made, values)
                if saver is not None or not np.isfinite(values["loss"]):
                    state = fetch(current)
                    check_finite(
                        state, float(values["loss"]), made, None if checkpoints is None else checkpoints.latest()
                    )
            if saver is not None:
                position = getattr(batches, "get_state", lambda: None)
                saver.save(made, state, position())
                if stop:
                    saver.wait()
                    raise Preempted(made)
    if checkpoints is not None:
        checkpoints.wait()
    return fetch(current)


def _next(batches: Iterator[PyTree], made: int, steps: int) -> PyTree:
    try:
        return next(batches)
    except StopIteration:
        raise ValueError(f"Expected one batch per step, as {steps=}; batches ended after {made - 1}.") from None


def _resume(state: TrainState, batches: Iterator[PyTree], checkpoints: Checkpoints | None) -> TrainState:
    if checkpoints is None or checkpoints.latest() is None:
        return state
    state, data_state = checkpoints.restore(like=state)
    if data_state is not None:
        set_state = getattr(batches, "set_state", None)
        if set_state is None:
            raise ValueError(
                f"Expected batches with set_state, as the checkpoint in {checkpoints.directory} holds the position of "
                f"its data iterator; got {type(batches).__name__}."
            )
        set_state(data_state)
    return state
