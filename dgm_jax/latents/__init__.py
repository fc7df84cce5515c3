"""Latent spaces of diffusion models, VAEs and GANs: inversion, interpolation, directions, edits, measures."""

from dgm_jax.latents.bottleneck import AsymmetricReverse
from dgm_jax.latents.directions import edit, logistic_direction, mean_direction
from dgm_jax.latents.edits import Tradeoff, realism_faithfulness, sdedit
from dgm_jax.latents.generators import Inversion, invert_generator
from dgm_jax.latents.interpolation import interpolate, linear, spherical
from dgm_jax.latents.inversion import FixedPointEuler, ddim_invert, decode, encode
from dgm_jax.latents.latent_diffusion import draw_latents, flattened, latent_scale, scaled_space
from dgm_jax.latents.measures import (
    Effects,
    Separability,
    direction_effects,
    linear_separability,
    perceptual_path_length,
    reconstruction_error,
)
from dgm_jax.latents.spaces import LatentSpace, ddim_space, diffusion_space, gan_space, noised_space, vae_space
