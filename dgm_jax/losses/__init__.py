"""What ties a network to data: per-example losses, and the weights that name the published objectives."""

from dgm_jax.losses import weights
from dgm_jax.losses.bound import decoder_log_likelihood, prior_kl, transition_kl
from dgm_jax.losses.denoising import denoising_error, diffusion_loss
from dgm_jax.losses.matching import hyvarinen, sliced_score_matching, sliced_score_matching_vr
