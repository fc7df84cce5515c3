"""What ties a network to data: per-example losses, and the weights that name the published objectives."""

from dgm_jax.losses import flows, priors, quantization, weights
from dgm_jax.losses.adversarial import (
    AdversarialLoss,
    hinge,
    kl,
    least_squares,
    minimax,
    non_saturating,
    relativistic,
    reverse_kl,
    wasserstein,
)
from dgm_jax.losses.bound import decoder_log_likelihood, prior_kl, transition_kl
from dgm_jax.losses.decoders import (
    bernoulli_log_likelihood,
    categorical_log_likelihood,
    discretized_logistic_log_likelihood,
    gaussian_log_likelihood,
)
from dgm_jax.losses.denoising import denoising_error, diffusion_loss
from dgm_jax.losses.divergences import (
    full_covariance_kl,
    gaussian_kl,
    gaussian_kl_between,
    gaussian_kl_per_latent,
    monte_carlo_kl,
)
from dgm_jax.losses.matching import hyvarinen, sliced_score_matching, sliced_score_matching_vr
from dgm_jax.losses.penalties import (
    gradient_penalty,
    one_sided_penalty,
    r1_penalty,
    r2_penalty,
    zero_centred_penalty,
)
from dgm_jax.losses.posteriors import (
    diagonal_log_density,
    diagonal_posterior,
    flow_log_density,
    flow_posterior,
    full_covariance_log_density,
    full_covariance_posterior,
)
from dgm_jax.losses.variational import (
    Elbo,
    beta_loss,
    capacity_loss,
    dreg_bound,
    elbo,
    free_bits,
    gaussian_elbo,
    iwae_bound,
    log_mean_exp,
)
