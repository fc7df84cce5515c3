"""What a solve is asked for, checked before any compute: the state, the grid, and where it may not end.

Grids are checked where their values are known; a grid that is traced (made by `jnp.linspace` under `jit`, or
differentiated) is taken as it is, and must then not end at t = 0 where sigma(0) = 0.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.numerics import check_data, known
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.typing import Data, TimeFunction

Grid = Float[Array, " points"] | Float[np.ndarray, " points"]


class GridPlan(NamedTuple):
    """The grid that the solver steps on, and whether a last step to the noiseless t = 0 follows it."""

    ts: Float[Array, " points"]
    to_zero: bool


def check_grid(x: Data, ts: Grid) -> np.ndarray | None:
    """The grid's values where they are known, after checks of the state and of the grid's order and range."""
    check_data(x, "the state x")
    return check_points(ts)


def check_points(ts: Grid) -> np.ndarray | None:
    """The grid's values where they are known, after checks of its order and range."""
    if not isinstance(ts, jax.Array | np.ndarray) or not jnp.issubdtype(ts.dtype, jnp.floating):
        raise ValueError(f"Expected ts to be a floating-point array [points], as times are; got {ts!r}.")
    if ts.ndim != 1 or len(ts) < 2:
        raise ValueError(f"Expected ts [points] with at least 2 points, as a solve has two ends; got {ts.shape=}.")
    values = known(ts)
    if values is None:
        return None
    steps = np.diff(values)
    if not ((steps > 0).all() or (steps < 0).all()):
        raise ValueError(f"Expected ts strictly rising or falling, as a solve runs one way; got {values}.")
    if values.min() < 0 or values.max() > 1:
        raise ValueError(f"Expected ts in [0, 1], as 0 is data and 1 is noise; got {values[0]} to {values[-1]}.")
    return values


def ode_grid(process: GaussianProcess, x: Data, ts: Grid, coordinates: str) -> GridPlan:
    """Check the grid of an ODE solve, rising or falling, and split off a last step to a noiseless t = 0."""
    values = check_grid(x, ts)
    if values is not None and coordinates == "noise":
        refuse_pure_noise(process, values, _dtype(x), 'the "noise" clock sigma/alpha is')
    return _split_last(process, x, ts, values)


def reverse_grid(process: GaussianProcess, x: Data, ts: Grid, *, from_pure_noise: bool = False) -> GridPlan:
    """Check the grid of a reverse SDE, which falls, and split off a last step to a noiseless t = 0.

    Args:
        from_pure_noise: whether the grid may start where alpha = 0.
    """
    values = check_grid(x, ts)
    if values is not None:
        if values[-1] > values[0]:
            raise ValueError(
                "Expected falling ts, as a reverse SDE runs from noise to data (data to noise: simulate_forward); "
                f"got {values[0]} to {values[-1]}."
            )
        if not from_pure_noise:
            refuse_pure_noise(process, values, _dtype(x), "the reverse SDE's coefficients are")
    return _split_last(process, x, ts, values)


def forward_grid(process: GaussianProcess, x: Data, ts: Grid) -> Float[Array, " points"]:
    """Check the grid of a forward simulation, which rises."""
    values = check_grid(x, ts)
    if values is not None:
        if values[-1] < values[0]:
            raise ValueError(
                "Expected rising ts, as the forward SDE runs from data to noise (noise to data: solve_sde); "
                f"got {values[0]} to {values[-1]}."
            )
        refuse_pure_noise(process, values, _dtype(x), "the forward SDE's drift is")
    with jax.ensure_compile_time_eval():
        return jnp.asarray(ts, _dtype(x))


def refuse_pure_noise(process: GaussianProcess, values: np.ndarray, dtype: jnp.dtype, what: str) -> None:
    """Raise `ValueError` where the grid reaches alpha = 0."""
    high = float(values.max())
    if _vanishes(process.alpha, high, dtype):
        raise ValueError(
            f"Expected ts where alpha > 0, as {what} infinite without signal; got t = {high:g}. Stop at "
            f't = {high - 1e-3:g}, or solve the ODE in coordinates "time" or "data".'
        )


def _split_last(process: GaussianProcess, x: Data, ts: Grid, values: np.ndarray | None) -> GridPlan:
    with jax.ensure_compile_time_eval():
        ts = jnp.asarray(ts, _dtype(x))
        before_last = ts[:-1]
    if values is None or not _vanishes(process.variance, float(values.min()), _dtype(x)):
        return GridPlan(ts, to_zero=False)
    if values[-1] > values[0]:
        raise ValueError(
            "Expected ts where sigma > 0, as the noise estimate is 0/0 without noise; got "
            f"ts[0] = {values[0]:g}. Start at a small positive time such as 1e-3."
        )
    if len(values) < 3:
        raise ValueError(
            "Expected at least 3 points in a grid that ends where sigma = 0, as the last step there is the "
            f"denoiser's own estimate; got {values}."
        )
    return GridPlan(before_last, to_zero=True)


def _dtype(x: Data) -> jnp.dtype:
    """The precision in which JAX holds the state: a float64 NumPy array is float32 to it unless told otherwise."""
    return jax.dtypes.canonicalize_dtype(x.dtype)


def _vanishes(function: TimeFunction, t: float, dtype: jnp.dtype) -> bool:
    """Whether the function is known to be 0 at t."""
    with jax.ensure_compile_time_eval():
        value = known(function(jnp.asarray(t, dtype)))
    return value is not None and bool(value <= 0)
