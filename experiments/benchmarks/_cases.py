"""The networks that the benchmarks sample from, and their sizes; random parameters, as times ignore their values."""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from dgm_jax.networks import MLP, UNet, unet_28x28
from dgm_jax.parameterizations import Prediction, as_denoiser
from dgm_jax.processes import GaussianProcess, variance_preserving
from dgm_jax.typing import Denoiser

PROCESS = variance_preserving()


@dataclass(frozen=True)
class Config:
    """Sizes of the run; `--smoke` takes seconds, writes nothing, and its ratios mean nothing."""

    steps: int = 100
    mlp_batch: int = 4096
    mlp_repeats: int = 21
    unet_batch: int = 16
    unet_repeats: int = 7
    write: bool = False
    smoke: bool = False


class Case(NamedTuple):
    """A network, its parameters, and the shape of the batch that it is called on."""

    name: str
    net: nn.Module
    params: Any
    shape: tuple[int, ...]

    def denoiser(self, params: Any, process: GaussianProcess = PROCESS, prediction: Prediction = "v") -> Denoiser:
        """The denoiser with these parameters."""
        apply: Any = self.net.apply
        return as_denoiser(partial(apply, params), process, prediction=prediction)


def case(name: str, net: nn.Module, shape: tuple[int, ...]) -> Case:
    """Parameters near their initial values; none stays zero, so that outputs show whether two programs agree."""
    params = net.init(jax.random.key(0), jnp.zeros((1, *shape[1:])), jnp.zeros(1))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [leaf + 0.02 * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    return Case(name, net, jax.tree.unflatten(tree, noisy), shape)


def mlp(batch: int, features: tuple[int, ...] = (128, 128, 128)) -> Case:
    """Points in the plane."""
    widths = " x ".join(map(str, features)) if len(set(features)) > 1 else f"{len(features)} x {features[0]}"
    return case(f"MLP {widths}, batch {batch}", MLP(features), (batch, 2))


def unet(batch: int, *, net: nn.Module | None = None) -> Case:
    """The quickstart's U-Net, or another, on 28 x 28 images."""
    return case(f"U-Net 28 x 28, batch {batch}", unet_28x28() if net is None else net, (batch, 28, 28, 1))


def tiny_unet() -> UNet:
    """Compiles in a second, for smoke runs."""
    return UNet(4, (1,), 1, groups=2, patch=4)
