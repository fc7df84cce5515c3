"""The DDPM U-Net network(x_t, t) for images, and the sizes of it that this library uses.

Levels halve the image; each has `blocks` residual blocks on the way down and `blocks + 1` on the way up, and each
block on the way up reads, beside its input, the output of one block or convolution on the way down. Attention
follows each block at the chosen resolutions, and sits between two blocks at the bottom. With a context, such as a
caption's tokens, cross-attention does likewise.

The features after the middle, from which the way up begins, are the bottleneck h. They are sown: after
`out, state = net.apply(params, x_t, t, mutable="intermediates")` they are `state["intermediates"]["bottleneck"][0]`;
and `shift` is added to them, with nothing else changed. What is sown is h before the shift.

Reference: Ho, Jain and Abbeel, "Denoising diffusion probabilistic models", 2020, arXiv:2006.11239, appendix B; Rombach
et al. 2022, arXiv:2112.10752, section 3.3, for the context; Kwon et al. 2022, arXiv:2210.10960, for the bottleneck.
"""

from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike

from dgm_jax.networks.attention import Context, CrossAttention, Mask, SelfAttention, check_context
from dgm_jax.networks.layers import (
    KERNEL_INIT,
    ZERO_INIT,
    Conditioning,
    Downsample,
    GroupNorm,
    Images,
    Labels,
    ResidualBlock,
    Upsample,
    check_divisible,
    check_inputs,
    depth_to_space,
    space_to_depth,
)
from dgm_jax.typing import Data, PerExample, Shape, Size


