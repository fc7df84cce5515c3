"""A learned noise schedule: a log-SNR that falls strictly with t, between two ends that no parameter can move.

    log_snr(t) = max + (min - max) u(t),    u(t) = least_slope t + (1 - least_slope) sum_k w_k h_k(t)

u rises from 0 to 1: w is a softmax, and each h_k is a logistic curve of some centre and steepness, scaled to h_k(0) = 0
and h_k(1) = 1. The weights need no sign constraint, and the ends are exact to the last bit for any parameters.

Reference: Kingma et al. 2021, arXiv:2107.00630, appendix H, with this mixture in place of the paper's network.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class MonotoneSchedule(nn.Module):
    """t of any shape to log-SNR in nats, elementwise; `dgm_jax.processes.from_log_snr` makes a process of it.

    Attributes:
        log_snr_max: the value at t = 0.
        log_snr_min: the value at t = 1; VDM takes 13.3 and -5 as starting ends.
        curves: how many logistic curves are mixed. At initialisation the schedule is nearly linear.
        least_slope: the share of a straight line, so that the schedule never becomes flat.
    """

    log_snr_max: float
    log_snr_min: float
    curves: int = 16
    least_slope: float = 0.01

    @nn.compact
    def __call__(self, t: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The log-SNR at times `t` in [0, 1]."""
        if not self.log_snr_max > self.log_snr_min:
            raise ValueError(
                "Expected log_snr_max > log_snr_min, as noise grows with t; got "
                f"{self.log_snr_max} at t = 0 and {self.log_snr_min} at t = 1."
            )
        if self.curves < 1 or not 0 < self.least_slope < 1:
            raise ValueError(
                "Expected curves >= 1 and 0 < least_slope < 1, as the schedule must fall everywhere; got "
                f"{self.curves=}, {self.least_slope=}."
            )

        def spread(_) -> Array:
            return jax.scipy.special.logit((jnp.arange(self.curves, dtype=jnp.float32) + 0.5) / self.curves)

        def each(values: Array) -> Array:
            return values.astype(t.dtype).reshape((1,) * t.ndim + (self.curves,))

        zeros = nn.initializers.zeros_init()
        weight = jax.nn.softmax(each(self.param("weight", zeros, (self.curves,))))
        centre = jax.nn.sigmoid(each(self.param("centre", spread)))
        steepness = 1 + jax.nn.softplus(each(self.param("steepness", nn.initializers.constant(10.0), (self.curves,))))

        def curve(time: Array) -> Array:
            return jax.nn.sigmoid(steepness * (time - centre))

        start, end = curve(jnp.zeros_like(t)[..., None]), curve(jnp.ones_like(t)[..., None])
        rise = jnp.sum(weight * (curve(t[..., None]) - start) / (end - start), axis=-1)
        fraction = self.least_slope * t + (1 - self.least_slope) * rise
        high, low = (jnp.asarray(end, t.dtype) for end in (self.log_snr_max, self.log_snr_min))
        value = high + (low - high) * fraction
        # the derivative of the formula, and a value that rounding cannot move off the ends
        exact = jnp.where(t <= 0, high, jnp.where(t >= 1, low, jnp.clip(value, low, high)))
        return value - jax.lax.stop_gradient(value) + jax.lax.stop_gradient(exact)
