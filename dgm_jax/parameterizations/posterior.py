"""The reverse kernel of one step from t to an earlier s: posterior mean, and the three variances of DDPM's kernels.

With c = 1 - SNR(t)/SNR(s), SNR = alpha^2/sigma^2, any process has

    q(x_s | x_t, x_0) = N(alpha_t sigma_s^2/(alpha_s sigma_t^2) x_t + alpha_s c x_0,  c sigma_s^2 I)
    q(x_t | x_s)      = N(alpha_t/alpha_s x_s,  c sigma_t^2 I)

(Kingma et al. 2021, arXiv:2107.00630, appendix A.2; for the chain of betas Ho et al. 2020, arXiv:2006.11239, eq. 6 and
7). Its two variances are DDPM's: "posterior" is c sigma_s^2, exact for data at one point, and "beta" is c sigma_t^2,
exact for data N(0, I) under a variance-preserving process. c is written as (1 - q)(1 + q) with q a quotient of noise
ratios, so that no two close squares are subtracted. In float32 the rounding of alpha and sigma leaves an error of up
to 2e-6, to be held against c, which is about 0.01 for a step of a thousand.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.numerics import check_like, expand_to
from dgm_jax.processes.gaussian import GaussianProcess, Times
from dgm_jax.typing import Data, PerExample

# a callable returns v in [0, 1] of the shape of x_t: 1 is "beta", 0 is "posterior"
ReverseVariance = Literal["posterior", "beta"] | Callable[[Data, PerExample], Data]


class Posterior(NamedTuple):
    """q(x_s | x_t, x_0) = N(of_state x_t + of_data x_0, posterior I), and `beta`, the variance of q(x_t | x_s)."""

    of_state: Float[Array, "..."]
    of_data: Float[Array, "..."]
    posterior: Float[Array, "..."]
    beta: Float[Array, "..."]


def posterior_of(process: GaussianProcess, t: Times, s: Times) -> Posterior:
    """The kernel from t to s < t, elementwise; at sigma(s) = 0 it is x_0 itself, with posterior variance 0."""
    alpha_t, alpha_s = process.alpha(jnp.asarray(t)), process.alpha(jnp.asarray(s))
    sigma_t, sigma_s = process.sigma(t), process.sigma(s)
    quotient = (alpha_t * sigma_s) / (alpha_s * sigma_t)
    share = (1 - quotient) * (1 + quotient)
    return Posterior(
        of_state=quotient * sigma_s / sigma_t,
        of_data=alpha_s * share,
        posterior=share * sigma_s**2,
        beta=share * sigma_t**2,
    )


def check_variance(variance: ReverseVariance) -> None:
    """Raise `ValueError` unless `variance` is one of the two names or a callable."""
    if not callable(variance) and variance not in ("posterior", "beta"):
        raise ValueError(
            f'Expected variance to be "posterior", "beta" or a callable (x_t, t) -> v in [0, 1]; got {variance!r}.'
        )


def reverse_variance(kernel: Posterior, variance: ReverseVariance, x_t: Data, t: PerExample) -> Float[Array, "..."]:
    """The variance of p(x_s | x_t), which broadcasts against x_t: "posterior", "beta", or between them.

    A callable's v gives exp(v log beta + (1 - v) log posterior), written beta (posterior/beta)^(1 - v) to be finite
    where the posterior's variance is 0.

    Reference: Ho et al. 2020, arXiv:2006.11239, section 3.2; Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15.
    """
    check_variance(variance)
    beta, posterior = expand_to(kernel.beta, x_t), expand_to(kernel.posterior, x_t)
    if not callable(variance):
        return beta if variance == "beta" else posterior
    v = check_like(variance(x_t, t), x_t, "variance")
    return beta * (posterior / beta) ** (1 - v)
