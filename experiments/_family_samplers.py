"""How each family of family_comparison draws points, and what log-density it gives to points held out.

A VAE draws from its model, decoder noise included, and by the decoder's mean alone. One diffusion network is sampled
in three ways. Log-densities are in nats, of points in the units of the networks:

    VP, rectified flow   the probability-flow ODE (exact trace in few dimensions, else Hutchinson's with one probe)
    VAE, IWAE            importance sampling from the encoder: a bound from below in expectation
    GANs                 N(G(z), sigma^2 I), as a GAN has no density of its own, with the sigma of a few that is best on
                         points of the training set (Wu et al. 2017, arXiv:1611.04273, section 4): by annealed
                         importance sampling, from below in expectation, and in few dimensions by the mean over so many
                         latents that some of them come near every point
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from dgm_jax.likelihood import (
    annealed_log_likelihood,
    annealed_step_sizes,
    importance_log_likelihood,
    log_likelihood,
    sigmoid_betas,
)
from dgm_jax.losses import diagonal_posterior, gaussian_log_likelihood, priors
from dgm_jax.processes import GaussianProcess, karras_grid, log_snr_grid, quadratic
from dgm_jax.samplers import ddim, sample_ode, sample_sde
from dgm_jax.typing import Keys, PerExample
from experiments._family_networks import PROCESSES, Networks, Points, generate

Drawn = tuple[Points, int]  # points, and calls of the network for each
Sampler = Callable[[PyTree, Keys, int], tuple[Points, Array | int]]
LogDensity = Callable[[PyTree, Points, Keys], PerExample]
FEW = 8  # dimensions, up to which the trace is exact and latents come near every point
PART = 10_000  # latents at a time
SAMPLERS: dict[str, dict[str, str]] = {
    "GAN, R1": {"GAN, R1": "generator"},
    "WGAN-GP": {"WGAN-GP": "generator"},
    "VAE": {"VAE": "decoder", "VAE, means": "means"},
    "IWAE": {"IWAE": "decoder", "IWAE, means": "means"},
    "VP": {"VP, SDE": "SDE", "VP, ODE": "ODE", "VP, DDIM": "DDIM"},
    "rectified flow": {"rectified flow": "ODE"},
}


@dataclass(frozen=True)
class Effort:
    """How much is spent on drawing points and on log-densities."""

    sde_steps: int = 50  # of Heun: two evaluations each
    ode_steps: int = 25  # of Heun
    ddim_steps: int = 10
    coding_steps: int = 24  # of Bosh3, three evaluations each
    samples: int = 1000  # of importance sampling
    coded: int = 200  # points of the test set whose log-density is measured
    latents: int = 400_000  # of GANs in few dimensions
    annealed: int = 16  # of the coded points for GANs in many, and as many of the training set for the std
    chains: int = 4
    temperatures: int = 200
    leapfrog_steps: int = 5
    pilots: int = 5  # runs that adapt the step sizes
    stds: tuple[float, ...] = (0.05, 0.1, 0.2, 0.4)  # of a GAN's observations


def sampler_of(network: str, kind: str, nets: Networks, effort: Effort) -> Sampler:
    """(params, key, points) -> points and calls of the network for each."""

    def from_latents(params: PyTree, key: Keys, n: int) -> tuple[Points, int]:
        if kind == "generator":
            return generate(nets, params, key, n), 1
        key_latent, key_noise = jax.random.split(key)
        mean, log_std = nets.decode(params, jax.random.normal(key_latent, (n, nets.sizes.latent)))
        return mean if kind == "means" else mean + jnp.exp(log_std) * jax.random.normal(key_noise, mean.shape), 1

    if network not in PROCESSES:
        return from_latents
    process = PROCESSES[network]

    def from_noise(params: PyTree, key: Keys, n: int) -> tuple[Points, Array]:
        denoise, shape = nets.denoiser(params, process), (n, nets.dim)
        if kind == "SDE":
            ts = falling(process, effort.sde_steps, nets.t_min(process))
            drawn = sample_sde(denoise, process, key, shape, ts=ts, solver=diffrax.Heun(), coordinates="noise")
        elif kind == "DDIM":
            drawn = ddim(denoise, process, key, shape, ts=quadratic(effort.ddim_steps, t_min=0.0))
        else:
            ts = falling(process, effort.ode_steps, nets.t_min(process))
            coordinates = "noise" if network == "VP" else "time"
            drawn = sample_ode(denoise, process, key, shape, ts=ts, solver=diffrax.Heun(), coordinates=coordinates)
        return drawn.x, drawn.evaluations

    return from_noise


def falling(process: GaussianProcess, steps: int, t_min: float) -> np.ndarray:
    """The grid of Heun's method: Karras's for VP; equal steps in sqrt t for the rectified flow, as alpha(1) = 0."""
    if process is PROCESSES["VP"]:
        return np.asarray(karras_grid(process, steps, t_min=t_min))
    return np.asarray(quadratic(steps, t_min=t_min))


def log_density_of(network: str, nets: Networks, effort: Effort) -> tuple[str, LogDensity] | None:
    """What is measured, and the function; None for GANs, whose observations' std is found first."""
    if network in PROCESSES:
        return "ODE", partial(flow_log_density, PROCESSES[network], nets, effort)
    if network in ("VAE", "IWAE"):
        return f"bound of {effort.samples} samples", partial(autoencoder_log_density, nets, effort)
    return None


