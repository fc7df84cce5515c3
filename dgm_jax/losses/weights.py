"""Weights of the squared x_0 error, each a plain function (process, t, ...) -> weight, to be bound with `partial`.

    weight = partial(min_snr, process, gamma=5.0)
    diffusion_loss(denoise, process, x_0, key, weight=weight)

The error |D - x_0|^2 is a mean over the event, so weights that a paper applies to a sum differ by the dimension.
"""

from typing import Literal

import jax.numpy as jnp

from dgm_jax.parameterizations.posterior import posterior_of
from dgm_jax.parameterizations.predictions import error_ratio
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.typing import PerExample


def simple(process: GaussianProcess, t: PerExample) -> PerExample:
    """alpha^2/sigma^2: squared error of the noise estimate, DDPM's L_simple (arXiv:2006.11239, eq. 14)."""
    return error_ratio(process, t, "noise")


def ncsn(process: GaussianProcess, t: PerExample) -> PerExample:
    """lambda(sigma) = sigma^2 times the squared score error (Song & Ermon 2019, arXiv:1907.05600, eq. 5 and 6).

    Without the paper's factor 1/2 this is L_simple in other words: sigma^2 alpha^2/sigma^4.
    """
    return error_ratio(process, t, "noise")


def likelihood(process: GaussianProcess, t: PerExample, *, event_size: int) -> PerExample:
    """g^2/2 times the squared score error summed over the event: 1/2 g^2 alpha^2/sigma^4 dim, in nats per unit of t.

    With times uniform on (t_min, t_max), the mean loss times (t_max - t_min) is the integral of the bound. Written as
    the equal alpha (alpha sigma' - alpha' sigma)/sigma^3 dim, which is finite where alpha = 0 and g is not.
    Reference: Song, Durkan et al. 2021, arXiv:2101.09258, theorem 1.
    """
    if event_size < 1:
        raise ValueError(f"Expected event_size >= 1, as the error is summed over the event; got {event_size=}.")
    alpha, sigma = process.alpha(t), process.sigma(t)
    alpha_rate, sigma_rate = process.rates(t)
    return event_size * (alpha / sigma) * (alpha * sigma_rate - alpha_rate * sigma) / sigma**2


def edm(process: GaussianProcess, t: PerExample, *, sigma_data: float) -> PerExample:
    """(r^2 + sigma_data^2)/(r sigma_data)^2, r = sigma/alpha (Karras et al. 2022, arXiv:2206.00364, table 1).

    Written without the division by alpha, which is 0 at t = 1 for cosine and rectified.
    """
    if not sigma_data > 0:
        raise ValueError(f"Expected sigma_data > 0, as a standard deviation of data is; got {sigma_data=}.")
    return 1 / sigma_data**2 + error_ratio(process, t, "noise")


def min_snr(process: GaussianProcess, t: PerExample, *, gamma: float) -> PerExample:
    """min(alpha^2/sigma^2, gamma); the paper takes gamma = 5 (Hang et al. 2023, arXiv:2303.09556, section 3.4)."""
    if not gamma > 0:
        raise ValueError(f"Expected gamma > 0, as a weight is; got {gamma=}.")
    return jnp.minimum(error_ratio(process, t, "noise"), gamma)


def variational(
    process: GaussianProcess,
    t: PerExample,
    *,
    steps: int,
    event_size: int,
    variance: Literal["posterior", "beta"],
) -> PerExample:
    """The weight of the bound of a chain with times i/steps, in nats: DDPM's L in place of L_simple.

    With times from `levels(jnp.arange(1, steps + 1) / steps)` the mean loss is the sum of the chain's terms that depend
    on the denoiser: alpha_s^2 c^2/(2 v) times the summed x_0 error for the step from t to s = t - 1/steps (see
    `parameterizations.posterior`), and 1/(2 sigma_t^2) for the decoder at the first time, v being the reverse variance.
    What does not depend on the denoiser is left out: the prior's KL, log-variances, and for "beta" the variances' own
    KL. The decoder counts as a density, which differs from the discretised one.

    Args:
        t: on the chain's times, i/steps.
        variance: as in `transition_kl`.

    Reference: Ho et al. 2020, arXiv:2006.11239, eq. 8 and 12.
    """
    if steps < 1 or event_size < 1:
        raise ValueError(f"Expected steps >= 1 and event_size >= 1, as both are sums; got {steps=}, {event_size=}.")
    if variance not in ("posterior", "beta"):
        raise ValueError(f'Expected variance to be "posterior" or "beta", as a weight of t is; got {variance!r}.')
    i = jnp.round(t * steps)  # s from whole numbers: t - 1/steps would lose digits of the difference
    kernel = posterior_of(process, t, (i - 1) / steps)
    of_model = kernel.beta
    if variance == "posterior":  # the first step, to data without noise, has none: the decoder's is sigma(t)^2
        of_model = jnp.where(kernel.posterior > 0, kernel.posterior, kernel.beta)
    return steps * event_size * kernel.of_data**2 / (2 * of_model)
