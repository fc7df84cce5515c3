"""The terms of DDPM's variational bound, each per example in nats, summed over the event, to be minimised.

For a chain of times 1 = t_T > ... > t_1 and a model that draws x_{t_T} from N(0, sigma^2 I), steps by p(x_s | x_t) and
ends with a decoder p(x_0 | x_{t_1}),

    -log p(x_0) <= KL(q(x_{t_T} | x_0) | prior) + sum E KL(q(x_s | x_t, x_0) | p(x_s | x_t)) - E log p(x_0 | x_{t_1})
                   L_T, `prior_kl`                L_{t-1}, `transition_kl`                     L_0, the decoder

(Ho et al. 2020, arXiv:2006.11239, eq. 5), with expectations over x_t given x_0. Where the paper has its chain of
betas, these have any alpha and sigma and any s < t. Times and noise are arguments, so that tests can pin them;
`dgm_jax.likelihood.variational_bound` draws them and adds the terms.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.numerics import check_data, check_like, check_times, expand_to, is_count, known, sum_events
from dgm_jax.parameterizations.posterior import ReverseVariance, check_variance, posterior_of, reverse_variance
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.typing import Data, Denoiser, PerExample


def prior_kl(process: GaussianProcess, x_0: Data, *, t: float | Float[Array, ""] = 1.0) -> PerExample:
    """KL(q(x_t | x_0) | N(0, sigma(t)^2 I)) = alpha^2 |x_0|^2/(2 sigma^2): L_T, with the prior that samplers draw from.

    DDPM's own prior is N(0, I), whose variance at t = 1 is sigma^2 + alpha^2.
    """
    check_data(x_0, "x_0")
    ratio = process.alpha(jnp.asarray(t, x_0.dtype)) / process.sigma(jnp.asarray(t, x_0.dtype))
    return sum_events(x_0**2) * ratio**2 / 2


def transition_kl(
    denoise: Denoiser,
    process: GaussianProcess,
    x_0: Data,
    t: PerExample,
    s: PerExample,
    noise: Data,
    *,
    variance: ReverseVariance,
) -> PerExample:
    """KL(q(x_s | x_t, x_0) | p(x_s | x_t)) at x_t = alpha x_0 + sigma noise: one L_{t-1}.

    The model's mean is the posterior's with the denoiser's estimate for x_0 (Ho et al. 2020, eq. 7 and 8).

    Args:
        s: earlier times, with 0 < sigma(s); the step to noiseless data is `decoder_log_likelihood`'s.
        variance: "posterior", where the term is (SNR(s) - SNR(t))/2 |x_0 - D|^2; "beta"; or a callable
            (x_t, t) -> v in [0, 1] of the shape of x_t, for exp(v log beta + (1 - v) log posterior).

    Reference: Ho et al. 2020, arXiv:2006.11239, eq. 5; Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15.
    """
    check_variance(variance)
    check_times(s, x_0.shape[0], "s")
    process.refuse_no_noise(s, "KL(q(x_s | x_t, x_0) | p(x_s | x_t))")
    latest, earliest = known(s), known(t)
    if latest is not None and earliest is not None and not (latest < earliest).all():
        raise ValueError(f"Expected s < t, as the reverse chain runs from noise to data; got s = {s}, t = {t}.")
    x_t = process.perturb(x_0, t, noise)
    error = check_like(denoise(x_t, t), x_0, "denoiser") - x_0
    kernel = posterior_of(process, t, s)
    of_model = reverse_variance(kernel, variance, x_t, t)
    excess = expand_to(kernel.posterior, x_0) / of_model - 1
    spread = excess - jnp.log1p(excess)  # exactly 0 where the variances are the same
    return sum_events(spread + expand_to(kernel.of_data, x_0) ** 2 * error**2 / of_model) / 2


def decoder_log_likelihood(
    denoise: Denoiser,
    process: GaussianProcess,
    x_0: Data,
    t: PerExample,
    noise: Data,
    *,
    levels: int | None,
    variance: Data | PerExample,
) -> PerExample:
    """log p(x_0 | x_t), x_t = alpha x_0 + sigma noise, of a Gaussian around the denoiser's estimate: -L_0.

    Args:
        levels: None is the Gaussian's log-density. A number is the log-probability that it gives to the bin around
            x_0, whose centres are (2 i - (levels - 1))/(levels - 1), as `dgm_jax.data.to_unit` places them; the
            outermost bins reach to infinity.
        variance: of the Gaussian, in squared data units: one per example, or one per coordinate. DDPM's is
            sigma(t)^2, which is beta_1 at the chain's first time.

    Reference: Ho et al. 2020, arXiv:2006.11239, eq. 13.
    """
    check_levels(x_0, levels)
    estimate = check_like(denoise(process.perturb(x_0, t, noise), t), x_0, "denoiser")
    std = jnp.sqrt(expand_to(variance, x_0))
    if levels is None:
        return sum_events(jax.scipy.stats.norm.logpdf(x_0, estimate, std))
    half = 1 / (levels - 1)
    low, high = (x_0 - half - estimate) / std, (x_0 + half - estimate) / std
    # in the right tail both probabilities are 1 to rounding: mirror it to the left one
    mirrored = low + high > 0
    left, right = jnp.where(mirrored, -high, low), jnp.where(mirrored, -low, high)
    log_left, log_right = jax.scipy.special.log_ndtr(left), jax.scipy.special.log_ndtr(right)
    share = jnp.maximum(-jnp.expm1(log_left - log_right), jnp.finfo(x_0.dtype).tiny)
    inside = log_right + jnp.log(share)
    below = jnp.where(x_0 < half - 1, jax.scipy.special.log_ndtr(high), inside)
    return sum_events(jnp.where(x_0 > 1 - half, jax.scipy.special.log_ndtr(-low), below))


def check_levels(x_0: Data, levels: int | None, name: str = "x_0") -> None:
    """Raise `ValueError` unless the data, where they are known, lie at the centres of `levels` in [-1, 1]."""
    check_data(x_0, name)
    if levels is None:
        return
    if not is_count(levels, 2):
        raise ValueError(f"Expected a whole number levels > 1, as something must be coded; got {levels=}.")
    values = known(x_0)
    if values is None:
        return
    position = (np.asarray(values, np.float64) + 1) * (levels - 1) / 2
    nearest = np.clip(np.round(position), 0, levels - 1)
    if not (np.abs(position - nearest) < 1e-2).all():
        raise ValueError(
            f"Expected {name} at the centres of {levels} levels in [-1, 1], as dgm_jax.data.to_unit places them; got "
            f"values from {values.min()} to {values.max()}, up to {np.abs(position - nearest).max():.2g} levels off."
        )
