"""The few types that every layer shares.

Shapes are checked under test by jaxtyping and beartype, and cost nothing in production.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float, Key, UInt32

Data = Float[Array, " batch *event"]  # one event (an image, a point, a sequence) per example
Scalar = Float[Array, ""]
PerExample = Float[Array, " batch"]  # one number per example: a time, a loss, a log-likelihood
Keys = Key[Array, ""] | Key[Array, " batch"] | UInt32[Array, "*legacy"]  # one key, or one per example

Size = Any  # of the batch: an integer, or a symbolic size that `jax.export` leaves open
Shape = tuple[Size, ...]  # (batch, *event)

TimeFunction = Callable[[Float[Array, "..."]], Float[Array, "..."]]  # elementwise in t: alpha(t), sigma(t)^2
TimeLaw = Callable[[Keys, Size], PerExample]  # (key, batch) -> training times


@runtime_checkable
class Network(Protocol):
    """Anything called as `network(x_t, t)`: a Flax `apply` with its parameters bound, or a closed form."""

    def __call__(self, x_t: Data, t: PerExample, /) -> Data:
        """The prediction at states x_t and times t."""
        ...


@runtime_checkable
class Denoiser(Protocol):
    """`denoise(x_t, t) -> E[x_0 | x_t]` for the whole batch: what every loss and sampler takes."""

    def __call__(self, x_t: Data, t: PerExample, /) -> Data:
        """The estimate of x_0 at states x_t and times t."""
        ...
