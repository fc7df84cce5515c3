"""Encoder and decoder pairs for autoencoders: x to (mean, log_std) of its latent's Gaussian, and z to an event.

Encoders return mean and log_std, each [batch, latent], of a diagonal posterior; an autoencoder without noise takes
the mean alone. Decoders return [batch, *event_shape] without a last nonlinearity: logits for binary data, the mean for
real data, and with twice the channels both halves of a learned mean and log_std.

    DenseEncoder((500,), latent)    Kingma and Welling 2014, arXiv:1312.6114, section 5: one layer of 500, tanh
    DenseEncoder((200, 200), 50)    Burda et al. 2016, arXiv:1509.00519, section 5: two layers of 200, tanh

and the decoders of the same widths in reverse.
"""

from collections.abc import Sequence
from functools import partial
from math import prod

import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array

from dgm_jax.networks.dcgan import upsample
from dgm_jax.networks.dense import Activation, Latents, check_events, check_latents, check_widths, hidden
from dgm_jax.networks.layers import KERNEL_INIT, check_divisible
from dgm_jax.typing import Data


class DenseEncoder(nn.Module):
    """A multilayer perceptron from [batch, *event] to (mean, log_std), each [batch, latent].

    Attributes:
        widths: of the hidden layers, from the data to the latents.
        latent: dimension of the latents.
        activation: after each hidden layer.
        dtype: compute dtype; `None` is that of `x`. The outputs always have the dtype of `x`.
    """

    widths: Sequence[int]
    latent: int
    activation: Activation = nn.tanh
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Data) -> tuple[Latents, Latents]:
        """Mean and log standard deviation of q(z | x)."""
        check_widths(self.widths, self.latent)
        check_events(x)
        dtype = x.dtype if self.dtype is None else self.dtype
        h = hidden(x.reshape(x.shape[0], -1), self.widths, self.activation, KERNEL_INIT, dtype)
        return _moments(h, self.latent, x.dtype)


class DenseDecoder(nn.Module):
    """A multilayer perceptron from z [batch, latent] to [batch, *event_shape], its last layer linear.

    Attributes:
        widths: of the hidden layers, from the latents to the data.
        event_shape: of each event.
        activation: after each hidden layer.
        dtype: compute dtype; `None` is that of `z`. The output always has the dtype of `z`.
    """

    widths: Sequence[int]
    event_shape: tuple[int, ...]
    activation: Activation = nn.tanh
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, z: Latents) -> Data:
        """Logits, or the mean, of p(x | z)."""
        check_widths(self.widths, *self.event_shape)
        check_latents(z)
        dtype = z.dtype if self.dtype is None else self.dtype
        h = hidden(z, self.widths, self.activation, KERNEL_INIT, dtype)
        out = nn.Dense(prod(self.event_shape), kernel_init=KERNEL_INIT, dtype=dtype, name="out")(h)
        return out.reshape(z.shape[0], *self.event_shape).astype(z.dtype)


class ConvEncoder(nn.Module):
    """Images [batch, height, width, channels] to (mean, log_std): 3x3 convolutions of stride 2, then one dense layer.

    Attributes:
        channels: of each convolution, from the image to the latents; each halves the height and the width.
        latent: dimension of the latents.
        hidden: width of the dense layer.
        activation: after each hidden layer.
        dtype: compute dtype; `None` is that of `x`. The outputs always have the dtype of `x`.
    """

    channels: Sequence[int]
    latent: int
    hidden: int
    activation: Activation = nn.silu
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Data) -> tuple[Latents, Latents]:
        """Mean and log standard deviation of q(z | x)."""
        check_widths(self.channels, self.latent, self.hidden)
        check_events(x)
        if x.ndim != 4:
            raise ValueError(f"Expected images [batch, height, width, channels], as they are convolved; got {x.shape}.")
        check_divisible(x.shape[1:3], 2 ** len(self.channels), "each convolution halves both")
        dtype = x.dtype if self.dtype is None else self.dtype
        h = x
        for i, channels in enumerate(self.channels):
            conv = nn.Conv(channels, (3, 3), strides=(2, 2), kernel_init=KERNEL_INIT, dtype=dtype, name=f"conv_{i}")
            h = self.activation(conv(h))
        h = hidden(h.reshape(x.shape[0], -1), (self.hidden,), self.activation, KERNEL_INIT, dtype)
        return _moments(h, self.latent, x.dtype)


class ConvDecoder(nn.Module):
    """z [batch, latent] to images [batch, *event_shape]: two dense layers, then doublings, each with a convolution.

    The last convolution is linear. Doublings are DCGAN's here, for the same reasons.

    Attributes:
        channels: at each size below the event's, from the smallest, whose sides are the event's divided by
            `2 ** len(channels)`.
        event_shape: (height, width, channels) of each image.
        hidden: width of the first dense layer.
        activation: after each hidden layer.
        dtype: compute dtype; `None` is that of `z`. The output always has the dtype of `z`.
    """

    channels: Sequence[int]
    event_shape: tuple[int, int, int]
    hidden: int
    activation: Activation = nn.silu
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, z: Latents) -> Data:
        """Logits, or the mean, of p(x | z)."""
        check_widths(self.channels, *self.event_shape, self.hidden)
        check_latents(z)
        if len(self.event_shape) != 3 or not self.channels:
            raise ValueError(
                f"Expected event_shape (height, width, channels) and one or more channels, as images are doubled in "
                f"size; got event_shape={self.event_shape}, channels={self.channels}."
            )
        factor = 2 ** len(self.channels)
        check_divisible(self.event_shape[:2], factor, "each convolution follows a doubling of both")
        dtype = z.dtype if self.dtype is None else self.dtype
        height, width = (side // factor for side in self.event_shape[:2])
        widths = (self.hidden, height * width * self.channels[0])
        h = hidden(z, widths, self.activation, KERNEL_INIT, dtype).reshape(z.shape[0], height, width, self.channels[0])
        for i, channels in enumerate((*self.channels[1:], self.event_shape[2])):
            h = self.activation(h) if i else h
            conv = nn.Conv(channels, (3, 3), kernel_init=KERNEL_INIT, dtype=dtype, name=f"conv_{i}")
            h = conv(upsample(h))
        return h.astype(z.dtype)


def _moments(h: Array, latent: int, dtype: DTypeLike) -> tuple[Latents, Latents]:
    dense = partial(nn.Dense, latent, kernel_init=KERNEL_INIT, dtype=h.dtype)
    return dense(name="mean")(h).astype(dtype), dense(name="log_std")(h).astype(dtype)
