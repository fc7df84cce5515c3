"""SIGTERM, which clusters send before they take a machine away: seen between steps, by all hosts at the same one.

With several processes `jax.distributed` receives the signal on any host and names a step that none has passed, within
seconds. A single process catches it by itself, in place of any other handler, and only in its main thread, where Python
delivers signals.
"""

import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import jax
from jax.experimental import multihost_utils

STATUS = 75  # EX_TEMPFAIL of sysexits.h: started again, the same command goes on
# The service names a point of this count. It rises over all runs of a process, as the service answers but once.
_asked = itertools.count(1)


class Preempted(SystemExit):
    """Raised once the checkpoint of `step` is on disk; uncaught, it ends the process with status 75, "try again"."""

    def __init__(self, step: int):
        super().__init__(STATUS)
        self.step = step

    def __str__(self) -> str:
        return f"SIGTERM was received: step {self.step} is saved, and the same command continues from it"


def never() -> bool:
    """No preemption."""
    return False


@contextmanager
def watch_for_preemption() -> Iterator[Callable[[], bool]]:
    """`preempted()`, asked after every step: whether to save this one and stop.

    Without `jax_enable_preemption_service`, and outside the main thread, nothing is watched. The handler that was there
    before returns at the end, and receives a signal that came too late to be asked for.
    """
    if jax.distributed.is_initialized():
        served = getattr(jax.config, "jax_enable_preemption_service", True)
        yield (lambda: multihost_utils.reached_preemption_sync_point(next(_asked))) if served else never
        return
    if threading.current_thread() is not threading.main_thread():
        yield never
        return
    received, answered = threading.Event(), threading.Event()

    def preempted() -> bool:
        if received.is_set():
            answered.set()
        return received.is_set()

    before = signal.signal(signal.SIGTERM, lambda *_: received.set())
    try:
        yield preempted
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
    if received.is_set() and not answered.is_set():
        signal.raise_signal(signal.SIGTERM)
