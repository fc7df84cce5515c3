"""The samplers of the literature by their names: coordinates, a solver and a grid, a few lines each.

All draw from the prior N(0, sigma(ts[0])^2 I) along falling `ts`, call the network once a step where nothing else is
said, and take `save_path` and the other options of `solve_sde` or `solve_ode`. A last point t = 0 where sigma(0) = 0
means the denoiser's own estimate. Annealed Langevin dynamics is in `langevin`.
"""

import math
from typing import Any

import diffrax

from dgm_jax.numerics import in_order, known_number
from dgm_jax.parameterizations.posterior import ReverseVariance, check_variance
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.samplers.ancestral import Ancestral, DPMSolverPP2MSDE, Eta, check_eta
from dgm_jax.samplers.churn import ChurnedHeun
from dgm_jax.samplers.correctors import Corrector
from dgm_jax.samplers.grid import Grid, check_points
from dgm_jax.samplers.multistep import AdamsBashforth, DPMSolverPP2M
from dgm_jax.samplers.ode import sample_ode
from dgm_jax.samplers.predictor_corrector import PredictorCorrector
from dgm_jax.samplers.sde import sample_sde
from dgm_jax.samplers.stepping import Samples
from dgm_jax.typing import Denoiser, Keys, Shape

INTERPOLATIONS = {"posterior": 0.0, "beta": 1.0}


def ddpm(
    denoise: Denoiser,
    process: GaussianProcess,
    key: Keys,
    shape: Shape,
    *,
    ts: Grid,
    variance: ReverseVariance = "posterior",
    **options,
) -> Samples:
    """DDPM's ancestral sampling. With `from_betas(betas)`, T = len(betas), the paper's grid is `uniform(T, t_min=0)`.

    Args:
        variance: "posterior" or "beta", the paper's two choices, or a callable (x_t, t) -> v of x_t's shape in [0, 1]
            for a learned one, exp(v log beta + (1 - v) log posterior). A network that gives both estimate and v is
            evaluated once where the two calls are compiled together.

    Reference: Ho et al. 2020, arXiv:2006.11239, algorithm 2; Nichol & Dhariwal 2021, arXiv:2102.09672, eq. 15.
    """
    _refuse(options, "solver")
    check_variance(variance)
    interpolation = variance if callable(variance) else INTERPOLATIONS[variance]
    return sample_sde(denoise, process, key, shape, ts=ts, solver=Ancestral(1.0, interpolation), **options)


def ddim(
    denoise: Denoiser,
    process: GaussianProcess,
    key: Keys,
    shape: Shape,
    *,
    ts: Grid,
    eta: Eta = 0.0,
    **options,
) -> Samples:
    """DDIM: 0 is deterministic, and Euler on the probability-flow ODE; 1 is DDPM with the posterior's variance.

    Args:
        eta: in [0, 1]. At a known 0 the whole key draws the prior, as in `sample_ode`; else it is split for the noise.

    Reference: Song et al. 2020, arXiv:2010.02502, eq. 12 and 16.
    """
    _refuse(options, "solver")
    check_eta(eta)
    if known_number(eta) == 0:
        _refuse(options, "coordinates", "stochasticity", "brownian")
        return sample_ode(denoise, process, key, shape, ts=ts, solver=diffrax.Euler(), coordinates="data", **options)
    return sample_sde(denoise, process, key, shape, ts=ts, solver=Ancestral(eta), **options)


