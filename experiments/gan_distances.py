"""What critics say of two parallel lines: Arjovsky, Chintala and Bottou 2017 (arXiv:1701.07875), figure 1, example 1.

    python -m experiments.gan_distances        # a minute on 2 CPU cores

The data are (0, Z), the generator's points (theta, Z), with Z uniform on [0, 1]. The earth mover's distance is |theta|,
and the Jensen-Shannon divergence log 2 for every theta but 0, where it is 0: the first is something to descend. Small
networks learn both from points, a fresh one for each of 17 thetas and 3 seeds, all in one `jax.vmap`:

    WGAN-GP         its mean difference of the critic. The penalty is soft, so that the estimate is above |theta|: a
                    critic s x is at its best with s = 1 + |theta|/(2 lambda), and says |theta| + theta^2/(2 lambda)
    WGAN, clipped   the same with weights in [-c, c], which is K |theta|: K is fitted and divided out
    GAN             a discriminator's mean loss is at least log 4 - 2 JSD: log 2 - loss/2 is a lower bound of JSD

and what a generator at theta would feel of each: |d/d theta| of its own loss. The estimates are from 4,096 points that
no critic has seen. The run writes runs/gan_distances/gan_distances.png. Expected, mean and standard deviation over 3
seeds, which is what a run prints:

    WGAN-GP at |theta| = 1                                  1.053 +- 0.001
    its largest error against |theta| + theta^2/(2 lambda)  0.005 +- 0.002
    WGAN, clipped: K, largest error of estimate/K           0.932 +- 0.002, 0.07 +- 0.02
    GAN: JSD at |theta| = 1 and 1/8                         within 5e-5 below log 2
    GAN: JSD at 0                                           -4e-5 +- 5e-5
    |gradient| at |theta| = 1, WGAN-GP and clipped          1.048 +- 0.002, 0.67 +- 0.05
    |gradient| at |theta| = 1, log(1 - D) and -log D        0.00014 +- 0.00005, 15 +- 1

The paper draws the closed forms; the learned critics are added. Critics are dense, 2-32-32-1 with leaky ReLU, trained
for 3,000 steps of Adam (1e-3) on 64 fresh points of each line.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from dgm_jax.losses.adversarial import AdversarialLoss, minimax, non_saturating, wasserstein
from dgm_jax.losses.penalties import gradient_penalty
from dgm_jax.networks.dense import DenseCritic
from dgm_jax.training import clip_weights, init_state, make_step
from dgm_jax.typing import Keys, PerExample
from experiments._run import Run, open_run, parse

Points = Float[Array, "points 2"]
Grid = Float[np.ndarray, "seeds thetas"]


@dataclass(frozen=True)
class Config:
    """Critics of two lines, at many distances."""

    thetas: int = 17  # on [-1, 1]
    steps: int = 3000
    records: int = 30  # of the estimates, evenly spaced over the steps
    batch: int = 64
    width: int = 32
    rate: float = 1e-3
    penalty: float = 10.0
    clip: float = 0.1
    seeds: int = 3
    seed: int = 0
    run_dir: str = "runs/gan_distances"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    thetas=5, steps=200, records=2, batch=32, width=16, seeds=2, run_dir="runs/gan_distances-smoke", smoke=True
)


class Critic(NamedTuple):
    """How a critic is trained, and which generators' losses are looked at against it."""

    loss: Callable[..., PerExample]  # (critic, real, fake, key)
    optimizer: optax.GradientTransformation
    felt: dict[str, AdversarialLoss]


# closed forms ---------------------------------------------------------------------------------------------------


