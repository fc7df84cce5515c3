"""What `train_images` looks at now and then: drawn images, the loss and the bits/dim of images held out.

Every process computes all of it on its own devices, so that processes need not meet; keys are fixed, so that numbers
of different steps differ by the network alone.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.data import from_unit
from dgm_jax.data.records import read
from dgm_jax.likelihood import bits_per_dim, dequantize, log_likelihood
from dgm_jax.numerics import split
from dgm_jax.processes import karras_grid, log_snr_grid
from dgm_jax.samplers import final_denoising, sample_ode
from dgm_jax.training.parallel import pmap_sampler
from experiments._image_data import ImageRecords
from experiments._image_models import ImageModel


def drawer(model: ImageModel, *, steps: int, scale: float) -> Callable[..., jax.Array]:
    """(params, keys, labels) -> images, by Heun on the probability-flow ODE, denoised at the end."""
    ts = karras_grid(model.process, steps, t_min=model.t_min)

    def sample(params: Any, keys: jax.Array, labels: jax.Array) -> jax.Array:
        denoise = model.guided(params, labels if model.classes else None, scale)
        shape = (keys.shape[0], *model.shape)
        drawn = sample_ode(denoise, model.process, keys, shape, ts=ts, coordinates="noise")
        return final_denoising(denoise, drawn, model.t_min).x

    return sample


def coder(model: ImageModel, *, steps: int) -> Callable[..., jax.Array]:
    """(params, keys, batch) -> bits/dim of each image, by the ODE with Hutchinson's trace and uniform noise."""
    ts = log_snr_grid(model.process, steps, t_min=max(model.t_min, 1e-5), t_max=1.0)[::-1]

    def code(params: Any, keys: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        key_levels, key_probes = split(keys)
        x_0 = dequantize(batch["image"], key_levels, levels=model.levels)
        denoise = model.denoiser(params, batch.get("label"))
        nats = log_likelihood(denoise, model.process, x_0, key_probes, ts=ts, probes=1, solver=diffrax.Bosh3())
        return bits_per_dim(nats, x_0[0].size, levels=model.levels)

    return code


class Evaluation:
    """The programs, compiled once, and the images held out.

    Args:
        images: how many of the held-out ones, and how many are drawn; a multiple of the local devices.
        coded: of how many of them bits/dim are measured.
    """

    def __init__(self, model: ImageModel, held_out: ImageRecords, *, images: int, coded: int, steps: int, seed: int):
        devices = jax.local_device_count()
        images, coded = (max(n // devices, 1) * devices for n in (min(images, len(held_out)), coded))
        self._model, self._coded = model, min(coded, images)
        self._batch = read(held_out, np.linspace(0, len(held_out) - 1, images).astype(int).tolist())
        self._keys = jax.random.split(jax.random.key(seed), images)
        still = replace(model, network=model.network.clone(dropout=0.0))  # type: ignore[call-arg]
        loss_fn = still.loss(dropped=0.0, flip=False)
        # one example at a time, as the loss is a mean
        each = jax.vmap(lambda params, row, key: loss_fn(params, row, key), in_axes=(None, 0, 0))

        def losses(params: Any, keys: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
            rows = jax.tree.map(lambda leaf: leaf[:, None], batch)
            return each(params, rows, keys[:, None])

        self._losses, self._code = pmap_sampler(losses), pmap_sampler(coder(model, steps=steps))
        self._draw = pmap_sampler(drawer(model, steps=steps, scale=1.0))

    def numbers(self, params: Any) -> dict[str, float]:
        """Means over the images held out, each with its standard error where there are several."""
        losses = np.asarray(self._losses(params, self._keys, self._batch))
        head = jax.tree.map(lambda leaf: leaf[: self._coded], self._batch)
        bits = np.asarray(self._code(params, self._keys[: self._coded], head))
        return {**_mean("held_out_loss", losses), **_mean("bits_per_dim", bits)}

    def images(self, params: Any) -> np.ndarray:
        """Images drawn, in uint8 of 256 values; classes take turns."""
        labels = np.arange(len(self._keys), dtype=np.int32) % max(self._model.classes, 1)
        return np.asarray(from_unit(jnp.asarray(self._draw(params, self._keys, labels))))


def _mean(name: str, values: np.ndarray) -> dict[str, float]:
    if len(values) == 1:
        return {name: float(values[0])}
    return {name: float(values.mean()), f"{name}_standard_error": float(values.std(ddof=1) / len(values) ** 0.5)}
