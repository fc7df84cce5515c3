"""SIGTERM, which clusters send before they take a machine away: seen between steps, by all hosts at the same one.

With several processes `jax.distributed` receives the signal on any host and names a step that none has passed. A single
process catches it by itself.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

STATUS = 75  # EX_TEMPFAIL of sysexits.h: started again, the same command goes on


class Preempted(SystemExit):
    """Raised once the checkpoint of `step` is on disk; uncaught, it ends the process with status 75, "try again"."""

    def __init__(self, step: int):
        super().__init__(STATUS)
        self.step = step

    def __str__(self) -> str:
        return f"SIGTERM was received: step {self.step} is saved, and the same command continues from it"


@contextmanager
def watch_for_preemption() -> Iterator[Callable[[int], bool]]:
    """`reached(step)`, asked after every step: whether to save this one and stop. Other handlers return at the end."""
    if jax.distributed.is_initialized():
        yield multihost_utils.reached_preemption_sync_point
        return
    if threading.current_thread() is not threading.main_thread():  # where Python delivers no signals
        yield lambda step: False
        return
    received = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield lambda step: received.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)
