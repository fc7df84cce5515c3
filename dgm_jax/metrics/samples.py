"""What every metric takes and what every test returns: sample arrays [n, *event], checked, and a `Test`.

A metric is a pure function of arrays; events are flattened, so that an image is a point. Samples are floating-point:
a metric of uint8 images against floats would be one of their units.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.numerics import known
from dgm_jax.typing import Data, Scalar

Points = Float[Array, "points dim"]
# two sets of samples of one event shape and of any sizes
First = Float[Array, " first *event"] | Float[np.ndarray, " first *event"]
Second = Float[Array, " second *event"] | Float[np.ndarray, " second *event"]


class Test(NamedTuple):
    """A statistic, its p-value, and what it is compared with.

    Attributes:
        statistic: large where the null hypothesis is wrong.
        p_value: the chance, under the null hypothesis, of a statistic at least as large; never 0 by resampling, where
            it is (1 + draws at least as large)/(1 + draws).
        null: draws of the statistic under the null hypothesis `[draws]`; of shape `[]` where the null law is known in
            closed form: its standard deviation.
    """

    statistic: Scalar
    p_value: Scalar
    null: Float[Array, "*draws"]


Test.__test__ = False  # type: ignore[attr-defined]  # pytest collects classes named Test


def check_samples(*, least: int = 2, **samples: object) -> None:
    """Raise `ValueError` unless all are floating-point samples of one event shape, enough of them and finite.

    Finiteness is checked where values are known, which under `jit` they are not.

    Args:
        least: the fewest points each may hold.
        samples: by the names under which an error speaks of them.
    """
    first: tuple[str, tuple[int, ...]] | None = None
    for name, x in samples.items():
        if not isinstance(x, jax.Array | np.ndarray) or x.ndim < 1:
            got = f"shape {x.shape}" if isinstance(x, jax.Array | np.ndarray) else f"{type(x)}"
            raise ValueError(f"Expected {name} to be an array [points, *event], as it is a set of samples; got {got}.")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"Expected {name} of floating point, as distances are in the units of the samples (images in uint8: "
                f"dgm_jax.data.to_unit, for all sets alike); got dtype {x.dtype}."
            )
        if x.shape[0] < least or x.size == 0:
            raise ValueError(
                f"Expected at least {least} points in {name} and a value in each, as fewer have no spread; got "
                f"shape {x.shape}."
            )
        first = (name, x.shape[1:]) if first is None else first
        if x.shape[1:] != first[1]:
            raise ValueError(
                f"Expected {first[0]} and {name} to share their event shape, as they are compared; got {first[1]} "
                f"and {x.shape[1:]}."
            )
        values = known(x)
        if values is not None and not np.isfinite(values).all():
            rows = ~np.isfinite(values).reshape(len(values), -1).all(axis=1)
            nans, infinities = int(np.isnan(values).sum()), int(np.isinf(values).sum())
            raise ValueError(
                f"Expected finite samples, as one NaN or inf spoils a mean; got {nans} NaN and {infinities} inf in "
                f"{int(rows.sum())} of {len(values)} points of {name}, the first at index {int(rows.argmax())}."
            )


def check_varied(**samples: object) -> None:
    """Raise `ValueError` where a set of samples is one point repeated, as far as its values are known."""
    for name, x in samples.items():
        values = known(x)
        if values is not None and (values == values[:1]).all():
            raise ValueError(
                f"Expected {name} to vary, as a set without spread has no scale; got {len(values)} equal points."
            )


def flat(x: Data | Float[np.ndarray, " batch *event"]) -> Points:
    """Samples `[points, *event]` as rows `[points, dim]`."""
    return jnp.reshape(jnp.asarray(x), (x.shape[0], -1))
