"""One interface for the latents of diffusion models, VAEs and GANs: a pair of functions, `encode` and `decode`.

| space | encode | decode | latents |
|---|---|---|---|
| `diffusion_space` | the probability-flow ODE to noise | the same back | of the data's shape, nearly N(0, I) |
| `ddim_space` | DDIM's steps inverted | DDIM | the same |
| `noised_space` | q(x_t given x_0) with noise of a key | a sampler from t | x_t itself |
| `vae_space` | the posterior's mean | the decoder's mean | the VAE's |
| `gan_space` | `generators.invert_generator` | the generator | the GAN's |

Interpolation, directions, edits and measures take any of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dgm_jax.latents.generators import invert_generator
from dgm_jax.latents.inversion import ddim_invert, decode, encode
from dgm_jax.numerics import in_order, known_number, normal_like
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.samplers import solve_ode
from dgm_jax.samplers.grid import Grid
from dgm_jax.typing import Data, Denoiser, Keys

Latents = Float[Array, " batch *latent"]


class LatentSpace(NamedTuple):
    """encode: [batch, *event] -> latents [batch, *latent]; decode: back. Each is pure, and of any batch."""

    encode: Callable[[Data], Latents]
    decode: Callable[[Latents], Data]


def diffusion_space(denoise: Denoiser, process: GaussianProcess, *, ts: Grid, **options: Any) -> LatentSpace:
    """Latents at ts[0] by the probability-flow ODE, in units of sigma(ts[0]), so that draws of N(0, I) are samples.

    Args:
        ts: falling; with ts[0] < 1 the latents still hold some of the data.
        options: of `solve_ode`, for both directions.
    """
    std = process.sigma(jnp.asarray(ts)[0])
    return LatentSpace(
        lambda x: encode(denoise, process, x, ts=ts, **options).x / std.astype(x.dtype),
        lambda z: decode(denoise, process, std.astype(z.dtype) * z, ts=ts, **options).x,
    )


def ddim_space(denoise: Denoiser, process: GaussianProcess, *, ts: Grid, corrections: int) -> LatentSpace:
    """Latents at ts[0] by DDIM's inversion, in units of sigma(ts[0]); `decode` is DDIM, and exactly undoes `encode`
    where the corrections have converged."""
    std = process.sigma(jnp.asarray(ts)[0])

    def ddim(z: Data) -> Data:
        start = std.astype(z.dtype) * z
        return solve_ode(denoise, process, start, ts=ts, solver=diffrax.Euler(), coordinates="noise").x

    return LatentSpace(
        lambda x: ddim_invert(denoise, process, x, ts=ts, corrections=corrections).x / std.astype(x.dtype), ddim
    )


def noised_space(process: GaussianProcess, sample: Callable[[Data], Data], key: Keys, *, t: float) -> LatentSpace:
    """x_t with noise of `key`, the same each time it is asked, and any sampler from t to data as the way back.

    Args:
        sample: [batch, *event] at time t -> data, such as `solve_sde` with its key and grid bound.

    Reference: Ho et al. 2020, arXiv:2006.11239, section 4.3.
    """
    if not in_order(0, t, 1) or known_number(t) == 0:
        raise ValueError(f"Expected t in (0, 1], as noise is added; got {t}.")

    def noised(x: Data) -> Data:
        return process.perturb(x, jnp.full(x.shape[0], t, x.dtype), normal_like(key, x))

    return LatentSpace(noised, sample)


def vae_space(encode: Callable[[Data], tuple[Latents, Latents]], decode: Callable[[Latents], Data]) -> LatentSpace:
    """The means of a VAE's posteriors.

    Args:
        encode: x -> (mean, log_std), as losses take it.
        decode: z -> the mean of p(x | z).
    """
    return LatentSpace(lambda x: encode(x)[0], decode)


def gan_space(
    generate: Callable[[Latents], Data],
    key: Keys,
    *,
    latent_shape: tuple[int, ...],
    optimizer: optax.GradientTransformation,
    steps: int,
    starts: int,
    prior_weight: float = 0.0,
) -> LatentSpace:
    """A generator, and its inverse by optimisation: see `generators.invert_generator`."""

    def invert(x: Data) -> Latents:
        return invert_generator(
            generate,
            x,
            key,
            latent_shape=latent_shape,
            optimizer=optimizer,
            steps=steps,
            starts=starts,
            prior_weight=prior_weight,
        ).z

    return LatentSpace(invert, generate)
