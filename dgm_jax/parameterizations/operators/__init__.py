"""Linear measurements of whole batches, as operators: `mask`, `blur`, `downsample`, `grayscale`, `matrix`, `linear`."""

from dgm_jax.parameterizations.operators.linear_operator import (
    LinearOperator,
    Observation,
    adjoint_of,
    carried_back,
    check_measured,
    observation_like,
    observed_like,
    pseudo_inverse,
    residual,
    solved,
)
from dgm_jax.parameterizations.operators.measurements import (
    as_mask,
    blur,
    downsample,
    grayscale,
    linear,
    mask,
    matrix,
)
