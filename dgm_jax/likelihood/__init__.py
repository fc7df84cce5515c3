"""Log-likelihood by the probability-flow ODE, variational bounds on it, dequantisation, bits per dimension."""

from dgm_jax.likelihood.bits import bits_per_dim, discrete_bits_per_dim
from dgm_jax.likelihood.bounds import Bound, continuous_bound, variational_bound
from dgm_jax.likelihood.dequantization import dequantize, variational_dequantize
from dgm_jax.likelihood.flow import LogLikelihood, log_likelihood, log_likelihood_with_error
