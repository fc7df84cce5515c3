"""Sampling grids: n + 1 falling times from t_max (noise) to t_min (data), both ends included.

A solver without a step-size controller steps exactly on the grid. `t_min = 0` is allowed where the process is
noiseless there: the samplers then take the denoiser's own estimate as the last step.

A grid is a NumPy array, also under `jit`, so that slices and reversals of it stay known and are checked before any
compute. It is traced only where the process itself is.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.numerics import known
from dgm_jax.processes.gaussian import GaussianProcess

Grid = Float[np.ndarray, " points"] | Float[Array, " points"]


def uniform(n: int, *, t_min: float, t_max: float = 1.0) -> Grid:
    """Equal steps in t."""
    _check(n, t_min, t_max)
    return _between(t_min, t_max, lambda: jnp.linspace(t_max, t_min, n + 1))


def quadratic(n: int, *, t_min: float, t_max: float = 1.0) -> Grid:
    """Equal steps in sqrt(t), so that steps shorten towards data.

    Reference: Song, Meng & Ermon 2021, arXiv:2010.02502, appendix D.2: tau_i = floor(c i^2).
    """
    _check(n, t_min, t_max)
    return _between(t_min, t_max, lambda: jnp.linspace(t_max**0.5, t_min**0.5, n + 1) ** 2)


def trailing(n: int, *, chain: int) -> Grid:
    """n steps of a chain of `chain` steps, counted back from its last: round(chain (1 - i/n))/chain, from 1 to 0.

    The first time is the chain's last, 1, and the times before t = 0 are ones that a network for the chain was
    trained at. A uniform grid is this one where n divides `chain`.
    Reference: Lin et al. 2023, arXiv:2305.08891, table 2.
    """
    if not 1 <= n <= chain:
        raise ValueError(f"Expected 1 <= n <= chain, as each step is one or more of the chain's; got {n=}, {chain=}.")
    return _between(0.0, 1.0, lambda: jnp.asarray(np.round(chain - chain * np.arange(n + 1) / n) / chain))


def karras_grid(process: GaussianProcess, n: int, *, t_min: float, t_max: float = 1.0, rho: float = 7.0) -> Grid:
    """Equal steps in (sigma/alpha)^(1/rho).

    Reference: Karras et al. 2022, arXiv:2206.00364, eq. 5.
    """
    _check(n, t_min, t_max)
    if not rho > 0:
        raise ValueError(f"Expected rho > 0, as the noise falls along the grid; got {rho=}.")

    def points() -> Array:
        high, low = process.noise_ratio(t_max), process.noise_ratio(t_min)
        return process.time_at(jnp.linspace(high ** (1 / rho), low ** (1 / rho), n + 1) ** rho)

    return _between(t_min, t_max, points)


def log_snr_grid(process: GaussianProcess, n: int, *, t_min: float, t_max: float) -> Grid:
    """Equal steps in log(alpha/sigma), the uniform-lambda grid of DPM-Solver.

    Reference: Lu et al. 2022, arXiv:2206.00927, section 3.3.
    """
    _check(n, t_min, t_max)
    process.refuse_no_noise(t_min, "the log-SNR")

    def points() -> Array:
        return process.time_at(jnp.exp(-jnp.linspace(process.log_snr(t_max), process.log_snr(t_min), n + 1) / 2))

    return _between(t_min, t_max, points)


def _between(t_min: float, t_max: float, points: Callable[[], Array]) -> Grid:
    """The points with the exact ends in place of their round trip through `time_at`, as NumPy where known."""
    with jax.ensure_compile_time_eval():
        ts = points().at[0].set(t_max).at[-1].set(t_min)
    values = known(ts)
    return ts if values is None else values


def _check(n: int, t_min: float, t_max: float) -> None:
    if n < 1:
        raise ValueError(f"Expected n >= 1, as a grid has at least one step; got {n=}.")
    if not 0 <= t_min < t_max <= 1:
        raise ValueError(f"Expected 0 <= t_min < t_max <= 1, as 0 is data and 1 is noise; got {t_min=}, {t_max=}.")
