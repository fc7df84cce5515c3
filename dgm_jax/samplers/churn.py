"""EDM's stochastic sampler: before each step of Heun the noise is raised a little, by fresh noise.

Reference: Karras et al. 2022, arXiv:2206.00364, algorithm 2, in units of the data (y = x/alpha, r = sigma/alpha).
"""

from typing import ClassVar

import jax
import jax.numpy as jnp

from dgm_jax.numerics import in_order
from dgm_jax.samplers.coordinates import CoordinateName
from dgm_jax.samplers.reverse import Kernel


class ChurnedHeun(Kernel):
    """Raise r to r (1 + gamma) where r is in [low, high], then Heun down to the next r; for `solve_sde`.

    A last step to t = 0 is the denoiser's estimate, without churn. The raised level stays within the process: at most
    sigma/alpha at t = 1. gamma = 0 is Heun in coordinates "noise", of order 2; churning leaves weak order 2 where gamma
    is of the step's size.

    Args:
        gamma: S_churn/N, at most sqrt(2) - 1.
        noise: S_noise, the standard deviation of the noise that is added.
    """

    gamma: float
    low: float = 0.0
    high: float = float("inf")
    noise: float = 1.0

    coordinates: ClassVar[CoordinateName] = "noise"

    def __check_init__(self):
        """Refuse what algorithm 2 does not do."""
        if not (in_order(0, self.gamma, 0.4143) and in_order(0, self.low, self.high) and in_order(0, self.noise)):
            raise ValueError(
                "Expected 0 <= gamma <= sqrt(2) - 1, 0 <= low <= high and noise >= 0, as noise is added between two "
                f"levels; got gamma={self.gamma}, low={self.low}, high={self.high}, noise={self.noise}."
            )

    evaluations_per_step: ClassVar[int] = 2

    def order(self, terms):
        """The order without churn."""
        return 2

    def move(self, reverse, s_0, s_1, state, noise, memory):
        """Algorithm 2, lines 4 to 12; the clock is s = -r."""
        r, end = -s_0, -s_1
        gamma = jnp.where((r >= self.low) & (r <= self.high), self.gamma, 0.0)
        raised = jnp.minimum(r * (1 + gamma), jnp.maximum(reverse.process.noise_ratio(jnp.ones_like(r)), r))
        # raised^2 - r^2 as a product, which is exactly 0 without churn
        churns = raised > r  # a root's gradient is infinite at 0
        root = jnp.sqrt(jnp.where(churns, (raised - r) * (raised + r), 1.0))
        added = self.noise * jnp.where(churns, root, 0.0)
        churned = state + added * noise

        def stage(carry, ratio):  # one copy of the network for both stages
            point, slopes = carry
            _, slope = reverse.estimates(-ratio, point)
            return (churned + (end - raised) * slope, slopes + slope), None

        (_, slopes), _ = jax.lax.scan(stage, (churned, jnp.zeros_like(state)), jnp.stack([raised, end]))
        return churned + (end - raised) / 2 * slopes, None
