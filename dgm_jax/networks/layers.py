"""The layers that the networks share: conditioning on time and class, and the blocks of the DDPM U-Net.

Images are [batch, height, width, channels]. Parameters are float32; a layer computes in its `dtype`, and sums of group
norm are in at least float32.

Reference: Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", 2020, arXiv:2006.11239, appendix B.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dgm_jax.numerics import known, sum_dtype
from dgm_jax.typing import PerExample

Images = Float[Array, "batch height width channels"]
Features = Float[Array, "batch features"]
Labels = Int[Array, " batch"]

KERNEL_INIT = nn.initializers.variance_scaling(1.0, "fan_avg", "uniform")
ZERO_INIT = nn.initializers.zeros


def check_inputs(x_t: Array, t: Array, labels: Array | None, num_classes: int | None) -> None:
    """Raise `ValueError` unless `x_t` is a floating-point batch with one `t`, and one label if classes, per example."""
    if x_t.ndim < 1 or not jnp.issubdtype(x_t.dtype, jnp.floating):
        raise ValueError(
            f"Expected x_t to be a floating-point batch [batch, *event], as it carries noise; "
            f"got shape {x_t.shape}, dtype {x_t.dtype}."
        )
    if t.shape != x_t.shape[:1] or not jnp.issubdtype(t.dtype, jnp.floating):
        raise ValueError(
            f"Expected floating-point t of shape {x_t.shape[:1]}, as each example has its own time; "
            f"got shape {t.shape}, dtype {t.dtype}."
        )
    if num_classes is None:
        if labels is not None:
            raise ValueError(f"Expected labels=None, as the network has num_classes=None; got labels {labels.shape}.")
        return
    if labels is None:
        raise ValueError(
            f"Expected labels, as the network has {num_classes=}; got None "
            f"(the null label of an unconditional call is {num_classes})."
        )
    if labels.shape != x_t.shape[:1] or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"Expected integer labels of shape {x_t.shape[:1]}, as each example has its own class; "
            f"got shape {labels.shape}, dtype {labels.dtype}."
        )
    values = known(labels)
    if values is not None and not ((values >= 0) & (values <= num_classes)).all():
        raise ValueError(
            f"Expected labels in [0, {num_classes}], as the last is the null label; "
            f"got values in [{values.min()}, {values.max()}]."
        )


def sinusoidal_embedding(position: PerExample, width: int, *, max_period: float = 10_000.0) -> Features:
    """Sines, then cosines, of `position` at width / 2 frequencies falling geometrically from 1 to 1 / max_period.

    Raises:
        ValueError: `width` is odd, or below 4.

    Reference: Vaswani et al. 2017, arXiv:1706.03762, section 3.5, in the layout of the DDPM code.
    """
    if width < 4 or width % 2:
        raise ValueError(f"Expected an even width >= 4, as sines and cosines share two or more rates; got {width=}.")
    rates = jnp.asarray(np.geomspace(1.0, 1.0 / max_period, width // 2), position.dtype)
    angles = position[:, None] * rates[None, :]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


class Conditioning(nn.Module):
    """Time, and class if any, as one vector per example: a two-layer map of the time's embedding, plus the class's.

    Attributes:
        width: size of the sinusoidal embedding.
        features: size of the vector.
        num_classes: `None` for no classes; otherwise label `num_classes` is the null label.
        time_scale: multiplies `t` first; 1000 turns t in [0, 1] into DDPM's step number.
        dtype: compute dtype; `None` is that of `t`.
        frequencies: of sines and cosines in place of the sinusoidal embedding's, in turns.
    """

    width: int
    features: int
    num_classes: int | None = None
    time_scale: float = 1000.0
    dtype: DTypeLike | None = None
    frequencies: tuple[float, ...] | None = None

    @nn.compact
    def __call__(self, t: PerExample, labels: Labels | None = None) -> Features:
        """The vector of each example: [batch, features]."""
        dtype = t.dtype if self.dtype is None else self.dtype
        dense = partial(nn.Dense, self.features, kernel_init=KERNEL_INIT, dtype=dtype)
        # Angles reach 1000 radians, which bfloat16 would round to the nearest 4.
        position = t.astype(sum_dtype(t.dtype)) * self.time_scale
        if self.frequencies is None:
            embedding = sinusoidal_embedding(position, self.width)
        else:
            angles = 2 * np.pi * position[:, None] * jnp.asarray(self.frequencies, position.dtype)[None, :]
            embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
        embedding = embedding.astype(dtype)
        embedding = dense(name="time_2")(nn.silu(dense(name="time_1")(embedding)))
        if self.num_classes is None or labels is None:
            return embedding
        table = nn.Embed(
            self.num_classes + 1, self.features, dtype=dtype, embedding_init=nn.initializers.normal(1.0), name="label"
        )
        return embedding + table(labels)


def group_norm(
    x: Float[Array, "batch *space channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    groups: int,
    *,
    epsilon: float = 1e-6,
) -> Float[Array, "batch *space channels"]:
    """(x - mean) / sqrt(variance + epsilon) within each group of channels, then scale and bias for each channel.

    Sums run over space first, channel by channel, which vectorises on a CPU; groups are then pooled on the small
    array [batch, groups, channels / groups]. All that follows is one multiply-add per element. The variance is
    E[x^2] - E[x]^2, so its relative error is that of float32 times 1 + mean^2 / variance.

    Raises:
        ValueError: `groups` does not divide the channels.

    Reference: Wu and He 2018, arXiv:1803.08494, eq. 1 and 2.
    """
    batch, channels = x.shape[0], x.shape[-1]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"Expected groups to divide the channels, as groups have equal size; got {groups=}, {channels=}."
        )
    dtype = sum_dtype(x.dtype)
    flat = x.astype(dtype).reshape(batch, -1, channels)
    count = flat.shape[1] * (channels // groups)
    grouped = (batch, groups, channels // groups)
    mean = flat.sum(1).reshape(grouped).sum(-1, keepdims=True) / count
    mean_square = jnp.square(flat).sum(1).reshape(grouped).sum(-1, keepdims=True) / count
    variance = jnp.maximum(mean_square - jnp.square(mean), 0.0)
    factor = jax.lax.rsqrt(variance + epsilon) * scale.astype(dtype).reshape(1, groups, -1)
    shift = bias.astype(dtype).reshape(1, groups, -1) - mean * factor
    out = flat * factor.reshape(batch, 1, channels) + shift.reshape(batch, 1, channels)
    return out.astype(x.dtype).reshape(x.shape)


class GroupNorm(nn.Module):
    """`group_norm` with a learned scale and bias for each channel."""

    groups: int = 32
    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "batch *space channels"]) -> Float[Array, "batch *space channels"]:
        """`x` normalised, in its own shape and dtype."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), jnp.float32)
        return group_norm(x, scale, bias, self.groups, epsilon=self.epsilon)


