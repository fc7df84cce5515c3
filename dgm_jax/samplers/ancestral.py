"""Ancestral sampling: the kernel q(x_s | x_t, x_0 = D) of the forward process with the denoiser's estimate put in.

In coordinates "data", z = x/sigma and u = alpha/sigma, with q = u_t/u_s the kernel is one line:

    z_s = u_s D + sqrt(1 - c^2) (z_t - u_t D) + c noise,        c = eta sqrt(1 - q^2)

eta = 1 is DDPM with the posterior's variance (Ho et al. 2020, arXiv:2006.11239, eq. 6 and 7) and SDE-DPM-Solver++(1),
eta = 0 is DDIM, and what lies between is DDIM with eta (Song et al. 2020, arXiv:2010.02502, eq. 12 and 16). It holds
for every process and from alpha = 0 on. All have weak order 1.
"""

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.numerics import check_like, in_order, known_number, rounded
from dgm_jax.samplers.coordinates import CoordinateName
from dgm_jax.samplers.multistep import extrapolated
from dgm_jax.samplers.reverse import Kernel, Reverse
from dgm_jax.typing import Data, Network

Eta = float | Float[Array, ""]


class Ancestral(Kernel):
    """DDPM, DDIM and all between, by `eta`; for `solve_sde` and `sample_sde`.

    Args:
        eta: in [0, 1]; scales the posterior's standard deviation.
        interpolation: None, or v, the log variance's way from the posterior's to beta's: 0 is eta = 1, 1 is DDPM's
            other choice, and a callable (x_t, t) -> v of x_t's shape is a learned one (Nichol & Dhariwal 2021,
            arXiv:2102.09672, eq. 15). Needs eta = 1, as the mean is the posterior's.
    """

    eta: Eta = 1.0
    interpolation: float | Network | None = eqx.field(static=True, default=None)

    coordinates: ClassVar[CoordinateName] = "data"
    from_pure_noise: ClassVar[bool] = True

    def __check_init__(self):
        """Refuse an eta that has no kernel."""
        check_eta(self.eta)
        if self.interpolation is not None and known_number(self.eta) != 1:
            raise ValueError(f"Expected eta = 1 with an interpolated variance, as its mean is DDPM's; got {self.eta}.")
        share = self.interpolation
        if share is not None and not callable(share) and not in_order(0, share, 1):
            raise ValueError(f"Expected an interpolation in [0, 1], as it is between two variances; got {share}.")

    def move(self, reverse, s_0, s_1, state, noise, memory):
        """One draw from the kernel."""
        estimate, _ = reverse.estimates(s_0, state)
        if self.interpolation is not None:
            noise = self._widening(reverse, s_0, s_1, state) * noise
        return kernel(state, estimate, s_0, s_1, self.eta, noise), None

    def _widening(self, reverse: Reverse, s_0: Array, s_1: Array, state: Data) -> Array:
        """(sigma_t/sigma_s)^v, as beta's variance is sigma_t^2/sigma_s^2 times the posterior's."""
        (_, sigma_t), (_, sigma_s) = reverse.levels(s_0), reverse.levels(s_1)
        v = self.interpolation
        if callable(v):
            x_t, t = state / reverse.scale(s_0), rounded(reverse.time(s_0))
            v = check_like(v(x_t, jnp.full(x_t.shape[0], t)), x_t, "interpolation of variances")
        return jnp.exp(v * rounded(jnp.log(sigma_t / sigma_s)))


class DPMSolverPP2MSDE(Kernel):
    """SDE-DPM-Solver++(2M): the ancestral kernel with the estimate carried half a step ahead, as in DPM-Solver++(2M).

    Weak order 2: what a step's noise does to the estimate enters one step late.
    Reference: Lu et al. 2022, arXiv:2211.01095, SDE-DPM-Solver++(2M).
    """

    eta: Eta = 1.0

    coordinates: ClassVar[CoordinateName] = "data"
    from_pure_noise: ClassVar[bool] = True
    steps_needed: ClassVar[int] = 2

    def __check_init__(self):
        """Refuse an eta that has no kernel."""
        check_eta(self.eta)

    def order(self, terms):
        """The weak order."""
        return 2

    def init(self, terms, t0, t1, y0, args):
        """(whether no step was made, the clock and the estimate of the last step)."""
        return jnp.asarray(True), t0, jnp.zeros_like(y0)

    def move(self, reverse, s_0, s_1, state, noise, memory):
        """One draw from the kernel of the estimate half a step ahead."""
        first, s_last, last = memory
        estimate, _ = reverse.estimates(s_0, state)
        ahead = extrapolated(estimate, last, first, s_last, s_0, s_1)
        return kernel(state, ahead, s_0, s_1, self.eta, noise), (jnp.asarray(False), s_0, estimate)


def kernel(z: Data, estimate: Data, u_t: Array, u_s: Array, eta: Eta, noise: Data) -> Data:
    """z_s of the module's equation."""
    # sqrt(1 - q^2) by a product, as q is near 1 for short steps; a root's gradient is infinite at 0
    c = eta * jnp.sqrt((u_s - u_t) * (u_s + u_t)) / u_s
    some = c < 1
    of_residual = jnp.where(some, jnp.sqrt(jnp.where(some, (1 - c) * (1 + c), 1.0)), 0.0)
    of_residual, of_noise, u_t, u_s = rounded((of_residual, c, u_t, u_s))
    return u_s * estimate + of_residual * (z - u_t * estimate) + of_noise * noise


def check_eta(eta: Eta) -> None:
    """Raise `ValueError` unless eta is in [0, 1], where it is known."""
    if not in_order(0, eta, 1):
        raise ValueError(f"Expected eta in [0, 1], as the kernel's variance is a share of the posterior's; got {eta}.")
