"""The noise floor of a metric: its value between disjoint parts of real data, below which nothing can be told apart.

    values_i = metric(real[order_i[:n]], real[order_i[n : 2n]]),   order_i a random permutation

A generator whose metric lies within the floor is as near to the data as real data of that number are. The parts of
different splits share points, so `std` is the spread given this data set; another data set would add its own.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.metrics.samples import check_samples
from dgm_jax.numerics import is_count, typed_key
from dgm_jax.typing import Data, Keys, Scalar


class NoiseFloor(NamedTuple):
    """Mean and standard deviation (n - 1) of the metric over splits, and its values `[splits]`."""

    mean: Scalar
    std: Scalar
    values: Float[Array, " splits"]


def noise_floor(
    metric: Callable[[Data, Data], Any], real: Data, key: Keys, *, splits: int = 20, points: int | None = None
) -> NoiseFloor:
    """The metric between disjoint random parts of `real`.

    Args:
        metric: (x, y) -> a number; what needs a key or options has them closed over. It is called `splits` times on
            arrays of one shape: compile it if it is dear.
        points: in each part; `None` is half of `real`. A metric of n generated points has its floor at n points.
    """
    check_samples(least=4, real=real)
    points = len(real) // 2 if points is None else points
    if not is_count(points, 2) or 2 * points > len(real):
        raise ValueError(
            f"Expected 2 <= points <= {len(real) // 2}, as two disjoint parts of {len(real)} points are compared; "
            f"got {points=}."
        )
    if not is_count(splits, 2):
        raise ValueError(f"Expected a whole number of splits >= 2, as they have a spread; got {splits=}.")
    values = []
    for key_split in jax.random.split(typed_key(key), splits):
        order = jax.random.permutation(key_split, len(real))
        value = jnp.asarray(metric(real[order[:points]], real[order[points : 2 * points]]))
        if value.shape != ():
            raise ValueError(f"Expected metric(x, y) to be one number, as its spread is taken; got {value.shape}.")
        values.append(value)
    values = jnp.stack(values)
    return NoiseFloor(values.mean(), values.std(ddof=1), values)
