"""Checkpoints on disk: asynchronous, atomic, the newest few kept, resumed bit for bit.

    with Checkpoints("runs/quickstart/checkpoints") as checkpoints:
        checkpoints.save(step, state, data_state)
    params = load_params("runs/quickstart/checkpoints")          # the averaged parameters, ready to sample with

A checkpoint is one directory `<step>` written by orbax: `state`, the leaves of the state by path, and `meta`, a JSON
header with the path, shape and dtype of each leaf and the state of the data iterator. Orbax writes aside and renames,
so a run that is killed leaves its last whole checkpoint. Typed keys are stored as their data, with the name of their
generator in the header.
"""

import base64
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

FORMAT = "dgm_jax checkpoint 1"
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
            _read_header(self.directory / str(step))
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
        leaves = _by_path(state)
        header = {
            "format": FORMAT,
            "leaves": {path: _describe(leaf) for path, leaf in leaves.items()},
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
        stored = {path: _on_host(leaf) for path, leaf in leaves.items() if leaf.size}
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
        path = _find(self.directory, step)
        header = _read_header(path)
        state = _read_like(path, header, like, prefix="", whole=True)
        data = header["data_state"]
        return state, base64.b64decode(data["bytes"]) if "bytes" in data else data["json"]


def load_params(directory: str | Path, *, step: int | None = None, part: str = "ema", like: PyTree = None) -> PyTree:
    """The parameters of the newest checkpoint in `directory`, read without the rest of the state.

    Args:
        part: the field of the state to read: "ema" or "params", or "ema/1" where there are several averages.
        like: parameters whose structure to take and to check against. `None` gives nested dictionaries of arrays,
            as Flax has them.
    """
    path = _find(Path(directory).resolve(), step)
    header = _read_header(path)
    if like is not None:
        return _read_like(path, header, like, prefix=f"{part}/", whole=False)
    names = [name for name in header["leaves"] if name.startswith(f"{part}/")]
    if not names:
        raise ValueError(f"Expected leaves under {part!r}, as load_params reads those; got none in {path}.")
    tree: dict[str, Any] = {}
    for name, value in _read(path, header, dict.fromkeys(names)).items():
        *parents, last = name.removeprefix(f"{part}/").split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def saved_steps(directory: str | Path) -> list[int]:
    """The steps of the finished checkpoints in `directory`, rising; empty where there is no such directory."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit() and path.is_dir())


def _find(directory: Path, step: int | None) -> Path:
    steps = saved_steps(directory)
    if not steps or (step is not None and step not in steps):
        wanted = "a checkpoint" if step is None else f"a checkpoint of step {step}"
        raise FileNotFoundError(f"Expected {wanted} in {directory}, as it is to be restored; got steps {steps}.")
    return directory / str(steps[-1] if step is None else step)


def _read_header(path: Path) -> dict[str, Any]:
    try:
        header = json.loads((path / "meta" / "metadata").read_text())
        readable = header["format"] == FORMAT and {"leaves", "data_state"} <= header.keys()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected a dgm_jax checkpoint, as {path} is named like one; its header meta/metadata is unreadable: "
            f"{type(error).__name__}: {error}."
        ) from error
    if not readable:
        raise ValueError(f"Expected format {FORMAT!r} in {path}, as no other is read; got {header['format']!r}.")
    return header


def _read_like(path: Path, header: dict[str, Any], like: PyTree, *, prefix: str, whole: bool) -> PyTree:
    wanted = {prefix + name: leaf for name, leaf in _by_path(like).items()}
    saved = {name: leaf for name, leaf in header["leaves"].items() if whole or name.startswith(prefix)}
    described = {name: _describe(leaf) for name, leaf in wanted.items()}
    for name in [*described, *saved]:
        if described.get(name) != saved.get(name):
            raise ValueError(
                f"Expected the leaves of the given tree, as restoring changes neither shape nor dtype; {path} has "
                f"{_words(saved.get(name))} at {name!r}, the tree has {_words(described.get(name))}."
            )
    values = _read(path, header, wanted)
    return jax.tree.unflatten(jax.tree.structure(like), [values[name] for name in wanted])


def _read(path: Path, header: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The leaves named in `wanted`, placed as its values are, or on the default device where those are `None`."""
    import orbax.checkpoint as ocp

    targets, arguments = {}, {}
    for name, like in wanted.items():
        shape, dtype = tuple(header["leaves"][name]["shape"]), jnp.dtype(header["leaves"][name]["dtype"])
        if 0 in shape:
            continue
        if getattr(like, "is_fully_addressable", True):
            targets[name] = np.broadcast_to(np.zeros((), dtype), shape)  # a template that takes no memory
            arguments[name] = ocp.RestoreArgs(restore_type=np.ndarray)
        else:
            targets[name] = jax.ShapeDtypeStruct(shape, dtype, sharding=like.sharding)
            arguments[name] = ocp.ArrayRestoreArgs(sharding=like.sharding, global_shape=shape, dtype=dtype)
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            request = ocp.args.PyTreeRestore(item=targets, restore_args=arguments, partial_restore=True)
            values = reader.restore(path / "state", args=request) if targets else {}
    except Exception as error:  # orbax and tensorstore raise many kinds, none of them naming the checkpoint
        raise ValueError(
            f"Expected a whole checkpoint, as its header lists {len(header['leaves'])} leaves; {path} is damaged "
            f"(others in {path.parent}: {[s for s in saved_steps(path.parent) if s != int(path.name)]}): {error}"
        ) from error

    def place(name: str, like: Any) -> Any:
        about = header["leaves"][name]
        value = values[name] if name in values else np.zeros(about["shape"], jnp.dtype(about["dtype"]))
        value = value if isinstance(value, jax.Array) else jnp.array(value)
        if "key" in about:
            value = jax.random.wrap_key_data(value, impl=about["key"])
        # An uncommitted array follows the computation; placing one that was free would tie it to one device.
        return jax.device_put(value, like.sharding) if getattr(like, "committed", False) else value

    return {name: place(name, like) for name, like in wanted.items()}


def _by_path(tree: PyTree) -> dict[str, Any]:
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("Expected leaves of distinct paths, as they are stored by path; got a name with '/' in it.")
    return {name: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf) for name, leaf in named.items()}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(leaf: Any) -> dict[str, Any]:
    about = {}
    if _is_key(leaf):
        about = {"key": str(jax.random.key_impl(leaf))}
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return {"shape": list(leaf.shape), "dtype": str(leaf.dtype), **about}


def _words(about: dict[str, Any] | None) -> str:
    if about is None:
        return "nothing"
    kind = f"{about['key']} key" if "key" in about else about["dtype"]
    return f"{kind}{about['shape']}"


def _on_host(leaf: Any) -> Any:
    """A copy, as the writer is still reading when the caller's next step reuses a donated buffer."""
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return np.array(leaf) if getattr(leaf, "is_fully_addressable", True) else leaf
