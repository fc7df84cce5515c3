"""The processes that the literature uses, each a pair alpha(t), sigma(t)^2 and the inverse of sigma/alpha.

t runs from 0 (data) to 1 (noise). Variances are written without cancellation (`expm1`, products of sines), as
float32 loses 1 - alpha^2 near t = 0 otherwise.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.typing import TimeFunction


def variance_preserving(beta_min: float = 0.1, beta_max: float = 20.0) -> GaussianProcess:
    """VP, the limit of DDPM: beta(t) linear, alpha = exp(-B/2), sigma^2 = 1 - alpha^2, B the integral of beta.

    Reference: Song et al. 2021, arXiv:2011.13456, eq. 11 and 32.
    """
    log_decay, decay_time = _linear_beta(beta_min, beta_max)
    return GaussianProcess(
        alpha=lambda t: jnp.exp(-log_decay(t) / 2),
        variance=lambda t: -jnp.expm1(-log_decay(t)),
        inverse=lambda ratio: decay_time(jnp.log1p(ratio**2)),
    )


def sub_variance_preserving(beta_min: float = 0.1, beta_max: float = 20.0) -> GaussianProcess:
    """Sub-VP: VP's alpha with sigma = 1 - alpha^2, hence a variance below VP's at every t.

    Reference: Song et al. 2021, arXiv:2011.13456, eq. 12 and 28.
    """
    log_decay, decay_time = _linear_beta(beta_min, beta_max)
    return GaussianProcess(
        alpha=lambda t: jnp.exp(-log_decay(t) / 2),
        variance=lambda t: jnp.expm1(-log_decay(t)) ** 2,
        inverse=lambda ratio: decay_time(2 * jnp.arcsinh(ratio / 2)),  # sigma/alpha = 2 sinh(B/2)
    )


def _linear_beta(beta_min: float, beta_max: float):
    """The integral B(t) of beta(t) = beta_min + t (beta_max - beta_min), and its inverse t(B)."""
    if not 0 < beta_min <= beta_max < np.inf:
        raise ValueError(f"Expected 0 < beta_min <= beta_max < inf, as noise only grows; got {beta_min=}, {beta_max=}.")

    def integral(t: Array) -> Array:
        return t * (beta_min + t * (beta_max - beta_min) / 2)

    def inverse(decay: Array) -> Array:
        return 2 * decay / (beta_min + jnp.sqrt(beta_min**2 + 2 * (beta_max - beta_min) * decay))

    return integral, inverse


def variance_exploding(sigma_min: float = 0.01, sigma_max: float = 50.0) -> GaussianProcess:
    """VE, the limit of NCSN: alpha = 1, sigma geometric from sigma_min > 0 at t = 0 to sigma_max.

    Reference: Song et al. 2021, arXiv:2011.13456, eq. 9 and 31.
    """
    _check_sigmas(sigma_min, sigma_max)
    log_range = float(np.log(sigma_max / sigma_min))
    return GaussianProcess(
        alpha=jnp.ones_like,
        variance=lambda t: sigma_min**2 * jnp.exp(2 * log_range * t),
        inverse=lambda ratio: jnp.log(ratio / sigma_min) / log_range,
    )


def karras(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> GaussianProcess:
    """alpha = 1 and sigma(t)^(1/rho) linear in t from sigma_min to sigma_max: EDM's time steps as a process.

    Reference: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """
    _check_sigmas(sigma_min, sigma_max)
    if not 0.1 <= rho < np.inf:
        raise ValueError(f"Expected 0.1 <= rho < inf, as powers of sigma must be finite and rise; got {rho=}.")
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return GaussianProcess(
        alpha=jnp.ones_like,
        variance=lambda t: (low + t * (high - low)) ** (2 * rho),
        inverse=lambda ratio: (ratio ** (1 / rho) - low) / (high - low),
    )


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not 1e-18 < sigma_min < sigma_max < 1e18:
        raise ValueError(
            f"Expected 1e-18 < sigma_min < sigma_max < 1e18, as squares must be finite; got {sigma_min=}, {sigma_max=}."
        )


def cosine(offset: float = 0.008) -> GaussianProcess:
    """The cosine schedule: alpha(t) = cos(a(t)) / cos(a(0)), a(t) = pi/2 (t + offset)/(1 + offset); alpha(1) = 0.

    Reference: Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 17, in continuous time and without clipping beta.
    """
    if not 0 <= offset <= 100:
        raise ValueError(f"Expected 0 <= offset <= 100, as alpha falls visibly from t = 0 on; got {offset=}.")
    scale = float(np.pi / 2 / (1 + offset))
    start = scale * offset
    cos_start, sin_start = float(np.cos(start)), float(np.sin(start))
    return GaussianProcess(
        # cos a(t) = sin(pi/2 - a(t)), which is 0 at t = 1 to the last bit
        alpha=lambda t: jnp.sin(scale * (1 - t)) / cos_start,
        # cos(a(0))^2 - cos(a)^2 = sin(a - a(0)) sin(a + a(0))
        variance=lambda t: jnp.sin(scale * t) * jnp.sin(scale * t + 2 * start) / cos_start**2,
        inverse=lambda ratio: (jnp.arctan2(jnp.sqrt(ratio**2 + sin_start**2), cos_start) - start) / scale,
    )


def rectified() -> GaussianProcess:
    """The straight line x_t = (1 - t) x_0 + t noise of rectified flow and flow matching; alpha(1) = 0.

    Reference: Liu et al. 2022, arXiv:2209.03003, eq. 1; Lipman et al. 2022, arXiv:2210.02747, eq. 20 with t reversed.
    """
    return GaussianProcess(
        alpha=lambda t: 1 - t,
        variance=lambda t: t**2,
        inverse=lambda ratio: 1 / (1 + 1 / ratio),
    )


def from_betas(betas: Float[Array, " steps"] | Float[np.ndarray, " steps"]) -> GaussianProcess:
    """The DDPM chain q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i), exact at t = i/T.

    Between those times log alpha is linear in t, so that beta(t) = -T log(1 - beta_i) is constant on each step.

    Reference: Ho et al. 2020, arXiv:2006.11239, eq. 2 and 4.
    """
    betas = np.asarray(betas, np.float64)
    if betas.ndim != 1 or len(betas) == 0 or not ((betas > 0) & (betas < 1)).all():
        raise ValueError(f"Expected betas [steps] in (0, 1), as variances of a chain; got {betas}.")
    # slopes from float64: differences of neighbouring float32 nodes would give beta(t) to four digits only
    slopes = -np.log1p(-betas)
    starts = np.concatenate([[0.0], np.cumsum(slopes)[:-1]])

    def piece(i: Array, dtype: jnp.dtype) -> tuple[Array, Array, Array]:
        i = jnp.clip(i, 0, len(betas) - 1)
        return i.astype(dtype), jnp.asarray(starts, dtype)[i], jnp.asarray(slopes, dtype)[i]

    def log_decay(t: Array) -> Array:
        position = jnp.asarray(t) * len(betas)
        i, start, slope = piece(jnp.floor(position).astype(int), position.dtype)
        return start + (position - i) * slope

    def decay_time(decay: Array) -> Array:
        i, start, slope = piece(jnp.searchsorted(jnp.asarray(starts, decay.dtype), decay) - 1, decay.dtype)
        return (i + (decay - start) / slope) / len(betas)

    return GaussianProcess(
        alpha=lambda t: jnp.exp(-log_decay(t) / 2),
        variance=lambda t: -jnp.expm1(-log_decay(t)),
        inverse=lambda ratio: decay_time(jnp.log1p(ratio**2)),
    )


def from_log_snr(log_snr: TimeFunction) -> GaussianProcess:
    """The variance-preserving process with a given log-SNR: alpha^2 = sigmoid(log_snr(t)), sigma^2 = 1 - alpha^2.

    Args:
        log_snr: 2 log(alpha/sigma) in nats, elementwise, falling with t and finite: a formula, or a learned
            `dgm_jax.networks.MonotoneSchedule` with its parameters bound. It is differentiated in t.

    Reference: Kingma et al. 2021, arXiv:2107.00630, eq. 3 and 4.
    """
    return GaussianProcess(
        alpha=lambda t: jnp.exp(jax.nn.log_sigmoid(log_snr(t)) / 2),
        variance=lambda t: jax.nn.sigmoid(-log_snr(t)),
    )
