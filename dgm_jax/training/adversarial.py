"""Two players, each with its own loss, as one pure step: the discriminator ascends, the generator descends.

    discriminator <- discriminator - its optimiser's update on its own loss      (survey eq. 3, k times)
    generator     <- generator     - its optimiser's update on its own loss      (survey eq. 4, once)
    ema           <- decay ema + (1 - decay) generator

Both losses are to be minimised, so that "ascent" is the sign of the discriminator's loss. Both are functions
(players, batch, key) of all parameters, and each is differentiated with respect to its own player's. The state is the
`TrainState` of any other run: its params and opt_state are `Players`, its ema is the generator's. The loop,
checkpoints and replication therefore work as they are.

Reference: Goodfellow et al. 2014, arXiv:1406.2661, algorithm 1.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from dgm_jax.numerics import is_count, split, typed_key
from dgm_jax.training.state import TrainState
from dgm_jax.training.step import (
    Decay,
    GradientsOf,
    LossFn,
    Metrics,
    Step,
    average,
    batch_size,
    check_decay,
    descend,
    loss_gradients,
)
from dgm_jax.typing import Data, Keys


class Players(NamedTuple):
    """Something of each player: parameters, losses, optimisers."""

    discriminator: Any
    generator: Any


def init_adversarial_state(params: Players, optimizers: Players, key: Keys) -> TrainState:
    """The state before the first step; its buffers are copies, as in `init_state`."""
    opt_state = Players(*(optimizer.init(own) for optimizer, own in zip(optimizers, params, strict=True)))
    state = TrainState(
        step=jnp.zeros((), jnp.int32), params=params, ema=params.generator, opt_state=opt_state, key=typed_key(key)
    )
    return jax.tree.map(jnp.copy, state)


def make_adversarial_step(
    losses: Players,
    optimizers: Players,
    *,
    critic_steps: int,
    ema_decay: Decay,
    gradients_of: GradientsOf = loss_gradients,
) -> Step:
    """`step(state, batch) -> (state, metrics)`: `critic_steps` updates of the discriminator, then one of the generator.

    Args:
        losses: each (players, batch, key) -> scalar or (scalar, metrics), a mean over the examples.
        critic_steps: the paper's k. The batch holds k parts, and update j sees examples j, j + k, j + 2k, ..., so that
            the shard of a batch on a device holds shards of all parts; the generator's loss sees the last part.
        ema_decay: of the generator's moving average, as in `make_step`.
        gradients_of: as in `make_step`.

    Returns:
        The step, pure and not compiled. Its metrics are `loss` and `gradient_norm` of the generator's last update,
        `discriminator_loss` and `discriminator_gradient_norm` of the discriminator's, and what the losses return,
        the discriminator's under `discriminator_...`.
    """
    check_decay(ema_decay)
    if not is_count(critic_steps):
        raise ValueError(f"Expected an integer critic_steps >= 1, as it counts updates; got {critic_steps=}.")

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        if batch_size(batch) % critic_steps:
            raise ValueError(
                f"Expected a batch divisible by critic_steps, as each update sees its own part; got "
                f"{batch_size(batch)} examples for {critic_steps=}."
            )
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), critic_steps + 1)
        players, opt_state, metrics = state.params, state.opt_state, {}
        # A Python loop, as XLA's gradients of convolutions are many times slower inside `lax.scan` on a CPU.
        for turn, key in enumerate(keys):
            last = turn == critic_steps
            name = "generator" if last else "discriminator"
            part = jax.tree.map(lambda leaf, j=min(turn, critic_steps - 1): leaf[j::critic_steps], batch)
            gradients, found = _gradients(losses, name, players, part, key, gradients_of)
            players, opt_state = _move(optimizers, name, gradients, opt_state, players)
            metrics = _joined(metrics, found) if last else found
        return _moved(state, players, opt_state, ema_decay), metrics

    return step


def make_simultaneous_step(
    losses: Players, optimizers: Players, *, ema_decay: Decay, gradients_of: GradientsOf = loss_gradients
) -> Step:
    """As `make_adversarial_step`, but both players move at once, each from where the other stood."""
    check_decay(ema_decay)

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        gradients, metrics = _field(losses, state.params, batch, _step_key(state), gradients_of)
        players, opt_state = _move_both(optimizers, gradients, state.opt_state, state.params)
        return _moved(state, players, opt_state, ema_decay), metrics

    return step


def make_extragradient_step(
    losses: Players, optimizers: Players, *, ema_decay: Decay, gradients_of: GradientsOf = loss_gradients
) -> Step:
    """As `make_simultaneous_step`, with the gradients taken where that step would lead to.

    Both gradients are of one batch and one key. The optimisers see both, as in ExtraAdam; for SGD it is Korpelevich's
    method. The metrics are those of the second gradients.

    Reference: Gidel et al. 2019, arXiv:1802.10551, algorithm 4.
    """
    check_decay(ema_decay)

    def step(state: TrainState, batch: PyTree) -> tuple[TrainState, Metrics]:
        key = _step_key(state)
        gradients, _ = _field(losses, state.params, batch, key, gradients_of)
        ahead, opt_state = _move_both(optimizers, gradients, state.opt_state, state.params)
        gradients, metrics = _field(losses, ahead, batch, key, gradients_of)
        players, opt_state = _move_both(optimizers, gradients, opt_state, state.params)
        return _moved(state, players, opt_state, ema_decay), metrics

    return step


def unrolled(
    losses: Players,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    mean: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> LossFn:
    """The generator's loss against the discriminator of `steps` updates later, differentiated through them.

    The discriminator itself is not moved. With `optax.sgd` the updates are the paper's; an optimiser with a state
    begins afresh. Each update sees the whole batch of the generator's turn, with a key of its own.

    Args:
        mean: over devices, of the updates' gradients: under `jax.pmap`, `parallel.mean_over_devices`.

    Reference: Metz et al. 2017, arXiv:1611.02163, eq. 7 to 10.
    """
    if not is_count(steps, 0):
        raise ValueError(f"Expected an integer steps >= 0, as it counts updates; got {steps=}.")

    def generator_loss(players: Players, batch: PyTree, key: Keys) -> Any:
        opt_state = optimizer.init(players.discriminator)
        for _ in range(steps):
            key, key_update = split(key)
            gradients, _ = _gradients(losses, "discriminator", players, batch, key_update, loss_gradients)
            discriminator, opt_state = descend(optimizer, mean(gradients), opt_state, players.discriminator)
            players = players._replace(discriminator=discriminator)
        return losses.generator(players, batch, key)

    return generator_loss


def pack(x: Data, *, degree: int) -> Float[Array, " groups *packed"]:
    """`[batch, *event] -> [batch / degree, ..., degree * channels]`: PacGAN's discriminator sees `degree` examples.

    Neighbours in the batch are joined along the last axis, and one logit is given for each group.

    Reference: Lin et al. 2018, arXiv:1712.04086.
    """
    if not is_count(degree) or x.ndim < 2 or x.shape[0] % degree:
        raise ValueError(
            f"Expected a batch [batch, ..., channels] divisible by degree >= 1, as groups of examples are joined; got "
            f"{x.shape=}, {degree=}."
        )
    groups = x.reshape(x.shape[0] // degree, degree, *x.shape[1:])
    return jnp.moveaxis(groups, 1, -2).reshape(groups.shape[0], *x.shape[1:-1], degree * x.shape[-1])


def clip_weights(limit: float) -> optax.GradientTransformation:
    """The last link of an optax chain: parameters stay in [-limit, limit] (WGAN, arXiv:1701.07875, algorithm 1)."""
    if not 0 < limit < float("inf"):
        raise ValueError(f"Expected 0 < limit < inf, as weights are held within it; got {limit=}.")

    def clipped(update: Float[Array, "..."], param: Float[Array, "..."]) -> Float[Array, "..."]:
        return jnp.clip(param + update, -limit, limit) - param

    def clip(updates: PyTree, params: PyTree) -> PyTree:
        if params is None:
            raise ValueError("Expected params in update(updates, state, params), as they are clipped; got None.")
        return jax.tree.map(clipped, updates, params)

    return optax.stateless(clip)


# ----------------------------------------------------------------------------------------------------------------


def _step_key(state: TrainState) -> Keys:
    return jax.random.fold_in(state.key, state.step)


def _gradients(
    losses: Players, name: str, players: Players, batch: PyTree, key: Keys, gradients_of: GradientsOf
) -> tuple[PyTree, Metrics]:
    """One player's gradients with the other held, and its metrics under its name."""

    def own_loss(own: PyTree, batch: PyTree, key: Keys) -> Any:
        return getattr(losses, name)(players._replace(**{name: own}), batch, key)

    gradients, metrics = gradients_of(own_loss, getattr(players, name), batch, key)
    prefix = "" if name == "generator" else f"{name}_"
    metrics = {**metrics, "gradient_norm": optax.tree.norm(gradients)}
    return gradients, {prefix + metric: value for metric, value in metrics.items()}