class ResidualBlock(nn.Module):
    """x + conv(dropout(silu(norm(conv(silu(norm(x))) + dense(silu(conditioning)))))), the second conv zero at first.

    Where the number of channels changes, x passes a 1x1 convolution; without conditioning nothing is added.
    """

    features: int
    groups: int = 32
    dropout: float = 0.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Images, conditioning: Features | None = None, train: bool = False
    ) -> Float[Array, "batch height width channels_out"]:
        """`x` after the block; `train`, positional as `nn.remat` wants it, turns dropout on, with the rng "dropout"."""
        dtype = x.dtype if self.dtype is None else self.dtype
        conv = partial(nn.Conv, self.features, (3, 3), dtype=dtype)
        dense = partial(nn.Dense, self.features, kernel_init=KERNEL_INIT, dtype=dtype)
        h = nn.silu(GroupNorm(self.groups, name="norm_1")(x))
        h = conv(kernel_init=KERNEL_INIT, name="conv_1")(h)
        if conditioning is not None:
            h = h + dense(name="conditioning")(nn.silu(conditioning))[:, None, None, :]
        h = nn.silu(GroupNorm(self.groups, name="norm_2")(h))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = conv(kernel_init=ZERO_INIT, name="conv_2")(h)
        if x.shape[-1] != self.features:
            x = dense(name="shortcut")(x)
        return x.astype(dtype) + h


class Downsample(nn.Module):
    """Half the height and width by a 3x3 convolution of stride 2."""

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "batch height_2 width_2 channels"]:
        """`x` at half the size; odd sides round up."""
        dtype = x.dtype if self.dtype is None else self.dtype
        return nn.Conv(x.shape[-1], (3, 3), strides=(2, 2), kernel_init=KERNEL_INIT, dtype=dtype, name="conv")(x)


class Upsample(nn.Module):
    """Twice the height and width: every pixel repeated 2 x 2, then a 3x3 convolution.

    A transposed convolution costs five times more on a CPU, and overlaps unevenly.
    """

    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "batch height_2 width_2 channels"]:
        """`x` at twice the size."""
        dtype = x.dtype if self.dtype is None else self.dtype
        batch, height, width, channels = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
        x = x.reshape(batch, 2 * height, 2 * width, channels)
        return nn.Conv(channels, (3, 3), kernel_init=KERNEL_INIT, dtype=dtype, name="conv")(x)


def space_to_depth(x: Images, patch: int) -> Float[Array, "batch rows columns depth"]:
    """Each patch x patch square of pixels as one pixel of patch^2 times the channels, row by row."""
    batch, height, width, channels = x.shape
    check_divisible((height, width), patch)
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // patch, width // patch, -1)


def depth_to_space(x: Float[Array, "batch rows columns depth"], patch: int) -> Images:
    """The inverse of `space_to_depth`."""
    batch, rows, columns, depth = x.shape
    if patch < 1 or depth % patch**2:
        raise ValueError(f"Expected patch^2 to divide the channels, as each makes a square; got {patch=}, {depth=}.")
    x = x.reshape(batch, rows, columns, patch, patch, depth // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * patch, columns * patch, -1)


def check_divisible(size: Sequence[int], factor: int, reason: str = "the image is cut into whole squares") -> None:
    """Raise `ValueError` unless `factor` divides the height and the width."""
    if factor < 1 or any(side % factor for side in size):
        raise ValueError(f"Expected height and width divisible by {factor}, as {reason}; got {tuple(size)}.")
