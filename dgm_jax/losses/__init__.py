"""What ties a network to data: per-example losses, and the weights that name the published objectives."""

from dgm_jax.losses import weights
from dgm_jax.losses.denoising import denoising_error, diffusion_loss
