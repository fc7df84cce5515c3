"""Latent diffusion and pixel diffusion of 28 x 28 digits, as functions: autoencoder, two denoisers, their training.

Compute is counted as XLA counts the floating-point operations of the compiled program of one training step, so that it
does not depend on the machine.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dgm_jax.data import batches, source, to_unit
from dgm_jax.data.arrays import ArraySource
from dgm_jax.data.records import Source
from dgm_jax.latents.latent_diffusion import draw_latents, flattened, latent_scale
from dgm_jax.losses import beta_loss, diffusion_loss, gaussian_elbo, gaussian_log_likelihood
from dgm_jax.networks import SpatialDecoder, SpatialEncoder, UNet
from dgm_jax.numerics import split
from dgm_jax.parameterizations import as_denoiser, error_ratio
from dgm_jax.parameterizations.guidance import drop_conditions
from dgm_jax.processes import log_normal, variance_preserving
from dgm_jax.training import TrainState, ema_warmup, init_state, make_step
from dgm_jax.training.parallel import pmap_step
from dgm_jax.training.step import with_example_keys
from experiments._budget import warmup_cosine
from experiments._run import Run
from experiments._training import train_on_devices

PIXELS = (28, 28, 1)
CLASSES, NULL = 10, 10
PROCESS = variance_preserving()
Loss = Callable[[Any, dict[str, jax.Array], jax.Array], jax.Array]


class Autoencoder(NamedTuple):
    """Digits in [-1, 1] to latents of 7 x 7 pixels and back, as functions of {"encoder": ..., "decoder": ...}."""

    encoder: SpatialEncoder
    decoder: SpatialDecoder

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of one digit."""
        return (7, 7, self.encoder.latent)

    def init(self, key: jax.Array) -> Any:
        """Parameters of both."""
        return {
            "encoder": self.encoder.init(key, jnp.zeros((1, *PIXELS))),
            "decoder": self.decoder.init(jax.random.fold_in(key, 1), jnp.zeros((1, *self.latent_shape))),
        }

    def encode(self, params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log_std of q(z | x)."""
        return self.encoder.apply(params["encoder"], x)  # type: ignore[return-value]

    def decode(self, params: Any, z: jax.Array) -> jax.Array:
        """The mean of p(x | z)."""
        return self.decoder.apply(params["decoder"], z)  # type: ignore[return-value]


def autoencoder(channels: tuple[int, ...], latent: int) -> Autoencoder:
    """Squares of 2 x 2 pixels enter as one; two levels, of 14 and 7 pixels."""
    encoder = SpatialEncoder(channels, latent, groups=8, patch=2)
    return Autoencoder(encoder, SpatialDecoder(channels[::-1], 1, groups=8, patch=2))


def autoencoder_loss(model: Autoencoder, *, pixel_std: float, beta: float) -> Loss:
    """-log p(x | z) + beta KL in nats for each pixel, with a Gaussian decoder of a fixed standard deviation."""
    log_std = jnp.asarray(np.log(pixel_std), jnp.float32)

    def loss_fn(params: Any, batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
        encode, decode = flattened(
            partial(model.encode, params), partial(model.decode, params), latent_shape=model.latent_shape
        )
        likelihood = lambda x, z: gaussian_log_likelihood(decode(z), log_std, x)  # noqa: E731
        return beta_loss(gaussian_elbo(encode, likelihood, to_unit(batch["image"]), key), beta=beta).mean() / 784

    return loss_fn


def conditional(net: UNet, params: Any) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """E[x_0 | x_t, label] as a function of all three; label NULL is no class."""

    def denoise_given(x_t: jax.Array, t: jax.Array, labels: jax.Array) -> jax.Array:
        return as_denoiser(partial(net.apply, params, labels=labels), PROCESS, prediction="v")(x_t, t)  # type: ignore

    return denoise_given


def denoising_loss(net: UNet, data_of: Callable[..., jax.Array], *, dropped: float) -> Loss:
    """Squared error of v, log(sigma/alpha) about 0 +- 1.6, a share of classes dropped; `data_of(batch, key)` is x_0."""
    weight, times = partial(error_ratio, PROCESS, prediction="v"), log_normal(PROCESS, 0.0, 1.6)

    def loss_fn(params: Any, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        key_data, key_drop, key_loss = split(keys, 3)
        labels = drop_conditions(batch["label"].reshape(-1), jnp.asarray(NULL), key_drop, rate=dropped)
        denoise_given = conditional(net, params)
        denoise = lambda x_t, t: denoise_given(x_t, t, labels)  # noqa: E731
        x_0 = data_of(batch, key_data)
        return diffusion_loss(denoise, PROCESS, x_0, key_loss, weight=weight, times=times).mean()

    return loss_fn


def pixels_of(batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Digits in [-1, 1]."""
    return to_unit(batch["image"])


def latents_of(batch: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Latents of unit variance, drawn from the posteriors."""
    return draw_latents(batch["mean"], batch["log_std"], key, scale=batch["scale"][0])


def encoded(model: Autoencoder, params: Any, digits: dict[str, np.ndarray]) -> tuple[ArraySource, float]:
    """The posterior of every digit, encoded once, and the scale."""
    encode = jax.jit(lambda images: model.encode(params, to_unit(images)))
    parts = [encode(digits["image"][i : i + 500]) for i in range(0, len(digits["image"]), 500)]
    mean, log_std = (np.concatenate([np.asarray(part[i]) for part in parts]) for i in (0, 1))
    scale = float(latent_scale(jnp.asarray(mean), jnp.asarray(log_std)))
    scales = np.full(len(mean), scale, np.float32)
    return ArraySource({"mean": mean, "log_std": log_std, "label": digits["label"], "scale": scales}), scale


# training -------------------------------------------------------------------------------------------------------


class Trainer(NamedTuple):
    """A loss, the parameters at its beginning, and the data."""

    name: str
    loss: Loss
    params: Any
    rows: Source
    batch: int
    peak: float
    ema_decay: float

    def flops(self) -> float:
        """Floating-point operations of one step."""
        optimizer = self.optimizer(1)
        state = init_state(self.params, optimizer, jax.random.key(0))
        step = jax.jit(make_step(with_example_keys(self.loss), optimizer, ema_decay=0.9))
        return flops_of(step, state, next(batches(self.rows, self.batch, seed=0)))

    def optimizer(self, steps: int) -> optax.GradientTransformation:
        """Adam with a warm-up and a cosine decay over these steps."""
        scaled = optax.scale_by_adam(b2=0.99)
        return optax.chain(optax.clip_by_global_norm(1.0), scaled, warmup_cosine(steps, peak=self.peak))

    def train(self, run: Run, steps: int, seed: int) -> TrainState:
        """Data-parallel over all local devices, from the newest checkpoint in `run`/name where there is one."""
        own = Run(run.directory / self.name)
        own.directory.mkdir(exist_ok=True)
        optimizer = self.optimizer(steps)
        step = pmap_step(self.loss, optimizer, ema_decay=ema_warmup(self.ema_decay))
        state = init_state(self.params, optimizer, jax.random.key(seed))
        return train_on_devices(own, step, state, batches(self.rows, self.batch, seed=seed), steps=steps)


def flops_of(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of one call, as XLA counts them; of a loop, one turn."""
    analysis = jax.jit(function).lower(*args).cost_analysis()
    return float(analysis["flops"])  # type: ignore[index]


def digits_source() -> Source:
    """The 4,500 digits that all are trained on."""
    return source("mnist5k", "train")
