"""What a long run says about itself: a progress bar, metrics.jsonl, and the same numbers and pictures for TensorBoard.

tensorboard --logdir runs
"""

import io
from types import TracebackType
from typing import Any

import numpy as np

from experiments._cluster import first
from experiments._image_data import png
from experiments._run import Run, progress, write_aside
from experiments._throughput import Meter


class Logs:
    """The logs of a run; only the process that writes has them. A context manager.

    Args:
        after: the step from which the run goes on: what was logged of later ones is dropped, as they are made again.
    """

    def __init__(self, run: Run, *, after: int):
        from tensorboardX import SummaryWriter

        run.forget_after(after)
        self._run = run
        self._said: dict[int, set[str]] = {}  # what each step's records say
        for record in run.records():
            self._said.setdefault(record["step"], set()).update(record)
        self._board = SummaryWriter(str(run.directory / "tensorboard"), purge_step=after + 1)

    def __enter__(self) -> "Logs":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._board.close()

    def numbers(self, step: int, values: dict[str, Any]) -> None:
        """One record of numbers, unless an earlier process has made it."""
        if self._said.get(step, set()) >= values.keys():
            return
        self._said.setdefault(step, set()).update(values)
        floats = {name: float(value) for name, value in values.items()}
        self._run.log(step=step, **floats)
        for name, value in floats.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    def picture(self, step: int, name: str, png: bytes) -> None:
        """A picture, as <name>-<step>.png and on the board."""
        from PIL import Image

        path = self._run.directory / f"{name}-{step:07d}.png"
        write_aside(path, png)
        self._board.add_image(name, np.asarray(Image.open(io.BytesIO(png)).convert("RGB")), step, dataformats="HWC")


class Reports:
    """The progress bar and the logs of the first process; nothing in the others. A context manager."""

    def __init__(self, run: Run, meter: Meter, *, steps: int, after: int):
        self._meter = meter
        self._logs = Logs(run, after=after) if first() else None
        self._bar = progress(steps, start=after) if first() else None
        if after and first():
            print(f"Resumed at step {after} of {steps}.")

    def __enter__(self) -> "Reports":
        self._report = self._bar.__enter__() if self._bar is not None else None
        return self

    def __exit__(self, *error: Any) -> None:
        if self._bar is not None and self._logs is not None:
            self._bar.__exit__(*error)
            self._logs.__exit__(*error)

    def metrics(self, step: int, values: dict[str, Any]) -> None:
        """The last step's metrics, and the rates since those before."""
        rates = self._meter.read(step)
        if self._logs is not None and self._report is not None:
            self._logs.numbers(step, {**values, **rates})
            self._report(step, float(values["loss"]))

    def evaluation(self, step: int, numbers: dict[str, float], images: np.ndarray) -> None:
        """Numbers and drawn images of one evaluation."""
        self._meter.pause()
        if self._logs is not None:
            self._logs.numbers(step, numbers)
            columns = max(n for n in range(1, len(images) + 1) if len(images) % n == 0 and n * n <= len(images))
            self._logs.picture(step, "samples", png(images, len(images) // columns))
