"""Three coordinate systems of the probability-flow ODE, in which the famous samplers are ordinary solvers.

| name | state | clock c | d state / d clock | g_c^2 | std |
|---|---|---|---|---|---|
| "time" | x | t | alpha' D + sigma' E | g(t)^2 | sigma |
| "noise" | y = x/alpha | sigma/alpha | E | 2 c | c |
| "data" | z = x/sigma | alpha/sigma | D | 2/c | 1 |

D is the denoiser's estimate of x_0 and E = (x - alpha D)/sigma its estimate of the noise. Euler in "noise" or "data"
is DDIM; Heun in "noise" is EDM's sampler. The last two columns give the stochastic samplers: along a clock that
runs towards data, with s the clock's distance from its start and any stochasticity eta >= 0,

    dX = [(+-) d state/d clock - eta^2/2 g_c^2 E/std] ds + eta g_c dW

has the process's marginals (eta = 0 is the ODE, eta = 1 the reverse SDE; Song et al. 2021, arXiv:2011.13456, eq. 6
and 13; Karras et al. 2022, arXiv:2206.00364, eq. 6), as -E/std is the score of the state.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.numerics import check_like, rounded
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.typing import Data, Denoiser, Scalar

CoordinateName = Literal["time", "noise", "data"]


@dataclass(frozen=True)
class Coordinates:
    """One row of the table: scalar functions of t or of the clock, for one process."""

    clock: Callable[[Array], Array]  # t -> clock
    time: Callable[[Array], Array]  # clock -> t
    scale: Callable[[Array], Array]  # t -> what x is multiplied by to give the state
    slopes: Callable[[Scalar], tuple[Scalar, Scalar]]  # t -> weights of (D, E) in d state / d clock
    spread: Callable[[Scalar], Scalar]  # clock -> g_c^2, the rate at which noise grows along the clock
    std: Callable[[Scalar], Scalar]  # clock -> the noise's std in the state


def coordinates_of(name: CoordinateName, process: GaussianProcess) -> Coordinates:
    """The named coordinate system of a process."""
    if name == "time":
        return Coordinates(
            clock=lambda t: t,
            time=lambda t: t,
            scale=jnp.ones_like,
            slopes=process.rates,
            spread=process.diffusion_squared,
            std=process.sigma,
        )
    if name == "noise":
        return Coordinates(
            clock=process.noise_ratio,
            time=process.time_at,
            scale=lambda t: 1 / process.alpha(t),
            slopes=lambda t: (jnp.zeros_like(t), jnp.ones_like(t)),
            spread=lambda ratio: 2 * ratio,
            std=lambda ratio: ratio,
        )
    if name == "data":
        return Coordinates(
            clock=lambda t: process.alpha(t) / process.sigma(t),
            time=lambda ratio: process.time_at(1 / ratio),
            scale=lambda t: 1 / process.sigma(t),
            slopes=lambda t: (jnp.ones_like(t), jnp.zeros_like(t)),
            spread=lambda ratio: 2 / ratio,
            std=jnp.ones_like,
        )
    raise ValueError(
        f"Expected coordinates to be one of {get_args(CoordinateName)}, the rows of the table; got {name!r}."
    )


def clock_of(system: Coordinates, ts: Float[Array, " points"]) -> Float[Array, " points"]:
    """The clock at known times, computed once at trace time: fresh Brownian increments are keyed by the clock's bits,
    which must not depend on how a program is compiled for one device or for many."""
    with jax.ensure_compile_time_eval():
        return system.clock(ts)


def traced_once(denoise: Denoiser) -> Denoiser:
    """The same denoiser, traced once however often a solve calls it: diffrax traces a vector field three times."""
    return jax.jit(lambda x_t, t: denoise(x_t, t))


def estimates(
    denoise: Denoiser, process: GaussianProcess, system: Coordinates, clock: Scalar, state: Data
) -> tuple[Data, Data]:
    """(D, E): the denoiser's estimate of x_0 and of the noise, at a state and its clock."""
    t = system.time(clock)
    t, scale, alpha, sigma = rounded((t, system.scale(t), process.alpha(t), process.sigma(t)))
    x_t = state / scale
    estimate = check_like(denoise(x_t, jnp.full(x_t.shape[0], t)), x_t, "denoiser")
    return estimate, (x_t - alpha * estimate) / sigma
