"""How many of 1,000 modes do seven GANs cover? Stacked digits (Metz et al. 2017, arXiv:1611.02163, section 3.3.1).

    python -m experiments.gan_stacked_digits           # a quarter of an hour on 2 CPU cores
    python -m experiments.gan_stacked_digits --smoke   # the same code on tiny sizes, in seconds

Three digits, drawn at random and independently, are the red, green and blue of one image: 1,000 equal modes, which a
classifier of digits tells apart. The scores are those of Metz et al. and of PacGAN (Lin et al. 2018, arXiv:1712.04086):
how many of the 1,000 triples appear among 26,000 generated images, and the KL divergence of their frequencies from the
uniform law in nats, both beside those of as many stacks of real digits that were held out. The classifier's own errors
are in all of them.

It compares the minimax and the non-saturating loss of Goodfellow et al. 2014, and, each on top of the latter, PacGAN's
pairs, five unrolled updates of the discriminator and R1 (Mescheder et al. 2018, gamma = 10); WGAN with weights clipped
to 0.01 and with the gradient penalty (lambda = 10), both with five updates of the critic for each of the generator.
Nothing was tuned for any of them: all have one learning rate, one network and one number of generator updates; the
unrolled updates are gradient descent, at a rate at which it does not overshoot.
The run writes runs/gan_stacked_digits/ with table.md, samples.png, metrics.jsonl, scores.json and config.json. A cell,
one method with one seed, is not computed again when the run is resumed.

Expected modes and KL, mean and standard deviation over 3 seeds; the classifier is right for 94.4 % of digits:

    minimax           510 +- 39     2.35 +- 0.17
    non-saturating    527 +- 61     2.43 +- 0.15
    PacGAN-2          801 +- 78     1.03 +- 0.20
    unrolled-5        934 +- 29     0.64 +- 0.13
    R1                997 +- 4      0.26 +- 0.05
    WGAN-clip         674 +- 22     2.20 +- 0.02
    WGAN-GP           998 +- 1      0.28 +- 0.03
    real, held out    1000          0.021

Deviations: the papers have DCGANs, images of 28 x 28 or 32 x 32 pixels, 60,000 digits and many more updates. Here the
4,500 digits are halved to 14 x 14 pixels, both networks are dense, and training is short, so that a method's speed
counts as well as its collapse.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.linen import tanh
from jaxtyping import Array, Float, UInt8

from dgm_jax.data import load, source
from dgm_jax.losses import (
    AdversarialLoss,
    gradient_penalty,
    minimax,
    non_saturating,
    r1_penalty,
    wasserstein,
)
from dgm_jax.metrics import reverse_kl
from dgm_jax.networks import DenseCritic, DenseGenerator
from dgm_jax.training import (
    Players,
    TrainState,
    clip_weights,
    init_adversarial_state,
    make_adversarial_step,
    pack,
    unrolled,
)
from experiments._comparison import markdown, plus_minus
from experiments._digits import fit_classifier
from experiments._run import Run, open_run, parse

SHAPE = (14, 14, 3)
MODES = 1000
CHUNK = 100  # updates of the generator in one compiled call
Images = Float[Array, "batch 14 14 3"]


@dataclass(frozen=True)
class Config:
    """Train seven GANs on stacks of three digits, and count the stacks that they draw."""

    methods: tuple[str, ...] = ("minimax", "non-saturating", "PacGAN-2", "unrolled-5", "R1", "WGAN-clip", "WGAN-GP")
    seeds: int = 3
    steps: int = 2000  # updates of the generator
    batch: int = 64  # logits in each update
    latent: int = 64
    generator_widths: tuple[int, ...] = (128, 256)
    critic_widths: tuple[int, ...] = (256, 128)
    learning_rate: float = 5e-4
    counted: int = 26_000  # images in which modes are counted
    run_dir: str = "runs/gan_stacked_digits"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    methods=("PacGAN-2", "WGAN-GP"),
    seeds=1,
    steps=CHUNK,
    batch=4,
    latent=4,
    generator_widths=(8,),
    critic_widths=(8,),
    counted=1000,
    run_dir="runs/gan_stacked_digits-smoke",
    smoke=True,
)


# methods --------------------------------------------------------------------------------------------------------


def no_penalty(critic: Any, real: Images, fake: Images, key: Array) -> Array:
    """Nothing."""
    return jnp.zeros(len(real))


class Method(NamedTuple):
    """What one row of the table does in place of the plain game."""

    loss: AdversarialLoss
    optimizers: Callable[[float], Players]
    penalty: Callable[..., Array] = no_penalty  # (critic, real, fake, key) -> [batch], its factor included
    degree: int = 1  # images that the discriminator sees at once
    critic_steps: int = 1  # for each update of the generator
    unrolled: int = 0  # updates of the discriminator that the generator looks ahead


def adam(b1: float, b2: float) -> Callable[[float], Players]:
    """Adam for both players."""
    return lambda rate: Players(optax.adam(rate, b1, b2), optax.adam(rate, b1, b2))


def clipped(rate: float) -> Players:
    """RMSProp for both, and the critic's weights in [-0.01, 0.01]: WGAN's algorithm 1."""
    return Players(optax.chain(optax.rmsprop(rate), clip_weights(0.01)), optax.rmsprop(rate))


PLAIN = Method(non_saturating, adam(0.5, 0.999))
METHODS = {
    "minimax": PLAIN._replace(loss=minimax),
    "non-saturating": PLAIN,
    "PacGAN-2": PLAIN._replace(degree=2),
    "unrolled-5": PLAIN._replace(unrolled=5),
    "R1": PLAIN._replace(penalty=lambda critic, real, fake, key: 5.0 * r1_penalty(critic, real)),  # gamma/2
    "WGAN-clip": Method(wasserstein, clipped, critic_steps=5),
    "WGAN-GP": Method(
        wasserstein, adam(0.0, 0.9), penalty=lambda *args: 10.0 * gradient_penalty(*args), critic_steps=5
    ),
}
# Gradient descent that does not overshoot: at a rate of 0.03 the discriminator's loss rises tenfold in two updates.
UNROLLED_OPTIMIZER = optax.sgd(0.003)


# training -------------------------------------------------------------------------------------------------------


def halved(images: UInt8[np.ndarray, "n 28 28 1"]) -> Float[np.ndarray, "n 14 14"]:
    """Means of 2 x 2 pixels, in [-1, 1]."""
    return images.reshape(-1, 14, 2, 14, 2).mean((2, 4), dtype=np.float32) / np.float32(127.5) - 1


def stacks(digits: Array, key: Array, n: int) -> Images:
    """`n` images of three digits each, drawn independently."""
    rows = jax.random.randint(key, (n, 3), 0, len(digits))
    return jnp.moveaxis(digits[rows], 1, -1)


def generator_of(config: Config) -> DenseGenerator:
    """From latents to stacks."""
    return DenseGenerator(config.generator_widths, SHAPE, output=tanh)


def generate(config: Config, params: Any, key: Array, n: int) -> Images:
    """`n` images."""
    return generator_of(config).apply(params, jax.random.normal(key, (n, config.latent)))  # type: ignore[return-value]


def game(config: Config, method: Method, digits: Array) -> Players:
    """Both losses; data and latents are drawn from the key, and the batch holds nothing but its size."""
    net = DenseCritic(config.critic_widths)
    images = config.batch * method.degree

    def logits(params: Any) -> Callable[[Images], Array]:
        return partial(net.apply, params)  # type: ignore[return-value]

    def packed(x: Images) -> Array:
        return pack(x, degree=method.degree)

    def discriminator(players: Players, _: Any, key: Array) -> Array:
        key_real, key_fake, key_penalty = jax.random.split(key, 3)
        real = packed(stacks(digits, key_real, images))
        fake = packed(generate(config, players.generator, key_fake, images))
        critic = logits(players.discriminator)
        values = method.loss.discriminator(critic(real), critic(fake))
        return jnp.mean(values + method.penalty(critic, real, fake, key_penalty))

    def generator(players: Players, _: Any, key: Array) -> Array:
        fake_logits = logits(players.discriminator)(packed(generate(config, players.generator, key, images)))
        return method.loss.generator(fake_logits, fake_logits).mean()  # none of these reads the real logits

    losses = Players(discriminator, generator)
    if not method.unrolled:
        return losses
    return losses._replace(generator=unrolled(losses, UNROLLED_OPTIMIZER, steps=method.unrolled))


def trainer(config: Config, method: Method, digits: Array) -> Callable[[int], Any]:
    """seed -> the generator's parameters after training; compiled once. MLPs lose nothing inside `lax.scan`."""
    optimizers = method.optimizers(config.learning_rate)
    step = make_adversarial_step(
        game(config, method, digits), optimizers, critic_steps=method.critic_steps, ema_decay=0.0
    )
    batch = jnp.zeros(method.critic_steps)

    @jax.jit
    def steps(state: TrainState) -> TrainState:
        return jax.lax.scan(lambda state, _: (step(state, batch)[0], None), state, length=CHUNK)[0]

    def run(seed: int) -> Any:
        keys = jax.random.split(jax.random.key(seed), 3)
        event = (*SHAPE[:2], SHAPE[2] * method.degree)
        params = Players(
            DenseCritic(config.critic_widths).init(keys[0], jnp.zeros((1, *event))),
            generator_of(config).init(keys[1], jnp.zeros((1, config.latent))),
        )
        state = init_adversarial_state(params, optimizers, keys[2])
        while int(state.step) < config.steps:
            state = steps(state)
        return state.params.generator

    return run


