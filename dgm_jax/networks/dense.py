"""A generator and a critic of dense layers, for points, vectors and small arrays of any event shape.

Hidden layers start as He et al. 2015 (arXiv:1502.01852) for rectifiers, the last as Glorot and Bengio 2010, as it is
linear. The critic holds no statistics of a batch, so that each logit is its own example's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dgm_jax.numerics import is_count
from dgm_jax.typing import Data, PerExample

Latents = Float[Array, "batch latent"]
Activation = Callable[[Array], Array]

HE_INIT = nn.initializers.he_normal()
GLOROT_INIT = nn.initializers.glorot_normal()

leaky_relu = partial(nn.leaky_relu, negative_slope=0.2)


class DenseGenerator(nn.Module):
    """z [batch, latent] to [batch, *event_shape].

    Attributes:
        widths: of the hidden layers.
        event_shape: of each event; () gives one number per example.
        activation: after each hidden layer.
        output: after the last layer; `nn.tanh` for images in [-1, 1].
        dtype: compute dtype; `None` is that of `z`. The output always has the dtype of `z`.
    """

    widths: Sequence[int]
    event_shape: tuple[int, ...]
    activation: Activation = nn.relu
    output: Activation = lambda x: x
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, z: Latents) -> Data:
        """The generated events."""
        check_widths(self.widths, *self.event_shape)
        check_latents(z)
        dtype = z.dtype if self.dtype is None else self.dtype
        h = hidden(z, self.widths, self.activation, HE_INIT, dtype)
        h = nn.Dense(prod(self.event_shape), kernel_init=GLOROT_INIT, dtype=dtype, name="out")(h)
        return self.output(h).reshape(z.shape[0], *self.event_shape).astype(z.dtype)


class DenseCritic(nn.Module):
    """x [batch, *event] to logits [batch].

    Attributes:
        widths: of the hidden layers.
        activation: after each hidden layer.
        dtype: compute dtype; `None` is that of `x`. The output always has the dtype of `x`.
    """

    widths: Sequence[int]
    activation: Activation = leaky_relu
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Data) -> PerExample:
        """One logit per example."""
        check_widths(self.widths)
        check_events(x)
        dtype = x.dtype if self.dtype is None else self.dtype
        h = hidden(x.reshape(x.shape[0], -1), self.widths, self.activation, HE_INIT, dtype)
        return nn.Dense(1, kernel_init=GLOROT_INIT, dtype=dtype, name="out")(h)[:, 0].astype(x.dtype)


def hidden(
    h: Array, widths: Sequence[int], activation: Activation, kernel_init: nn.initializers.Initializer, dtype: DTypeLike
) -> Array:
    """Dense layers of these widths, each with its activation; called inside a module, whose layers they are."""
    for i, width in enumerate(widths):
        h = activation(nn.Dense(width, kernel_init=kernel_init, dtype=dtype, name=f"hidden_{i}")(h))
    return h


def check_widths(widths: Sequence[int], *more: int) -> None:
    """Raise `ValueError` unless all are whole numbers >= 1."""
    if not all(map(is_count, (*widths, *more))):
        raise ValueError(f"Expected whole widths and sizes >= 1, as layers have units; got {tuple(widths)} and {more}.")


def check_latents(z: Array) -> None:
    """Raise `ValueError` unless `z` is a floating-point batch of vectors."""
    if z.ndim != 2 or not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(
            f"Expected z to be a floating-point batch [batch, latent], as each example has one vector; "
            f"got shape {z.shape}, dtype {z.dtype}."
        )


def check_events(x: Array) -> None:
    """Raise `ValueError` unless `x` is a floating-point batch."""
    if x.ndim < 1 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"Expected x to be a floating-point batch [batch, *event], as it is multiplied by weights; "
            f"got shape {x.shape}, dtype {x.dtype}."
        )
