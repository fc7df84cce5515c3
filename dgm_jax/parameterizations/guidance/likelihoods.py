"""Log-densities of a measurement y = A(x_0) + noise_std n: of x_0 itself, and of its estimate at a time t.

`gaussian_likelihood` is exact, `gaussian_twist` the guess that `pigdm` follows the gradient of; `samplers.smc` takes
both, and turns them into exact posteriors.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.numerics import known_number, sum_events
from dgm_jax.parameterizations.operators import (
    LinearOperator,
    Observation,
    check_measured,
    observed_like,
    residual,
    solved,
)
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.typing import Data, PerExample

Std = float | Float[Array, ""]
Measured = Array | np.ndarray  # y: [batch, *observation], or [*observation], one for the batch
Factor = Callable[[Data, PerExample], PerExample]  # (estimate of x_0, t) -> nats


def gaussian_likelihood(
    operator: Callable[[Data], Observation], y: Measured, *, noise_std: Std
) -> Callable[[Data], PerExample]:
    """x_0 -> log N(y; A(x_0), noise_std^2 I), nats, over the measured entries of y."""
    check_positive(noise_std=noise_std)
    check_measured(y, getattr(operator, "observed", None))

    def log_likelihood(x_0: Data) -> PerExample:
        error = residual(operator, y, x_0)
        std = jnp.asarray(noise_std).astype(error.dtype)
        observed = getattr(operator, "observed", None)
        ones = jnp.ones_like(error) if observed is None else observed_like(observed, error).astype(error.dtype)
        return -sum_events(error**2) / (2 * std**2) - sum_events(ones) * jnp.log(jnp.sqrt(2 * jnp.pi) * std)

    return log_likelihood


def gaussian_twist(
    process: GaussianProcess, operator: LinearOperator, y: Measured, *, noise_std: Std, data_std: Std
) -> Factor:
    """(estimate, t) -> log N(y; A estimate, r_t^2 A A^T + noise_std^2 I) up to a function of t: `pigdm`'s guess."""
    check_positive(noise_std=noise_std, data_std=data_std)
    check_measured(y, getattr(operator, "observed", None))

    def log_density(estimate: Data, t: PerExample) -> PerExample:
        error = residual(operator, y, estimate)
        noise = jnp.asarray(noise_std).astype(t.dtype) ** 2
        whitened = solved(operator, error, posterior_variance(process, t, data_std), noise)
        return -sum_events(error * whitened) / 2

    return log_density


def posterior_variance(process: GaussianProcess, t: PerExample, data_std: Std) -> PerExample:
    """r_t^2 = data_std^2 sigma^2/(alpha^2 data_std^2 + sigma^2): of x_0 given x_t, for data N(m, data_std^2 I)."""
    data, noise = jnp.asarray(data_std).astype(t.dtype) ** 2, process.variance(t)
    return data * (noise / (process.alpha(t) ** 2 * data + noise))


def check_positive(**stds: Std) -> None:
    """Raise `ValueError` unless each of these, where it is known, is one finite number above 0."""
    for name, std in stds.items():
        number = known_number(std)
        if number is not None and not 0 < number < float("inf"):
            raise ValueError(f"Expected {name} > 0, one finite number, as it is divided by; got {std}.")