# scores ---------------------------------------------------------------------------------------------------------


class Counter:
    """The modes of stacks, by a classifier of single digits that was fitted to the training digits."""

    def __init__(self, known: dict[str, np.ndarray]):
        self.classify = fit_classifier(self.levels(halved(known["image"])), known["label"].reshape(-1))

    @staticmethod
    def levels(digits: Float[np.ndarray, "n 14 14"]) -> np.ndarray:
        """As 28 x 28 pixels of 0 to 255, for which the classifier's kernel is made."""
        return (np.repeat(np.repeat(digits, 2, axis=1), 2, axis=2)[..., None] + 1) * 127.5

    def accuracy(self, digits: dict[str, np.ndarray]) -> float:
        """On single digits."""
        labels = self.classify(self.levels(halved(digits["image"]))).argmax(1)
        return float(np.mean(labels == digits["label"].reshape(-1)))

    def __call__(self, images: Float[np.ndarray, "n 14 14 3"]) -> dict[str, Any]:
        """Modes covered, KL of their frequencies from the uniform law, share of 95 % certainty for all three digits."""
        found = self.classify(self.levels(np.moveaxis(images, -1, 1).reshape(-1, 14, 14)))
        labels = found.argmax(1).reshape(-1, 3) @ np.array([100, 10, 1])
        return {
            "modes": len(np.unique(labels)),
            "reverse_kl": float(reverse_kl(jnp.asarray(labels), jnp.full(MODES, 1 / MODES))),
            "sure": float(np.mean((found.max(1) > 0.95).reshape(-1, 3).all(1))),
        }


