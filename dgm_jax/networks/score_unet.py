"""DDPM++ and NCSN++, the U-Nets network(x_t, t) of Score SDE, in the sizes of that paper and of EDM.

Beside the DDPM U-Net (see `unet`): the image is halved and doubled inside residual blocks, on both of their branches;
every sum of two branches is divided by sqrt(2); on the way up attention comes once a level. NCSN++ also filters where
it resizes, feeds the image itself, halved, into every level ("residual" progressive input), and is told log sigma by
sines of random frequencies. Here those frequencies, normal of standard deviation 16 in the paper, are the quantiles of
that law, so that no constant has to be stored. Classes are added to the time's vector, as in `unet`; EDM maps both by
the same layers, and starts from weights of another size.

Reference: Song et al., "Score-based generative modeling through stochastic differential equations", 2021,
arXiv:2011.13456, appendix H; Karras et al., "Elucidating the design space of diffusion-based generative models", 2022,
arXiv:2206.00364, table 7, for EDM's.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import NormalDist
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dgm_jax.networks.attention import SelfAttention
from dgm_jax.networks.layers import (
    KERNEL_INIT,
    ZERO_INIT,
    Conditioning,
    Features,
    GroupNorm,
    Images,
    Labels,
    check_divisible,
    check_inputs,
)
from dgm_jax.networks.resampling import (
    blur,
    fir_downsample,
    fir_upsample,
    mean_downsample,
    repeat_upsample,
)
from dgm_jax.typing import Data, PerExample, Shape

FOURIER_STD = 16.0
Resized = Float[Array, "batch rows columns channels_out"]


class ScoreUNet(nn.Module):
    """Images [batch, height, width, channels] and t [batch] to images of the same shape; zero at initialisation.

    One dropout key serves the whole batch, as in `UNet`.

    Attributes:
        channels: width of the first convolution.
        multipliers: width of each level in units of `channels`, from the finest.
        blocks: residual blocks for each level on the way down; one more on the way up.
        attention: heights of the feature maps at which attention follows.
        dropout: rate within each block while training; draws from the rng "dropout".
        ncsnpp: NCSN++ rather than DDPM++: filtered resizing, the image fed into every level, Fourier features of `t`.
        num_classes: `None` for no classes; otherwise label `num_classes` is the null label.
        time_scale: multiplies `t`: 999 for t in [0, 1], 1 for log sigma and for EDM's c_noise.
        remat: compute the activations of blocks and attention again for gradients, and store fewer.
        dtype: compute dtype; `None` is that of `x_t`. The output always has the dtype of `x_t`.
    """

    channels: int
    multipliers: Sequence[int]
    blocks: int
    attention: Sequence[int] = ()
    dropout: float = 0.0
    ncsnpp: bool = False
    num_classes: int | None = None
    time_scale: float = 999.0
    remat: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x_t: Data, t: PerExample, labels: Labels | None = None, *, train: bool = False) -> Data:
        """The field at `x_t`; `t` is what the network is told of the noise, such as log sigma."""
        check_inputs(x_t, t, labels, self.num_classes)
        self._check(x_t.shape)
        dtype = x_t.dtype if self.dtype is None else self.dtype
        residual = nn.remat(ScoreBlock, static_argnums=(3,)) if self.remat else ScoreBlock
        self_attention = nn.remat(SelfAttention) if self.remat else SelfAttention
        block = partial(residual, dropout=self.dropout, filtered=self.ncsnpp, dtype=dtype)
        conv = partial(nn.Conv, kernel_size=(3, 3), kernel_init=KERNEL_INIT, dtype=dtype)
        conditioning = self._conditioning(dtype)(t, labels)

        def attend(h: Images, name: str) -> Images:
            h = self_attention(_groups(h), dtype, name=name)(h)
            return h / jnp.asarray(2**0.5, h.dtype)

        h = conv(self.channels, name="conv_in")(x_t)
        skips, image = [h], x_t
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                h = block(h.shape[-1], resize="down", name=f"down_{level}")(h, conditioning, train)
                if self.ncsnpp:
                    image = self._halved(image, h.shape[-1], dtype, name=f"image_{level}")
                    image = h = (image + h) / jnp.asarray(2**0.5, h.dtype)
                skips.append(h)
            for i in range(self.blocks):
                name = f"down_{level}_block_{i}"
                h = block(self.channels * multiplier, name=name)(h, conditioning, train)
                if h.shape[1] in self.attention:
                    h = attend(h, f"down_{level}_attention_{i}")
                skips.append(h)

        h = block(h.shape[-1], name="middle_block_0")(h, conditioning, train)
        h = attend(h, "middle_attention")
        h = block(h.shape[-1], name="middle_block_1")(h, conditioning, train)

        for level, multiplier in reversed(tuple(enumerate(self.multipliers))):
            for i in range(self.blocks + 1):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = block(self.channels * multiplier, name=f"up_{level}_block_{i}")(h, conditioning, train)
            if h.shape[1] in self.attention:
                h = attend(h, f"up_{level}_attention")
            if level > 0:
                h = block(h.shape[-1], resize="up", name=f"up_{level}")(h, conditioning, train)

        h = nn.silu(GroupNorm(_groups(h), name="norm_out")(h))
        return conv(x_t.shape[-1], kernel_init=ZERO_INIT, name="conv_out")(h).astype(x_t.dtype)

    def _conditioning(self, dtype: DTypeLike) -> Callable[..., Features]:
        frequencies = fourier_frequencies(self.channels) if self.ncsnpp else None
        return Conditioning(
            self.channels, 4 * self.channels, self.num_classes, self.time_scale, dtype, frequencies=frequencies
        )

    def _halved(self, image: Images, features: int, dtype: DTypeLike, *, name: str) -> Resized:
        """The image filtered, and halved by a convolution of stride 2."""
        conv = partial(nn.Conv, features, (3, 3), strides=(2, 2), padding="VALID", kernel_init=KERNEL_INIT, name=name)
        return conv(dtype=dtype)(blur(image.astype(dtype), pad=2))

    def _check(self, shape: Shape) -> None:
        if len(shape) != 4:
            raise ValueError(f"Expected images [batch, height, width, channels], as a U-Net convolves; got {shape=}.")
        if self.blocks < 1 or not self.multipliers or min(self.multipliers) < 1:
            raise ValueError(
                f"Expected blocks >= 1 and one or more multipliers >= 1, as each level has blocks; got "
                f"blocks={self.blocks}, multipliers={self.multipliers}."
            )
        if self.channels < 4 or self.channels % 4:
            raise ValueError(
                f"Expected channels that are a multiple of 4, as groups of four are normalised; got {self.channels}."
            )
        levels = len(self.multipliers)
        check_divisible(shape[1:3], 2 ** (levels - 1), f"each of {levels} levels after the first halves both")
        heights = [shape[1] // 2**level for level in range(levels)]
        if not set(self.attention) <= set(heights):
            raise ValueError(
                f"Expected attention at heights among {heights}, as the feature maps have no others; got "
                f"attention={self.attention}."
            )


class ScoreBlock(nn.Module):
    """(x + conv(dropout(silu(norm(conv(silu(norm(x))) + dense(silu(conditioning))))))) / sqrt(2), resized if asked.

    Both branches are resized before the first convolution; where the size or the number of channels changes, x passes a
    1x1 convolution (BigGAN's block, Brock et al. 2019, arXiv:1809.11096).

    Attributes:
        resize: "down", "up", or `None`.
        filtered: by the filter [1, 3, 3, 1] rather than by means and repetition.
    """

    features: int
    dropout: float = 0.0
    resize: str | None = None
    filtered: bool = False
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images, conditioning: Features, train: bool = False) -> Resized:
        """`x` after the block; `train`, positional as `nn.remat` wants it, turns dropout on."""
        dtype = x.dtype if self.dtype is None else self.dtype
        conv = partial(nn.Conv, self.features, (3, 3), dtype=dtype)
        dense = partial(nn.Dense, self.features, kernel_init=KERNEL_INIT, dtype=dtype)
        resized = RESIZE[self.resize, self.filtered]
        h = resized(nn.silu(GroupNorm(_groups(x), name="norm_1")(x)))
        h = conv(kernel_init=KERNEL_INIT, name="conv_1")(h)
        h = h + dense(name="conditioning")(nn.silu(conditioning))[:, None, None, :]
        h = nn.silu(GroupNorm(_groups(h), name="norm_2")(h))
        h = nn.Dropout(self.dropout)(h, deterministic=not train)
        h = conv(kernel_init=ZERO_INIT, name="conv_2")(h)
        shortcut = resized(x).astype(dtype)
        if self.resize is not None or x.shape[-1] != self.features:
            shortcut = dense(name="shortcut")(shortcut)
        return (shortcut + h) / jnp.asarray(2**0.5, h.dtype)


RESIZE: dict[tuple[str | None, bool], Callable[[Any], Any]] = {
    (None, False): lambda x: x,
    (None, True): lambda x: x,
    ("down", False): mean_downsample,
    ("down", True): fir_downsample,
    ("up", False): repeat_upsample,
    ("up", True): fir_upsample,
}


def fourier_frequencies(width: int) -> tuple[float, ...]:
    """`width` quantiles of |N(0, 16^2)|, in turns for each unit of t; sines know no sign."""
    law = NormalDist(sigma=FOURIER_STD)
    return tuple(law.inv_cdf(0.5 + (i + 0.5) / (2 * width)) for i in range(width))


def _groups(x: Images) -> int:
    """At most 32, of four channels or more, the most that are equal; the paper's widths need no search."""
    channels = x.shape[-1]
    return next(groups for groups in range(min(channels // 4, 32), 0, -1) if channels % groups == 0)


def ddpmpp_cifar10(
    *, dropout: float = 0.1, num_classes: int | None = None, dtype: DTypeLike | None = None
) -> ScoreUNet:
    """DDPM++ cont. of Score SDE for 32 x 32 x 3: 61.8 million parameters without classes."""
    return ScoreUNet(128, (1, 2, 2, 2), 4, (16,), dropout, num_classes=num_classes, dtype=dtype)


def ncsnpp_cifar10(
    *, dropout: float = 0.1, num_classes: int | None = None, dtype: DTypeLike | None = None
) -> ScoreUNet:
    """NCSN++ cont. of Score SDE for 32 x 32 x 3, told log sigma: 62.8 million parameters without classes."""
    return ScoreUNet(128, (1, 2, 2, 2), 4, (16,), dropout, True, num_classes, 1.0, dtype=dtype)


def edm_ddpmpp_cifar10(
    *, dropout: float = 0.13, num_classes: int | None = None, dtype: DTypeLike | None = None
) -> ScoreUNet:
    """DDPM++ as EDM has it, told log(sigma)/4: 55.7 million parameters without classes."""
    return ScoreUNet(128, (2, 2, 2), 4, (16,), dropout, False, num_classes, 1.0, dtype=dtype)


def edm_ncsnpp_cifar10(
    *, dropout: float = 0.13, num_classes: int | None = None, dtype: DTypeLike | None = None
) -> ScoreUNet:
    """NCSN++ as EDM has it, told log(sigma)/4: 56.4 million parameters without classes."""
    return ScoreUNet(128, (2, 2, 2), 4, (16,), dropout, True, num_classes, 1.0, dtype=dtype)
