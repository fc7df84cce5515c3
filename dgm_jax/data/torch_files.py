"""Arrays of a PyTorch state dictionary, read without PyTorch: `torch.save`'s zip archives, and its format before 2020.

A file is a pickle in which every tensor is a view of a numbered storage, and the storages' bytes, as members of the
archive or after the pickle. Only what a state dictionary needs is unpickled; any other name in the file is refused, so
that a file cannot run code.
"""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "BoolStorage": np.bool_,
}


class _Storage:
    """Bytes that come later, and their dtype."""

    def __init__(self, dtype: type, size: int) -> None:
        self.dtype, self.size = np.dtype(dtype), size
        self.values = np.empty(0, dtype)

    def fill(self, content: bytes) -> None:
        if len(content) != self.size * self.dtype.itemsize:
            raise ValueError(f"{len(content)} bytes where {self.size} values of {self.dtype} are due")
        self.values = np.frombuffer(content, self.dtype)


class _Tensor:
    """A view of a storage: offset, shape and strides, in values."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple, strides: tuple, *_: Any) -> None:
        self.storage, self.offset, self.shape, self.strides = storage, offset, tuple(shape), tuple(strides)

    def array(self) -> np.ndarray:
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.shape, *self.strides)) < 0 or (0 not in self.shape and last >= self.storage.size):
            raise ValueError(f"a view of {self.shape} values beyond its storage of {self.storage.size}")
        item = self.storage.dtype.itemsize
        values = self.storage.values[self.offset :]
        view = np.lib.stride_tricks.as_strided(values, self.shape, tuple(item * step for step in self.strides))
        return view.copy()


class _Unpickler(pickle.Unpickler):
    """Of state dictionaries alone."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda tensor, *_: tensor
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a state dictionary")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, size, *view = pid
        if kind != "storage" or any(view):
            raise pickle.UnpicklingError(f"it refers to {pid}")
        return self.storages.setdefault(key, _Storage(dtype, size))


def read_torch_file(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of the state dictionary that `torch.save` wrote to `path`, by their names.

    Raises:
        ValueError: the file is not there, or is not a state dictionary; the message says what it is.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            tensors = _of_archive(file) if zipfile.is_zipfile(file) else _of_stream(file)
        return {name: tensor.array() for name, tensor in tensors.items()}
    except (OSError, ValueError, TypeError, LookupError, EOFError, AttributeError, pickle.PickleError) as error:
        raise ValueError(
            f"Expected a state dictionary that torch.save wrote, as weights are read from it; got {path}: {error}."
        ) from None


def _of_archive(file: Any) -> dict[str, _Tensor]:
    with zipfile.ZipFile(file) as archive:
        root = next(name for name in archive.namelist() if name.endswith("data.pkl")).removesuffix("data.pkl")
        with archive.open(f"{root}data.pkl") as pickled:
            unpickler = _Unpickler(pickled)
            tensors = unpickler.load()
        for key, storage in unpickler.storages.items():
            storage.fill(archive.read(f"{root}data/{key}"))
    return tensors


def _of_stream(file: Any) -> dict[str, _Tensor]:
    file.seek(0)
    if _Unpickler(file).load() != MAGIC:
        raise ValueError("another kind of file")
    for _ in range(2):
        _Unpickler(file).load()  # the protocol, and the sizes of the writer's integers
    unpickler = _Unpickler(file)
    tensors = unpickler.load()
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        size = int(np.frombuffer(file.read(8), "<i8")[0])
        if size != storage.size:
            raise ValueError(f"{size} values where {storage.size} are due")
        storage.fill(file.read(size * storage.dtype.itemsize))
    return tensors
