"""What a generator learns from a perfect discriminator: Arjovsky and Bottou 2017 (arXiv:1701.04862), figures 2 and 3.

    python -m experiments.gan_perfect_discriminator        # 2 minutes on 2 CPU cores

A GAN is trained on digits of 28 x 28 pixels for 1, 10 and 25 epochs. At each of these stages the generator is frozen,
and a discriminator is trained against it from scratch, for 4,000 iterations. On the way the generator's gradient is
measured, over 16 batches of latents: of the original loss log(1 - D), where its norm falls by orders of magnitude, and
of -log D, where it grows and varies more and more. The two share the direction in which each fake's logit rises, but
weight it by D and by 1 - D.

The run writes runs/gan_perfect_discriminator/gan_perfect_discriminator.png, and prints for each stage the mean of the
norm and the variance of the gradient, which is the trace of its covariance over batches. Expected changes from
iteration 0 | 100 to 4,000, with --seed 0 and with --seed 1, in orders of magnitude (log10):

    epochs                      1                           10                          25
    log(1 - D), norm      -10.3, -10.4 | -6.3, -6.1     -9.9, -9.2 | -6.8, -6.2     -9.3, -8.7 | -6.9, -7.8
    -log D, norm           +0.8, +1.0 | +0.24, +0.23    +0.9, +1.0 | +0.32, +0.36   +1.7, +1.5 | +0.46, +0.47
    -log D, variance       +1.4, +1.9 | +0.45, +0.43    +1.8, +1.9 | +0.63, +0.69   +3.0, +2.8 | +0.86, +0.91

The variance of -log D grows as the square of its norm, so that the relative noise does not.

Deviations: the paper used DCGANs, these networks are dense, 64-256-512-784 with ReLU and 784-512-256-1 with leaky ReLU,
so that it takes minutes; an epoch is 70 batches of 64 of the 4,500 digits, and the discriminators' accuracy is on the
digits that they learn; the generator is trained by -log D. Adam at 2e-4 with b1 = 0.5, and with b2 = 0.9 for the
discriminators against frozen generators: with 0.999 one of six, its loss long below 1e-3, was thrown off by a few
surprising batches and had to learn again; the fall was then of 3 to 6 orders of magnitude.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, PyTree

from dgm_jax.data import load, source, to_unit
from dgm_jax.losses.adversarial import AdversarialLoss, minimax, non_saturating
from dgm_jax.networks.dense import DenseCritic, DenseGenerator
from dgm_jax.training import Players, TrainState, init_adversarial_state, init_state, make_adversarial_step, make_step
from dgm_jax.typing import Keys, PerExample
from experiments._run import open_run, parse, progress

LOSSES = {"log(1 - D)": minimax, "-log D": non_saturating}
EVENT = (28, 28, 1)
TINY = float(np.finfo(np.float32).tiny)  # below which float32 has no gradients
Images = Float[Array, "n 28 28 1"]


@dataclass(frozen=True)
class Config:
    """Three generators, each against a discriminator that becomes perfect."""

    stages: tuple[int, ...] = (1, 10, 25)  # epochs of the generator's training
    batch: int = 64
    latent: int = 64
    generator: tuple[int, ...] = (256, 512)
    discriminator: tuple[int, ...] = (512, 256)
    rate: float = 2e-4
    iterations: int = 4000  # of each discriminator
    every: int = 100  # iterations between measurements
    batches: int = 16  # that each measurement is over
    digits: int = 4500
    seed: int = 0
    run_dir: str = "runs/gan_perfect_discriminator"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    stages=(1, 2),
    batch=16,
    latent=8,
    generator=(16,),
    discriminator=(16,),
    iterations=60,
    every=20,
    batches=4,
    digits=320,
    run_dir="runs/gan_perfect_discriminator-smoke",
    smoke=True,
)


class Nets(NamedTuple):
    """The two networks of a configuration."""

    generator: nn.Module
    discriminator: nn.Module
    latent: int

    def generate(self, params: PyTree, key: Keys, n: int) -> Images:
        """n images in [-1, 1]."""
        return self.generator.apply(params, jax.random.normal(key, (n, self.latent)))  # type: ignore[return-value]

    def judge(self, params: PyTree, x: Images) -> PerExample:
        """Logits."""
        return self.discriminator.apply(params, x)  # type: ignore[return-value]


def networks(config: Config) -> Nets:
    """Dense ones."""
    generator = DenseGenerator(config.generator, EVENT, output=nn.tanh)
    return Nets(generator, DenseCritic(config.discriminator), config.latent)


def orders(rng: np.random.Generator, digits: int, batch: int, steps: int) -> Int[np.ndarray, "steps batch"]:
    """Rows of the digits for each step: every epoch is a permutation, what is left over at its end is dropped."""
    per_epoch = digits // batch
    epochs = [rng.permutation(digits)[: per_epoch * batch] for _ in range(-(-steps // per_epoch))]
    return np.concatenate(epochs).reshape(-1, batch)[:steps]


# the generator's training ---------------------------------------------------------------------------------------


def train_generators(config: Config, nets: Nets, digits: Images) -> list[PyTree]:
    """The generator's parameters at each stage of one run of the non-saturating GAN."""

    def logits(players: Players, real: Images, key: Keys) -> tuple[PerExample, PerExample]:
        fake = nets.generate(players.generator, key, len(real))
        return nets.judge(players.discriminator, real), nets.judge(players.discriminator, fake)

    losses = Players(
        lambda *at: non_saturating.discriminator(*logits(*at)).mean(),
        lambda *at: non_saturating.generator(*logits(*at)).mean(),
    )
    adam = optax.adam(config.rate, b1=0.5)
    optimizers = Players(adam, adam)
    step = make_adversarial_step(losses, optimizers, critic_steps=1, ema_decay=0.0)

    @partial(jax.jit, donate_argnums=0)
    def epoch(state: TrainState, rows: Int[Array, "steps batch"]) -> tuple[TrainState, Array]:
        state, metrics = jax.lax.scan(lambda s, row: step(s, digits[row]), state, rows)
        return state, metrics["discriminator_loss"].mean()

    key_discriminator, key_generator, key_train = jax.random.split(jax.random.key(config.seed), 3)
    start = Players(
        nets.discriminator.init(key_discriminator, digits[:1]),
        nets.generator.init(key_generator, jnp.zeros((1, nets.latent))),
    )
    state = init_adversarial_state(start, optimizers, key_train)
    rng, per_epoch, stages = np.random.default_rng(config.seed), len(digits) // config.batch, []
    with progress(config.stages[-1] * per_epoch) as report:
        for number in range(1, config.stages[-1] + 1):
            state, loss = epoch(state, orders(rng, len(digits), config.batch, per_epoch))
            report(number * per_epoch, float(loss))
            if number in config.stages:
                stages.append(jax.tree.map(np.asarray, state.params.generator))
    return stages


