"""The library's MLP and U-Net in PyTorch, module by module under the same names, so that parameters carry over.

`load` copies Flax parameters into the modules; equal outputs then show that both sides compute the same network.
Images are [batch, channels, height, width], PyTorch's own order. Layers are PyTorch's own throughout (fused group
norm, scaled dot-product attention).
"""

# pyright: reportMissingImports=false
# torch comes with the extra "bench" alone.
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conditioning(nn.Module):
    """Sinusoidal embedding of 1000 t and a two-layer map."""

    def __init__(self, width: int, features: int):
        super().__init__()
        self.register_buffer("rates", torch.tensor(np.geomspace(1.0, 1e-4, width // 2), dtype=torch.float32))
        self.time_1, self.time_2 = nn.Linear(width, features), nn.Linear(features, features)

    def forward(self, t: Tensor) -> Tensor:
        """t [batch] -> [batch, features]."""
        angles = 1000.0 * t[:, None] * self.rates
        return self.time_2(F.silu(self.time_1(torch.cat([angles.sin(), angles.cos()], -1))))


class MLP(nn.Module):
    """`dgm_jax.networks.MLP` on vectors."""

    def __init__(self, size: int, features: Sequence[int], embedding: int = 64):
        super().__init__()
        self.Conditioning_0 = Conditioning(embedding, embedding)
        widths = [size, *features]
        self.depth = len(features)
        for i in range(self.depth):
            self.add_module(f"hidden_{i}", nn.Linear(widths[i], widths[i + 1]))
            self.add_module(f"time_{i}", nn.Linear(embedding, widths[i + 1], bias=False))
        self.out = nn.Linear(widths[-1], size)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t [batch, size], t [batch] -> [batch, size]."""
        conditioning = F.silu(self.Conditioning_0(t))
        h = x_t
        for i in range(self.depth):
            h = F.silu(self.get_submodule(f"hidden_{i}")(h) + self.get_submodule(f"time_{i}")(conditioning))
        return self.out(h)


class ResidualBlock(nn.Module):
    """`dgm_jax.networks.ResidualBlock` without dropout."""

    def __init__(self, inputs: int, features: int, conditioning: int, groups: int):
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(groups, inputs, 1e-6), nn.GroupNorm(groups, features, 1e-6)
        self.conv_1, self.conv_2 = (nn.Conv2d(n, features, 3, padding=1) for n in (inputs, features))
        self.conditioning = nn.Linear(conditioning, features)
        if inputs != features:
            self.shortcut = nn.Conv2d(inputs, features, 1)

    def forward(self, x: Tensor, conditioning: Tensor) -> Tensor:
        """x [batch, inputs, height, width] -> [batch, features, height, width]."""
        h = self.conv_1(F.silu(self.norm_1(x)))
        h = h + self.conditioning(F.silu(conditioning))[:, :, None, None]
        h = self.conv_2(F.silu(self.norm_2(h)))
        return (self.shortcut(x) if hasattr(self, "shortcut") else x) + h


class SelfAttention(nn.Module):
    """`dgm_jax.networks.SelfAttention`."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, 1e-6)
        self.query, self.key, self.value, self.out = (nn.Linear(channels, channels) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """x plus its attention."""
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = (layer(tokens)[:, None] for layer in (self.query, self.key, self.value))
        h = self.out(F.scaled_dot_product_attention(q, k, v)[:, 0])
        return x + h.transpose(1, 2).reshape(x.shape)


class Resample(nn.Module):
    """Half the size by a strided convolution, or twice the size by repetition and a convolution."""

    def __init__(self, channels: int, *, up: bool):
        super().__init__()
        self.up = up
        self.conv = nn.Conv2d(channels, channels, 3, padding=1) if up else nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x at its new size."""
        if self.up:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # XLA's "SAME" pads an even side at its end


class UNet(nn.Module):
    """`dgm_jax.networks.UNet` with patch 1, no classes and no dropout."""

    def __init__(
        self,
        image: tuple[int, int],
        channels: int,
        multipliers: Sequence[int],
        blocks: int,
        attention: Sequence[int],
        groups: int,
    ):
        super().__init__()
        side, depth = image
        self.levels, self.blocks, features = len(multipliers), blocks, 4 * channels
        self.Conditioning_0 = Conditioning(channels, features)
        self.conv_in = nn.Conv2d(depth, channels, 3, padding=1)
        width, skips = channels, [channels]

        def stage(name: str, inputs: int, outputs: int, level: int, i: int) -> None:
            self.add_module(f"{name}_{level}_block_{i}", ResidualBlock(inputs, outputs, features, groups))
            if side // 2**level in attention:
                self.add_module(f"{name}_{level}_attention_{i}", SelfAttention(outputs, groups))

        for level, multiplier in enumerate(multipliers):
            if level > 0:
                self.add_module(f"down_{level}", Resample(width, up=False))
                skips.append(width)
            for i in range(blocks):
                stage("down", width, channels * multiplier, level, i)
                width = channels * multiplier
                skips.append(width)
        self.middle_block_0, self.middle_block_1 = (ResidualBlock(width, width, features, groups) for _ in range(2))
        self.middle_attention = SelfAttention(width, groups)
        for level, multiplier in reversed(tuple(enumerate(multipliers))):
            for i in range(blocks + 1):
                stage("up", width + skips.pop(), channels * multiplier, level, i)
                width = channels * multiplier
            if level > 0:
                self.add_module(f"up_{level}", Resample(width, up=True))
        self.norm_out = nn.GroupNorm(groups, width, 1e-6)
        self.conv_out = nn.Conv2d(width, depth, 3, padding=1)

    def _stage(self, name: str, h: Tensor, conditioning: Tensor, level: int, i: int) -> Tensor:
        h = self.get_submodule(f"{name}_{level}_block_{i}")(h, conditioning)
        attention = self._modules.get(f"{name}_{level}_attention_{i}")
        return h if attention is None else attention(h)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t [batch, channels, height, width], t [batch] -> the same shape."""
        conditioning = self.Conditioning_0(t)
        h = self.conv_in(x_t)
        skips = [h]
        for level in range(self.levels):
            if level > 0:
                h = self.get_submodule(f"down_{level}")(h)
                skips.append(h)
            for i in range(self.blocks):
                h = self._stage("down", h, conditioning, level, i)
                skips.append(h)
        h = self.middle_attention(self.middle_block_0(h, conditioning))
        h = self.middle_block_1(h, conditioning)
        for level in reversed(range(self.levels)):
            for i in range(self.blocks + 1):
                h = self._stage("up", torch.cat([h, skips.pop()], 1), conditioning, level, i)
            if level > 0:
                h = self.get_submodule(f"up_{level}")(h)
        return self.conv_out(F.silu(self.norm_out(h)))


def load(module: nn.Module, params: Mapping[str, Any]) -> None:
    """Copy Flax parameters into a module of the same names; every parameter of the module must be met."""
    met = set()

    def copy(prefix: str, tree: Mapping[str, Any]) -> None:
        for name, value in tree.items():
            path = f"{prefix}{name}"
            if isinstance(value, Mapping):
                copy(f"{path}.", value)
                continue
            path = f"{prefix}{'bias' if name == 'bias' else 'weight'}"
            target = module.get_parameter(path)
            source = torch.tensor(np.asarray(value))
            if name == "kernel":
                source = source.permute(3, 2, 0, 1) if source.ndim == 4 else source.T
            target.data.copy_(source.reshape(target.shape))
            met.add(path)

    copy("", params["params"])
    missing = {name for name, _ in module.named_parameters()} - met
    if missing:
        raise ValueError(f"Expected every parameter on both sides, as the networks are the same; {missing=}.")
