"""DCGAN's generator and critic for images [batch, height, width, channels] in [-1, 1].

    generator    z -> dense -> norm -> relu -> (nearest doubling -> 3x3 convolution -> norm -> relu) ... -> tanh
    critic       x -> (4x4 convolution of stride 2 -> norm -> leaky relu) ... -> dense -> logit

Each entry of `channels` is a doubling or a halving: 28 = 7 * 2 * 2 takes two, 32 = 4 * 2 * 2 * 2 takes three. Where the
paper has transposed convolutions, pixels are doubled and convolved: on a CPU a fifth of the price, and every pixel is
covered evenly. Where it has batch norm there is a choice of norms of one example, as batch statistics would make the
gradient penalty of one example depend on the others.

Reference: Radford et al. 2016, arXiv:1511.06434, section 3 and 4; convolutions start at N(0, 0.02^2).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dgm_jax.networks.dense import GLOROT_INIT, Latents, check_latents, check_widths, leaky_relu
from dgm_jax.networks.layers import GroupNorm, Images, check_divisible, group_norm
from dgm_jax.typing import PerExample

CONV_INIT = nn.initializers.normal(0.02)
Norm = Callable[..., Callable[[Array], Array]]  # norm(name="norm_1") -> a function of images

layer_norm = partial(GroupNorm, 1)
"""Zero mean and unit variance over all pixels and channels of an example (Ba et al. 2016, arXiv:1607.06450)."""


class InstanceNorm(nn.Module):
    """Zero mean and unit variance over the pixels of each channel of an example (Ulyanov et al. 2016).

    Each channel has a learned scale and bias. Reference: arXiv:1607.08022.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """`x` normalised, in its own shape and dtype."""
        channels = x.shape[-1]
        if x.shape[1] * x.shape[2] < 2:
            raise ValueError(f"Expected two or more pixels, as one less its own mean is zero; got images {x.shape}.")
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        return group_norm(x, scale, bias, channels, epsilon=self.epsilon)


class DCGANGenerator(nn.Module):
    """z [batch, latent] to images [batch, height, width, channels] in [-1, 1].

    Attributes:
        channels: at each size below the event's, from the smallest, whose sides are the event's over
            2 ** len(channels).
        event_shape: (height, width, channels) of each image.
        norm: `layer_norm`, `InstanceNorm`, any other maker of a module over images, called as `norm(name=...)`, or
            `None` for none.
        dtype: compute dtype; `None` is that of `z`. The output always has the dtype of `z`.
    """

    channels: Sequence[int]
    event_shape: tuple[int, int, int]
    norm: Norm | None = layer_norm
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, z: Latents) -> Float[Array, "batch height width channels"]:
        """The generated images."""
        check_latents(z)
        if len(self.event_shape) != 3:
            raise ValueError(f"Expected event_shape (height, width, channels), as images have; got {self.event_shape}.")
        factor = _factor(self.channels)
        check_widths(self.channels, *self.event_shape)
        check_divisible(self.event_shape[:2], factor, "each entry of channels is followed by a doubling")
        dtype = z.dtype if self.dtype is None else self.dtype
        height, width, features = (*(side // factor for side in self.event_shape[:2]), self.channels[0])
        h = nn.Dense(height * width * features, kernel_init=GLOROT_INIT, dtype=dtype, name="dense")(z)
        h = h.reshape(z.shape[0], height, width, features)
        for i, features in enumerate((*self.channels[1:], self.event_shape[2])):
            h = nn.relu(_normed(self.norm, h, f"norm_{i}"))
            h = nn.Conv(features, (3, 3), kernel_init=CONV_INIT, dtype=dtype, name=f"conv_{i}")(upsample(h))
        return nn.tanh(h).astype(z.dtype)


class DCGANCritic(nn.Module):
    """Images [batch, height, width, channels] to logits [batch].

    Attributes:
        channels: of each convolution, from the image on; each halves the height and the width.
        norm: as the generator's, after every convolution but the first. Instance norm takes away each channel's mean
            over the image.
        dtype: compute dtype; `None` is that of `x`. The output always has the dtype of `x`.
    """

    channels: Sequence[int]
    norm: Norm | None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images) -> PerExample:
        """One logit per example."""
        check_widths(self.channels)
        if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"Expected floating-point images [batch, height, width, channels], as they are convolved; "
                f"got shape {x.shape}, dtype {x.dtype}."
            )
        check_divisible(x.shape[1:3], _factor(self.channels), "each convolution halves both")
        dtype = x.dtype if self.dtype is None else self.dtype
        h = x
        for i, features in enumerate(self.channels):
            conv = nn.Conv(
                features,
                (4, 4),
                strides=(2, 2),
                kernel_init=CONV_INIT,
                dtype=dtype,
                conv_general_dilated=_halved,
                name=f"conv_{i}",
            )
            h = leaky_relu(_normed(self.norm if i else None, conv(h), f"norm_{i}"))
        h = h.reshape(x.shape[0], -1)
        return nn.Dense(1, kernel_init=GLOROT_INIT, dtype=dtype, name="out")(h)[:, 0].astype(x.dtype)


def upsample(x: Images) -> Float[Array, "batch height_2 width_2 channels"]:
    """Twice the height and width: every pixel repeated 2 x 2."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)


def _halved(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
    """The 4x4 convolution of stride 2 with zeros around x, as one matrix product of patches.

    XLA's kernel gradient of a strided convolution's gradient, which a gradient penalty needs, takes seven times as long
    on a CPU.
    """
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [x[:, i : i + height : 2, j : j + width : 2] for i in range(4) for j in range(4)]
    return jnp.concatenate(patches, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _normed(norm: Norm | None, h: Array, name: str) -> Array:
    return h if norm is None else norm(name=name)(h)


def _factor(channels: Sequence[int]) -> int:
    if not channels:
        raise ValueError(f"Expected one or more channels, as each is a size of the image; got {tuple(channels)}.")
    return 2 ** len(channels)