def _field(
    losses: Players, players: Players, batch: PyTree, key: Keys, gradients_of: GradientsOf
) -> tuple[Players, Metrics]:
    """Both players' gradients at one point."""
    found = [
        _gradients(losses, name, players, batch, own, gradients_of)
        for name, own in zip(Players._fields, jax.random.split(key), strict=True)
    ]
    return Players(*(gradients for gradients, _ in found)), _joined(found[0][1], found[1][1])


def _joined(discriminator: Metrics, generator: Metrics) -> Metrics:
    if taken := sorted(discriminator.keys() & generator.keys()):
        raise ValueError(f"Expected other names for the generator's metrics, as the discriminator's are {taken}.")
    return discriminator | generator


def _move(
    optimizers: Players, name: str, gradients: PyTree, opt_state: Players, players: Players
) -> tuple[Players, Players]:
    params, own_state = descend(getattr(optimizers, name), gradients, getattr(opt_state, name), getattr(players, name))
    return players._replace(**{name: params}), opt_state._replace(**{name: own_state})


def _move_both(
    optimizers: Players, gradients: Players, opt_state: Players, players: Players
) -> tuple[Players, Players]:
    for name in Players._fields:
        players, opt_state = _move(optimizers, name, getattr(gradients, name), opt_state, players)
    return players, opt_state


def _moved(state: TrainState, players: Players, opt_state: Players, ema_decay: Decay) -> TrainState:
    ema = average(state.ema, players.generator, ema_decay, state.step)
    return TrainState(step=state.step + 1, params=players, ema=ema, opt_state=opt_state, key=state.key)
