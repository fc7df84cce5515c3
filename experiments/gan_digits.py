"""Handwritten digits by a Wasserstein GAN with gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028).

    python -m experiments.gan_digits                   # 4 minutes on 2 CPU cores
    python -m experiments.gan_digits --minutes 20 --run-dir runs/better
    python -m experiments.gan_digits --smoke           # the same code on tiny sizes, in seconds

A small DCGAN (Radford et al. 2016, arXiv:1511.06434) learns 4,500 digits of 28 x 28 pixels, without their classes, by
the paper's algorithm 1: several updates of the critic for each of the generator, lambda = 10, Adam with b1 = 0 and
b2 = 0.9. The critic has layer norm, as batch statistics would make the penalty of one example depend on the others.
Digits are drawn by the generator's moving average and scored against 500 digits held out; rows of digits along great
circles between latents show that the generator has not learnt single points; the critic's estimate of the Wasserstein
distance, on digits that it was trained on and on digits held out, is the paper's figure 5. It writes samples.png,
critic.png, metrics.jsonl, scores.json, config.json and checkpoints to runs/gan_digits/. Running it again resumes.

Expected after 1,500 updates of the generator, for 500 drawn digits and 500 held out (one seed, standard errors):

    classifier sure, real | drawn                        0.69 +- 0.02 | 0.17 +- 0.02
    energy distance to real digits, 95 % point | drawn   0.010 | 0.014
    KL of the classes from the uniform law, nats         0.001 | 0.022
    distance to the nearest of the digits trained on     4.96 | 6.32 (median; pixels in [0, 1])
    Wasserstein distance, last 75 updates                1.36 on digits trained on, 1.23 on digits held out

Deviations from the paper: three updates of the critic instead of five, batches of 32 instead of 50, a learning rate of
1e-3 that falls to 0 by a cosine instead of 1e-4, and the moving average, all to be done in minutes.
"""

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.spatial.distance import cdist

from dgm_jax.data import batches, from_unit, load, source, to_unit
from dgm_jax.losses import gradient_penalty, wasserstein
from dgm_jax.metrics import reverse_kl
from dgm_jax.networks import DCGANCritic, DCGANGenerator, layer_norm
from dgm_jax.numerics import split
from dgm_jax.training import Players, TrainState, ema_warmup, init_adversarial_state
from dgm_jax.training.parallel import pmap_adversarial_step, pmap_sampler, shard
from experiments._budget import steps_that_fit, warmup_cosine
from experiments._digits import certainty, energy_distance, fit_classifier, flat, noise_floor
from experiments._run import Run, open_run, parse, virtual_devices
from experiments._training import train_on_devices

BEGUN = time.monotonic()
SHAPE = (28, 28, 1)
ROWS, COLUMNS = 8, 10  # of the pictures


@dataclass(frozen=True)
class Config:
    """Train a small DCGAN on handwritten digits with WGAN-GP, draw some, and score them."""

    minutes: float = 4.0  # for everything; more of them go into training
    latent: int = 64
    generator_channels: tuple[int, ...] = (64, 32)  # at 7 x 7 and at 14 x 14 pixels
    critic_channels: tuple[int, ...] = (32, 64)
    critic_steps: int = 3  # for each of the generator
    batch: int = 32
    penalty: float = 10.0  # the paper's lambda
    learning_rate: float = 1e-3  # of both players, at its highest
    ema_decay: float = 0.99
    drawn: int = 500  # digits that are scored
    steps: int | None = None  # of the generator; None: as many as fit in `minutes`
    seed: int = 0
    run_dir: str = "runs/gan_digits"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    minutes=0.1,
    latent=8,
    generator_channels=(8, 8),
    critic_channels=(8, 8),
    critic_steps=2,
    batch=16,
    drawn=80,
    run_dir="runs/gan_digits-smoke",
    smoke=True,
)


# networks and losses --------------------------------------------------------------------------------------------


def networks(config: Config) -> Players:
    """The critic and the generator."""
    return Players(
        DCGANCritic(config.critic_channels, layer_norm), DCGANGenerator(config.generator_channels, SHAPE, layer_norm)
    )


def latents(config: Config, keys: jax.Array) -> jax.Array:
    """One latent of N(0, I) for each key."""
    return jax.vmap(lambda key: jax.random.normal(key, (config.latent,)))(keys)


