"""How noise becomes data: diffrax solves of the probability-flow ODE and of the reverse SDE."""

from dgm_jax.samplers.ancestral import Ancestral, DPMSolverPP2MSDE
from dgm_jax.samplers.churn import ChurnedHeun
from dgm_jax.samplers.coordinates import Coordinates, coordinates_of
from dgm_jax.samplers.correctors import Langevin, NormalizedLangevin
from dgm_jax.samplers.hmc import Move, hmc_step, leapfrog
from dgm_jax.samplers.langevin import annealed_langevin, final_denoising, solve_langevin
from dgm_jax.samplers.multistep import AdamsBashforth, DPMSolverPP2M
from dgm_jax.samplers.noise_levels import langevin_epsilon, largest_distance, level_count, level_ratio
from dgm_jax.samplers.ode import sample_ode, solve_ode
from dgm_jax.samplers.posterior import DPSStep, Replacement, colorization_transform
from dgm_jax.samplers.predictor_corrector import Hold, PredictorCorrector, ReverseDiffusion
from dgm_jax.samplers.recipes import (
    ddim,
    ddpm,
    deis,
    dpm_solver_pp_2m,
    dpm_solver_pp_2m_sde,
    edm_heun,
    predictor_corrector,
)
from dgm_jax.samplers.sde import sample_sde, simulate_forward, solve_sde
from dgm_jax.samplers.smc import Particles, resample, smc
from dgm_jax.samplers.stepping import Samples
from dgm_jax.samplers.underdamped import UnderdampedLangevin
