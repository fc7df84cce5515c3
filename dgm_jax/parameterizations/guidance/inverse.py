"""Inverse problems: denoisers that know a measurement y = A(x_0) + noise_std n, made from ones that do not.

By Bayes' rule E[x_0 | x_t, y] = D + sigma^2/alpha grad log p_t(y | x_t). What is not known is

    p_t(y | x_t) = E[N(y; A(x_0), noise_std^2 I) | x_t],

and each rule is a guess at the law of x_0 given x_t:

| rule | x_0 given x_t is taken for | exact for |
|---|---|---|
| `dps` | the point D | sigma = 0 |
| `pigdm` | N(D, r_t^2 I), r_t^2 = data_std^2 sigma^2/(alpha^2 data_std^2 + sigma^2) | N(m, data_std^2 I) |
| `project`, `inpaint` | no law: D's part in the range of A is set to y's | A x_0 independent of the rest |

Elsewhere `dps` trusts y far too much at large sigma, as it ignores Cov[x_0 | x_t], and draws too narrow; `pigdm` errs
by what that covariance differs from r_t^2 I, most of all in the weights of modes; under `project` and `inpaint` the
rest learns of y through x_t alone, and is too wide.

`gaussian_likelihood` and `gaussian_twist` are the log-densities themselves, which `samplers.smc` turns into exact
posteriors.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.numerics import check_like, expand_to, in_order, known_number, sum_events
from dgm_jax.parameterizations.guidance.steering import Scale, check_scale, scale_like
from dgm_jax.parameterizations.operators import (
    LinearOperator,
    Observation,
    adjoint_of,
    as_mask,
    observation_like,
    observed_like,
    residual,
    solved,
)
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.typing import Data, Denoiser, PerExample

Std = float | Float[Array, ""]
Measured = Array | np.ndarray  # y: [batch, *observation], or [*observation], one for the batch
Factor = Callable[[Data, PerExample], PerExample]  # (estimate of x_0, t) -> nats


def inpaint(denoise: Denoiser, mask: Measured, y: Measured) -> Denoiser:
    """The estimate with y in place where the mask is true: inpainting, or imputation with a mask of each row.

    Under `Ancestral()` the known part then follows the forward process from y exactly, as with `samplers.Replacement`.

    Args:
        mask: [*event], or [batch, *event] with one per example.
        y: as x; what is outside the mask is not looked at, and may be NaN.
    """
    observed = as_mask(mask)

    def known(x_t: Data, t: PerExample) -> Data:
        estimate = denoise(x_t, t)
        return jnp.where(observed_like(observed, estimate), observation_like(y, estimate), estimate)

    return known


def project(denoise: Denoiser, operator: LinearOperator, y: Measured) -> Denoiser:
    """D + A^+ (y - A D): the nearest estimate that agrees with a y without noise.

    Reference: Wang, Yu and Zhang 2022 (DDNM), arXiv:2212.00490, eq. 13.
    """
    adjoint = adjoint_of(operator)

    def nearest(x_t: Data, t: PerExample) -> Data:
        estimate = denoise(x_t, t)
        return estimate + adjoint(solved(operator, residual(operator, y, estimate), 1.0, 0.0))

    return nearest


def dps(
    denoise: Denoiser,
    process: GaussianProcess,
    operator: Callable[[Data], Observation],
    y: Measured,
    *,
    noise_std: Std,
    scale: Scale = 1.0,
) -> Denoiser:
    """Diffusion posterior sampling, p_t(y | x_t) = N(y; A(D), noise_std^2 I), by one gradient through the network.

    The true gradient of a wrong density: Cov[x_0 | x_t] is ignored, so that y is over-trusted where sigma is large, and
    what is drawn is too narrow. Where noise_std is far below the data's width it is stiff as well, and its paper's
    normalised step, `samplers.DPSStep`, is what stays stable.

    Args:
        operator: a `LinearOperator`, or any differentiable function of the batch.
        scale: of the gradient; 1 is the rule, one number or one per example.

    Reference: Chung et al. 2022, arXiv:2209.14687, eq. 16.
    """
    check_positive(noise_std=noise_std)
    check_scale(scale)

    def guided(x_t: Data, t: PerExample) -> Data:
        def towards(estimate: Data) -> Data:
            error, pull = jax.vjp(lambda x_0: residual(operator, y, x_0), estimate)
            return -pull(error)[0] / jnp.asarray(noise_std).astype(error.dtype) ** 2

        return _steered(denoise, process, towards, x_t, t, scale)

    return guided


def pigdm(
    denoise: Denoiser,
    process: GaussianProcess,
    operator: LinearOperator,
    y: Measured,
    *,
    noise_std: Std,
    data_std: Std,
) -> Denoiser:
    """Pseudoinverse-guided diffusion: D + r_t^2 J^T-weighted A^T (r_t^2 A A^T + noise_std^2 I)^-1 (y - A D).

    Exact for data N(m, data_std^2 I) under every process and linear A. Elsewhere the spread of x_0 given x_t is not
    r_t^2 I, most of all between modes: widths and the weights of modes are off.

    Args:
        noise_std: 0 is allowed, and is the paper's pseudo-inverse.
        data_std: of the data about their mean, in each coordinate.

    Reference: Song et al. 2023, "Pseudoinverse-guided diffusion models for inverse problems", ICLR, eq. 7 and 8.
    """
    towards = _kalman(process, operator, y, noise_std, data_std)

    def guided(x_t: Data, t: PerExample) -> Data:
        return _steered(denoise, process, lambda estimate: towards(estimate, t), x_t, t, 1.0)

    return guided


def pigdm_forward(
    denoise: Denoiser,
    process: GaussianProcess,
    operator: LinearOperator,
    y: Measured,
    *,
    noise_std: Std,
    data_std: Std,
) -> Denoiser:
    """`pigdm` with J for its transpose, by one forward-mode product and no backward pass.

    An exact denoiser's Jacobian is symmetric, J = alpha/sigma^2 Cov[x_0 | x_t], and the two are then equal; a trained
    network's is so up to its error. On CPUs it is several times faster with convolutions: XLA runs their input
    gradients slowly inside a solve's loop.
    """
    towards = _kalman(process, operator, y, noise_std, data_std)

    def guided(x_t: Data, t: PerExample) -> Data:
        process.refuse_pure_noise(t, "the gradient of log p(y | x_t)")
        estimate, product = jax.linearize(lambda x: check_like(denoise(x, t), x, "denoiser"), x_t)
        of_gradient = process.variance(t) / process.alpha(t)
        return estimate + expand_to(of_gradient, x_t) * product(towards(estimate, t))

    return guided


def gaussian_likelihood(
    operator: Callable[[Data], Observation], y: Measured, *, noise_std: Std
) -> Callable[[Data], PerExample]:
    """x_0 -> log N(y; A(x_0), noise_std^2 I), nats, over the measured entries of y."""
    check_positive(noise_std=noise_std)

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


def _kalman(
    process: GaussianProcess, operator: LinearOperator, y: Measured, noise_std: Std, data_std: Std
) -> Callable[[Data, PerExample], Data]:
    """(estimate, t) -> A^T (r_t^2 A A^T + noise_std^2 I)^-1 (y - A estimate)."""
    if not in_order(0, noise_std):
        raise ValueError(f"Expected noise_std >= 0, as y = A x_0 + noise_std n; got {noise_std}.")
    check_positive(data_std=data_std)
    adjoint = adjoint_of(operator)

    def towards(estimate: Data, t: PerExample) -> Data:
        spread, noise = posterior_variance(process, t, data_std), jnp.asarray(noise_std).astype(t.dtype) ** 2
        return adjoint(solved(operator, residual(operator, y, estimate), spread, noise))

    return towards


def check_positive(**stds: Std) -> None:
    """Raise `ValueError` unless these standard deviations are above 0, where they are known."""
    for name, std in stds.items():
        if not in_order(0, std) or known_number(std) == 0:
            raise ValueError(f"Expected {name} > 0, as it is divided by; got {std}.")


def _steered(
    denoise: Denoiser,
    process: GaussianProcess,
    towards: Callable[[Data], Data],
    x_t: Data,
    t: PerExample,
    scale: Scale,
) -> Data:
    """D + scale sigma^2/alpha J^T towards(D), with J = dD/dx_t, by one call of the network and one transpose."""
    process.refuse_pure_noise(t, "the gradient of log p(y | x_t)")
    estimate, pull = jax.vjp(lambda x: check_like(denoise(x, t), x, "denoiser"), x_t)
    of_gradient = process.variance(t) / process.alpha(t) * scale_like(scale, t)
    return estimate + expand_to(of_gradient, x_t) * pull(towards(estimate))[0]