def wgan_gp(config: Config, held_out: np.ndarray) -> Players:
    """Both losses; among the critic's metrics is its estimate of the Wasserstein distance, also on `held_out`."""
    nets = networks(config)

    def discriminator(players: Players, batch: Any, keys: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        key_latent, key_between, key_held_out = split(keys, 3)
        critic = partial(nets.discriminator.apply, players.discriminator)
        real, fake = to_unit(batch["image"]), nets.generator.apply(players.generator, latents(config, key_latent))
        real_logits, fake_logits = critic(real), critic(fake)
        penalty = gradient_penalty(critic, real, fake, key_between).mean()
        loss = wasserstein.discriminator(real_logits, fake_logits).mean() + config.penalty * penalty
        others = jax.vmap(lambda key: jax.random.randint(key, (), 0, len(held_out)))(key_held_out)
        unseen_logits = critic(to_unit(jnp.asarray(held_out)[others]))
        return loss, {
            "wasserstein": -wasserstein.discriminator(real_logits, fake_logits).mean(),
            "wasserstein_held_out": -wasserstein.discriminator(unseen_logits, fake_logits).mean(),
            "penalty": penalty,
        }

    def generator(players: Players, batch: Any, keys: jax.Array) -> jax.Array:
        fake = nets.generator.apply(players.generator, latents(config, keys))
        fake_logits = nets.discriminator.apply(players.discriminator, fake)
        return wasserstein.generator(fake_logits, fake_logits).mean()  # it reads no real logits

    return Players(discriminator, generator)


# training -------------------------------------------------------------------------------------------------------


def train_networks(config: Config, run: Run, held_out: np.ndarray) -> TrainState:
    """Data-parallel over all local devices, from the newest checkpoint where there is one."""
    nets = networks(config)
    keys = jax.random.split(jax.random.key(config.seed), 3)
    params = Players(
        jax.jit(nets.discriminator.init)(keys[0], jnp.zeros((1, *SHAPE))),
        jax.jit(nets.generator.init)(keys[1], jnp.zeros((1, config.latent))),
    )

    def optimizers(steps: int) -> Players:
        def of(updates: int) -> optax.GradientTransformation:
            schedule = warmup_cosine(updates, peak=config.learning_rate)
            return optax.chain(optax.scale_by_adam(b1=0.0, b2=0.9), schedule)

        return Players(of(config.critic_steps * steps), of(steps))

    digits = batches(source("mnist5k", "train"), config.critic_steps * config.batch, seed=config.seed)
    device_step = pmap_adversarial_step(
        wgan_gp(config, held_out),
        optimizers(1),
        critic_steps=config.critic_steps,
        ema_decay=ema_warmup(config.ema_decay),
    )

    def fitting() -> int:
        seconds = 60 * config.minutes - (time.monotonic() - BEGUN) - 15  # scores and pictures
        example = shard({name: np.zeros_like(leaf) for name, leaf in next(digits).items()})
        state = init_adversarial_state(params, optimizers(1), keys[2])
        return steps_that_fit(device_step, state, example, seconds=seconds, reserve=0)

    steps = config.steps or run.measured("steps", fitting)
    digits = batches(source("mnist5k", "train"), config.critic_steps * config.batch, seed=config.seed)
    state = init_adversarial_state(params, optimizers(steps), keys[2])
    return train_on_devices(run, device_step, state, digits, steps=steps, shown="discriminator_loss")


# sampling and scores --------------------------------------------------------------------------------------------


def great_circles(config: Config, key: jax.Array) -> jax.Array:
    """ROWS ways of COLUMNS latents, cos(a) z + sin(a) z' for a from 0 to pi/2: each of them is N(0, I) again."""
    first, last = jax.random.normal(key, (2, ROWS, 1, config.latent))
    angle = jnp.linspace(0.0, jnp.pi / 2, COLUMNS)[None, :, None]
    return (jnp.cos(angle) * first + jnp.sin(angle) * last).reshape(ROWS * COLUMNS, config.latent)


def draw(config: Config, params: Any) -> tuple[np.ndarray, np.ndarray]:
    """`drawn` digits, and ROWS * COLUMNS digits along great circles between latents; levels 0 to 255."""
    net = networks(config).generator
    sampler = pmap_sampler(lambda params, keys: net.apply(params, latents(config, keys)))
    key_draw, key_ways = jax.random.split(jax.random.key(config.seed + 1))
    drawn = sampler(params, jax.random.split(key_draw, config.drawn))
    between = net.apply(params, great_circles(config, key_ways))
    return np.asarray(from_unit(drawn)), np.asarray(from_unit(between))  # type: ignore[arg-type]


def score(config: Config, drawn: np.ndarray, known: dict[str, Any], held_out: dict[str, Any]) -> dict[str, Any]:
    """Of drawn and of held-out digits: certainty, classes, energy distance and distance to the nearest known digit."""
    classify = fit_classifier(known["image"], known["label"])
    real = held_out["image"]

    def row(images: np.ndarray) -> dict[str, float]:
        probabilities = classify(images)
        classes = probabilities.argmax(1)
        certain = certainty(probabilities, classes)
        return {
            "sure": certain["sure"],
            "standard_error": certain["standard_error"],
            "classes_kl": float(reverse_kl(jnp.asarray(classes), jnp.full(10, 0.1))),
            "nearest_known": float(np.median(cdist(flat(images), flat(known["image"])).min(1))),
        }

    floor, worst = noise_floor(np.concatenate([known["image"], real]), (config.drawn, len(real)))
    return {
        "real": {**row(real), "energy_distance": floor, "energy_distance_95": worst},
        "drawn": {**row(drawn), "energy_distance": energy_distance(drawn, real)},
    }


def show(scores: dict[str, Any]) -> None:
    """Print the scores, each beside what real digits reach."""
    print(f"{'digits':18}{'classifier sure':>18}{'KL of classes':>16}{'nearest known':>16}{'energy distance':>18}")
    for key, name in {"real": "real, held out", "drawn": "drawn"}.items():
        row = scores[key]
        sure = f"{row['sure']:.3f} +- {row['standard_error']:.3f}"
        print(f"{name:18}{sure:>18}{row['classes_kl']:16.4f}{row['nearest_known']:16.2f}{row['energy_distance']:18.4f}")
    worst = scores["real"]["energy_distance_95"]
    print(f"(energy distance between parts of the real digits: below {worst:.4f} in 95 %)")
    print(
        "Wasserstein distance by the last critic: {known:.2f}, on held-out digits {held_out:.2f}".format(
            **scores["critic"]
        )
    )


def main(config: Config) -> None:
    """Train, draw, score, and show."""
    virtual_devices()
    run = open_run(config)
    if run.said_done("samples.png"):
        return
    known, held_out = load(source("mnist5k", "train")), load(source("mnist5k", "test"))
    state = train_networks(config, run, held_out["image"])
    print("Drawing and scoring ...", flush=True)
    drawn, between = draw(config, state.ema)
    tail = run.records()[-max(len(run.records()) // 20, 1) :]
    estimates = {
        name: float(np.mean([record[f"discriminator_wasserstein{suffix}"] for record in tail]))
        for name, suffix in (("known", ""), ("held_out", "_held_out"))
    }
    scores = {**score(config, drawn, known, held_out), "critic": estimates}
    samples_figure(held_out["image"], drawn, between, run.directory / "samples.png")
    critic_figure(run.records(), run.directory / "critic.png")
    show(scores)
    run.finish(scores)
    print(f"{(time.monotonic() - BEGUN) / 60:.1f} minutes. Look at {run.directory}/samples.png and critic.png")


# figures --------------------------------------------------------------------------------------------------------


def samples_figure(real: np.ndarray, drawn: np.ndarray, between: np.ndarray, path: Any) -> None:
    """Real held-out digits, drawn ones, and rows between two latents each."""
    import matplotlib

    from experiments._figures import STYLE, figure, save, tiled

    panels = {"real, held out": real, "drawn": drawn, "between two latents, row by row": between}
    with matplotlib.rc_context(STYLE):
        fig = figure(9.6, 2.9)
        for ax, (title, images) in zip(fig.subplots(1, 3), panels.items(), strict=True):
            shown = tiled(images[: ROWS * COLUMNS] / 127.5 - 1, COLUMNS)
            ax.imshow(shown, cmap="gray_r", vmin=-1, vmax=1, interpolation="nearest")
            ax.set_title(title)
            ax.axis("off")
        save(fig, path)


def critic_figure(records: list[dict[str, Any]], path: Any) -> None:
    """The critic's estimate on digits that it was trained on and on digits held out, over the generator's updates."""
    import matplotlib

    from experiments._figures import BLUE, STYLE, VERMILION, figure, save

    steps = np.array([record["step"] for record in records])
    window = max(len(steps) // 40, 1)
    with matplotlib.rc_context(STYLE):
        fig = figure(4.8, 2.8)
        ax = fig.subplots()
        for suffix, name, color in (("", "digits trained on", BLUE), ("_held_out", "digits held out", VERMILION)):
            values = np.array([record[f"discriminator_wasserstein{suffix}"] for record in records])
            mean = np.convolve(values, np.ones(window) / window, mode="valid")
            ax.plot(steps, values, ".", color=color, alpha=0.35, markersize=2.5, mew=0)
            ax.plot(steps[window - 1 :], mean, color=color, label=name)
        ax.set_yscale("log")
        ax.set_yticks([0.5, 1, 2, 5, 10], ["0.5", "1", "2", "5", "10"])
        ax.set_ylim(0.4, 20.0)
        ax.set_xlabel("updates of the generator")
        ax.set_ylabel("critic on data - on drawn")
        ax.legend(frameon=False)
        save(fig, path)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
