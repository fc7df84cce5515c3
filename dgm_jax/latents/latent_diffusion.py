"""Latent diffusion: a diffusion model of an autoencoder's latents, in three small pieces.

    1. an autoencoder, by `gaussian_elbo` and `beta_loss`; `flattened` gives those the vectors that they take
    2. z = scale (mean + std noise), by `draw_latents`, with the scale that gives z unit variance: `latent_scale`
    3. any diffusion of z, sampled by any sampler; decode(z / scale) are the data

Reference: Rombach et al., "High-resolution image synthesis with latent diffusion models", 2022, arXiv:2112.10752,
section 3.2 and appendix G.
"""

from collections.abc import Callable
from math import prod

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.latents.spaces import LatentSpace
from dgm_jax.numerics import check_data, check_like, in_order, is_count, known_number, normal_like
from dgm_jax.typing import Data, Keys, Scalar

Encoder = Callable[[Data], tuple[Data, Data]]  # x -> (mean, log_std), [batch, *latent] each
Decoder = Callable[[Data], Data]  # z [batch, *latent] -> x
Vectors = Float[Array, "batch size"]


def flattened(encode: Encoder, decode: Decoder, *, latent_shape: tuple[int, ...]) -> tuple[Encoder, Decoder]:
    """The pair with latents [batch, size] instead of [batch, *latent_shape], as bounds and their divergences take them.

    Args:
        latent_shape: of one example, such as (rows, columns, channels).
    """
    if not latent_shape or not all(map(is_count, latent_shape)):
        raise ValueError(f"Expected whole sizes >= 1, as latents have them; got {latent_shape=}.")
    size = prod(latent_shape)

    def encode_flat(x: Data) -> tuple[Vectors, Vectors]:
        mean, log_std = encode(x)
        for part in (mean, log_std):
            if part.shape != (x.shape[0], *latent_shape):
                raise ValueError(
                    f"Expected the encoder's mean and log_std of shape {(x.shape[0], *latent_shape)}, as latent_shape "
                    f"says; got {mean.shape} and {log_std.shape}."
                )
        return mean.reshape(x.shape[0], size), log_std.reshape(x.shape[0], size)

    return encode_flat, lambda z: decode(z.reshape(z.shape[0], *latent_shape))


def latent_scale(mean: Data, log_std: Data) -> Scalar:
    """1 / the standard deviation of all latents of these examples, over examples, positions and channels alike.

    With the posteriors' own variance, which draws have on top of the means': Var(z) = Var(mean) + E[std^2].

    Reference: Rombach et al. 2022, arXiv:2112.10752, appendix G, from many examples instead of one batch.
    """
    check_data(mean, "mean")
    check_data(log_std, "log_std")
    check_like(log_std, mean, "encoder's log_std")
    variance = jnp.var(mean) + jnp.mean(jnp.exp(2 * log_std))
    if known_number(variance) == 0:
        raise ValueError("Expected latents that vary, as they are given unit variance; got variance 0.")
    return 1 / jnp.sqrt(variance)


def draw_latents(mean: Data, log_std: Data, key: Keys, *, scale: float | Scalar) -> Data:
    """z = scale (mean + std noise): what the diffusion model is trained on, drawn anew at each visit."""
    check_like(log_std, mean, "encoder's log_std")
    return _checked(scale, mean) * (mean + jnp.exp(log_std) * normal_like(key, mean))


def scaled_space(encode: Encoder, decode: Decoder, *, scale: float | Scalar) -> LatentSpace:
    """Data to scale mean, and scaled latents, such as a sampler draws, to data: `LatentSpace` as all of `latents`."""
    return LatentSpace(
        lambda x: (lambda mean: _checked(scale, mean) * mean)(encode(x)[0]), lambda z: decode(z / _checked(scale, z))
    )


def _checked(scale: float | Scalar, z: Data) -> Array:
    """The scale in the latents' dtype, one for all of them."""
    if not in_order(0, scale) or known_number(scale) in (0, float("inf")):
        raise ValueError(f"Expected one finite scale > 0, as latents are divided by it; got {scale}.")
    return jnp.asarray(scale, z.dtype)