# the discriminator's training, and the generator's gradients ------------------------------------------------------


class Gradients(NamedTuple):
    """Over batches: the gradient's norm, its mean and variance; and the trace of the gradient's covariance."""

    norm: Float[Array, ""]
    norm_variance: Float[Array, ""]
    variance: Float[Array, ""]


def generator_gradients(
    nets: Nets, loss: AdversarialLoss, discriminator: PyTree, generator: PyTree, keys: Keys, batch: int
) -> Gradients:
    """Of the generator's mean loss on a batch of fakes, one batch for each key."""

    def of_batch(total: Array, key: Keys) -> tuple[Array, Array]:
        def own_loss(params: PyTree) -> Array:
            fake = nets.judge(discriminator, nets.generate(params, key, batch))
            return loss.generator(jnp.zeros_like(fake), fake).mean()  # neither loss looks at the data

        gradient = ravel_pytree(jax.grad(own_loss)(generator))[0]
        return total + gradient, jnp.linalg.norm(gradient)

    total, norms = jax.lax.scan(of_batch, jnp.zeros_like(ravel_pytree(generator)[0]), keys)
    of_mean = jnp.linalg.norm(total / len(keys))
    variance = (jnp.mean(norms**2) - of_mean**2) * len(keys) / (len(keys) - 1)
    return Gradients(norms.mean(), norms.var(ddof=1), variance)


def against_frozen(config: Config, nets: Nets, digits: Images, generator: PyTree, stage: int) -> list[dict]:
    """One record for every measurement while a new discriminator learns to tell this generator's digits."""
    key_init, key_train, key_measure = jax.random.split(jax.random.fold_in(jax.random.key(config.seed + 100), stage), 3)

    def loss_fn(params: PyTree, real: Images, key: Keys) -> Array:
        fake = nets.generate(generator, key, len(real))
        return minimax.discriminator(nets.judge(params, real), nets.judge(params, fake)).mean()

    # a surprise moves a parameter by at most (1 - b1)/sqrt(1 - b2) rates: 1.6 here, 16 with b2 = 0.999
    adam = optax.adam(config.rate, b1=0.5, b2=0.9)
    step = make_step(loss_fn, adam, ema_decay=0.0)

    @partial(jax.jit, donate_argnums=0)
    def advance(state: TrainState, rows: Int[Array, "steps batch"]) -> tuple[TrainState, Array]:
        state, metrics = jax.lax.scan(lambda s, row: step(s, digits[row]), state, rows)
        return state, metrics["loss"].mean()

    @jax.jit
    def measure(params: PyTree, key: Keys):
        key_fakes, key_batches = jax.random.split(key)
        keys = jax.random.split(key_batches, config.batches)
        fake = nets.judge(params, nets.generate(generator, key_fakes, 1024))
        real = nets.judge(params, digits[:1024])
        found = {
            name: generator_gradients(nets, loss, params, generator, keys, config.batch)._asdict()
            for name, loss in LOSSES.items()
        }
        return found, {"accuracy": ((real > 0).mean() + (fake < 0).mean()) / 2, "fake_logit": fake.mean()}

    params = nets.discriminator.init(key_init, digits[:1])
    state = init_state(params, adam, key_train)
    rows = orders(np.random.default_rng(config.seed + stage), len(digits), config.batch, config.iterations)
    records = []
    with progress(config.iterations) as report:
        for iteration in range(0, config.iterations + 1, config.every):
            if iteration:
                state, loss = advance(state, rows[iteration - config.every : iteration])
                report(iteration, float(loss))
            found, told = jax.tree.map(float, measure(state.params, jax.random.fold_in(key_measure, iteration)))
            records.append({"stage": stage, "iteration": iteration, **told, **found})
    return records


