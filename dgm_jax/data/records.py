"""Random-access sources of records, and reading many records into stacked arrays.

A record is a dict of numpy arrays or numbers with the same fields and shapes throughout a source.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

Record = Mapping[str, Any]


@runtime_checkable
class Source(Protocol):
    """Records by index; a source may also offer `__getitems__(indices)`, which reads several at once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


def read(source: Source, indices: Sequence[int]) -> dict[str, np.ndarray]:
    """The records at `indices`, each field stacked along a new first axis."""
    read_many = getattr(source, "__getitems__", None)
    records = [source[i] for i in indices] if read_many is None else read_many(indices)
    return {field: _stack(field, [record[field] for record in records]) for field in records[0]}


def load(source: Source) -> dict[str, np.ndarray]:
    """A whole small source in memory, in its own order: a dict of arrays [len(source), ...]."""
    if len(source) == 0:
        raise ValueError("Expected at least one record, as an empty source has no fields; got none.")
    return read(source, range(len(source)))


def _stack(field: str, values: list[Any]) -> np.ndarray:
    shapes = {np.shape(value) for value in values}
    if len(shapes) > 1:
        raise ValueError(f"Expected one shape for all records of {field!r}, as batches are arrays; got {shapes}.")
    return np.stack(values)
