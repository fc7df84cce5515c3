"""One's own data in memory: a numpy array, with labels or without, as a source."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class ArraySource:
    """Records cut from arrays of equal length along their first axis, built by `from_array`."""

    fields: dict[str, np.ndarray]

    def __len__(self) -> int:
        return min(len(values) for values in self.fields.values())

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {field: values[index] for field, values in self.fields.items()}

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """The records at `indices`."""
        return [self[index] for index in indices]


def from_array(x: np.ndarray, labels: np.ndarray | None = None) -> ArraySource:
    """A source over `x` [n, ...], with field "image", and "label" where labels [n, ...] are given; nothing is copied.

    Args:
        x: images in uint8 [n, height, width, channels] (see `to_unit`), or any floats, finite, [n, *event].
        labels: integers or finite floats, one entry per example.
    """
    if x.ndim < 2 or x.size == 0:
        raise ValueError(f"Expected x [n, *event] with n >= 1 and at least one event axis; got shape {x.shape}.")
    if x.dtype != np.uint8 and not np.issubdtype(x.dtype, np.floating):
        raise ValueError(
            f"Expected x in uint8 (images 0 .. 255) or floating point, as noise is added to it; got {x.dtype}. "
            "Convert it with x.astype(np.uint8) or x.astype(np.float32)."
        )
    _check_finite(x, "x")
    if labels is None:
        return ArraySource({"image": x})
    if labels.ndim < 1 or len(labels) != len(x):
        raise ValueError(f"Expected one label per example, {len(x)} of them; got labels of shape {labels.shape}.")
    if not np.issubdtype(labels.dtype, np.number):
        raise ValueError(f"Expected labels as integers or floats, as networks take numbers; got {labels.dtype}.")
    _check_finite(labels, "labels")
    return ArraySource({"image": x, "label": labels})


def _check_finite(values: np.ndarray, name: str) -> None:
    if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise ValueError(f"Expected finite {name}, as one NaN or inf spoils the batch; got {bad} such values.")
