"""Random-access sources of records, and reading many records into stacked arrays.

A record is a dict of numpy arrays or numbers with the same fields and shapes throughout a source.
"""

import contextlib
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
    """The records at `indices`, each field stacked along a new first axis.

    Raises:
        ValueError: a record cannot be read, or is not like the others; it is named by its index.
    """
    records = _records(source, indices)
    return {field: _stack(field, records, indices) for field in records[0]}


def load(source: Source) -> dict[str, np.ndarray]:
    """A whole small source in memory, in its own order: a dict of arrays [len(source), ...]."""
    if len(source) == 0:
        raise ValueError("Expected at least one record, as an empty source has no fields; got none.")
    return read(source, range(len(source)))


def _records(source: Source, indices: Sequence[int]) -> Sequence[Record]:
    read_many = getattr(source, "__getitems__", None)
    if read_many is not None:
        # Where that fails they are read one by one, to say which of them it is.
        with contextlib.suppress(Exception):
            return read_many(indices)
    return [_record(source, index) for index in indices]


def _record(source: Source, index: int) -> Record:
    try:
        return source[index]
    except Exception as error:  # whatever the user's source or a file's reader raises
        raise ValueError(
            f"Expected record {index} to be readable, as every epoch visits it; got {type(error).__name__}: {error}"
        ) from error


def _stack(field: str, records: Sequence[Record], indices: Sequence[int]) -> np.ndarray:
    for index, record in zip(indices, records, strict=True):
        if field not in record:
            raise ValueError(
                f"Expected {field!r} in record {index}, as record {indices[0]} has it; got {sorted(record)}."
            )
        first, value = np.asarray(records[0][field]), np.asarray(record[field])
        if value.shape != first.shape or value.dtype.kind != first.dtype.kind:
            raise ValueError(
                f"Expected one shape and kind for all records of {field!r}, as batches are arrays; got "
                f"{value.dtype}{list(value.shape)} in record {index}, {first.dtype}{list(first.shape)} in record "
                f"{indices[0]}."
            )
    return np.stack([record[field] for record in records])
