"""What many seeds cost over one, and what an alternating step costs over the updates that it is made of.

- Ten seeds of the non-saturating GAN on the ring of 8, as lanes of one program as gan_mode_collapse runs them, over one
  seed of the same program. The lanes are spread over one virtual device per core, as in the experiment; one seed is on
  one. For information, the same on one device.
- A step of `make_adversarial_step`, with one update of each player, over the discriminator's update plus the
  generator's, each compiled on its own. The step also keeps the generator's moving average and both norms.

    python -m experiments.benchmarks.adversarial [--write]

Time: about 2 minutes on 2 cores. Expected: at most 4 times, at most 1.05 times. Measured: see docs/benchmarks.md.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

from dgm_jax.data import ring
from dgm_jax.losses import non_saturating
from dgm_jax.networks import DCGANCritic, DCGANGenerator, DenseCritic, DenseGenerator
from dgm_jax.training import Players, init_adversarial_state, make_adversarial_step
from dgm_jax.training.parallel import Devices
from experiments._plane_gans import Game, Trainer, both, losses_of
from experiments._run import virtual_devices
from experiments.benchmarks._table import Row, ratio_row, report
from experiments.benchmarks._timing import rounds

LATENT = 64


@dataclass(frozen=True)
class Config:
    """Sizes of the run; `--smoke` takes seconds, writes nothing, and its ratios mean nothing."""

    steps: int = 200  # of the ring GAN in one timing
    repeats: int = 11
    batch: int = 512  # of the dense pair
    image_batch: int = 32
    write: bool = False
    smoke: bool = False


def seed_rows(config: Config) -> list[Row]:
    """Ten seeds over one."""

    def game() -> Game:
        return Game(losses_of(non_saturating), both(optax.adam(1e-3, b1=0.5)))

    def run(seeds: int, devices: Devices) -> Callable[[], object]:
        trainer = Trainer(game, ring(8), batch=128, devices=devices)
        keys = jax.random.split(jax.random.key(0), seeds)
        held = [trainer.init(keys)]

        def advance() -> object:
            held[0] = trainer.advance(held[0], keys, config.steps)
            return held[0].step

        return advance

    devices = jax.devices()
    times = rounds(
        {
            "one": run(1, devices[:1]),
            "ten": run(10, devices),
            "ten on one device": run(10, devices[:1]),
        },
        repeats=config.repeats,
    )
    label = f"ring GAN, {config.steps} steps:"
    return [
        ratio_row(f"{label} ten seeds on {len(devices)} devices / one seed", times["ten"], times["one"], at_most=4),
        ratio_row(f"{label} ten seeds on one device / one seed", times["ten on one device"], times["one"]),
    ]


def step_row(name: str, critic: Any, generator: Any, real: jax.Array, *, repeats: int) -> Row:
    """An alternating step over the sum of its parts."""

    def logits_of(players: Players, batch: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        fake = generator.apply(players.generator, jax.random.normal(key, (len(batch), LATENT)))
        return critic.apply(players.discriminator, batch), critic.apply(players.discriminator, fake)

    losses = Players(
        lambda *args: non_saturating.discriminator(*logits_of(*args)).mean(),
        lambda *args: non_saturating.generator(*logits_of(*args)).mean(),
    )
    optimizer = optax.adam(1e-3, b1=0.5)
    key = jax.random.key(0)
    params = Players(critic.init(key, real[:1]), generator.init(key, jnp.zeros((1, LATENT))))
    state = init_adversarial_state(params, both(optimizer), key)
    step = jax.jit(make_adversarial_step(losses, both(optimizer), critic_steps=1, ema_decay=0.999))

    def part(name: str) -> Callable[[], object]:
        @jax.jit
        def update(players, opt_state, batch, key):
            def own_loss(own):
                return getattr(losses, name)(players._replace(**{name: own}), batch, key)

            loss, gradients = jax.value_and_grad(own_loss)(getattr(players, name))
            updates, opt_state = optimizer.update(gradients, opt_state)
            return optax.apply_updates(getattr(players, name), updates), opt_state, loss

        return lambda: update(params, getattr(state.opt_state, name), real, key)

    times = rounds(
        {"step": lambda: step(state, real), **{name: part(name) for name in Players._fields}}, repeats=repeats
    )
    parts = times["discriminator"] + times["generator"]
    return ratio_row(f"{name}: alternating step / its two updates", times["step"], parts, at_most=1.05)


def main(config: Config) -> None:
    """Time both and print the table."""
    virtual_devices()
    if config.smoke:
        config = Config(steps=2, repeats=1, batch=8, image_batch=2, smoke=True)
    key = jax.random.key(1)
    wide, channels = (16, (4, 4)) if config.smoke else (256, (32, 16))
    rows = seed_rows(config)
    rows.append(
        step_row(
            f"dense pair 2 x {wide}, batch {config.batch}",
            DenseCritic((wide, wide)),
            DenseGenerator((wide, wide), (2,)),
            jax.random.normal(key, (config.batch, 2)),
            repeats=10 * config.repeats,
        )
    )
    rows.append(
        step_row(
            f"DCGAN pair 28 x 28, batch {config.image_batch}",
            DCGANCritic(channels[::-1], norm=None),
            DCGANGenerator(channels, (28, 28, 1)),
            jax.random.normal(key, (config.image_batch, 28, 28, 1)),
            repeats=config.repeats,
        )
    )
    command = "python -m experiments.benchmarks.adversarial"
    report("adversarial", command, rows, write=config.write and not config.smoke, packages=["optax"])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
