"""Data whose denoiser is exact: an unequal mixture in the plane, and one of six modes in 64 dimensions.

What is left between a sampler's points and the data is then the sampler's own error, the noise of sigma(t_min) and the
mismatch alpha(1) m of the prior, with no network in between.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.data import GaussianMixture, unequal_mixture
from dgm_jax.metrics import wasserstein
from dgm_jax.processes import GaussianProcess
from dgm_jax.samplers import Samples
from dgm_jax.typing import Data, Denoiser, PerExample
from experiments._distances import fixed_directions, sliced_wasserstein_2, summary
from experiments._frontier_samplers import GRIDS, SAMPLERS, VP, Sampler


def mixture_64d() -> GaussianMixture:
    """Six modes of weights 0.35 to 0.03, 4 from the origin, each with its own axes and stds from 0.1 to 0.6."""
    rng = np.random.default_rng(0)
    weights = np.array([0.35, 0.25, 0.18, 0.12, 0.07, 0.03])
    means = rng.standard_normal((6, 64))
    means *= 4 / np.linalg.norm(means, axis=1, keepdims=True)
    bases = np.stack([np.linalg.qr(rng.standard_normal((64, 64)))[0] for _ in weights])
    variances = np.geomspace(0.1, 0.6, 64) ** 2
    covariances = np.einsum("kij,j,klj->kil", bases, variances, bases)
    return GaussianMixture(weights, means, (covariances + covariances.swapaxes(1, 2)) / 2)


@dataclass(frozen=True, eq=False)
class Diffused:
    """A mixture under a process; each mode is diagonal in its own eigenbasis, at every time."""

    mixture: GaussianMixture

    @cached_property
    def eigen(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Variances [modes, dim], axes [modes, dim, dim] in columns, and the means along them [modes, dim]."""
        variances, axes = np.linalg.eigh(self.mixture.covariances)
        return variances, axes, np.einsum("kij,ki->kj", axes, self.mixture.means)

    def parts(self, x: Data, alpha: Array, variance: Array) -> tuple[Array, Array]:
        """Shares [batch, modes], and C^-1 (x - alpha m) along the axes [batch, modes, dim]."""
        variances, axes, means = (jnp.asarray(values, x.dtype) for values in self.eigen)
        spread = alpha**2 * variances + variance
        centred = jnp.einsum("bi,kij->bkj", x, axes, precision="highest") - (alpha * means)[None]
        solved = centred / spread[None]
        log_peaks = jnp.log(jnp.asarray(self.mixture.weights, x.dtype)) - jnp.sum(jnp.log(spread), axis=1) / 2
        return jax.nn.softmax(log_peaks[None] - jnp.sum(centred * solved, axis=2) / 2, axis=1), solved

    def denoiser(self, process: GaussianProcess) -> Denoiser:
        """E[x_0 | x_t], for a batch at one time, as samplers ask for it."""

        def denoise(x_t: Data, t: PerExample) -> Data:
            alpha, variance = process.alpha(t[0]), process.variance(t[0])
            shares, solved = self.parts(x_t, alpha, variance)
            variances, axes, _ = (jnp.asarray(values, x_t.dtype) for values in self.eigen)
            moved = shares[..., None] * (alpha * variances)[None] * solved
            means = jnp.matmul(shares, jnp.asarray(self.mixture.means, x_t.dtype), precision="highest")
            return means + jnp.einsum("bkj,kij->bi", moved, axes, precision="highest")

        return denoise

    @cached_property
    def sample(self) -> Callable[[Array, int], Array]:
        """Exact points, from a key and their number."""
        return jax.jit(self.mixture.sample, static_argnums=1)

    @cached_property
    def shares(self) -> Callable[[Data], Array]:
        """The posterior probability of each mode [batch, modes], whose mean over exact points is the weights."""
        return jax.jit(lambda x: self.parts(x, jnp.ones((), x.dtype), jnp.zeros((), x.dtype))[0])


