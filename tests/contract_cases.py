"""Every loss, sampler and likelihood as a function of (params, x, keys), with the small MLP that they share."""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from oracles import PROCESSES

from dgm_jax.latents import ddim_invert, invert_generator, sdedit
from dgm_jax.likelihood import (
    annealed_log_likelihood,
    annealed_step_sizes,
    continuous_bound,
    dequantize,
    importance_log_likelihood,
    linear_betas,
    log_likelihood,
    log_likelihood_with_error,
    reverse_annealed_log_likelihood,
    variational_bound,
    variational_dequantize,
)
from dgm_jax.losses import (
    decoder_log_likelihood,
    denoising_error,
    diagonal_log_density,
    diagonal_posterior,
    diffusion_loss,
    dreg_bound,
    elbo,
    gaussian_elbo,
    gaussian_log_likelihood,
    gradient_penalty,
    hyvarinen,
    iwae_bound,
    kl,
    minimax,
    prior_kl,
    priors,
    relativistic,
    sliced_score_matching,
    sliced_score_matching_vr,
    transition_kl,
    weights,
    zero_centred_penalty,
)
from dgm_jax.losses.quantization import quantize
from dgm_jax.numerics import expand_to, normal_like
from dgm_jax.parameterizations import as_denoiser, error_ratio, operators, precondition
from dgm_jax.parameterizations.guidance import classifier_free_batched, pigdm, static_threshold
from dgm_jax.processes import levels as chain_of
from dgm_jax.processes import uniform
from dgm_jax.samplers import (
    Ancestral,
    DPSStep,
    Langevin,
    Replacement,
    ReverseDiffusion,
    UnderdampedLangevin,
    annealed_langevin,
    ddim,
    ddpm,
    deis,
    dpm_solver_pp_2m_sde,
    edm_heun,
    hmc_step,
    predictor_corrector,
    sample_ode,
    sample_sde,
    simulate_forward,
    solve_langevin,
    solve_ode,
    solve_sde,
)

BATCH, DIM, WIDTH = 32, 3, 16
VP = PROCESSES["vp"]
TS = uniform(6, t_min=0.05, t_max=0.95)


def network(params, x_t, t):
    hidden = jnp.tanh(x_t @ params["in"] + t[:, None] * params["time"][None])
    return jnp.tanh(hidden @ params["middle"]) @ params["out"]


def denoiser(params, process=VP):
    return as_denoiser(partial(network, params), process, prediction="v")


def loss(params, x, keys, *, weight, process=VP):
    return diffusion_loss(denoiser(params, process), process, x, keys, weight=partial(weight, process))


def start(params):
    """A Gaussian about a network's mean, as a draw and as its log-density."""

    def log_q(x, z):
        return jax.scipy.stats.norm.logpdf(z, jnp.tanh(x @ params["in"]) @ params["out"]).sum(1)

    def draw(x, keys):
        z = jnp.tanh(x @ params["in"]) @ params["out"] + normal_like(keys, x)
        return z, log_q(x, z)

    return draw, log_q


ANNEALED = {"betas": linear_betas(3), "chains": 2, "step_size": 0.1, "leapfrog_steps": 2}


def field(params):
    """A score at one time."""
    return lambda x: network(params, x, jnp.full(x.shape[0], 0.3, x.dtype))


def critic(params):
    """One logit per example."""
    return lambda x: field(params)(x).sum(1)


def of_logits(player):
    """An adversarial loss on data and on what a generator makes of noise."""

    def loss(params, x, keys):
        return player(critic(params)(x), critic(params)(field(params)(normal_like(keys, x))))

    return loss


def dropped(levels):
    return lambda params, x, keys: dequantize((jnp.abs(x) * 4).astype(jnp.int32), keys, levels=levels)


def at(x, t):
    return jnp.full(x.shape[0], t, x.dtype)


def on_levels(x):
    """The nearest of 17 levels in [-1, 1]."""
    return jnp.clip(jnp.round(8 * x), -8, 8) / 8


