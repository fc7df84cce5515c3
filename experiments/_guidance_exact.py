"""What guidance draws where every denoiser is exact: two classes of Gaussians in the plane.

The score that guidance of scale w follows at t is that of p_t(x) p_t(c | x)^w. At t = 0 this is the tilted density
p(x) p(c | x)^w, yet tilting does not commute with adding noise: the densities at the other times are not those of the
tilted density in noise, so that neither the reverse SDE nor the probability-flow ODE ends at it, nor at one another's
law, except at w = 0 and w = 1. Langevin moves at each t, which leave p_t(x) p_t(c | x)^w as it is, lead to it (Bradley
& Nakkiran 2024, arXiv:2408.09000; Chidambaram et al. 2024, arXiv:2406.00894).
"""

from collections.abc import Callable
from functools import lru_cache

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.data import GaussianMixture
from dgm_jax.parameterizations.guidance import classifier_free
from dgm_jax.processes import log_snr_grid, variance_preserving
from dgm_jax.samplers import Langevin, PredictorCorrector, sample_ode, sample_sde
from dgm_jax.samplers.ancestral import Ancestral
from experiments._frontier_exact import Diffused

VP = variance_preserving()
WEIGHTS = np.array([0.25, 0.25, 0.35, 0.15])
MEANS = np.array([[-0.9, 0.5], [-0.2, -0.8], [0.6, 0.4], [0.3, -1.0]])
COVARIANCES = np.array(
    [
        [[0.10, 0.03], [0.03, 0.06]],
        [[0.05, 0.0], [0.0, 0.08]],
        [[0.12, -0.02], [-0.02, 0.07]],
        [[0.06, 0.0], [0.0, 0.05]],
    ]
)
CLASS = np.array([0, 0, 1, 1])  # of each Gaussian; class 0 is asked for
EVERYTHING = GaussianMixture(WEIGHTS, MEANS, COVARIANCES)
ASKED = GaussianMixture(WEIGHTS[CLASS == 0] / 0.5, MEANS[CLASS == 0], COVARIANCES[CLASS == 0])
LOW, HIGH = -4.0, 4.0
FLOOR = "exact points"


def methods(moves: tuple[int, ...]) -> tuple[str, ...]:
    """The samplers by name, for so many Langevin moves at each time."""
    return ("ODE", "SDE", *(f"SDE, {n} Langevin moves" for n in moves))


def tilted_log_density(x: jax.Array, scale: float | jax.Array) -> jax.Array:
    """w log p(x | c) + (1 - w) log p(x), which is log p(x) p(c | x)^w up to a constant."""
    return scale * ASKED.log_prob(x) + (1 - scale) * EVERYTHING.log_prob(x)


@lru_cache(maxsize=16)
def _cumulated(scale: float, cells: int) -> np.ndarray:
    """The cumulated shares of the cells of a fine grid under the tilted density."""
    log_density = np.asarray(_log_density(jnp.asarray(centres(cells)), jnp.asarray(scale)), np.float64)
    shares = np.exp(log_density - log_density.max())
    return np.cumsum(shares) / shares.sum()


_log_density = jax.jit(tilted_log_density)


def centres(cells: int) -> np.ndarray:
    """The centres of a grid of cells, row by row, [cells^2, 2]."""
    ticks = (np.arange(cells) + 0.5) / cells * (HIGH - LOW) + LOW
    return np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2).astype(np.float32)


def tilted_points(scale: float, n: int, seed: int, cells: int = 1600) -> np.ndarray:
    """Points of p(x) p(c | x)^w, to within a cell of 1/200."""
    rng = np.random.default_rng(seed)
    drawn = np.searchsorted(_cumulated(scale, cells), rng.uniform(size=n))
    side = (HIGH - LOW) / cells
    points = centres(cells)[np.minimum(drawn, cells**2 - 1)] + rng.uniform(-side / 2, side / 2, (n, 2))
    return points.astype(np.float32)


@lru_cache
def guided_points(method: str, n: int, steps: int) -> Callable[[float, int], np.ndarray]:
    """(scale, seed) -> points of guidance by exact denoisers, compiled once for all scales."""
    conditional, unconditional = (Diffused(mixture).denoiser(VP) for mixture in (ASKED, EVERYTHING))
    with jax.ensure_compile_time_eval():
        t_min = float(VP.time_at(jnp.asarray(0.02)))  # its noise is 1/10 of the smallest std
    ts = log_snr_grid(VP, steps, t_min=t_min, t_max=1.0)

    @jax.jit
    def draw(scale: jax.Array, key: jax.Array) -> jax.Array:
        denoise = classifier_free(conditional, unconditional, scale)
        if method == "ODE":
            solver = diffrax.Heun()
            return sample_ode(denoise, VP, key, (n, 2), ts=ts, solver=solver, coordinates="noise").x
        if method == "SDE":
            return sample_sde(denoise, VP, key, (n, 2), ts=ts, solver=Ancestral()).x
        moves = int(method.split()[1])
        corrected = PredictorCorrector(Ancestral(), Langevin(snr=0.25, steps=moves))
        return sample_sde(denoise, VP, key, (n, 2), ts=ts, solver=corrected).x

    return lambda scale, seed: np.asarray(draw(jnp.asarray(scale, jnp.float32), jax.random.key(seed)))