def earth_mover(theta: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Every point moves straight across."""
    return abs(theta)


def jensen_shannon(theta: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """In nats; lines that do not meet are told apart with certainty."""
    return np.where(theta == 0, 0.0, np.log(2.0))


def soft_earth_mover(theta: Float[np.ndarray, "..."], penalty: float) -> Float[np.ndarray, "..."]:
    """What the best linear critic says under `penalty` (|slope| - 1)^2; bent ones can say a little more."""
    return abs(theta) + theta**2 / (2 * penalty)


# critics --------------------------------------------------------------------------------------------------------


def critics(config: Config) -> dict[str, Critic]:
    """The three of the head of this file."""
    adam = optax.adam(config.rate)

    def penalised(critic: Callable, real: Points, fake: Points, key: Keys) -> PerExample:
        gap = wasserstein.discriminator(critic(real), critic(fake))
        return gap + config.penalty * gradient_penalty(critic, real, fake, key)

    def plain(loss: AdversarialLoss) -> Callable[..., PerExample]:
        return lambda critic, real, fake, key: loss.discriminator(critic(real), critic(fake))

    return {
        "WGAN-GP": Critic(penalised, adam, {"WGAN-GP": wasserstein}),
        "WGAN, clipped": Critic(
            plain(wasserstein), optax.chain(adam, clip_weights(config.clip)), {"WGAN, clipped": wasserstein}
        ),
        "GAN": Critic(plain(minimax), adam, {"GAN, log(1 - D)": minimax, "GAN, -log D": non_saturating}),
    }


def line(theta: Float[Array, ""], key: Keys, points: int) -> Points:
    """(theta, Z), with Z uniform on [0, 1]."""
    return jnp.stack([jnp.full(points, theta), jax.random.uniform(key, (points,))], axis=1)


class Learned(NamedTuple):
    """[seeds, thetas], with records as the last axis of `value`."""

    value: np.ndarray  # minus the mean loss without penalty
    felt: dict[str, np.ndarray]  # |d/d theta| of each generator's loss at the end


def learn(config: Config, critic: Critic, thetas: Float[np.ndarray, " thetas"]) -> Learned:
    """Every critic's estimate while it is trained, and the gradients at the end, for all thetas and seeds at once."""
    network = DenseCritic((config.width, config.width))
    plain = next(iter(critic.felt.values())).discriminator  # the same for all that are looked at

    def one(theta: Float[Array, ""], key: Keys) -> tuple[Array, dict[str, Array]]:
        key_init, key_train, key_real, key_fake = jax.random.split(key, 4)

        def loss_fn(params: PyTree, _: None, key: Keys) -> Array:
            key_real, key_fake, key_penalty = jax.random.split(key, 3)
            real, fake = line(jnp.zeros(()), key_real, config.batch), line(theta, key_fake, config.batch)
            return critic.loss(partial(network.apply, params), real, fake, key_penalty).mean()

        step = make_step(loss_fn, critic.optimizer, ema_decay=0.0)
        state = init_state(network.init(key_init, jnp.zeros((1, 2))), critic.optimizer, key_train)

        def logits(params: PyTree, theta: Float[Array, ""]) -> tuple[PerExample, PerExample]:
            held_out = line(jnp.zeros(()), key_real, 4096), line(theta, key_fake, 4096)
            return tuple(network.apply(params, x) for x in held_out)  # type: ignore[return-value]

        def record(state, _):
            state, _ = jax.lax.scan(lambda s, _: step(s, None), state, length=config.steps // config.records)
            return state, -plain(*logits(state.params, theta)).mean()

        state, values = jax.lax.scan(record, state, length=config.records)
        felt = {
            name: jax.grad(lambda theta, loss=loss: loss.generator(*logits(state.params, theta)).mean())(theta)
            for name, loss in critic.felt.items()
        }
        return values, felt

    keys = jax.random.split(jax.random.key(config.seed), (config.seeds, len(thetas)))
    values, felt = jax.jit(jax.vmap(jax.vmap(one), in_axes=(None, 0)))(jnp.asarray(thetas, jnp.float32), keys)
    # compiled functions return dicts in the order of their keys
    in_order = {name: abs(np.asarray(felt[name], np.float64)) for name in critic.felt}
    return Learned(np.asarray(values, np.float64), in_order)


def fitted_constant(theta: Float[np.ndarray, " thetas"], value: Grid) -> Float[np.ndarray, " seeds"]:
    """Each seed's K of value = K |theta|, by least squares."""
    return value @ abs(theta) / np.sum(theta**2)


# the run --------------------------------------------------------------------------------------------------------


def main(config: Config) -> None:
    """Train all critics, compare with the closed forms, and draw."""
    run = open_run(config)
    picture = run.directory / "gan_distances.png"
    if run.said_done(picture.name):
        return
    run.forget_after(-1)
    thetas = np.linspace(-1, 1, config.thetas)
    thetas[config.thetas // 2] = 0.0
    learned = {}
    for name, critic in critics(config).items():
        print(f"{name}: {config.seeds} x {config.thetas} critics, {config.steps} steps ...", flush=True)
        learned[name] = learn(config, critic, thetas)
    constant = fitted_constant(thetas, learned["WGAN, clipped"].value[..., -1])
    estimates = {
        "WGAN-GP": learned["WGAN-GP"].value[..., -1],
        "WGAN, clipped, over K": learned["WGAN, clipped"].value[..., -1] / constant[:, None],
        "GAN": learned["GAN"].value / 2 + np.log(2.0),  # with its records
    }
    felt = {name: gradient for one in learned.values() for name, gradient in one.felt.items()}
    scores = report(run, config, thetas, estimates, felt, constant)
    plot(config, thetas, estimates, felt, picture)
    run.finish(scores)
    print(f"Look at {picture}")


def report(
    run: Run,
    config: Config,
    thetas: Float[np.ndarray, " thetas"],
    estimates: dict[str, np.ndarray],
    felt: dict[str, Grid],
    constant: Float[np.ndarray, " seeds"],
) -> dict[str, list[float]]:
    """Print and log the estimates at each distance, and return what the head of this file expects."""
    divergence = estimates["GAN"][..., -1]
    for i, theta in enumerate(thetas):
        run.log(
            theta=float(theta),
            **{name: [float(v) for v in value[:, i]] for name, value in {**estimates, "GAN": divergence}.items()},
            felt={name: [float(v) for v in value[:, i]] for name, value in felt.items()},
        )
    away = thetas != 0
    excess = estimates["WGAN-GP"] - soft_earth_mover(thetas, config.penalty)
    error = estimates["WGAN, clipped, over K"] - earth_mover(thetas)
    rows = {
        "WGAN-GP at |theta| = 1": estimates["WGAN-GP"][:, [0, -1]].mean(1),
        "WGAN-GP, largest |error| against |theta| + theta^2/(2 lambda)": abs(excess).max(1),
        "WGAN, clipped: K": constant,
        "WGAN, clipped, largest |error| of estimate/K against |theta|": abs(error).max(1),
        "GAN: JSD at |theta| = 1, nats (log 2 = 0.6931)": divergence[:, [0, -1]].mean(1),
        "GAN: JSD nearest to 0, nats (log 2)": np.sort(divergence[:, away][:, nearest(thetas[away])], 1).mean(1),
        "GAN: JSD at 0, nats (0)": divergence[:, ~away].mean(1),
    }
    for name, value in felt.items():
        rows[f"{name}: |gradient| at |theta| = 1"] = value[:, [0, -1]].mean(1)
    for name, value in rows.items():
        print(f"{name:66} {value.mean():9.2e} +- {value.std(ddof=1):.0e}")
    return {name: [float(value.mean()), float(value.std(ddof=1))] for name, value in rows.items()}


def nearest(thetas: Float[np.ndarray, " thetas"]) -> np.ndarray:
    """The indices of the two thetas nearest to 0."""
    return np.argsort(abs(thetas), kind="stable")[:2]


def plot(
    config: Config,
    thetas: Float[np.ndarray, " thetas"],
    estimates: dict[str, np.ndarray],
    felt: dict[str, Grid],
    path: Path,
) -> None:
    """Figure 1 with learned critics: earth mover's distance, Jensen-Shannon divergence, what a generator feels."""
    import matplotlib

    from experiments._figures import BLACK, BLUE, GREEN, ORANGE, SKY, STYLE, VERMILION, figure, save

    fine = np.linspace(-1, 1, 401)
    with matplotlib.rc_context(STYLE):
        fig = figure(9.0, 3.1)
        left, middle, right = fig.subplots(1, 3)
        left.plot(fine, earth_mover(fine), color=BLACK, lw=1.0, label=r"$|\theta|$")
        for name, color, mark in (("WGAN-GP", BLUE, "o"), ("WGAN, clipped, over K", ORANGE, "s")):
            _spread(left, thetas, estimates[name], color, mark, name)
        left.set(title="earth mover's distance")
        middle.axhline(np.log(2.0), color=BLACK, lw=1.0, label=r"log 2, and 0 at $\theta = 0$")
        middle.plot(0, 0, "x", color=BLACK)
        for share, color in ((1 / config.records, SKY), (0.1, GREEN), (1.0, BLUE)):
            record = max(round(share * config.records), 1)
            label = f"{record * (config.steps // config.records):,} steps"
            _spread(middle, thetas, estimates["GAN"][..., record - 1], color, "o", label)
        middle.set(title="Jensen-Shannon divergence (nats)")
        for (name, value), color in zip(felt.items(), (BLUE, ORANGE, VERMILION, GREEN), strict=True):
            _spread(right, thetas, value, color, "o", name)
        right.set(title=r"$|d/d\theta|$ of the generator's loss", yscale="log")
        for ax in (left, middle, right):
            ax.set_xlabel(r"$\theta$")
        right.set_ylim(bottom=right.get_ylim()[0] / 1e3)
        left.legend(loc="upper center", frameon=False, fontsize=7)
        middle.legend(loc="lower left", frameon=False, fontsize=7)
        right.legend(loc="lower center", frameon=False, fontsize=7)
        save(fig, path)


def _spread(ax, thetas: np.ndarray, value: Grid, color: str, mark: str, label: str) -> None:
    """The seeds' mean as marks, their range as a band."""
    ax.plot(thetas, value.mean(0), mark, color=color, ms=3, lw=0.8, ls="-", label=label)
    ax.fill_between(thetas, value.min(0), value.max(0), color=color, alpha=0.2, lw=0)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