class UNet(nn.Module):
    """Images [batch, height, width, channels] and t [batch] to images of the same shape; zero at initialisation.

    One dropout key serves the whole batch. For a key per example, map over single examples:
    `jax.vmap(lambda x, t, key: net.apply(params, x[None], t[None], train=True, rngs={"dropout": key})[0])`.

    Attributes:
        channels: width of the first convolution and of the time's sinusoidal embedding.
        multipliers: width of each level in units of `channels`, from the finest.
        blocks: residual blocks for each level on the way down.
        attention: heights of the feature maps (after `patch`) at which attention follows each block.
        dropout: rate within each block while training; draws from the rng "dropout".
        groups: of each group norm; divides every width.
        num_classes: `None` for no classes; otherwise label `num_classes` is the null label.
        patch: side of the squares of pixels that enter as one pixel; above 1 for speed.
        time_scale: multiplies `t`; choose another for another conditioning scalar, such as EDM's c_noise.
        dtype: compute dtype; `None` is that of `x_t`. The output always has the dtype of `x_t`.
        context_attention: heights at which each block looks at the context too, and then the middle; none: no context.
        context_heads: of that attention; divides every width where it is.
        remat: compute the activations of blocks and self-attention again for gradients, and store fewer.
    """

    channels: int
    multipliers: Sequence[int]
    blocks: int
    attention: Sequence[int] = ()
    dropout: float = 0.0
    groups: int = 32
    num_classes: int | None = None
    patch: int = 1
    time_scale: float = 1000.0
    dtype: DTypeLike | None = None
    context_attention: Sequence[int] = ()
    context_heads: int = 1
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x_t: Data,
        t: PerExample,
        labels: Labels | None = None,
        *,
        context: Context | None = None,
        context_mask: Mask | None = None,
        shift: Images | None = None,
        train: bool = False,
    ) -> Data:
        """The field at `x_t`.

        Args:
            context: a sequence of vectors for each example, of which `context_mask` says which are there; `None` of it
                is all. An example with none that is there is unconditional.
            shift: added to the bottleneck's features, in their shape.
            train: turns dropout on, with the rng "dropout".
        """
        check_inputs(x_t, t, labels, self.num_classes)
        self._check(x_t.shape)
        self._check_context(context, context_mask, x_t.shape[0])
        dtype = x_t.dtype if self.dtype is None else self.dtype
        residual = nn.remat(ResidualBlock, static_argnums=(3,)) if self.remat else ResidualBlock
        attention = nn.remat(SelfAttention) if self.remat else SelfAttention
        block = partial(residual, groups=self.groups, dropout=self.dropout, dtype=dtype)
        attend = partial(attention, groups=self.groups, dtype=dtype)
        look = partial(CrossAttention, self.context_heads, self.groups, dtype)
        conv = partial(nn.Conv, kernel_size=(3, 3), dtype=dtype)
        conditioning = Conditioning(self.channels, 4 * self.channels, self.num_classes, self.time_scale, dtype)(
            t, labels
        )

        h = space_to_depth(x_t, self.patch)
        depth = h.shape[-1]
        h = conv(self.channels, kernel_init=KERNEL_INIT, name="conv_in")(h)
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                h = Downsample(dtype, name=f"down_{level}")(h)
                skips.append(h)
            for i in range(self.blocks):
                h = block(self.channels * multiplier, name=f"down_{level}_block_{i}")(h, conditioning, train)
                if h.shape[1] in self.attention:
                    h = attend(name=f"down_{level}_attention_{i}")(h)
                if context is not None and h.shape[1] in self.context_attention:
                    h = look(name=f"down_{level}_context_{i}")(h, context, context_mask)
                skips.append(h)

        h = block(h.shape[-1], name="middle_block_0")(h, conditioning, train)
        h = attend(name="middle_attention")(h)
        if context is not None:
            h = look(name="middle_context")(h, context, context_mask)
        h = block(h.shape[-1], name="middle_block_1")(h, conditioning, train)
        self.sow("intermediates", "bottleneck", h)
        if shift is not None:
            h = h + self._checked_shift(shift, h)

        for level, multiplier in reversed(tuple(enumerate(self.multipliers))):
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(self.channels * multiplier, name=f"up_{level}_block_{i}")(h, conditioning, train)
                if h.shape[1] in self.attention:
                    h = attend(name=f"up_{level}_attention_{i}")(h)
                if context is not None and h.shape[1] in self.context_attention:
                    h = look(name=f"up_{level}_context_{i}")(h, context, context_mask)
            if level > 0:
                h = Upsample(dtype, name=f"up_{level}")(h)

        h = nn.silu(GroupNorm(self.groups, name="norm_out")(h))
        h = conv(depth, kernel_init=ZERO_INIT, name="conv_out")(h)
        return depth_to_space(h, self.patch).astype(x_t.dtype)

    def _check(self, shape: Shape) -> None:
        if len(shape) != 4:
            raise ValueError(f"Expected images [batch, height, width, channels], as a U-Net convolves; got {shape=}.")
        if self.blocks < 1 or not self.multipliers or self.patch < 1:
            raise ValueError(
                f"Expected blocks >= 1, patch >= 1 and one or more multipliers, as each level has blocks; "
                f"got blocks={self.blocks}, patch={self.patch}, multipliers={self.multipliers}."
            )
        widths = [self.channels, *(self.channels * multiplier for multiplier in self.multipliers)]
        if self.groups < 1 or any(width < 1 or width % self.groups for width in widths):
            raise ValueError(
                f"Expected widths that are multiples of groups={self.groups}, as group norm splits each; got {widths=}."
            )
        levels = len(self.multipliers)
        factor = self.patch * 2 ** (levels - 1)
        reason = f"patch * 2**(levels - 1) = {factor} with patch={self.patch}, {levels=}, and each level halves both"
        check_divisible(shape[1:3], factor, reason)
        heights = [shape[1] // (self.patch * 2**level) for level in range(levels)]
        for name, chosen in (("attention", self.attention), ("context_attention", self.context_attention)):
            if not set(chosen) <= set(heights):
                raise ValueError(
                    f"Expected {name} at heights among {heights}, as the feature maps have no others; "
                    f"got {name}={chosen}."
                )

    def _check_context(self, context: Context | None, mask: Mask | None, batch: Size) -> None:
        if (context is None) == bool(self.context_attention):
            got = "None" if context is None else context.shape
            raise ValueError(
                f"Expected a context where the network looks at one, and else none, as its "
                f"context_attention={self.context_attention}; got {got}."
            )
        if context is None and mask is not None:
            raise ValueError(f"Expected context_mask=None, as there is no context; got a mask {mask.shape}.")
        if context is not None:
            check_context(context, mask, batch)

    def _checked_shift(self, shift: Images, h: Images) -> Images:
        if shift.shape != h.shape or not jnp.issubdtype(shift.dtype, jnp.floating):
            raise ValueError(
                f"Expected shift to be floating-point in the shape of the bottleneck, {h.shape}, as it is added there; "
                f"got shape {shift.shape}, dtype {shift.dtype}."
            )
        return shift.astype(h.dtype)


def ddpm_cifar10(*, dropout: float = 0.1, num_classes: int | None = None, dtype: DTypeLike | None = None) -> UNet:
    """For 32 x 32 x 3, as in the DDPM paper: 35.7 million parameters without classes."""
    return UNet(128, (1, 2, 2, 2), 2, (16,), dropout, num_classes=num_classes, dtype=dtype)


def unet_8x8(*, dropout: float = 0.0, num_classes: int | None = None, dtype: DTypeLike | None = None) -> UNet:
    """For 8 x 8 images: levels of 8 and 4 pixels, 24 and 48 channels; 0.57 million parameters without classes."""
    return UNet(24, (1, 2), 2, (4,), dropout, groups=8, num_classes=num_classes, dtype=dtype)


def unet_28x28(*, dropout: float = 0.0, num_classes: int | None = None, dtype: DTypeLike | None = None) -> UNet:
    """For 28 x 28 images: levels of 14 and 7 pixels, 64 and 96 channels; 1.5 million parameters without classes."""
    return UNet(32, (2, 3), 1, (), dropout, groups=8, num_classes=num_classes, patch=2, dtype=dtype)
