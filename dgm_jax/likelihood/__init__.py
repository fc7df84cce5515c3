"""Log-likelihood by the probability-flow ODE, variational bounds on it, sampling estimates, dequantisation, bits."""

from dgm_jax.likelihood.annealed import (
    AnnealedEstimate,
    annealed_log_likelihood,
    annealed_step_sizes,
    linear_betas,
    reverse_annealed_log_likelihood,
    sigmoid_betas,
)
from dgm_jax.likelihood.bits import bits_per_dim, discrete_bits_per_dim
from dgm_jax.likelihood.bounds import Bound, continuous_bound, variational_bound
from dgm_jax.likelihood.dequantization import dequantize, variational_dequantize
from dgm_jax.likelihood.flow import LogLikelihood, log_likelihood, log_likelihood_with_error
from dgm_jax.likelihood.importance import MarginalEstimate, importance_log_likelihood
from dgm_jax.likelihood.intervals import LikelihoodSummary, MeanInterval, summarize_likelihood
