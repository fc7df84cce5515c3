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

`guidance.likelihoods` has the log-densities themselves, which `samplers.smc` turns into exact posteriors.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dgm_jax.numerics import check_like, expand_to, known_number
from dgm_jax.parameterizations.guidance.likelihoods import Measured, Std, check_positive, posterior_variance
from dgm_jax.parameterizations.guidance.steering import Scale, check_scale, scale_like
from dgm_jax.parameterizations.operators import (
    LinearOperator,
    Observation,
    adjoint_of,
    as_mask,
    carried_back,
    check_measured,
    observation_like,
    observed_like,
    residual,
    solved,
)
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.typing import Data, Denoiser, PerExample


def inpaint(denoise: Denoiser, mask: Measured, y: Measured) -> Denoiser:
    """The estimate with y in place where the mask is true: inpainting, or imputation with a mask of each row.

    Under `Ancestral()` the known part then follows the forward process from y, as with `samplers.Replacement`, but for
    what the prior's mean 0 leaves of alpha y at the first steps.

    Args:
        mask: [*event], or [batch, *event] with one per example.
        y: as x, or one event for the whole batch; what is outside the mask is not looked at, and may be NaN.
    """
    observed = as_mask(mask)
    check_measured(y, observed)

    def known(x_t: Data, t: PerExample) -> Data:
        estimate = check_like(denoise(x_t, t), x_t, "denoiser")
        return jnp.where(observed_like(observed, estimate), observation_like(y, estimate), estimate)

    return known


def project(denoise: Denoiser, operator: LinearOperator, y: Measured) -> Denoiser:
    """D + A^+ (y - A D): the nearest estimate that agrees with a y without noise.

    Reference: Wang, Yu and Zhang 2022 (DDNM), arXiv:2212.00490, eq. 13.
    """
    adjoint_of(operator)
    check_measured(y, operator.observed)

    def nearest(x_t: Data, t: PerExample) -> Data:
        estimate = check_like(denoise(x_t, t), x_t, "denoiser")
        whitened = solved(operator, residual(operator, y, estimate), 1.0, 0.0)
        return estimate + carried_back(operator, whitened, estimate)

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
        noise_std: > 0, one number.
        scale: of the gradient of log N, one number or one per example; 1 is that density's, and eq. 16 as printed,
            with rho = 1/noise_std^2 and without the density's 1/2, is 2.

    Reference: Chung et al. 2022, arXiv:2209.14687, eq. 16.
    """
    check_positive(noise_std=noise_std)
    check_scale(scale)
    check_measured(y, getattr(operator, "observed", None))

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
    """Pseudoinverse-guided diffusion: D + sigma^2/alpha J^T A^T (r_t^2 A A^T + noise_std^2 I)^-1 (y - A D).

    J is dD/dx_t. Exact for data N(m, data_std^2 I) under every process and linear A. Elsewhere the spread of x_0 given
    x_t is not r_t^2 I, most of all between modes: widths and the weights of modes are off. The factor sigma^2/alpha is
    Bayes' rule's; the paper's sampler weighs the gradient by one of its own.

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


def _kalman(
    process: GaussianProcess, operator: LinearOperator, y: Measured, noise_std: Std, data_std: Std
) -> Callable[[Data, PerExample], Data]:
    """(estimate, t) -> A^T (r_t^2 A A^T + noise_std^2 I)^-1 (y - A estimate)."""
    least = known_number(noise_std)
    if least is not None and not 0 <= least < float("inf"):
        raise ValueError(f"Expected noise_std >= 0, one finite number, as y = A x_0 + noise_std n; got {noise_std}.")
    check_positive(data_std=data_std)
    adjoint_of(operator)
    check_measured(y, operator.observed)

    def towards(estimate: Data, t: PerExample) -> Data:
        spread, noise = posterior_variance(process, t, data_std), jnp.asarray(noise_std).astype(t.dtype) ** 2
        whitened = solved(operator, residual(operator, y, estimate), spread, noise)
        return carried_back(operator, whitened, estimate)

    return towards


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
