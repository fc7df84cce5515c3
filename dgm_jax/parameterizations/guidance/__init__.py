"""Functions from denoisers to denoisers: guidance, thresholds, and what is known of x_0. They compose."""

from dgm_jax.parameterizations.guidance.inverse import dps, inpaint, pigdm, pigdm_forward, project
from dgm_jax.parameterizations.guidance.likelihoods import gaussian_likelihood, gaussian_twist
from dgm_jax.parameterizations.guidance.steering import (
    autoguided,
    classifier_free,
    classifier_free_batched,
    classifier_guided,
    drop_conditions,
    limited_interval,
)
from dgm_jax.parameterizations.guidance.thresholds import dynamic_threshold, projected, static_threshold
