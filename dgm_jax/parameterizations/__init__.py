"""What a network predicts, and its conversion to a denoiser: rows, adapters, preconditioning, guidance."""

from dgm_jax.parameterizations.guidance import (
    autoguided,
    classifier_free,
    classifier_free_batched,
    classifier_guided,
    dps,
    drop_conditions,
    dynamic_threshold,
    gaussian_likelihood,
    gaussian_twist,
    inpaint,
    limited_interval,
    pigdm,
    pigdm_forward,
    project,
    projected,
    static_threshold,
)
from dgm_jax.parameterizations.posterior import Posterior, ReverseVariance, posterior_of, reverse_variance
from dgm_jax.parameterizations.preconditioning import precondition
from dgm_jax.parameterizations.predictions import (
    Prediction,
    as_denoiser,
    error_ratio,
    noise_of,
    score_of,
    target_of,
    velocity_of,
)
