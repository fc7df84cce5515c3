"""Densities known in closed form: log p(x) in nats, its gradient (the score), and exact independent draws.

A Gaussian mixture has p(x) = sum_k w_k N(x; m_k, C_k), hence

    score(x) = sum_k r_k(x) C_k^{-1} (m_k - x),    r_k(x) = w_k N(x; m_k, C_k) / p(x).

Parameters are numpy arrays in float64, computed with in the dtype of x. Points are batches [batch, dim].
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.numerics import example_keys
from dgm_jax.typing import Keys, PerExample

Points = Float[Array, " batch dim"]


@runtime_checkable
class Density(Protocol):
    """What every density here offers; all three are pure and jit-able, with `n` static."""

    def log_prob(self, x: Points) -> PerExample:
        """log p(x) of each point, in nats."""
        ...

    def score(self, x: Points) -> Points:
        """The gradient of log p at each point."""
        ...

    def sample(self, key: Keys, n: int) -> Points:
        """`n` independent points from one key, or from one key each."""
        ...


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """A mixture of Gaussians in any dimension.

    Args:
        weights: [modes], positive, of sum one.
        means: [modes, dim].
        covariances: [modes, dim, dim], symmetric and positive definite.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def __post_init__(self):
        for name in ("weights", "means", "covariances"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        modes = len(self.means) if self.means.ndim == 2 else -1
        expected = [(modes,), (modes, *self.means.shape[1:]), (modes, *self.means.shape[1:] * 2)]
        shapes = [self.weights.shape, self.means.shape, self.covariances.shape]
        if modes < 1 or shapes != expected:
            raise ValueError(
                f"Expected weights [modes], means [modes, dim] and covariances [modes, dim, dim]; got {shapes=}."
            )
        if not (self.weights > 0).all() or abs(self.weights.sum() - 1) > 1e-6:
            raise ValueError(f"Expected positive weights of sum one, as probabilities are; got {self.weights}.")
        if not np.isfinite(self.means).all():
            raise ValueError("Expected finite means, as points of the space; got NaN or inf.")
        symmetric = np.allclose(self.covariances, np.swapaxes(self.covariances, 1, 2))
        if not symmetric or not (np.linalg.eigvalsh(self.covariances) > 0).all():
            raise ValueError("Expected symmetric positive definite covariances, as the density divides by them.")

    @cached_property
    def _scales(self) -> np.ndarray:
        """Cholesky factors L_k of the covariances, C_k = L_k L_k^T."""
        return np.linalg.cholesky(self.covariances)

    @cached_property
    def _whiteners(self) -> np.ndarray:
        """L_k^{-1}."""
        return np.linalg.inv(self._scales)

    @cached_property
    def _log_peaks(self) -> np.ndarray:
        """log w_k + log N(m_k; m_k, C_k)."""
        log_volumes = np.log(np.diagonal(self._scales, axis1=1, axis2=2)).sum(1)
        return np.log(self.weights) - log_volumes - self.means.shape[1] / 2 * np.log(2 * np.pi)

    def log_prob(self, x: Points) -> PerExample:
        """log p(x) of each point, in nats."""
        log_joint, _ = self._components(x)
        return jax.nn.logsumexp(log_joint, axis=1)

    def score(self, x: Points) -> Points:
        """The gradient of log p at each point."""
        log_joint, whitened = self._components(x)
        responsibilities = jax.nn.softmax(log_joint, axis=1)
        whiteners = jnp.asarray(self._whiteners, x.dtype)
        return -jnp.einsum("bk,kij,bki->bj", responsibilities, whiteners, whitened, precision="highest")

    def sample(self, key: Keys, n: int) -> Points:
        """`n` independent points from one key, or from one key each."""
        dtype = jnp.result_type(float)
        upper = jnp.asarray(np.cumsum(self.weights)[:-1], dtype)
        means, scales = jnp.asarray(self.means, dtype), jnp.asarray(self._scales, dtype)

        def draw(key: Keys) -> Float[Array, " dim"]:
            key_mode, key_noise = jax.random.split(key)
            mode = jnp.searchsorted(upper, jax.random.uniform(key_mode, dtype=dtype), side="right")
            noise = jax.random.normal(key_noise, means.shape[1:], dtype)
            return means[mode] + jnp.matmul(scales[mode], noise, precision="highest")

        return jax.vmap(draw)(example_keys(key, n))

    def _components(self, x: Points) -> tuple[Float[Array, " batch modes"], Float[Array, " batch modes dim"]]:
        """log(w_k N(x; m_k, C_k)) and the whitened offsets L_k^{-1} (x - m_k)."""
        if x.ndim != 2 or x.shape[1] != self.means.shape[1]:
            raise ValueError(f"Expected x of shape [batch, {self.means.shape[1]}], as the means are; got {x.shape}.")
        means, whiteners = jnp.asarray(self.means, x.dtype), jnp.asarray(self._whiteners, x.dtype)
        whitened = jnp.einsum("kij,bkj->bki", whiteners, x[:, None] - means[None], precision="highest")
        log_peaks = jnp.asarray(self._log_peaks, x.dtype)
        return log_peaks[None] - jnp.sum(whitened**2, axis=2) / 2, whitened


def isotropic(weights: np.ndarray, means: np.ndarray, std: float) -> GaussianMixture:
    """The mixture whose modes all have covariance std^2 I."""
    if not std > 0:
        raise ValueError(f"Expected std > 0, as the density divides by it; got {std=}.")
    modes, dim = means.shape
    return GaussianMixture(weights, means, np.tile(std**2 * np.eye(dim), (modes, 1, 1)))


@dataclass(frozen=True)
class Checkerboard:
    """Uniform on the squares with even row + column of a `cells` x `cells` board over [-half_width, half_width]^2.

    Squares hold their lower edges and not their upper ones. The density jumps at the edges, so the score says
    nothing of where the squares end: it is 0 on them and NaN elsewhere, where log p is -inf.
    """

    cells: int = 4
    half_width: float = 4.0

    def __post_init__(self):
        if self.cells < 1 or not self.half_width > 0:
            raise ValueError(f"Expected cells >= 1 and half_width > 0, as a board has; got {self}.")

    @property
    def edges(self) -> np.ndarray:
        """The squares' edges along either axis, [cells + 1]."""
        return np.linspace(-self.half_width, self.half_width, self.cells + 1)

    def log_prob(self, x: Points) -> PerExample:
        """log p(x) of each point, in nats: minus the log of the squares' area, -inf off the squares."""
        area = (self.cells**2 + 1) // 2 * (2 * self.half_width / self.cells) ** 2
        return jnp.where(self._on_square(x), -np.log(area).astype(x.dtype), -jnp.inf)

    def score(self, x: Points) -> Points:
        """The gradient of log p at each point: 0 on the squares, NaN off them."""
        return jnp.where(self._on_square(x)[:, None], jnp.zeros_like(x), jnp.nan)

    def sample(self, key: Keys, n: int) -> Points:
        """`n` independent points from one key, or from one key each."""
        dtype = jnp.result_type(float)
        squares = np.argwhere(np.indices((self.cells, self.cells)).sum(0) % 2 == 0)
        low, high = jnp.asarray(self.edges[squares], dtype), jnp.asarray(self.edges[squares + 1], dtype)

        def draw(key: Keys) -> Float[Array, " 2"]:
            key_square, key_offset = jax.random.split(key)
            square = jax.random.randint(key_square, (), 0, len(squares))
            x = low[square] + (high - low)[square] * jax.random.uniform(key_offset, (2,), dtype)
            # rounding may carry the sum onto the upper edge, which belongs to the next square
            return jnp.minimum(x, jnp.nextafter(high[square], low[square]))

        return jax.vmap(draw)(example_keys(key, n))

    def _on_square(self, x: Points) -> Array:
        if x.ndim != 2 or x.shape[1] != 2:
            raise ValueError(f"Expected x of shape [batch, 2], as the board is in the plane; got {x.shape}.")
        # comparisons with the edges are exact, where dividing by the side would round points across them
        cell = jnp.sum(x[:, :, None] >= jnp.asarray(self.edges, x.dtype)[None, None], axis=2) - 1
        on_board = jnp.all((cell >= 0) & (cell < self.cells), axis=1)
        return on_board & (cell.sum(1) % 2 == 0)
