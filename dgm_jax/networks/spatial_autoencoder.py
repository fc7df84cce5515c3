"""A convolutional encoder and decoder whose latents are small images: the first stage of latent diffusion.

Both are the U-Net's blocks without its skips and without time; each level but the last halves height and width. The
encoder returns mean and log_std, [batch, height, width, channels] each, of a diagonal posterior, whose divergence from
N(0, I) regularises it.

Reference: Rombach et al., "High-resolution image synthesis with latent diffusion models", 2022, arXiv:2112.10752,
section 3.1 and appendix G.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dgm_jax.networks.dense import check_widths
from dgm_jax.networks.layers import (
    KERNEL_INIT,
    Downsample,
    GroupNorm,
    Images,
    ResidualBlock,
    Upsample,
    check_divisible,
    depth_to_space,
    space_to_depth,
)

SpatialLatents = Float[Array, "batch rows columns latent"]
LARGEST_LOG_STD = 10.0  # exp of twice it is finite in float32; Rombach et al.'s code bounds the log-variance in kind


class SpatialEncoder(nn.Module):
    """Images [batch, height, width, channels] to (mean, log_std), each smaller by patch * 2**(levels - 1) a side.

    Attributes:
        channels: of each level, from the finest.
        latent: channels of the latents.
        blocks: residual blocks of each level.
        groups: of each group norm; divides every width.
        patch: side of the squares of pixels that enter as one pixel; above 1 for speed.
        dtype: compute dtype; `None` is that of `x`. The outputs always have the dtype of `x`.
    """

    channels: Sequence[int]
    latent: int
    blocks: int = 1
    groups: int = 32
    patch: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images) -> tuple[SpatialLatents, SpatialLatents]:
        """Mean and log standard deviation of q(z | x), the latter within +- 10."""
        check_images(x, "x")
        check_levels(self.channels, self.groups, self.blocks, self.patch, self.latent)
        factor = self.patch * 2 ** (len(self.channels) - 1)
        check_divisible(x.shape[1:3], factor, "the latents have whole pixels")
        dtype = x.dtype if self.dtype is None else self.dtype
        conv = partial(nn.Conv, kernel_size=(3, 3), kernel_init=KERNEL_INIT, dtype=dtype)
        h = conv(self.channels[0], name="conv_in")(space_to_depth(x, self.patch))
        for level, channels in enumerate(self.channels):
            h = Downsample(dtype, name=f"down_{level}")(h) if level else h
            h = blocks(h, f"level_{level}", channels, self.blocks, self.groups, dtype)
        h = nn.silu(GroupNorm(self.groups, name="norm_out")(h))
        mean, log_std = jnp.split(conv(2 * self.latent, name="conv_out")(h).astype(x.dtype), 2, axis=-1)
        return mean, jnp.clip(log_std, -LARGEST_LOG_STD, LARGEST_LOG_STD)


class SpatialDecoder(nn.Module):
    """z [batch, rows, columns, latent] to images larger by patch * 2**(levels - 1) a side, the last layer linear.

    Attributes:
        channels: of each level, from the coarsest.
        image_channels: of the images.
        blocks, groups, patch: as the encoder's.
        dtype: compute dtype; `None` is that of `z`. The output always has the dtype of `z`.
    """

    channels: Sequence[int]
    image_channels: int
    blocks: int = 1
    groups: int = 32
    patch: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, z: SpatialLatents) -> Images:
        """Logits, or the mean, of p(x | z)."""
        check_images(z, "z")
        check_levels(self.channels, self.groups, self.blocks, self.patch, self.image_channels)
        dtype = z.dtype if self.dtype is None else self.dtype
        conv = partial(nn.Conv, kernel_size=(3, 3), kernel_init=KERNEL_INIT, dtype=dtype)
        h = conv(self.channels[0], name="conv_in")(z)
        for level, channels in enumerate(self.channels):
            h = Upsample(dtype, name=f"up_{level}")(h) if level else h
            h = blocks(h, f"level_{level}", channels, self.blocks, self.groups, dtype)
        h = nn.silu(GroupNorm(self.groups, name="norm_out")(h))
        h = conv(self.image_channels * self.patch**2, name="conv_out")(h)
        return depth_to_space(h, self.patch).astype(z.dtype)


def blocks(h: Images, name: str, channels: int, number: int, groups: int, dtype: DTypeLike) -> Array:
    """Residual blocks of one level; called inside a module, whose layers they are."""
    for i in range(number):
        h = ResidualBlock(channels, groups, dtype=dtype, name=f"{name}_block_{i}")(h)
    return h


def check_images(x: Array, name: str) -> None:
    """Raise `ValueError` unless `x` is a floating-point batch of images."""
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"Expected {name} to be floating-point [batch, height, width, channels], as it is convolved; "
            f"got shape {x.shape}, dtype {x.dtype}."
        )


def check_levels(channels: Sequence[int], groups: int, blocks: int, patch: int, out: int) -> None:
    """Raise `ValueError` unless there are levels, each with blocks and a width that `groups` divides."""
    check_widths(channels, groups, blocks, patch, out)
    if not channels or any(width % groups for width in channels):
        raise ValueError(
            f"Expected one or more levels of widths that are multiples of groups={groups}, as group norm splits each; "
            f"got channels={tuple(channels)}."
        )