def interpolated(params):
    """A learned variance: v in [0, 1] for each coordinate."""
    return lambda x_t, t: jax.nn.sigmoid(network(params, x_t, t))


def dropped_by_a_network(params, x, keys):
    """The log-density of the noise, and the dequantised data, in one value per example."""

    def encode(centres):
        mean = network(params, centres.astype(x.dtype), at(x, 0.0)).astype(centres.dtype)
        return mean, 0.3 * mean

    y, log_q = variational_dequantize(encode, (jnp.abs(x) * 4).astype(jnp.int32), keys, levels=256)
    return (y.sum(1) + log_q).astype(x.dtype)


def encoder(params):
    return lambda x: (network(params, x, at(x, 0.1)), network(params, x, at(x, 0.6)))


def decoder(params):
    """(x, z) -> log p(x | z), a Gaussian of learned deviation."""
    return lambda x, z: gaussian_log_likelihood(network(params, z, at(z, 0.2)), network(params, z, at(z, 0.9)), x)


def joint(params):
    return lambda x, z: decoder(params)(x, z) + priors.standard_normal(DIM).log_prob(z)


KNOWN = np.array([True, False, True])


def pigdm_of(params, x):
    """Two classes that differ by their sign, the first one preferred, and two coordinates measured."""
    plus = jnp.ones_like(x[:, 0])
    both = classifier_free_batched(
        lambda x_t, t, sign: denoiser(params)(x_t * expand_to(sign, x_t), t),
        plus,
        -plus[0],
        2.0,
    )
    measured = jnp.stack([x[:, 0], x[:, 2]], 1)
    of_two = operators.matrix(jnp.asarray([[1, 0, 0], [0, 0, 1]], x.dtype))
    return pigdm(static_threshold(both, low=-0.9, high=0.9), VP, of_two, measured, noise_std=0.1, data_std=1.0)


def by(recipe, **options):
    """A recipe from the prior; the grid in the precision that is asked for."""
    return lambda params, x, keys: recipe(denoiser(params), VP, keys, x.shape, ts=TS.astype(x.dtype), **options).x


def share(x_t, t):
    """A learned share of the two variances of DDPM."""
    return jnp.full_like(x_t, 0.3)


