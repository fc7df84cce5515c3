"""Invertible layers of a flow, (z, context) -> (z', log_det), as pure functions of the networks that steer them.

log_det is log |det dz'/dz|, one per example. z is [batch, latent]; context is whatever `flow_posterior` hands over, for
the whole batch. Networks come with their parameters closed over.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from dgm_jax.losses.draws import Latents
from dgm_jax.numerics import check_like
from dgm_jax.typing import PerExample

Layer = Callable[[Latents, Any], tuple[Latents, PerExample]]
Affine = Callable[[Latents, Any], tuple[Latents, Latents]]  # (z, context) -> (shift, log_scale)


def planar(parameters: Callable[[Any], tuple[Latents, Latents, PerExample]]) -> Layer:
    """z + u tanh(w.z + b), with (u, w, b) = parameters(context), each per example.

    u is moved along w so that w.u > -1, which makes the layer invertible.

    Reference: Rezende & Mohamed 2015, arXiv:1505.05770, eq. 10 to 12 and appendix A.1.
    """

    def layer(z: Latents, context: Any) -> tuple[Latents, PerExample]:
        u, w, b = parameters(context)
        check_like(u, z, "planar layer's u")
        check_like(w, z, "planar layer's w")
        check_like(b, z[:, 0], "planar layer's b")
        along = jnp.sum(w * u, axis=1)
        square = jnp.sum(w**2, axis=1)
        allowed = jax.nn.softplus(along) - 1
        # w = 0 makes the layer a translation, whatever u is
        move = (allowed - along) / jnp.where(square > 0, square, 1)
        bend = jnp.tanh(jnp.sum(w * z, axis=1) + b)
        slope = (1 - bend**2) * jnp.where(square > 0, allowed, 0)
        return z + (u + move[:, None] * w) * bend[:, None], jnp.log1p(slope)

    return layer


def affine_coupling(network: Affine, *, kept: Sequence[bool]) -> Layer:
    """z exp(log_scale) + shift where not kept; both see what is kept, which stays as it is.

    Args:
        network: (z with zeros where not kept, context) -> (shift, log_scale), both [batch, latent]; their kept
            coordinates are not used.
        kept: for each latent, whether it stays.

    Reference: Dinh et al. 2017, arXiv:1605.08803, eq. 7 to 9.
    """
    mask = _mask(kept)

    def layer(z: Latents, context: Any) -> tuple[Latents, PerExample]:
        shift, log_scale = _coupled(network, mask, z, context)
        return z * jnp.exp(log_scale) + shift, log_scale.sum(1)

    return layer


def affine_coupling_inverse(network: Affine, *, kept: Sequence[bool]) -> Layer:
    """The inverse of `affine_coupling` with the same network: (z - shift) exp(-log_scale) where not kept."""
    mask = _mask(kept)

    def layer(z: Latents, context: Any) -> tuple[Latents, PerExample]:
        shift, log_scale = _coupled(network, mask, z, context)
        return (z - shift) * jnp.exp(-log_scale), -log_scale.sum(1)

    return layer


def inverse_autoregressive(network: Affine) -> Layer:
    """gate z + (1 - gate) shift, with gate = sigmoid(s) and (shift, s) = network(z, context).

    One call for all latents. Between such layers the order of the latents is best reversed (z[:, ::-1], log_det 0).

    Args:
        network: autoregressive: its i-th outputs depend on z_0 .. z_(i - 1) alone, as a masked network's do. It is not
            checked, and log_det is wrong where it is not so.

    Reference: Kingma et al. 2016, arXiv:1606.04934, algorithm 1.
    """

    def layer(z: Latents, context: Any) -> tuple[Latents, PerExample]:
        shift, s = (check_like(part, z, "autoregressive network") for part in network(z, context))
        gate = jax.nn.sigmoid(s)
        return gate * z + (1 - gate) * shift, jax.nn.log_sigmoid(s).sum(1)

    return layer


def _coupled(network: Affine, mask: Bool[np.ndarray, " latent"], z: Latents, context: Any) -> tuple[Latents, Latents]:
    """Shift and log_scale, zero where kept."""
    if z.shape[1:] != mask.shape:
        raise ValueError(f"Expected kept to name each of {z.shape[1]} latents, as all stay or move; got {mask.shape}.")
    inside = jnp.where(mask[None], z, 0)
    shift, log_scale = (check_like(part, z, "coupling network") for part in network(inside, context))
    return jnp.where(mask[None], 0, shift), jnp.where(mask[None], 0, log_scale)


def _mask(kept: Sequence[bool]) -> Bool[np.ndarray, " latent"]:
    mask = np.asarray(kept)
    if mask.ndim != 1 or mask.dtype != bool or mask.all() or not mask.any():
        raise ValueError(f"Expected kept to hold both True and False, as one part steers the other; got {kept}.")
    return mask