def flow_log_density(
    process: GaussianProcess, nets: Networks, effort: Effort, params: PyTree, x: Points, key: Keys
) -> PerExample:
    """By the probability-flow ODE, of the density at t_min."""
    t_min = nets.t_min(process)
    if process is PROCESSES["VP"]:
        ts = log_snr_grid(process, effort.coding_steps, t_min=t_min, t_max=1.0)[::-1]
    else:  # log-SNR is infinite at t = 1
        ts = np.append(log_snr_grid(process, effort.coding_steps, t_min=t_min, t_max=1 - t_min)[::-1], 1.0)
    probes = None if nets.dim <= FEW else 1
    denoise = nets.denoiser(params, process)
    key_or_none = None if probes is None else key
    return log_likelihood(denoise, process, x, key_or_none, ts=ts, probes=probes, solver=diffrax.Bosh3())


def autoencoder_log_density(nets: Networks, effort: Effort, params: PyTree, x: Points, key: Keys) -> PerExample:
    """By importance sampling from the encoder."""
    draw = diagonal_posterior(partial(nets.encode, params))
    joint = partial(nets.log_joint, params)
    return importance_log_likelihood(draw, joint, x, key, samples=effort.samples, chunk=25).log_likelihood


def annealed_log_density(
    nets: Networks, effort: Effort, params: PyTree, x: Points, key: Keys, log_std: Float[Array, ""]
) -> PerExample:
    """Of N(G(z), sigma^2 I), z ~ N(0, I), by annealed importance sampling from the prior, with adapted step sizes."""
    prior = priors.standard_normal(nets.sizes.latent)

    def draw(x: Points, keys: Keys) -> tuple[Array, PerExample]:
        z = jax.vmap(lambda key: jax.random.normal(key, (nets.sizes.latent,)))(keys)
        return z, prior.log_prob(z)

    def log_q(x: Points, z: Array) -> PerExample:
        return prior.log_prob(z)

    def log_joint(x: Points, z: Array) -> PerExample:
        mean: Any = nets.generator.apply(params, z)
        return prior.log_prob(z) + gaussian_log_likelihood(mean, log_std, x)

    path = {"betas": sigmoid_betas(effort.temperatures), "leapfrog_steps": effort.leapfrog_steps}
    key_pilot, key_run = jax.random.split(key)
    pilot = jax.random.split(key_pilot, len(x))
    sizes = annealed_step_sizes(draw, log_q, log_joint, x, pilot, chains=1, initial=0.1, passes=effort.pilots, **path)
    keys = jax.random.split(key_run, len(x))
    run = annealed_log_likelihood(draw, log_q, log_joint, x, keys, chains=effort.chains, step_size=sizes, **path)
    return run.log_likelihood


def sampled_log_density(
    nets: Networks, effort: Effort, params: PyTree, x: Points, key: Keys, log_std: Float[Array, ""]
) -> PerExample:
    """Of N(G(z), sigma^2 I), z ~ N(0, I), by the mean over latents that all points share."""

    def part(key: Keys) -> PerExample:
        centres = generate(nets, params, key, min(PART, effort.latents))
        squared = ((x[:, None] - centres[None]) ** 2).sum(2)
        return jax.nn.logsumexp(-squared / (2 * jnp.exp(2 * log_std)), axis=1)

    keys = jax.random.split(key, max(effort.latents // PART, 1))
    log_peak = -nets.dim * (log_std + jnp.log(2 * jnp.pi) / 2)
    return jax.nn.logsumexp(jax.lax.map(part, keys), axis=0) - jnp.log(len(keys) * min(PART, effort.latents)) + log_peak


def best_std(log_density: Callable[..., PerExample], effort: Effort, params: PyTree, x: Points, key: Keys) -> float:
    """The std of `effort.stds` with the largest mean log-density of x, points of the training set."""
    means = [float(jnp.mean(log_density(params, x, key, jnp.log(std)))) for std in effort.stds]
    return effort.stds[int(np.nanargmax(means))]
