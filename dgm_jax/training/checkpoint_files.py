"""What a checkpoint is on disk, and reading it: header, leaves by path, one error for whatever is wrong.

One directory `<step>` written by orbax: `state`, the leaves of the state by path, and `meta`, a JSON header with the
path, shape and dtype of each leaf and the state of the data iterator. Typed keys are stored as their data, with the
name of their generator in the header.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

FORMAT = "dgm_jax checkpoint 1"


def saved_steps(directory: str | Path) -> list[int]:
    """The steps of the finished checkpoints in `directory`, rising; empty where there is no such directory."""
    directory = Path(directory)
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit() and path.is_dir())


def find(directory: Path, step: int | None) -> Path:
    """The directory of a checkpoint, the newest by default."""
    steps = saved_steps(directory)
    if not steps or (step is not None and step not in steps):
        wanted = "a checkpoint" if step is None else f"a checkpoint of step {step}"
        raise FileNotFoundError(f"Expected {wanted} in {directory}, as it is to be restored; got steps {steps}.")
    return directory / str(steps[-1] if step is None else step)


def read_header(path: Path) -> dict[str, Any]:
    """The header of a checkpoint, or `ValueError` where there is none of this library."""
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


def read_like(path: Path, header: dict[str, Any], like: PyTree, *, prefix: str, whole: bool) -> PyTree:
    """The leaves below `prefix` in the tree of `like`, all of them if `whole`; refused where they differ."""
    wanted = {prefix + name: leaf for name, leaf in by_path(like).items()}
    saved = {name: leaf for name, leaf in header["leaves"].items() if whole or name.startswith(prefix)}
    described = {name: describe(leaf) for name, leaf in wanted.items()}
    for name in [*described, *saved]:
        if described.get(name) != saved.get(name):
            raise ValueError(
                f"Expected the leaves of the given tree, as restoring changes neither shape nor dtype; {path} has "
                f"{_words(saved.get(name))} at {name!r}, the tree has {_words(described.get(name))}."
            )
    values = read_leaves(path, header, wanted)
    return jax.tree.unflatten(jax.tree.structure(like), [values[name] for name in wanted])


def read_leaves(path: Path, header: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
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


def by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves by their names, joined with "/"."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("Expected leaves of distinct paths, as they are stored by path; got a name with '/' in it.")
    return {name: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf) for name, leaf in named.items()}


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def describe(leaf: Any) -> dict[str, Any]:
    """What the header says of a leaf."""
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


def on_host(leaf: Any) -> Any:
    """A copy, as the writer is still reading when the caller's next step reuses a donated buffer."""
    leaf = jax.random.key_data(leaf) if _is_key(leaf) else leaf
    return np.array(leaf) if getattr(leaf, "is_fully_addressable", True) else leaf
