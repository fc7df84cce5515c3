"""Denoising losses for processes x_t = alpha(t) x_0 + sigma(t) noise.

Each returns one value per example, in squared data units, the mean over the event; the caller masks, weights and
averages. Every published denoising objective is this one error under another weight (see `weights`).
"""

from collections.abc import Callable

import jax.numpy as jnp

from dgm_jax.numerics import check_data, check_like, normal_like, split
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.processes.times import stratified
from dgm_jax.typing import Data, Denoiser, Keys, PerExample, TimeLaw


def denoising_error(denoise: Denoiser, process: GaussianProcess, x_0: Data, t: PerExample, noise: Data) -> PerExample:
    """|D(x_t, t) - x_0|^2 / dim at given times and noise: no randomness, so that tests can pin it."""
    error = check_like(denoise(process.perturb(x_0, t, noise), t), x_0, "denoiser") - x_0
    return jnp.mean(error**2, axis=tuple(range(1, x_0.ndim)))


def diffusion_loss(
    denoise: Denoiser,
    process: GaussianProcess,
    x_0: Data,
    key: Keys,
    *,
    weight: Callable[[PerExample], PerExample],
    times: TimeLaw = stratified(1e-3),
) -> PerExample:
    """Weighted denoising error at random times and noise.

    Args:
        key: one key stratifies the times over the batch; one key per example draws them independently.
        weight: t -> weight of the squared x_0 error; no default, as it is a scientific choice.

    Reference: Song et al. 2021, arXiv:2011.13456, eq. 7.
    """
    check_data(x_0, "x_0")
    key_times, key_noise = split(key)
    t = times(key_times, x_0.shape[0]).astype(x_0.dtype)
    noise = normal_like(key_noise, x_0)
    weights = weight(t)
    if weights.shape not in ((), t.shape):
        raise ValueError(f"Expected weight(t) of the shape of t, {t.shape}, one per example; got {weights.shape}.")
    return weights * denoising_error(denoise, process, x_0, t, noise)
