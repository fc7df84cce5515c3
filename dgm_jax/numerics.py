"""Small numerical tools that every layer above uses: keys, broadcasting, divergence, checks.

Randomness has one rule. A `key` is one key, or one key per example `[batch]`; one key is split per example
first, and noise is drawn by `vmap` over the keys. A device that holds a slice of the keys therefore draws
exactly that slice's numbers, whatever the number of devices.
"""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree, Shaped

from dgm_jax.typing import Data, Keys, PerExample, Shape, Size


def expand_to(values: Shaped[Array, "*batch"], like: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    """Append axes of size one until `values` broadcasts against `like` from the left."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim))


def typed_key(key: Keys) -> Keys:
    """New-style typed keys from either style (`jax.random.key` or `jax.random.PRNGKey`)."""
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return key
    return jax.random.wrap_key_data(key)


def example_keys(key: Keys, batch: Size) -> Keys:
    """One key per example: a single key is split, keys `[batch]` pass through."""
    key = typed_key(key)
    if key.ndim == 0:
        return jax.random.split(key, batch)
    if key.shape != (batch,):
        raise ValueError(f"Expected one key, or one key per example {(batch,)}; got keys of {key.shape=}.")
    return key


def split(key: Keys, n: int = 2) -> tuple[Keys, ...]:
    """`n` independent keys, each of the shape of `key`: one key gives single keys, keys `[batch]` give `[batch]`."""
    key = typed_key(key)
    if key.ndim == 0:
        return tuple(jax.random.split(key, n))
    return jax.vmap(lambda k: tuple(jax.random.split(k, n)))(key)


def normal(key: Keys, shape: Shape, dtype: DTypeLike | None = None) -> Data:
    """Standard normal noise of `shape` `(batch, *event)`, one key per example."""
    if not isinstance(shape, tuple) or not shape or any(size < 1 for size in shape):
        raise ValueError(f"Expected shape (batch, *event) of positive sizes, as each example has noise; got {shape=}.")
    dtype = jnp.result_type(float) if dtype is None else dtype
    keys = example_keys(key, shape[0])
    return jax.vmap(lambda k: jax.random.normal(k, shape[1:], dtype))(keys)


def normal_like(key: Keys, x: Data) -> Data:
    """Standard normal noise of the shape and dtype of `x`, one key per example."""
    return normal(key, x.shape, x.dtype)


def rademacher_like(key: Keys, x: Data, n: int) -> Float[Array, "n batch *event"]:
    """`n` directions of independent +1 and -1 in the shape and dtype of `x`: unit covariance, one key per example."""
    shape = (n, *x.shape[1:])
    draws = jax.vmap(lambda k: jax.random.rademacher(k, shape, x.dtype))(example_keys(key, x.shape[0]))
    return jnp.moveaxis(draws, 1, 0)


def sum_dtype(dtype: DTypeLike) -> DTypeLike:
    """The dtype in which values of `dtype` are summed: itself, or float32 where that is wider."""
    return dtype if jnp.finfo(dtype).bits > 32 else jnp.float32


def sum_events(values: Data) -> PerExample:
    """The sum over all axes but the first."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def divergence(
    field: Callable[[Data], Data], x: Data, probes: Float[Array, "probes batch *event"] | None = None
) -> tuple[Data, PerExample]:
    """The batched field at `x`, and each example's divergence sum_i d field_i / d x_i.

    Args:
        probes: `None` takes the exact trace, one Jacobian-vector product per event coordinate. Otherwise
            Hutchinson's estimate, the mean over probes of probe . (J probe), unbiased where the probes have unit
            covariance. The products are forward-mode: reverse-mode convolutions are slow inside a loop.
    """
    if probes is not None:
        value, traces = probe_traces(field, x, probes)
        return value, traces.mean(0)
    value, jvp = jax.linearize(field, x)
    size = int(np.prod(x.shape[1:]))
    basis = jnp.eye(size, dtype=x.dtype).reshape(size, *x.shape[1:])

    def along(direction: Array) -> PerExample:
        direction = jnp.broadcast_to(direction, x.shape)
        return sum_events(jvp(direction) * direction)

    return value, jax.lax.map(along, basis).sum(0)