def edm_heun(
    denoise: Denoiser,
    process: GaussianProcess,
    key: Keys,
    shape: Shape,
    *,
    ts: Grid,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    **options,
) -> Samples:
    """EDM's sampler: Heun in units of the data, with churn; two calls of the network a step.

    Args:
        churn: S_churn, spread over the steps of the grid; 0 is the deterministic sampler. A number, never traced.
        churn_min, churn_max: S_tmin and S_tmax, the sigma/alpha between which noise is churned.
        churn_noise: S_noise, the standard deviation of the noise that is added.

    Reference: Karras et al. 2022, arXiv:2206.00364, algorithms 1 and 2.
    """
    _refuse(options, "solver", "coordinates")
    value = known_number(churn)
    if value is None:
        raise ValueError(
            "Expected a churn that is not traced, as 0 is another solver (for a traced one: sample_sde with "
            f"ChurnedHeun); got {churn}."
        )
    if not (in_order(0, churn) and in_order(0, churn_noise) and in_order(0, churn_min, churn_max)):
        raise ValueError(
            "Expected churn >= 0, churn_noise >= 0 and 0 <= churn_min <= churn_max, as noise is added between two "
            f"levels; got {churn=}, {churn_noise=}, {churn_min=}, {churn_max=}."
        )
    if value == 0:
        return sample_ode(denoise, process, key, shape, ts=ts, solver=diffrax.Heun(), coordinates="noise", **options)
    check_points(ts)
    gamma = min(value / (len(ts) - 1), math.sqrt(2) - 1)
    solver = ChurnedHeun(gamma, churn_min, churn_max, churn_noise)
    return sample_sde(denoise, process, key, shape, ts=ts, solver=solver, **options)


def dpm_solver_pp_2m(
    denoise: Denoiser, process: GaussianProcess, key: Keys, shape: Shape, *, ts: Grid, **options
) -> Samples:
    """DPM-Solver++(2M), of order 2; made for `log_snr_grid`, and needs two steps.

    Reference: Lu et al. 2022, arXiv:2211.01095, algorithm 2.
    """
    _refuse(options, "solver", "coordinates")
    return sample_ode(denoise, process, key, shape, ts=ts, solver=DPMSolverPP2M(), coordinates="data", **options)


def dpm_solver_pp_2m_sde(
    denoise: Denoiser, process: GaussianProcess, key: Keys, shape: Shape, *, ts: Grid, **options
) -> Samples:
    """SDE-DPM-Solver++(2M), the stochastic form of the same; needs two steps.

    Reference: Lu et al. 2022, arXiv:2211.01095, SDE-DPM-Solver++(2M).
    """
    _refuse(options, "solver")
    return sample_sde(denoise, process, key, shape, ts=ts, solver=DPMSolverPP2MSDE(), **options)


def deis(
    denoise: Denoiser,
    process: GaussianProcess,
    key: Keys,
    shape: Shape,
    *,
    ts: Grid,
    order: int = 3,
    **options,
) -> Samples:
    """DEIS in its rho-AB form: Adams-Bashforth with variable steps on the noise estimate; needs `order` steps.

    Args:
        order: 1 (DDIM), 2 or 3; the paper counts from 0. Order 3 calls the network once more, before the first step.

    Reference: Zhang & Chen 2022, arXiv:2204.13902, rhoAB-DEIS.
    """
    _refuse(options, "solver", "coordinates")
    return sample_ode(denoise, process, key, shape, ts=ts, solver=AdamsBashforth(order), coordinates="noise", **options)


def predictor_corrector(
    denoise: Denoiser,
    process: GaussianProcess,
    key: Keys,
    shape: Shape,
    *,
    ts: Grid,
    predictor: diffrax.AbstractSolver,
    corrector: Corrector,
    **options,
) -> Samples:
    """Predictor-corrector sampling: `ReverseDiffusion()` and `Langevin(snr=0.16)` are the paper's choice for VE.

    The calls of the network in a step are the predictor's and the corrector's. The ODE as predictor is
    `diffrax.Euler()` with the option stochasticity = 0.

    Reference: Song et al. 2021, arXiv:2011.13456, algorithms 1 to 3.
    """
    _refuse(options, "solver")
    return sample_sde(denoise, process, key, shape, ts=ts, solver=PredictorCorrector(predictor, corrector), **options)


def _refuse(options: dict[str, Any], *own: str) -> None:
    """Raise `ValueError` where an option is one that the recipe settles itself."""
    for name in own:
        if name in options:
            raise ValueError(
                f"Expected no option {name}, as a sampler by name has its own (any other: sample_ode, sample_sde); "
                f"got {name}={options[name]!r}."
            )
