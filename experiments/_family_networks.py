"""The networks of family_comparison: one trunk and as many parameters each, whatever the family.

Every network is a multilayer perceptron of `layers` hidden layers on points [batch, dim]. The network that generates,
which is a GAN's generator, a VAE's decoder or a denoiser, has as near as possible to `parameters` parameters: its
width is the one that comes nearest. A critic or an encoder, which no sample needs, is as wide.

A denoiser is D = m + c_skip (x_t - alpha m) + c_out F(x_t, t), Karras et al.'s preconditioning (arXiv:2206.00364,
table 1) about the mean m of each coordinate, but that the data's standard deviation is at most `residual` in c_skip and
in the denominators. F is narrower than a digit has pixels and could pass no noise through: where there is more noise
than `residual` it is to say the digit, and what is less D lets stand. The standard deviation of a VAE's Gaussian
decoder is one learned number (Rybkin et al. 2020, arXiv:2006.13202).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dgm_jax.losses import gaussian_log_likelihood, priors
from dgm_jax.networks import MLP, DenseCritic, DenseEncoder, DenseGenerator
from dgm_jax.numerics import expand_to
from dgm_jax.processes import GaussianProcess, rectified, variance_preserving
from dgm_jax.typing import Denoiser, Keys, PerExample

Points = Float[Array, "batch dim"]
NETWORKS = ("GAN, R1", "WGAN-GP", "VAE", "IWAE", "VP", "rectified flow")
PROCESSES: dict[str, GaussianProcess] = {"VP": variance_preserving(), "rectified flow": rectified()}


@dataclass(frozen=True)
class Sizes:
    """What all networks on one data set share, and what each is trained with."""

    parameters: int  # of the network that generates
    layers: int = 3
    latent: int = 32
    batch: int = 128
    rate: float = 3e-3  # of denoisers: Adam's at its highest
    vae_rate: float = 1e-3
    gan_rate: float = 5e-4  # of both players
    gan_batch: int = 64
    r1: float = 1.0  # gamma
    penalty: float = 10.0  # lambda of WGAN-GP
    critic_steps: int = 5  # of WGAN-GP
    samples: int = 5  # of IWAE
    decoder_std: float = 0.1  # of VAEs when training begins, over the data's
    residual: float = 1.0  # the largest s of a denoiser
    ema_decay: float = 0.999
    sigma_min: float = 0.01  # noise of a denoiser at its least time, in the units of the data over alpha


class Networks:
    """The networks for points of one dimension, and the functions that they stand for.

    Args:
        mean, std: of each coordinate of the data.
        output: after the last layer of generators and decoders.
    """

    def __init__(
        self,
        sizes: Sizes,
        mean: Float[np.ndarray, " dim"],
        std: Float[np.ndarray, " dim"],
        output: Callable[[Array], Array] = lambda x: x,
    ):
        self.sizes, self.dim, self.output = sizes, len(mean), output
        self.mean, self.std = (jnp.asarray(values, jnp.float32) for values in (mean, std))

    @cached_property
    def generator(self) -> DenseGenerator:
        """A GAN's generator, or a VAE's decoder."""

        def of(width: int) -> DenseGenerator:
            return DenseGenerator(self._widths(width), (self.dim,), nn.silu, self.output)

        return self._nearest(of, jnp.zeros((1, self.sizes.latent)))

    @cached_property
    def field(self) -> MLP:
        """F(x_t, t) of a denoiser."""
        return self._nearest(lambda width: MLP(self._widths(width)), jnp.zeros((1, self.dim)), jnp.zeros(1))

    @cached_property
    def critic(self) -> DenseCritic:
        """As wide as the generator."""
        return DenseCritic(self.generator.widths)

    @cached_property
    def encoder(self) -> DenseEncoder:
        """As wide as the decoder."""
        return DenseEncoder(self.generator.widths, self.sizes.latent, nn.silu)

    def init_autoencoder(self, key: Keys) -> PyTree:
        """Parameters of a VAE."""
        key_encoder, key_decoder = jax.random.split(key)
        return {
            "encoder": self.encoder.init(key_encoder, jnp.zeros((1, self.dim))),
            "generator": self.generator.init(key_decoder, jnp.zeros((1, self.sizes.latent))),
            "log_std": jnp.log(self.sizes.decoder_std * jnp.sqrt(jnp.mean(self.std**2))),
        }

    def init_denoiser(self, key: Keys) -> PyTree:
        """Parameters of a denoiser."""
        return {"generator": self.field.init(key, jnp.zeros((1, self.dim)), jnp.zeros(1))}

    def denoiser(self, params: PyTree, process: GaussianProcess) -> Denoiser:
        """D(x_t, t) of this module's docstring."""
        mean, std = self.mean[None], jnp.minimum(self.std, self.sizes.residual)[None]

        def denoise(x_t: Points, t: PerExample) -> Points:
            alpha, sigma = expand_to(process.alpha(t), x_t), expand_to(process.sigma(t), x_t)
            scale = jnp.sqrt(sigma**2 + (alpha * std) ** 2)
            output: Any = self.field.apply(params["generator"], x_t, t)
            return mean + alpha * (std / scale) ** 2 * (x_t - alpha * mean) + sigma * self.std[None] / scale * output

        return denoise

    def t_min(self, process: GaussianProcess) -> float:
        """The least time of a process."""
        with jax.ensure_compile_time_eval():
            return float(process.time_at(jnp.asarray(self.sizes.sigma_min)))

    def decode(self, params: PyTree, z: Array) -> tuple[Points, Points]:
        """Mean and log standard deviation of a VAE's p(x | z)."""
        mean = self.generator.apply(params["generator"], z)
        return mean, jnp.broadcast_to(params["log_std"], mean.shape)  # type: ignore

    def encode(self, params: PyTree, x: Points) -> tuple[Array, Array]:
        """Mean and log standard deviation of a VAE's q(z | x)."""
        return self.encoder.apply(params["encoder"], x)  # type: ignore

    def log_joint(self, params: PyTree, x: Points, z: Array) -> PerExample:
        """log p(x, z) of a VAE, nats."""
        prior = priors.standard_normal(self.sizes.latent).log_prob(z)
        return prior + gaussian_log_likelihood(*self.decode(params, z), x)

    def _widths(self, width: int) -> tuple[int, ...]:
        return (width,) * self.sizes.layers

    def _nearest(self, make: Callable[[int], Any], *inputs: Array) -> Any:
        """The network of the width with which its parameters are nearest to the number wanted."""
        low, high = 1, 4096
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if _count(make(middle), inputs) <= self.sizes.parameters else (low, middle)
        return make(min((low, high), key=lambda width: abs(_count(make(width), inputs) - self.sizes.parameters)))


def generate(nets: Networks, params: PyTree, key: Keys, points: int) -> Points:
    """Points of a GAN's generator, of a standard normal latent each."""
    return nets.generator.apply(params, jax.random.normal(key, (points, nets.sizes.latent)))  # type: ignore


def size(params: PyTree) -> int:
    """The number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _count(net: nn.Module, inputs: tuple[Array, ...]) -> int:
    return size(jax.eval_shape(net.init, jax.random.key(0), *inputs))
