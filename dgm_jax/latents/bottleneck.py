"""Edits in a U-Net's bottleneck, the h-space of a diffusion model.

A shift of the bottleneck changes the estimate D of x_0 into D'. Put into both terms of a DDIM step it nearly cancels,
so the step takes D' for the data and keeps the noise estimate of D (Asyrp):

    z_s = z_t + (u_s - u_t) D' + u_t (D' - D),        z = x/sigma, u = alpha/sigma

that is x_s = alpha_s D' + sigma_s (x_t - alpha_t D)/sigma_t. Where D' = D it is DDIM's step, to a rounding.

Reference: Kwon et al. 2022, arXiv:2210.10960, eq. 7.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp

from dgm_jax.numerics import check_like, rounded
from dgm_jax.samplers.coordinates import CoordinateName
from dgm_jax.samplers.reverse import Kernel
from dgm_jax.typing import Denoiser


class AsymmetricReverse(Kernel):
    """DDIM with the data of an `edited` denoiser and the noise of the solve's own; for `solve_sde`, no noise is added.

    Attributes:
        edited: such as the same network with a shift in its bottleneck.
    """

    edited: Denoiser = eqx.field(static=True)

    coordinates: ClassVar[CoordinateName] = "data"
    from_pure_noise: ClassVar[bool] = True
    evaluations_per_step: ClassVar[int] = 2

    def move(self, reverse, s_0, s_1, state, noise, memory):
        """One asymmetric step."""
        estimate, _ = reverse.estimates(s_0, state)
        x_t, t = state / reverse.scale(s_0), rounded(reverse.time(s_0))
        edited = check_like(self.edited(x_t, jnp.full(x_t.shape[0], t)), x_t, "edited denoiser")
        step, u = rounded((s_1 - s_0, s_0))
        return state + step * edited + u * (edited - estimate), None
