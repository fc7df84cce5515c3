"""How noise becomes data: diffrax solves of the probability-flow ODE and of the reverse SDE."""

from dgm_jax.samplers.coordinates import Coordinates, coordinates_of
from dgm_jax.samplers.ode import sample_ode, solve_ode
from dgm_jax.samplers.sde import sample_sde, simulate_forward, solve_sde
from dgm_jax.samplers.stepping import Samples