# the run --------------------------------------------------------------------------------------------------------


def main(config: Config) -> None:
    """Train, freeze, train against, measure, and draw."""
    run = open_run(config)
    picture = run.directory / "gan_perfect_discriminator.png"
    if run.said_done(picture.name):
        return
    run.forget_after(-1)
    nets = networks(config)
    digits = jnp.asarray(to_unit(load(source("mnist5k", "train"))["image"][: config.digits]))
    generators = train_generators(config, nets, digits)
    records, scores = [], {}
    for stage, generator in zip(config.stages, generators, strict=True):
        found = against_frozen(config, nets, digits, generator, stage)
        for record in found:
            run.log(**record)
        records += found
        scores[f"{stage} epochs"] = summary(found, stage, config.every)
    drawn = [np.asarray(nets.generate(generator, jax.random.key(1), 10)) for generator in generators]
    plot(config, records, drawn, picture)
    run.finish(scores)
    print(f"Look at {picture}")


def summary(records: list[dict], stage: int, start: int) -> dict[str, float]:
    """Print the measurements at a few iterations; return their changes to the end in orders of magnitude."""
    print(f"generator of {stage} epochs")
    print(f"{'iteration':>9}{'accuracy':>10}{'fake logit':>12}", end="")
    print("".join(f"{name + ': norm':>18}{'variance':>10}" for name in LOSSES))
    last = records[-1]["iteration"]
    for record in records:
        if record["iteration"] in {0, start, last // 4, last // 2, last}:
            print(f"{record['iteration']:9}{record['accuracy']:10.4f}{record['fake_logit']:12.1f}", end="")
            print("".join(f"{record[name]['norm']:18.1e}{record[name]['variance']:10.1e}" for name in LOSSES))
    return {
        f"{name}, {of}, from {record['iteration']}": orders_of_magnitude(record[name][of], records[-1][name][of])
        for name in LOSSES
        for of in ("norm", "variance")
        for record in records
        if record["iteration"] in {0, start}
    }


def orders_of_magnitude(before: float, after: float) -> float:
    """log10 of the ratio, of what float32 can tell from 0."""
    return float(np.log10(max(after, TINY) / max(before, TINY)))


def plot(config: Config, records: list[dict], drawn: list[np.ndarray], path: Path) -> None:
    """Digits of each frozen generator, figure 2 (the loss log(1 - D)) and figure 3 (-log D)."""
    import matplotlib

    from experiments._figures import BLUE, GREEN, ORANGE, STYLE, figure, save, tiled

    with matplotlib.rc_context(STYLE):
        fig = figure(9.0, 3.2)
        left, *panels = fig.subplots(1, 3, width_ratios=(0.8, 1, 1))
        left.imshow(tiled(np.concatenate(drawn), 5), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        left.set(title="the frozen generators", xticks=[], yticks=[56 * i + 28 for i in range(len(drawn))])
        left.set_yticklabels([f"{stage} epoch" + "s" * (stage > 1) for stage in config.stages])
        left.spines[:].set_visible(False)
        left.tick_params(length=0)
        for ax, name in zip(panels, LOSSES, strict=True):
            for stage, color in zip(config.stages, (BLUE, ORANGE, GREEN), strict=False):
                own = [record for record in records if record["stage"] == stage]
                norm, spread = (np.array([record[name][of] for record in own]) for of in ("norm", "norm_variance"))
                at, spread = [record["iteration"] for record in own], np.sqrt(spread)
                ax.plot(at, norm, color=color, lw=1.0, label=f"{stage} epoch" + "s" * (stage > 1))
                ax.fill_between(at, np.maximum(norm - spread, norm / 10), norm + spread, color=color, alpha=0.25, lw=0)
            ax.set(title=f"gradient norm, {name}", yscale="log", xlabel="iterations of the discriminator")
            ax.legend(frameon=False)
        save(fig, path)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