def counted(config: Config, count: Counter, draw: Callable[[Array, int], Images]) -> dict[str, Any]:
    """The scores of `counted` draws, made in parts."""
    parts = [min(1000, config.counted - start) for start in range(0, config.counted, 1000)]
    keys = jax.random.split(jax.random.key(2026), len(parts))
    return count(np.concatenate([np.asarray(draw(key, n)) for key, n in zip(keys, parts, strict=True)]))


def cells(config: Config, run: Run, count: Counter, digits: Array) -> dict[tuple[str, int], dict[str, Any]]:
    """The scores of every method and seed, of which those already in the run's records are kept."""
    done = {(record["method"], record["seed"]): record for record in run.records() if "seed" in record}
    trainers = {name: trainer(config, METHODS[name], digits) for name in config.methods}
    for seed in range(config.seeds):  # outside, so that a run that is cut short still compares
        for name in config.methods:
            picture = run.directory / f"{name}-{seed}.npy"
            if (name, seed) in done:
                continue
            params = trainers[name](seed)
            draw = jax.jit(partial(generate, config, params), static_argnums=1)
            np.save(picture, np.asarray(draw(jax.random.key(seed), 1000)[:10]))
            record = {"method": name, "seed": seed, **counted(config, count, draw)}
            run.log(**record)
            done[name, seed] = record
            print(f"{name:16} seed {seed}: {record['modes']:4d} modes, KL {record['reverse_kl']:.2f}", flush=True)
    return done


