"""How data becomes noise: Gaussian processes, sampling grids and training-time laws."""

from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.processes.grids import karras_grid, log_snr_grid, quadratic, trailing, uniform
from dgm_jax.processes.schedules import (
    cosine,
    from_betas,
    from_log_snr,
    karras,
    rectified,
    sub_variance_preserving,
    variance_exploding,
    variance_preserving,
)
from dgm_jax.processes.times import levels, log_normal, log_snr_uniform, stratified
