"""Starting as one of several processes: by flags, or by what a Cloud TPU or SLURM says, or alone."""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from experiments._run import Run, check_settings, open_run, virtual_devices

HEARTBEAT = 100  # seconds without a sign of life after which a process counts as dead, and all others stop


def join(coordinator: str | None, process_id: int | None, num_processes: int | None, *, heartbeat: int) -> None:
    """Meet the other processes of the run, before any computation; a process alone opens one virtual device a core.

    Args:
        coordinator: host:port of process 0, with the two numbers; all `None` where the cluster says them, or alone.
    """
    flags = (coordinator, process_id, num_processes)
    if any(flag is None for flag in flags) and any(flag is not None for flag in flags):
        raise SystemExit(
            "Expected --coordinator, --process-id and --num-processes together, as none can be guessed from the "
            f"others; got {coordinator=}, {process_id=}, {num_processes=}."
        )
    if process_id is not None and num_processes is not None and not 0 <= process_id < num_processes:
        raise SystemExit(f"Expected 0 <= process-id < num-processes; got {process_id} of {num_processes}.")
    if heartbeat < 1:
        raise SystemExit(f"Expected heartbeat >= 1, in whole seconds; got {heartbeat}.")
    virtual_devices()
    if coordinator is not None:
        jax.distributed.initialize(coordinator, num_processes, process_id, heartbeat_timeout_seconds=heartbeat)
    elif cluster() is not None:
        jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)


def cluster() -> str | None:
    """What started this process, where JAX can then count the processes by itself: "SLURM", "Cloud TPU", or neither."""
    if int(os.environ.get("SLURM_NTASKS", "1")) > 1 and {"SLURM_PROCID", "SLURM_STEP_NODELIST"} <= os.environ.keys():
        return "SLURM"
    has_chips = any(Path("/dev").glob("accel*")) or Path("/dev/vfio/0").exists()
    return "Cloud TPU" if has_chips and importlib.util.find_spec("libtpu") is not None else None


def first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Return once every process is here."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def open_together(config: Any) -> Run:
    """`open_run` by the first process, then by the others, which find it there: all refuse another configuration."""
    if first():
        run = open_run(config)
        wait_for_all("run opened")
        return run
    if not config.fresh:
        check_settings(config)  # what the first refuses now, the others do by themselves, and nobody waits
    wait_for_all("run opened")
    return open_run(replace(config, fresh=False))
