"""Small GANs on points in the plane, many at once: what gan_mode_collapse and gan_learning_rates train.

Both players have two hidden layers of 64 rectifiers; the discriminator's input is divided by 4, as in Metz et al. 2017
(arXiv:1611.02163, appendix A). Seeds, and learning rates where they differ, are lanes of `jax.vmap`; the lanes are
spread over the devices, and the steps are a loop within the compiled program.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from dgm_jax.data import GaussianMixture
from dgm_jax.losses import AdversarialLoss
from dgm_jax.networks import DenseCritic, DenseGenerator
from dgm_jax.training import Players, TrainState, init_adversarial_state, make_adversarial_step, pack
from dgm_jax.training.parallel import Devices, data_mesh, mesh_shard
from dgm_jax.typing import Keys

LATENT = 16
INPUT_SCALE = 4.0
GENERATOR = DenseGenerator((64, 64), (2,))
CRITIC = DenseCritic((64, 64), activation=jax.nn.relu)
Points = Float[Array, "points 2"]
Penalty = Callable[..., Float[Array, " groups"]]  # (critic, real, fake, key), with its weight


class Game(NamedTuple):
    """What two players play; the discriminator judges `degree` points at once."""

    losses: Players
    optimizers: Players
    critic_steps: int = 1
    degree: int = 1


def generate(params: PyTree, key: Keys, points: int) -> Points:
    """Points of the generator, from a standard normal latent each."""
    return GENERATOR.apply(params, jax.random.normal(key, (points, LATENT)))  # type: ignore[return-value]


def critic(params: PyTree, x: Float[Array, "groups inputs"]) -> Float[Array, " groups"]:
    """A logit for each group of points."""
    return CRITIC.apply(params, x / INPUT_SCALE)  # type: ignore[return-value]


def losses_of(loss: AdversarialLoss, *, degree: int = 1, penalty: Penalty | None = None) -> Players:
    """Mean losses over a batch of data and as many generated points; the discriminator's with its penalty."""

    def discriminator(players: Players, batch: Points, key: Keys) -> Float[Array, ""]:
        key_fake, key_penalty = jax.random.split(key)
        real = pack(batch, degree=degree)
        fake = pack(generate(players.generator, key_fake, len(batch)), degree=degree)
        judge = partial(critic, players.discriminator)
        value = loss.discriminator(judge(real), judge(fake))
        if penalty is not None:
            value += penalty(judge, real, fake, key_penalty)
        return value.mean()

    def generator(players: Players, batch: Points, key: Keys) -> Float[Array, ""]:
        fake = pack(generate(players.generator, key, len(batch)), degree=degree)
        judge = partial(critic, players.discriminator)
        return loss.generator(judge(pack(batch, degree=degree)), judge(fake)).mean()

    return Players(discriminator, generator)


def both(optimizer: optax.GradientTransformation) -> Players:
    """The same optimiser for both players."""
    return Players(optimizer, optimizer)


class Trainer:
    """`init(keys, *hyper)` and `advance(states, keys, steps, *hyper)`, with a leading axis of lanes on all but steps.

    Args:
        make_game: from a lane's hyperparameters, scalars that may differ from lane to lane.
        batch: points per update. Each step draws fresh ones, from the lane's key and the number of the step.
        devices: over which lanes are spread where their number divides; all by default.
    """

    def __init__(
        self,
        make_game: Callable[..., Game],
        data: GaussianMixture,
        *,
        batch: int,
        devices: Devices | None = None,
    ):
        self.devices = jax.devices() if devices is None else devices

        def init(key: Keys, *hyper: Array) -> TrainState:
            game = make_game(*hyper)
            key_discriminator, key_generator, key_run = jax.random.split(key, 3)
            params = Players(
                CRITIC.init(key_discriminator, jnp.zeros((1, 2 * game.degree))),
                GENERATOR.init(key_generator, jnp.zeros((1, LATENT))),
            )
            return init_adversarial_state(params, game.optimizers, key_run)

        def advance(state: TrainState, key: Keys, steps: Array, *hyper: Array) -> TrainState:
            game = make_game(*hyper)
            step = make_adversarial_step(game.losses, game.optimizers, critic_steps=game.critic_steps, ema_decay=0.0)

            def one(_: Array, state: TrainState) -> TrainState:
                x = data.sample(jax.random.fold_in(key, state.step), batch * game.critic_steps)
                return step(state, x)[0]

            return jax.lax.fori_loop(0, steps, one, state)

        def lanes(steps: Array, state: TrainState, key: Keys, *hyper: Array) -> TrainState:
            return jax.vmap(lambda state, key, *hyper: advance(state, key, steps, *hyper))(state, key, *hyper)

        self._init = jax.jit(jax.vmap(init))
        self._advance = jax.jit(lanes, donate_argnums=1)
        self._generate = jax.jit(jax.vmap(generate, in_axes=(0, 0, None)), static_argnums=2)

    def init(self, keys: Keys, *hyper: Array) -> TrainState:
        """The states before the first step."""
        return self._spread(self._init(keys, *hyper))

    def advance(self, states: TrainState, keys: Keys, steps: int, *hyper: Array) -> TrainState:
        """The states so many steps later; those that went in are donated."""
        return self._advance(jnp.asarray(steps), states, *self._spread((keys, *hyper)))

    def generate(self, states: TrainState, keys: Keys, points: int) -> Float[Array, "lanes points 2"]:
        """Points of every lane's generator."""
        return self._generate(states.params.generator, self._spread(keys), points)

    def _spread(self, lanes: Any) -> Any:
        divides = len(jax.tree.leaves(lanes)[0]) % len(self.devices) == 0
        return mesh_shard(lanes, data_mesh(self.devices if divides else self.devices[:1]))
