"""Checkpoints on disk: asynchronous, atomic, the newest few kept, resumed bit for bit.

    with Checkpoints("runs/quickstart/checkpoints") as checkpoints:
        checkpoints.save(step, state, data_state)
    params = load_params("runs/quickstart/checkpoints")          # the averaged parameters, ready to sample with

Orbax writes aside and renames, so a run that is killed leaves its last whole checkpoint. What a checkpoint is on disk:
see `checkpoint_files`.
"""

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from dgm_jax.training.checkpoint_files import (
    FORMAT,
    by_path,
    describe,
    find,
    on_host,
    read_header,
    read_leaves,
    read_like,
    saved_steps,
)

# Old checkpoints are moved here and deleted here: a run that is killed meanwhile leaves none of them half.
DELETED = "deleted"


class Checkpoints:
    """The checkpoints of one run in one directory, saved in the background; a context manager.

    Args:
        directory: made where it is missing. Any checkpoints in it must be this library's, as old ones are deleted.
        keep: how many of the newest are kept.
    """

    def __init__(self, directory: str | Path, *, keep: int = 3):
        import orbax.checkpoint as ocp

        if keep < 1:
            raise ValueError(f"Expected keep >= 1, as the newest checkpoint is the one to resume from; got {keep=}.")
        self.directory = Path(directory).resolve()
        if self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"Expected a directory, as checkpoints are folders; got the file {self.directory}.")
        for step in saved_steps(self.directory):
            read_header(self.directory / str(step))
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True, todelete_subdir=DELETED)
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._delete()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            with self._writing():
                self._manager.close()
                self._delete()
        except OSError as failed:
            if error is None:
                raise
            error.add_note(str(failed))  # in place of which the caller would no longer see the first one

    def save(self, step: int, state: PyTree, data_state: Any = None) -> None:
        """Copy `state` to the host and write it in the background; `state` may be donated as soon as this returns.

        Args:
            data_state: what the data iterator's `get_state` returned: bytes, or anything that JSON can hold. With
                several processes the first one's is stored, as all advance together.

        Raises:
            ValueError: there is a checkpoint of this or a later step; nothing is ever written over.
            OSError: the save before this one failed.
        """
        import orbax.checkpoint as ocp

        latest = self.latest()
        if latest is not None and step <= latest:
            raise ValueError(f"Expected a step after {latest}, as {self.directory} holds that one; got {step=}.")
        leaves = by_path(state)
        header = {
            "format": FORMAT,
            "leaves": {path: describe(leaf) for path, leaf in leaves.items()},
            "data_state": {"bytes": base64.b64encode(data_state).decode()}
            if isinstance(data_state, bytes)
            else {"json": data_state},
        }
        try:
            json.dumps(header)
        except TypeError as error:
            raise ValueError(
                f"Expected data_state of bytes or JSON, as it is stored so; got {data_state!r}."
            ) from error
        if not any(leaf.size for leaf in leaves.values()):
            raise ValueError(f"Expected a state with values in it, as nothing else can be restored; got {state!r}.")
        stored = {path: on_host(leaf) for path, leaf in leaves.items() if leaf.size}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(stored), meta=ocp.args.JsonSave(header))
        self.wait()  # as orbax does, and raises here what the writer of the step before met
        with self._writing():
            self._manager.save(step, args=items, force=True)

    def latest(self) -> int | None:
        """The newest step saved or being saved, or `None`."""
        return self._manager.latest_step()

    def wait(self) -> None:
        """Return once everything is on disk.

        Raises:
            OSError: the writer failed, say on a full disk. The checkpoints before are whole.
        """
        with self._writing():
            self._manager.wait_until_finished()
            self._delete()

    def _delete(self) -> None:
        """Delete what orbax moved aside; to be called while it moves nothing there."""
        if jax.process_index() == 0:
            shutil.rmtree(self.directory / DELETED, ignore_errors=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of many kinds, which name files of the writer's own
            raise OSError(
                f"Expected to write a checkpoint to {self.directory}, as runs resume from it; got "
                f"{type(error).__name__}: {error} (whole checkpoints: {saved_steps(self.directory)})."
            ) from error

    def restore(self, step: int | None = None, *, like: PyTree) -> tuple[PyTree, Any]:
        """The state of `step`, or of the newest, with the structure and placement of `like`, and the data state.

        Raises:
            FileNotFoundError: no such checkpoint.
            OSError: a save under way failed.
            ValueError: it is unreadable, foreign, or its leaves differ from those of `like`.
        """
        self.wait()
        path = find(self.directory, step)
        header = read_header(path)
        state = read_like(path, header, like, prefix="", whole=True)
        data = header["data_state"]
        return state, base64.b64decode(data["bytes"]) if "bytes" in data else data["json"]


def load_params(directory: str | Path, *, step: int | None = None, part: str = "ema", like: PyTree = None) -> PyTree:
    """The parameters of the newest checkpoint in `directory`, read without the rest of the state.

    Args:
        part: the field of the state to read: "ema" or "params", or "ema/1" where there are several averages.
        like: parameters whose structure to take and to check against. `None` gives nested dictionaries of arrays,
            as Flax has them.
    """
    path = find(Path(directory).resolve(), step)
    header = read_header(path)
    if like is not None:
        return read_like(path, header, like, prefix=f"{part}/", whole=False)
    names = [name for name in header["leaves"] if name.startswith(f"{part}/")]
    if not names:
        raise ValueError(f"Expected leaves under {part!r}, as load_params reads those; got none in {path}.")
    tree: dict[str, Any] = {}
    for name, value in read_leaves(path, header, dict.fromkeys(names)).items():
        *parents, last = name.removeprefix(f"{part}/").split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree
