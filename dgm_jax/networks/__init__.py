"""Flax Linen networks, called as `net.apply(params, x_t, t, labels=None, *, train=False, rngs={"dropout": key})`.

`functools.partial(net.apply, params)` is then a `network(x_t, t)` for `as_denoiser`. Nothing outside this package
needs Flax, and any other callable of that form serves as well. `net.clone(channels=64)` changes one setting.
"""

from dgm_jax.networks.attention import CrossAttention, SelfAttention, multi_head_attention
from dgm_jax.networks.autoencoder import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder
from dgm_jax.networks.dcgan import DCGANCritic, DCGANGenerator, InstanceNorm, layer_norm
from dgm_jax.networks.dense import DenseCritic, DenseGenerator
from dgm_jax.networks.layers import (
    Conditioning,
    Downsample,
    GroupNorm,
    ResidualBlock,
    Upsample,
    depth_to_space,
    group_norm,
    sinusoidal_embedding,
    space_to_depth,
)
from dgm_jax.networks.mlp import MLP
from dgm_jax.networks.monotone import MonotoneSchedule
from dgm_jax.networks.resampling import blur, fir_downsample, fir_upsample, mean_downsample, repeat_upsample
from dgm_jax.networks.score_unet import (
    ScoreUNet,
    ddpmpp_cifar10,
    edm_ddpmpp_cifar10,
    edm_ncsnpp_cifar10,
    ncsnpp_cifar10,
)
from dgm_jax.networks.spatial_autoencoder import SpatialDecoder, SpatialEncoder
from dgm_jax.networks.spectral import spectral_normalize
from dgm_jax.networks.text import Text, TextEncoder
from dgm_jax.networks.unet import UNet, ddpm_cifar10, unet_8x8, unet_28x28

__all__ = [
    "MLP",
    "Conditioning",
    "ConvDecoder",
    "ConvEncoder",
    "CrossAttention",
    "DCGANCritic",
    "DCGANGenerator",
    "DenseCritic",
    "DenseDecoder",
    "DenseEncoder",
    "DenseGenerator",
    "Downsample",
    "GroupNorm",
    "MonotoneSchedule",
    "ResidualBlock",
    "ScoreUNet",
    "SelfAttention",
    "SpatialDecoder",
    "SpatialEncoder",
    "Text",
    "TextEncoder",
    "UNet",
    "Upsample",
    "blur",
    "ddpm_cifar10",
    "ddpmpp_cifar10",
    "depth_to_space",
    "edm_ddpmpp_cifar10",
    "edm_ncsnpp_cifar10",
    "fir_downsample",
    "fir_upsample",
    "group_norm",
    "layer_norm",
    "mean_downsample",
    "multi_head_attention",
    "ncsnpp_cifar10",
    "repeat_upsample",
    "sinusoidal_embedding",
    "space_to_depth",
    "spectral_normalize",
    "unet_8x8",
    "unet_28x28",
]
