"""What experiments share: devices, the command line, the run directory, and a progress bar.

A run is a directory `runs/<name>/` with `config.json`, `metrics.jsonl` (one record a line), figures, and at its end
`scores.json`: the run is done when that file is there. Nothing in it is ever written over by another configuration.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import jax

Config = TypeVar("Config")
NOT_SCIENCE = ("run_dir", "fresh")  # where a run is kept changes nothing in it; a config may name more in its own


def virtual_devices(most: int = 8) -> None:
    """One virtual CPU device per core, before JAX starts; accelerators, if any, stay what computations run on.

    XLA's small convolutions use one core per device, so a data-parallel step is what fills the cores. Their number
    is a power of two, so that batches divide. A number that the user has set is kept.
    """
    number: int = jax.config.jax_num_cpu_devices  # type: ignore[attr-defined]
    user_set = number > 0 or "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if user_set:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = 1
    while 2 * devices <= min(cores, most):
        devices *= 2
    jax.config.update("jax_num_cpu_devices", devices)


def parse(default: Config, smoke: Config, args: list[str] | None = None) -> Config:
    """The configuration from the command line, on top of `default`, or of `smoke` where --smoke is given."""
    import tyro

    args = sys.argv[1:] if args is None else args
    return tyro.cli(type(default), default=smoke if "--smoke" in args else default, args=args)


@dataclass(frozen=True)
class Run:
    """The directory of one run, opened by `open_run`."""

    directory: Path

    @property
    def done(self) -> bool:
        """Whether the run has written its scores, which it does last."""
        return (self.directory / "scores.json").exists()

    def said_done(self, *pictures: str) -> bool:
        """Whether the run is done; if so, it is said where to look."""
        if self.done:
            names = " and ".join(str(self.directory / name) for name in pictures)
            print(f"{self.directory} is done: look at {names}. To begin anew: --fresh.")
        return self.done

    def measured(self, name: str, measure: Callable[[], Any]) -> Any:
        """A number that was measured when the run began, such as how many steps fit: stored, and read on resumption."""
        saved = _read(self.directory)
        if name not in saved["measured"]:
            saved["measured"][name] = measure()
            _write(self.directory / "config.json", saved)
        return saved["measured"][name]

    def log(self, **record: Any) -> None:
        """Append one record to metrics.jsonl."""
        with (self.directory / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; a line cut short by a kill is left out."""
        path = self.directory / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("}")]

    def forget_after(self, step: float) -> None:
        """Drop the records of later steps, which a resumed run makes again."""
        if not (self.directory / "metrics.jsonl").exists():
            return
        kept = [record for record in self.records() if record.get("step", 0) <= step]
        _replace(self.directory / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in kept))

    def finish(self, scores: dict[str, Any]) -> None:
        """Write scores.json, which marks the run as done."""
        _write(self.directory / "scores.json", scores)


def open_run(config: Any) -> Run:
    """The run of `config` in `config.run_dir`: begun, or continued where it was begun with the same configuration.

    With `config.fresh`, a run that is there is moved aside to `<run_dir>.1`, `.2`, ... With `config.changed`, where a
    config has it, the run goes on with the new settings, and what differs is said.

    Raises:
        SystemExit: the directory holds a run of another configuration, and the message lists what differs; or it cannot
            be one.
    """
    directory = Path(config.run_dir)
    if directory.exists() and not directory.is_dir():
        raise SystemExit(f"Expected --run-dir to be a folder, or a new one; {directory} is a file.")
    if config.fresh and (directory / "config.json").exists():
        aside = next(p for n in range(1, 10**6) if not (p := directory.with_name(f"{directory.name}.{n}")).exists())
        directory.rename(aside)
        print(f"Moved the run that was in {directory} to {aside}.")
    settings, different = check_settings(config)
    if (directory / "config.json").exists():
        if different:
            (directory / "scores.json").unlink(missing_ok=True)  # of the other settings; metrics.jsonl has them too
            print(f"Going on in {directory} with\n" + "\n".join(different))
            _write(directory / "config.json", {**_read(directory), "config": settings})
        records = directory / "metrics.jsonl"
        if records.exists() and records.read_bytes()[-1:] not in (b"", b"\n"):
            Run(directory).forget_after(float("inf"))  # a line cut short by a kill, which the next record would join
    else:
        directory.mkdir(parents=True, exist_ok=True)
        _write(directory / "config.json", {"config": settings, "measured": {}})
    return Run(directory)