def probe_traces(
    field: Callable[[Data], Data], x: Data, probes: Float[Array, "probes batch *event"]
) -> tuple[Data, Float[Array, "probes batch"]]:
    """The batched field at `x`, evaluated once, and probe . (J probe) of every probe: what `divergence` averages."""
    value, jvp = jax.linearize(field, x)
    return value, jax.lax.map(lambda probe: sum_events(jvp(probe) * probe), probes)


def rounded(scalars: PyTree) -> PyTree:
    """The scalars as they are, rounded here once and for all.

    XLA may fuse a scalar's arithmetic into the array it multiplies and round it differently, in programs for many
    devices and not in those for one. The barrier takes that difference out of the scalars.
    """
    return jax.lax.optimization_barrier(scalars)


def known(x: object) -> np.ndarray | None:
    """The array's values where they are known now, or `None` under a trace: checks look only at what is known."""
    leaves = jax.tree.leaves(x)
    if any(isinstance(leaf, Tracer) for leaf in leaves):
        return None
    return np.asarray(x)


def known_number(x: object) -> float | None:
    """The number where it is known, `None` under a trace; NaN, which no range holds, for all that is not one number."""
    if np.shape(x) != ():  # type: ignore[arg-type]
        return float("nan")
    value = known(x)
    if value is None:
        return None
    return float(value) if jnp.isdtype(value.dtype, ("real floating", "integral")) else float("nan")


def in_order(*numbers: object) -> bool:
    """Whether the numbers rise or stay, as far as they are known."""
    values = [value for value in map(known_number, numbers) if value is not None]
    return all(a <= b for a, b in pairwise(values))


def is_count(n: object, least: int = 1) -> bool:
    """Whether `n` is a whole number from `least` on, by its type too: 2.0 counts nothing."""
    return isinstance(n, int | np.integer) and not isinstance(n, bool) and bool(n >= least)


def check_data(x: Data, name: str) -> None:
    """Raise `ValueError` unless `x` is a floating-point batch without NaN or inf (the last where it is known)."""
    if not isinstance(x, jax.Array | np.ndarray):
        raise ValueError(f"Expected {name} to be an array [batch, *event], as it is computed with; got {type(x)}.")
    if x.size == 0:
        raise ValueError(f"Expected {name} to hold at least one value, as nothing is learnt from none; got {x.shape}.")
    if x.ndim < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"Expected {name} to be a floating-point batch [batch, *event], as it is computed with (images in "
            f"uint8: dgm_jax.data.to_unit); got shape {x.shape}, dtype {x.dtype}."
        )
    values = known(x)
    if values is not None and not np.isfinite(values).all():
        bad = int(np.count_nonzero(~np.isfinite(values)))
        raise ValueError(f"Expected finite {name}, as one NaN or inf spoils the batch; got {bad} such values.")


def check_like(output: Data, x: Data, name: str) -> Data:
    """The output, or `ValueError` where a network's shape is not its input's: broadcasting would hide it."""
    if output.shape != x.shape:
        raise ValueError(f"Expected the {name} to return the shape of its input, {x.shape}; got {output.shape}.")
    return output


def check_times(t: PerExample, batch: Size, name: str = "t") -> None:
    """Raise `ValueError` unless `t` has shape `[batch]` and, where it is known, lies in [0, 1]."""
    if t.shape != (batch,):
        raise ValueError(f"Expected {name} of shape {(batch,)}, one time per example; got {t.shape}.")
    values = known(t)
    if values is not None and not ((values >= 0) & (values <= 1)).all():
        low, high = values.min(), values.max()
        raise ValueError(f"Expected {name} in [0, 1], as 0 is data and 1 is noise; got values in [{low}, {high}].")
