"""Six generative models as losses and steps on the networks of family_comparison.

VP is trained on the squared error of v, the rectified flow on that of the velocity, both at uniform times; a VAE on the
bound with a Gaussian decoder, an IWAE on that of several samples; a GAN on the non-saturating loss with R1 or on
Wasserstein's with the gradient penalty. All have Adam with a rate that warms up and falls, and a moving average, which
is what draws.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from dgm_jax.losses import (
    diagonal_posterior,
    diffusion_loss,
    gaussian_elbo,
    gaussian_log_likelihood,
    gradient_penalty,
    iwae_bound,
    non_saturating,
    r1_penalty,
    wasserstein,
)
from dgm_jax.parameterizations import error_ratio
from dgm_jax.processes import GaussianProcess, stratified
from dgm_jax.training import (
    Players,
    TrainState,
    ema_warmup,
    init_adversarial_state,
    init_state,
    make_adversarial_step,
    make_step,
)
from dgm_jax.training.step import Step
from dgm_jax.typing import Keys, PerExample
from experiments._budget import warmup_cosine
from experiments._family_networks import PROCESSES, Networks, Points, generate, size


class Model(NamedTuple):
    """A model to be trained: `step` compiles once, as the number of steps is in the optimiser's state.

    init: (key, steps) -> state. step: (state, batch) -> (state, metrics). batch: points that a step sees.
    generating, trained: numbers of parameters.
    """

    init: Callable[[Keys, int], TrainState]
    step: Step
    batch: int
    generating: int
    trained: int


def model(name: str, nets: Networks) -> Model:
    """One of NETWORKS, with its loss and optimiser."""
    return adversarial(name, nets) if "GAN" in name else explicit(name, nets)


def explicit(name: str, nets: Networks) -> Model:
    """A model with one loss: a VAE or a denoiser."""
    sizes = nets.sizes
    denoising = name in PROCESSES
    init = nets.init_denoiser if denoising else nets.init_autoencoder
    loss = partial(denoising_loss, nets, PROCESSES[name]) if denoising else {"VAE": vae_loss, "IWAE": iwae_loss}[name]
    loss_fn = loss if denoising else partial(loss, nets)

    def optimizer(steps: int) -> optax.GradientTransformation:
        clip = optax.clip_by_global_norm(10.0 * nets.dim**0.5)
        return optax.chain(
            clip, optax.scale_by_adam(), warmup_cosine(steps, peak=sizes.rate if denoising else sizes.vae_rate)
        )

    params = jax.eval_shape(init, jax.random.key(0))
    return Model(
        init=lambda key, steps: _started(init, key, lambda params, key: init_state(params, optimizer(steps), key)),
        step=make_step(loss_fn, optimizer(1), ema_decay=ema_warmup(sizes.ema_decay)),
        batch=sizes.batch,
        generating=size({**params, "encoder": ()}),
        trained=size(params),
    )


def denoising_loss(nets: Networks, process: GaussianProcess, params: PyTree, x: Points, key: Keys) -> Array:
    """Squared error of v for VP, of the velocity for the rectified flow, at uniform times."""
    prediction = "v" if process is PROCESSES["VP"] else "velocity"
    weight = partial(error_ratio, process, prediction=prediction)
    times = stratified(nets.t_min(process))
    return diffusion_loss(nets.denoiser(params, process), process, x, key, weight=weight, times=times).mean()


def vae_loss(nets: Networks, params: PyTree, x: Points, key: Keys) -> Array:
    """The negative bound, nats."""

    def log_likelihood(x: Points, z: Array) -> PerExample:
        return gaussian_log_likelihood(*nets.decode(params, z), x)

    return -gaussian_elbo(partial(nets.encode, params), log_likelihood, x, key).value.mean()


def iwae_loss(nets: Networks, params: PyTree, x: Points, key: Keys) -> Array:
    """The negative bound of several samples, nats."""
    draw = diagonal_posterior(partial(nets.encode, params))
    return -iwae_bound(draw, partial(nets.log_joint, params), x, key, samples=nets.sizes.samples).mean()


def adversarial(name: str, nets: Networks) -> Model:
    """A GAN: non-saturating with R1, or Wasserstein with the gradient penalty."""
    sizes, wgan = nets.sizes, name == "WGAN-GP"
    rule = wasserstein if wgan else non_saturating
    critic_steps = sizes.critic_steps if wgan else 1

    def discriminator(players: Players, real: Points, key: Keys) -> Array:
        key_latent, key_between = jax.random.split(key)
        judge = partial(nets.critic.apply, players.discriminator)
        fake = generate(nets, players.generator, key_latent, len(real))
        if wgan:
            penalty = sizes.penalty * gradient_penalty(judge, real, fake, key_between)  # type: ignore
        else:
            penalty = sizes.r1 / 2 * r1_penalty(judge, real)  # type: ignore
        return (rule.discriminator(judge(real), judge(fake)) + penalty).mean()  # type: ignore

    def generator(players: Players, real: Points, key: Keys) -> Array:
        judge = partial(nets.critic.apply, players.discriminator)
        logits = judge(generate(nets, players.generator, key, len(real)))
        return rule.generator(logits, logits).mean()  # type: ignore[arg-type]  # neither rule reads real logits

    def optimizers(steps: int) -> Players:
        def adam(updates: int) -> optax.GradientTransformation:
            beta = optax.scale_by_adam(b1=0.0, b2=0.9) if wgan else optax.scale_by_adam(b1=0.5, b2=0.99)
            return optax.chain(beta, warmup_cosine(updates, peak=sizes.gan_rate))

        return Players(adam(critic_steps * steps), adam(steps))

    def init(key: Keys) -> Players:
        key_discriminator, key_generator = jax.random.split(key)
        return Players(
            nets.critic.init(key_discriminator, jnp.zeros((1, nets.dim))),
            nets.generator.init(key_generator, jnp.zeros((1, sizes.latent))),
        )

    losses, params = Players(discriminator, generator), jax.eval_shape(init, jax.random.key(0))
    step = make_adversarial_step(
        losses, optimizers(1), critic_steps=critic_steps, ema_decay=ema_warmup(sizes.ema_decay)
    )
    return Model(
        init=lambda key, steps: _started(
            init, key, lambda params, key: init_adversarial_state(params, optimizers(steps), key)
        ),
        step=step,
        batch=critic_steps * sizes.gan_batch,
        generating=size(params.generator),
        trained=size(params),
    )


def _started(init: Callable[[Keys], PyTree], key: Keys, state_of: Callable[[PyTree, Keys], TrainState]) -> TrainState:
    key_params, key_run = jax.random.split(key)
    return state_of(jax.jit(init)(key_params), key_run)
