"""Gaussian processes that turn data into noise: x_t = alpha(t) x_0 + sigma(t) noise, t in [0, 1].

Time 0 is data, time 1 is noise. A process is two functions, `alpha(t)` and `variance(t)` = sigma(t)^2; everything
else follows from them by forward-mode differentiation. It solves the forward SDE dX = f dt + g dW with

    f(x, t) = (alpha'/alpha) x        g(t)^2 = d sigma^2/dt - 2 (alpha'/alpha) sigma^2

(Song et al. 2021, arXiv:2011.13456, eq. 5; the survey's eq. 9). Squares are differentiated, never roots: under VP
sigma'(0) is infinite, while g(0)^2 = beta_min.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.numerics import check_data, check_times, expand_to, known, rounded
from dgm_jax.typing import Data, PerExample, TimeFunction

Times = Float[Array, "..."] | Float[np.ndarray, "..."] | float | int | np.floating  # elementwise


@dataclass(frozen=True)
class GaussianProcess:
    """x_t = alpha(t) x_0 + sigma(t) noise, for elementwise functions `alpha` and `variance` of t.

    Args:
        alpha: the signal's scale; alpha > 0 on [0, 1), and alpha(1) = 0 is allowed.
        variance: sigma(t)^2, rising with t; it may vanish at 0.
        inverse: closed form of `time_at`, noise ratio -> t; `None` leaves it to bisection.
    """

    alpha: TimeFunction
    variance: TimeFunction
    inverse: TimeFunction | None = None

    def sigma(self, t: Times) -> Array:
        """The noise's scale."""
        return jnp.sqrt(self.variance(_as_float(t)))

    def perturb(self, x_0: Data, t: PerExample, noise: Data) -> Data:
        """x_t for times [batch] and standard normal `noise` of the shape of `x_0`."""
        check_data(x_0, "x_0")
        check_times(t, x_0.shape[0])
        if noise.shape != x_0.shape:
            raise ValueError(f"Expected noise of the shape of x_0, {x_0.shape}; got {noise.shape}.")
        return expand_to(self.alpha(t), x_0) * x_0 + expand_to(self.sigma(t), x_0) * noise

    def rates(self, t: Times) -> tuple[Array, Array]:
        """(d alpha/dt, d sigma/dt); the second is infinite where sigma grows like a root (VP at 0)."""
        t = _as_float(t)
        _, alpha_rate = _derivative(self.alpha, t)
        variance, variance_rate = _derivative(self.variance, t)
        _, curvature = _derivative(lambda s: _derivative(self.variance, s)[1], t)
        vanishes = variance <= 0
        sigma = jnp.sqrt(jnp.where(vanishes, 1.0, variance))
        # where sigma^2 ~ c t^2 / 2, the quotient is 0/0 at t = 0 and sigma' = sqrt(c / 2)
        rises = vanishes & (curvature > 0)  # the gradient of a root at 0 is infinite, also where it is not chosen
        limit = jnp.where(variance_rate > 0, jnp.inf, jnp.where(rises, jnp.sqrt(jnp.where(rises, curvature, 1) / 2), 0))
        return alpha_rate, jnp.where(vanishes, limit, variance_rate / (2 * sigma))

    def drift(self, x: Data, t: PerExample) -> Data:
        """f(x, t) = (alpha'/alpha) x of the forward SDE."""
        return expand_to(self.log_alpha_rate(t), x) * x

    def diffusion(self, t: Times) -> Array:
        """g(t) of the forward SDE."""
        squared = self.diffusion_squared(t)
        positive = squared > 0  # the gradient of a root at 0 is infinite
        return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)

    def diffusion_squared(self, t: Times) -> Array:
        """g(t)^2 of the forward SDE, the rate at which noise is added."""
        t = _as_float(t)
        variance, variance_rate = _derivative(self.variance, t)
        return jnp.maximum(variance_rate - 2 * self.log_alpha_rate(t) * variance, 0.0)

    def log_alpha_rate(self, t: Times) -> Array:
        """d log alpha / dt: the drift's coefficient."""
        t = _as_float(t)
        self.refuse_pure_noise(t, "the SDE's drift alpha'/alpha")
        alpha, alpha_rate = rounded(_derivative(self.alpha, t))  # exp(a) b / exp(a) is cancelled in some programs
        return alpha_rate / alpha

    def noise_ratio(self, t: Times) -> Array:
        """sigma/alpha, the noise's scale in units of the data: rises with t."""
        t = _as_float(t)
        self.refuse_pure_noise(t, "the noise ratio sigma/alpha")
        return self.sigma(t) / self.alpha(t)

    def log_snr(self, t: Times) -> Array:
        """2 log(alpha/sigma), in nats; +inf where sigma = 0."""
        t = _as_float(t)
        self.refuse_pure_noise(t, "the log signal-to-noise ratio")
        return 2 * jnp.log(self.alpha(t)) - jnp.log(self.variance(t))

    def time_at(self, noise_ratio: Times) -> Array:
        """The t at which sigma/alpha equals `noise_ratio`; ratios outside the process's range give its nearer end."""
        ratio = _as_float(noise_ratio)
        values = known(ratio)
        if values is not None and not (values >= 0).all():
            raise ValueError(f"Expected noise_ratio >= 0, as sigma/alpha is; got {float(np.min(values))}.")
        ratio = jnp.minimum(ratio, 1e18)  # its square is still finite in float32
        if self.inverse is not None:
            return jnp.clip(self.inverse(ratio), 0.0, 1.0)
        return _bisect(self, ratio)

    def refuse_pure_noise(self, t: Array, what: str) -> None:
        """Raise `ValueError` where `t` is known and alpha(t) = 0: no signal is left to divide by."""
        with jax.ensure_compile_time_eval():
            alpha = known(self.alpha(t)) if known(t) is not None else None
        if alpha is not None and (alpha <= 0).any():
            raise ValueError(
                f"Expected t where alpha(t) > 0, as {what} is infinite without signal; got t up to "
                f"{float(np.max(np.asarray(t))):g} with alpha = {float(alpha.min()):g}. Start below it, for "
                'instance at t = 1 - 1e-3, or solve the ODE in coordinates "time" or "data".'
            )

    def refuse_no_noise(self, t: Times, what: str) -> None:
        """Raise `ValueError` where `t` is known and sigma(t) = 0: there is no noise to divide by."""
        with jax.ensure_compile_time_eval():
            variance = known(self.variance(_as_float(t))) if known(t) is not None else None
        if variance is not None and (variance <= 0).any():
            raise ValueError(f"Expected t where sigma(t) > 0, as {what} is infinite or 0/0 without noise; got {t=}.")


