"""The samplers and the grids that the frontier compares, each a row of a table.

A sampler is run at a budget of evaluations: on as many steps as fit in it. Adaptive ones are run at tolerances, and
say what they cost.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import diffrax
import numpy as np

from dgm_jax.processes import (
    GaussianProcess,
    from_betas,
    karras_grid,
    log_snr_grid,
    quadratic,
    trailing,
    uniform,
    variance_preserving,
)
from dgm_jax.samplers import (
    Ancestral,
    Langevin,
    ReverseDiffusion,
    Samples,
    annealed_langevin,
    ddim,
    ddpm,
    deis,
    dpm_solver_pp_2m,
    dpm_solver_pp_2m_sde,
    edm_heun,
    predictor_corrector,
    sample_ode,
    sample_sde,
)

VP = variance_preserving()
CHAIN = from_betas(np.linspace(1e-4, 0.02, 1000))
T_MIN = 1e-3  # sigma is 0.0105 there

Draw = Callable[..., Samples]  # (denoise, process, key, shape, *, ts)
GridOf = Callable[[int], np.ndarray]  # number of steps -> falling times


GRIDS: dict[str, tuple[GaussianProcess, GridOf]] = {
    "uniform": (VP, lambda n: np.asarray(uniform(n, t_min=T_MIN))),
    "quadratic": (VP, lambda n: np.asarray(quadratic(n, t_min=T_MIN))),
    "Karras": (VP, lambda n: np.asarray(karras_grid(VP, n, t_min=T_MIN))),
    "log-SNR": (VP, lambda n: np.asarray(log_snr_grid(VP, n, t_min=T_MIN, t_max=1.0))),
    "trailing": (CHAIN, lambda n: np.asarray(trailing(n, chain=1000))),  # to t = 0, the denoiser's own estimate
    "adaptive": (VP, lambda _: np.asarray(uniform(1, t_min=T_MIN))),
}
VP_GRIDS = ("uniform", "quadratic", "Karras", "log-SNR")


@dataclass(frozen=True)
class Sampler:
    """One row: what is drawn, and how many evaluations it takes on a grid of n steps."""

    name: str
    draw: Draw
    each: int = 1  # evaluations a step
    first: int = 0  # evaluations before the first step
    least: int = 1  # steps that it needs
    noisy: bool = False
    chain: bool = False  # also on the chain of betas
    tolerances: tuple[float, ...] = ()  # adaptive: `draw` takes a controller, and the grid gives the ends alone

    def steps(self, budget: int) -> int | None:
        """As many as fit in the budget, or None where fewer fit than are needed."""
        steps = (budget - self.first) // self.each
        return steps if steps >= self.least else None

    @property
    def grids(self) -> tuple[str, ...]:
        """The grids on which it is run."""
        if self.tolerances:
            return ("adaptive",)
        return (*VP_GRIDS, "trailing") if self.chain else VP_GRIDS


def _ode(solver: diffrax.AbstractSolver, coordinates: str) -> Draw:
    return partial(sample_ode, solver=solver, coordinates=coordinates)


def _sde(solver: diffrax.AbstractSolver, coordinates: str) -> Draw:
    return partial(sample_sde, solver=solver, coordinates=coordinates)


def _churned(denoise, process, key, shape, *, ts) -> Samples:
    return edm_heun(denoise, process, key, shape, ts=ts, churn=0.2 * (len(ts) - 1))


def _annealed(denoise, process, key, shape, *, ts) -> Samples:
    # one step of half the level's variance at each level
    last = process.variance(ts[-1])
    return annealed_langevin(denoise, process, key, shape, ts=ts, epsilon=last / 2, steps=1)


def _corrected(predictor: diffrax.AbstractSolver, stochasticity: float = 1.0) -> Draw:
    return partial(predictor_corrector, predictor=predictor, corrector=Langevin(snr=0.16), stochasticity=stochasticity)


ODE_TOLERANCES = (0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
SDE_TOLERANCES = (0.3, 0.1, 0.03)
SAMPLERS = (
    Sampler("ODE, Euler in time", _ode(diffrax.Euler(), "time")),
    Sampler("ODE, Heun in time", _ode(diffrax.Heun(), "time"), each=2),
    Sampler("ODE, Heun in data", _ode(diffrax.Heun(), "data"), each=2),
    Sampler("ODE, Bosh3 in noise", _ode(diffrax.Bosh3(), "noise"), each=3, first=1),
    Sampler("DDIM", ddim, chain=True),
    Sampler("EDM Heun", edm_heun, each=2),
    Sampler("DPM-Solver++(2M)", dpm_solver_pp_2m, least=2),
    Sampler("DEIS, order 2", partial(deis, order=2), least=2),
    Sampler("DEIS, order 3", deis, first=1, least=3),
    Sampler("SDE, Euler in time", _sde(diffrax.Euler(), "time"), noisy=True),
    Sampler("SDE, Euler in noise", _sde(diffrax.Euler(), "noise"), noisy=True),
    Sampler("SDE, Euler in data", _sde(diffrax.Euler(), "data"), noisy=True),
    Sampler("SDE, Heun in noise", _sde(diffrax.Heun(), "noise"), each=2, noisy=True),
    Sampler("DDPM, posterior variance", ddpm, noisy=True, chain=True),
    Sampler("DDPM, variance beta", partial(ddpm, variance="beta"), noisy=True, chain=True),
    Sampler("DDIM, eta 0.5", partial(ddim, eta=0.5), noisy=True, chain=True),
    Sampler("DPM-Solver++(2M) SDE", dpm_solver_pp_2m_sde, least=2, noisy=True),
    Sampler("EDM Heun, churn 0.2 a step", _churned, each=2, noisy=True),
    Sampler("PC, reverse diffusion", _corrected(ReverseDiffusion()), each=2, noisy=True),
    Sampler("PC, ancestral", _corrected(Ancestral()), each=2, noisy=True),
    Sampler("PC, ODE", _corrected(diffrax.Euler(), 0.0), each=2, noisy=True),
    Sampler("annealed Langevin", _annealed, first=1, noisy=True),
    Sampler("adaptive Heun in time", _ode(diffrax.Heun(), "time"), tolerances=ODE_TOLERANCES),
    Sampler("adaptive Tsit5 in time", _ode(diffrax.Tsit5(), "time"), tolerances=ODE_TOLERANCES),
    Sampler("adaptive Dopri5 in time", _ode(diffrax.Dopri5(), "time"), tolerances=ODE_TOLERANCES),
    Sampler("adaptive SDE, Heun in time", _sde(diffrax.Heun(), "time"), noisy=True, tolerances=SDE_TOLERANCES),
)
