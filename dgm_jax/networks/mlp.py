"""A multilayer perceptron network(x_t, t) for points, vectors and small arrays of any event shape."""

from collections.abc import Sequence
from functools import partial
from math import prod

import flax.linen as nn
from jax.typing import DTypeLike

from dgm_jax.networks.layers import Conditioning, Labels, check_inputs
from dgm_jax.typing import Data, PerExample


class MLP(nn.Module):
    """[batch, *event] and t [batch] to [batch, *event]; the time and class are added at every hidden layer.

    The last layer starts at random, not at zero.

    Attributes:
        features: widths of the hidden layers.
        embedding: width of the time's sinusoidal embedding and of the conditioning vector.
        num_classes: `None` for no classes; otherwise label `num_classes` is the null label.
        dropout: rate after each hidden layer while training; draws from the rng "dropout".
        time_scale: multiplies `t`; choose another for another conditioning scalar, such as EDM's c_noise.
        dtype: compute dtype; `None` is that of `x_t`. The output always has the dtype of `x_t`.
    """

    features: Sequence[int] = (128, 128, 128)
    embedding: int = 64
    num_classes: int | None = None
    dropout: float = 0.0
    time_scale: float = 1000.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x_t: Data, t: PerExample, labels: Labels | None = None, *, train: bool = False) -> Data:
        """The field at `x_t`; `train` turns dropout on, with the rng "dropout"."""
        check_inputs(x_t, t, labels, self.num_classes)
        dtype = x_t.dtype if self.dtype is None else self.dtype
        dense = partial(nn.Dense, dtype=dtype)
        conditioning = nn.silu(
            Conditioning(self.embedding, self.embedding, self.num_classes, self.time_scale, dtype)(t, labels)
        )
        h = x_t.reshape(x_t.shape[0], -1)
        for i, features in enumerate(self.features):
            h = dense(features, name=f"hidden_{i}")(h) + dense(features, use_bias=False, name=f"time_{i}")(conditioning)
            h = nn.Dropout(self.dropout)(nn.silu(h), deterministic=not train)
        return dense(prod(x_t.shape[1:]), name="out")(h).reshape(x_t.shape).astype(x_t.dtype)