def check_settings(config: Any) -> tuple[dict[str, Any], list[str]]:
    """What of the configuration is the experiment, and how it differs from the run that is there, where it may."""
    directory, aside = Path(config.run_dir), (*NOT_SCIENCE, *getattr(config, "NOT_SCIENCE", ()))
    settings = json.loads(json.dumps({k: v for k, v in asdict(config).items() if k not in aside}))
    if not (directory / "config.json").exists():
        return settings, []
    different = _difference(_read(directory)["config"], settings)
    if different and not getattr(config, "changed", False):
        _refuse(directory, different, changeable=hasattr(config, "changed"))
    return settings, different


def begin(config: Any, *, devices: int = 8) -> Run:
    """`open_run` on one virtual device a core, at most `devices`, with short compilations where `config.smoke`."""
    virtual_devices(devices)
    if config.smoke:
        jax.config.update("jax_disable_most_optimizations", True)  # compiling is most of the time
    return open_run(config)


def read_config(directory: str | Path, config_type: type[Config]) -> Config:
    """The configuration with which the run in `directory` was begun."""
    saved = _read(Path(directory))["config"]
    default = config_type(run_dir=str(directory))  # type: ignore[call-arg]
    foreign = sorted(set(saved) - set(vars(default)))
    if foreign:
        raise ValueError(f"Expected a run of this experiment in {directory}; got one whose settings include {foreign}.")
    # JSON has no tuples
    return replace(default, **{k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()})  # type: ignore


def _difference(saved: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    names = [name for name in {**saved, **settings} if saved.get(name) != settings.get(name)]
    return [f"  {name}: {saved.get(name)} in the run, {settings.get(name)} now" for name in names]


def _refuse(directory: Path, different: list[str], *, changeable: bool) -> None:
    raise SystemExit(
        f"Expected the configuration that {directory} was begun with, as a run is one experiment; got\n"
        + "\n".join(different)
        + "\nTo begin another run beside it: --run-dir <another>. To move it aside and begin anew: --fresh."
        + (" To go on with the new settings: --changed." if changeable else "")
    )


def _read(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    try:
        saved = json.loads(path.read_text())
        if not {"config", "measured"} <= saved.keys():
            raise ValueError(f"its entries are {sorted(saved)}")
    except (OSError, ValueError, AttributeError) as error:
        raise SystemExit(f"Expected a run's config.json, as {directory} is to be read; got {path}: {error}.") from None
    return saved


def _write(path: Path, values: dict[str, Any]) -> None:
    _replace(path, json.dumps(values, indent=2) + "\n")


def _replace(path: Path, text: str) -> None:
    write_aside(path, text.encode())


def write_aside(path: Path, data: bytes) -> None:
    """Written aside and renamed, so that a kill leaves the old file or the new one."""
    scratch = path.with_name(f".{path.name}.part")
    scratch.write_bytes(data)
    scratch.replace(path)


@contextmanager
def progress(total: int, *, start: int = 0, every: float = 5.0) -> Iterator[Callable[[int, float], None]]:
    """A bar with rate, time left and loss, as a function `report(steps done, loss)`; plain lines outside a terminal.

    Args:
        start: steps done before, by an earlier process.
        every: seconds between plain lines.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = Console()
    first: list[tuple[int, float]] = []  # the rate is measured from the first report, so without the compilation
    last_line = [0.0]
    bar = Progress(
        TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"), console=console
    )
    with bar if console.is_terminal else nullcontext():
        task = bar.add_task("training", total=total, completed=start, state="compiling")

        def report(done: int, loss: float) -> None:
            now = time.monotonic()
            first.append((done, now)) if not first else None
            made, seconds = done - first[0][0], now - first[0][1]
            state = f"loss {loss:.4f}"
            if made > 0:
                rate = made / seconds
                minutes, left = divmod(round((total - done) / rate), 60)
                state = f"{rate:.1f} steps/s, {minutes}:{left:02d} left, " + state
            if console.is_terminal:
                bar.update(task, completed=done, state=state)
            elif now - last_line[0] >= every or done == total:
                last_line[0] = now
                print(f"step {done}/{total}: {state}", flush=True)

        yield report
