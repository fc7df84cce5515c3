"""Keeping estimates of x_0 where data are: functions of denoisers that leave a solve's state alone.

Strong guidance, or an untrained network, makes estimates beyond the data's range, and a sampler carries them on.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.numerics import check_like, expand_to, in_order, known, known_number
from dgm_jax.typing import Data, Denoiser, PerExample

Bound = float | Float[Array, ""]


def static_threshold(denoise: Denoiser, *, low: Bound, high: Bound) -> Denoiser:
    """Estimates clipped to [low, high], in data units: -1 and 1 for images of this library.

    Reference: Ho et al. 2020, arXiv:2006.11239 (their code clips); Saharia et al. 2022, arXiv:2205.11487, section 2.3.
    """
    if not in_order(low, high) or (known(low) is not None and known_number(low) == known_number(high)):
        raise ValueError(f"Expected low < high, as estimates are clipped to that interval; got {low=}, {high=}.")

    def clipped(estimate: Data) -> Data:
        return jnp.clip(estimate, jnp.asarray(low, estimate.dtype), jnp.asarray(high, estimate.dtype))

    return projected(denoise, clipped)


def dynamic_threshold(denoise: Denoiser, *, quantile: Bound, bound: Bound) -> Denoiser:
    """Each example clipped to [-s, s] and divided by s/bound, s the quantile of its absolute values, at least `bound`.

    Args:
        quantile: in [0, 1], of the event's absolute values: 0.995 is the paper's, in percent.
        bound: of the data, which lie in [-bound, bound].

    Reference: Saharia et al. 2022, arXiv:2205.11487, section 2.3.
    """
    if not in_order(0, quantile, 1):
        raise ValueError(f"Expected quantile in [0, 1], as a share of the values; got {quantile}.")
    if not in_order(0, bound) or known_number(bound) in (0, float("inf")):
        raise ValueError(f"Expected a finite bound > 0, as data lie in [-bound, bound]; got {bound}.")

    def clipped(estimate: Data) -> Data:
        sizes = jnp.abs(estimate).reshape(estimate.shape[0], -1)
        at = jnp.asarray(quantile, estimate.dtype)
        limit = jnp.asarray(bound, estimate.dtype)
        s = expand_to(jnp.maximum(jnp.quantile(sizes, at, axis=1), limit), estimate)
        return jnp.clip(estimate, -s, s) * (limit / s)

    return projected(denoise, clipped)


def projected(denoise: Denoiser, projection: Callable[[Data], Data]) -> Denoiser:
    """Estimates sent to where data can be: a simplex, a ball, a subspace; `optax.projections` has the usual ones.

    Args:
        projection: of the whole batch [batch, *event], in its shape; `jax.vmap` makes one of one example's.
    """

    def within(x_t: Data, t: PerExample) -> Data:
        estimate = denoise(x_t, t)
        return check_like(projection(estimate), estimate, "projection")

    return within