def _as_float(t: Times) -> Array:
    """An array of floating type: integers cannot be differentiated."""
    t = jnp.asarray(t)
    return t if jnp.issubdtype(t.dtype, jnp.floating) else t.astype(jnp.result_type(float))


def _derivative(function: Callable[[Array], Array], t: Array) -> tuple[Array, Array]:
    """An elementwise function and its derivative."""
    return jax.jvp(function, (t,), (jnp.ones_like(t),))


def _bisect(process: GaussianProcess, ratio: Array) -> Array:
    """Solve sigma(t) = ratio alpha(t) for t by bisection, then one Newton step, which carries the derivative."""

    def excess(t: Array, ratio: Array) -> Array:
        return process.sigma(t) - ratio * process.alpha(t)

    def halve(_: Array | int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        below = excess(middle, fixed) < 0
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    fixed = jax.lax.stop_gradient(ratio)
    steps = jnp.finfo(ratio.dtype).nmant + 3
    low, high = jax.lax.fori_loop(0, steps, halve, (jnp.zeros_like(ratio), jnp.ones_like(ratio)))
    t = jax.lax.stop_gradient((low + high) / 2)
    alpha_rate, sigma_rate = process.rates(t)
    slope = jax.lax.stop_gradient(sigma_rate - fixed * alpha_rate)
    usable = jnp.isfinite(slope) & (slope > 0)
    step = excess(t, ratio) / jnp.where(usable, slope, 1.0)
    inside = usable & (jnp.abs(jax.lax.stop_gradient(step)) < 4 * (high - low))
    return jnp.clip(t - jnp.where(inside, step, 0.0), 0.0, 1.0)