def table(config: Config, done: dict[tuple[str, int], dict[str, Any]], real: dict[str, Any]) -> str:
    """Means and standard deviations over seeds."""

    def row(name: str) -> list[str]:
        columns = [
            [done[name, seed][score] for seed in range(config.seeds)] for score in ("modes", "reverse_kl", "sure")
        ]
        spread = [np.std(values, ddof=1) if config.seeds > 1 else float("nan") for values in columns]
        return [
            name,
            *(plus_minus(float(np.mean(v)), float(s), d) for v, s, d in zip(columns, spread, (0, 2, 3), strict=True)),
        ]

    rows = [row(name) for name in config.methods]
    held_out = ["real, held out", str(real["modes"]), f"{real['reverse_kl']:.3f}", f"{real['sure']:.3f}"]
    header = ["method", f"modes of {MODES:,}", "reverse KL, nats", "classifier sure of all three"]
    return markdown(header, [*rows, held_out])


def main(config: Config) -> None:
    """Train, count, tabulate, show."""
    unknown = sorted(set(config.methods) - set(METHODS))
    if unknown:
        raise SystemExit(f"Expected methods among {sorted(METHODS)}, as these are defined; got {unknown}.")
    run = open_run(config)
    if run.said_done("samples.png"):
        return
    known, held_out = load(source("mnist5k", "train")), load(source("mnist5k", "test"))
    count = Counter(known)
    accuracy = count.accuracy(held_out)
    print(
        f"The classifier is right for {100 * accuracy:.1f} % of {len(held_out['label'])} digits held out.", flush=True
    )
    unseen = jnp.asarray(halved(held_out["image"]))
    real = counted(config, count, lambda key, n: stacks(unseen, key, n))
    done = cells(config, run, count, jnp.asarray(halved(known["image"])))
    text = table(config, done, real)
    (run.directory / "table.md").write_text(text)
    print(text)
    plot(config, run, np.asarray(stacks(unseen, jax.random.key(0), 10)))
    run.finish({"accuracy": accuracy, "real": real, "cells": list(done.values())})
    print(f"Look at {run.directory}/samples.png")


def plot(config: Config, run: Run, real: np.ndarray) -> None:
    """Ten images of each method, of the first seed, below ten real ones."""
    import matplotlib

    from experiments._figures import STYLE, figure, save

    rows = {"real, held out": real} | {name: np.load(run.directory / f"{name}-0.npy") for name in config.methods}
    with matplotlib.rc_context(STYLE):
        fig = figure(5.2, 0.45 * len(rows) + 0.1)
        ax = fig.subplots()
        strips = [np.concatenate(list(images), axis=1) for images in rows.values()]
        ax.imshow((np.concatenate(strips) + 1) / 2, interpolation="nearest")
        ax.set_xticks([])
        ax.set_yticks(14 * (np.arange(len(rows)) + 0.5), list(rows))
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
        save(fig, run.directory / "samples.png")


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