@dataclass(frozen=True, eq=False)
class ExactMode:
    """Every sampler on one mixture.

    The i-th set of a sampler is measured against the i-th set of exact points, as is, for the noise floor, another
    i-th set of exact points. All samplers start from the same noise.
    """

    title: str
    data: Diffused
    points: int
    sets: int
    assigned: int  # points of the exact Wasserstein-2 distance; 0 leaves it out
    directions: Float[np.ndarray, "directions dim"]
    samplers: tuple[Sampler, ...] = SAMPLERS
    grids: tuple[str, ...] = tuple(GRIDS)
    budgets: tuple[int, ...] = (5, 10, 20, 50, 100)
    measure: str = "sliced Wasserstein-2"

    def floor(self, repeats: int) -> dict[str, dict[str, float]]:
        """Mean and 95 % point of each error of exact sets."""
        found = [self.errors(self._exact(1, i), i) for i in range(repeats)]
        return {name: summary([row[name] for row in found]) for name in found[0]}

    def draw(self, sampler: Sampler, grid: str, size: float) -> tuple[list[np.ndarray], int, bool]:
        """Sample sets on so many steps of the grid, or at a tolerance; evaluations; and whether all went well."""
        process, grid_of = GRIDS[grid]
        key, shape = jax.random.key(7), (self.sets * self.points, len(self.directions[0]))
        if sampler.tolerances or process is not VP:
            options = {"controller": diffrax.PIDController(rtol=size, atol=size)} if sampler.tolerances else {}
            ts, denoise = grid_of(int(size)), self.data.denoiser(process)
            found = jax.jit(lambda key: sampler.draw(denoise, process, key, shape, ts=ts, **options))(key)
        else:
            found = self._compiled(sampler, int(size))(key, grid_of(int(size)))
        succeeded = bool(found.result == diffrax.RESULTS.successful)
        return list(np.asarray(found.x).reshape(self.sets, self.points, -1)), int(found.evaluations), succeeded

    @lru_cache(maxsize=1)  # noqa: B019 one program for all grids of a number of steps; there are few modes
    def _compiled(self, sampler: Sampler, steps: int) -> Callable[[Array, np.ndarray], Samples]:
        denoise, shape = self.data.denoiser(VP), (self.sets * self.points, len(self.directions[0]))
        return jax.jit(lambda key, ts: sampler.draw(denoise, VP, key, shape, ts=ts))

    def errors(self, x: np.ndarray, i: int) -> dict[str, float]:
        """Distances to the i-th reference, and the total variation of the modes' shares from the weights."""
        reference = self._exact(0, i)
        shares = np.asarray(self.data.shares(jnp.asarray(x)), np.float64).mean(0)
        found = {
            self.measure: sliced_wasserstein_2(x, reference, self.directions),
            "weights": float(np.abs(shares - self.data.mixture.weights).sum() / 2),
        }
        if self.assigned:
            found["exact Wasserstein-2"] = wasserstein(x[: self.assigned], reference[: self.assigned])
        return found

    @lru_cache(maxsize=8)  # noqa: B019
    def _exact(self, family: int, i: int) -> np.ndarray:
        """The i-th exact set of a family: 0 are the references."""
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(2026), family), i)
        return np.asarray(self.data.sample(key, self.points))


def exact_mode(name: str, *, points: int, sets: int, assigned: int, directions: int) -> ExactMode:
    """The mixture in the plane, or in 64 dimensions: there one set, as points are dear and its floor is narrow."""
    if name == "mixture_2d":
        title, mixture = "exact scores, 2 dimensions", unequal_mixture()
    else:
        title, mixture, sets, assigned = "exact scores, 64 dimensions", mixture_64d(), 1, 0
    dim = mixture.means.shape[1]
    return ExactMode(title, Diffused(mixture), points, sets, assigned, fixed_directions(dim, directions))