ADAPTIVE = {"solver": diffrax.Heun(), "controller": diffrax.PIDController(rtol=1e-2, atol=1e-2)}
CASES = {
    "diffusion_loss, simple": partial(loss, weight=weights.simple),
    "diffusion_loss, ncsn on VE": partial(loss, weight=weights.ncsn, process=PROCESSES["ve"]),
    "diffusion_loss, likelihood": partial(loss, weight=partial(weights.likelihood, event_size=DIM)),
    "diffusion_loss, edm": partial(loss, weight=partial(weights.edm, sigma_data=0.5)),
    "diffusion_loss, min_snr": partial(loss, weight=partial(weights.min_snr, gamma=5.0)),
    "diffusion_loss, flow matching": partial(
        loss, weight=partial(error_ratio, prediction="velocity"), process=PROCESSES["rectified"]
    ),
    "denoising_error": lambda params, x, keys: denoising_error(
        denoiser(params), VP, x, jnp.full(x.shape[0], 0.3, x.dtype), normal_like(keys, x)
    ),
    "precondition": lambda params, x, keys: precondition(partial(network, params), PROCESSES["karras"], sigma_data=0.5)(
        x, jnp.full(x.shape[0], 0.3, x.dtype)
    ),
    "solve_ode": lambda params, x, keys: solve_ode(denoiser(params), VP, x, ts=TS).x,
    "solve_ode, encoding": lambda params, x, keys: solve_ode(denoiser(params), VP, x, ts=TS[::-1]).x,
    "sample_ode, noise": lambda params, x, keys: (
        sample_ode(
            denoiser(params), VP, keys, x.shape, ts=TS.astype(x.dtype), coordinates="noise", solver=diffrax.Euler()
        ).x
    ),
    "sample_ode, data": lambda params, x, keys: (
        sample_ode(denoiser(params), VP, keys, x.shape, ts=TS.astype(x.dtype), coordinates="data").x
    ),
    "solve_sde": lambda params, x, keys: solve_sde(denoiser(params), VP, x, keys, ts=TS).x,
    "sample_sde, noise": lambda params, x, keys: (
        sample_sde(denoiser(params), VP, keys, x.shape, ts=TS.astype(x.dtype), coordinates="noise", stochasticity=0.5).x
    ),
    "simulate_forward": lambda params, x, keys: simulate_forward(VP, x, keys, ts=TS[::-1]).x,
    "log_likelihood": lambda params, x, keys: log_likelihood(denoiser(params), VP, x, ts=TS[::-1]),
    "log_likelihood, Hutchinson": lambda params, x, keys: log_likelihood(
        denoiser(params), VP, x, keys, ts=TS[::-1], probes=2
    ),
    "solve_langevin": lambda params, x, keys: (
        solve_langevin(denoiser(params), VP, x, keys, ts=TS, epsilon=1e-3, steps=2).x
    ),
    "annealed_langevin": lambda params, x, keys: (
        annealed_langevin(denoiser(params), VP, keys, x.shape, ts=TS.astype(x.dtype), epsilon=1e-3, steps=2).x
    ),
    "ddpm, learned variance": by(ddpm, variance=share),
    "ddim, eta": by(ddim, eta=0.5),
    "edm_heun, churned": by(edm_heun, churn=1.0),
    "dpm_solver_pp_2m_sde": by(dpm_solver_pp_2m_sde),
    "deis": by(deis),
    "predictor_corrector": by(predictor_corrector, predictor=ReverseDiffusion(), corrector=Langevin(0.16, 2)),
    "predictor_corrector, underdamped": by(
        predictor_corrector, predictor=Ancestral(), corrector=UnderdampedLangevin(0.5, 2)
    ),
    "hyvarinen loss": lambda params, x, keys: hyvarinen(field(params), x),
    "sliced_score_matching loss": lambda params, x, keys: sliced_score_matching(field(params), x, keys, slices=2),
    "sliced_score_matching_vr loss": lambda params, x, keys: sliced_score_matching_vr(field(params), x, keys, slices=2),
    "log_likelihood, spread of probes": lambda params, x, keys: (
        log_likelihood_with_error(denoiser(params), VP, x, keys, ts=TS[::-1], probes=3).standard_error
    ),
    "variational_bound": lambda params, x, keys: variational_bound(
        denoiser(params), VP, x, keys, ts=TS, variance=interpolated(params), levels=None
    ).transitions.sum(0),
    "continuous_bound": lambda params, x, keys: (
        continuous_bound(denoiser(params), VP, x, keys, t_min=0.05, levels=None, draws=2).total
    ),
    "prior_kl": lambda params, x, keys: prior_kl(VP, x),
    "transition_kl, a loss": lambda params, x, keys: transition_kl(
        denoiser(params), VP, x, at(x, 0.4), at(x, 0.3), normal_like(keys, x), variance=interpolated(params)
    ),
    "decoder_log_likelihood, a loss": lambda params, x, keys: decoder_log_likelihood(
        denoiser(params), VP, on_levels(x), at(x, 0.1), normal_like(keys, x), levels=17, variance=at(x, 0.04)
    ),
    "diffusion_loss, variational": lambda params, x, keys: diffusion_loss(
        denoiser(params),
        VP,
        x,
        keys,
        weight=partial(weights.variational, VP, steps=5, event_size=DIM, variance="beta"),
        times=chain_of(jnp.arange(1, 6) / 5),
    ),
    "gaussian_elbo, a loss": lambda params, x, keys: gaussian_elbo(encoder(params), decoder(params), x, keys).value,
    "elbo, a loss": lambda params, x, keys: elbo(diagonal_posterior(encoder(params)), joint(params), x, keys),
    "iwae_bound, a loss": lambda params, x, keys: iwae_bound(
        diagonal_posterior(encoder(params)), joint(params), x, keys, samples=3
    ),
    "dreg_bound, a loss": lambda params, x, keys: dreg_bound(
        diagonal_posterior(encoder(params)),
        diagonal_log_density(encoder(jax.lax.stop_gradient(params))),
        joint(params),
        x,
        keys,
        samples=3,
    ),
    "minimax discriminator loss": of_logits(minimax.discriminator),
    "relativistic generator loss": of_logits(relativistic.generator),
    "kl discriminator loss": of_logits(kl.discriminator),
    "gradient_penalty loss": lambda params, x, keys: gradient_penalty(critic(params), x, field(params)(x), keys),
    "zero_centred_penalty loss": lambda params, x, keys: zero_centred_penalty(
        critic(params), x, field(params)(normal_like(keys, x))
    ),
    "variational_dequantize": dropped_by_a_network,
    "dequantize": dropped(256),
    "importance_log_likelihood": lambda params, x, keys: (
        importance_log_likelihood(start(params)[0], joint(params), x, keys, samples=5, chunk=2).log_likelihood
    ),
    "annealed_log_likelihood": lambda params, x, keys: (
        annealed_log_likelihood(*start(params), joint(params), x, keys, **ANNEALED).log_likelihood
    ),
    "reverse_annealed_log_likelihood": lambda params, x, keys: (
        reverse_annealed_log_likelihood(start(params)[1], joint(params), x, x[:, ::-1], keys, **ANNEALED).log_likelihood
    ),
    "annealed_step_sizes": lambda params, x, keys: (
        annealed_step_sizes(
            *start(params),
            joint(params),
            x,
            keys,
            betas=linear_betas(3),
            chains=2,
            initial=0.1,
            leapfrog_steps=2,
            passes=2,
        ).T
    ),
    "pigdm of a guided, thresholded denoiser": lambda params, x, keys: solve_ode(pigdm_of(params, x), VP, x, ts=TS).x,
    "Replacement": lambda params, x, keys: (
        solve_sde(denoiser(params), VP, x, keys, ts=TS, solver=Replacement(KNOWN, x[:, ::-1], resamples=2)).x
    ),
    "DPSStep": lambda params, x, keys: (
        solve_sde(denoiser(params), VP, x, keys, ts=TS, solver=DPSStep(operators.mask(KNOWN), x, size=0.3)).x
    ),
    "ddim_invert": lambda params, x, keys: ddim_invert(denoiser(params), VP, x, ts=TS, corrections=2).x,
    "sdedit": lambda params, x, keys: sdedit(denoiser(params), VP, x, keys, ts=TS).x,
    "invert_generator": lambda params, x, keys: (
        invert_generator(
            field(params), x, keys, latent_shape=(DIM,), optimizer=optax.adam(0.1), steps=3, starts=2, prior_weight=0.1
        ).z
    ),
    "hmc_step": lambda params, x, keys: hmc_step(partial(joint(params), x), x, keys, step_size=0.2, steps=2).x,
    "quantize, a loss": lambda params, x, keys: sum(quantize(network(params, x, x[:, 0]), params["out"])[2:]),
}
COUPLED = {  # an adaptive controller takes the batch's worst example, so examples share their steps
    "solve_ode, adaptive": lambda params, x, keys: solve_ode(denoiser(params), VP, x, ts=TS, **ADAPTIVE).x,
    "solve_sde, adaptive": lambda params, x, keys: solve_sde(denoiser(params), VP, x, keys, ts=TS, **ADAPTIVE).x,
}
EVERY = CASES | COUPLED


def arguments(dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"in": (DIM, WIDTH), "time": (WIDTH,), "middle": (WIDTH, WIDTH), "out": (WIDTH, DIM)}
    params = {name: jnp.asarray(0.3 * rng.standard_normal(shape), dtype) for name, shape in shapes.items()}
    x = jnp.asarray(0.5 * rng.standard_normal((BATCH, DIM)) + 0.3, dtype)
    return params, x, jax.random.split(jax.random.key(seed), BATCH)
