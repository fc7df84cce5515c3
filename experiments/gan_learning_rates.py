"""How much the learning rates matter: the ring of 8 Gaussians at 25 pairs of rates, for three losses.

    python -m experiments.gan_learning_rates           # some 15 minutes on 2 CPU cores, most of them compiling
    python -m experiments.gan_learning_rates --smoke   # the same code on tiny sizes, in seconds

Either player's Adam has a rate of its own (two time scales: Heusel et al. 2017, arXiv:1706.08500), with beta_1 = 0.5;
2,000 steps, one update of each player in turn. Losses: non-saturating (Goodfellow et al. 2014, arXiv:1406.2661); the
same with R1 (Mescheder et al. 2018, arXiv:1801.04406), gamma = 0.1; WGAN-GP (Gulrajani et al. 2017,
arXiv:1704.00028), weight 0.1, with one critic update where the paper has five. The maps, means over 4 seeds, show how
many of 8 modes hold a point of high quality, and the share of such points, as in experiments/gan_mode_collapse.py.
All pairs and seeds are lanes of one compiled program.

Pairs of 25 at which every seed covers all 8 modes, mean modes over all pairs, and the best high-quality share:

    non-saturating        0 pairs    3.3 modes    0.72 +- 0.08 at rates 3e-3 (discriminator) and 1e-3
    non-saturating, R1    4          5.2          0.29 +- 0.03 at 3e-3 and 3e-3
    WGAN-GP               1          3.0          0.11 +- 0.01 at 1e-2 and 3e-3
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from dgm_jax.losses import AdversarialLoss, gradient_penalty, non_saturating, r1_penalty, wasserstein
from dgm_jax.metrics import mode_scores, nearest_mode
from dgm_jax.training import Players
from experiments._plane_gans import Game, Penalty, Trainer, losses_of
from experiments._run import open_run, parse, virtual_devices
from experiments.gan_mode_collapse import DATA

RING, STD = DATA["ring"]


@dataclass(frozen=True)
class Config:
    """The ring of 8 after training at every pair of learning rates, for three losses."""

    rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)  # Adam's, of either player
    steps: int = 2000
    batch: int = 128
    gradient_penalty: float = 0.1
    r1: float = 0.1  # gamma
    seeds: int = 4
    points: int = 2500  # scored
    seed: int = 0
    run_dir: str = "runs/gan_learning_rates"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    rates=(1e-3, 1e-2), steps=3, batch=8, seeds=1, points=50, run_dir="runs/gan_learning_rates-smoke", smoke=True
)


def games(config: Config) -> dict[str, Callable[[Array, Array], Game]]:
    """Each loss as a game of (discriminator's rate, generator's rate), one update of each player in turn."""

    def lipschitz(critic: Any, real: Any, fake: Any, key: Any) -> Any:
        return config.gradient_penalty * gradient_penalty(critic, real, fake, key)

    def smooth(critic: Any, real: Any, fake: Any, key: Any) -> Any:
        return config.r1 / 2 * r1_penalty(critic, real)

    def game(loss: AdversarialLoss, penalty: Penalty | None, discriminator_rate: Array, generator_rate: Array) -> Game:
        optimizers = Players(optax.adam(discriminator_rate, b1=0.5), optax.adam(generator_rate, b1=0.5))
        return Game(losses_of(loss, penalty=penalty), optimizers)

    return {
        "non-saturating": partial(game, non_saturating, None),
        "non-saturating, R1": partial(game, non_saturating, smooth),
        "WGAN-GP": partial(game, wasserstein, lipschitz),
    }


def lanes(config: Config) -> tuple[Array, Array, np.ndarray]:
    """The rates of every lane, discriminator's and generator's, and its seed: [rates, rates, seeds], made flat."""
    rates = np.asarray(config.rates, np.float32)
    pairs = np.meshgrid(rates, rates, np.arange(config.seeds), indexing="ij")
    discriminator, generator, seeds = (values.ravel() for values in pairs)
    return jnp.asarray(discriminator), jnp.asarray(generator), seeds.astype(int)


def measure(config: Config, name: str) -> dict[str, list]:
    """Modes and high-quality shares [discriminator's rate][generator's rate][seed] at the end of training."""
    *rates, seeds = lanes(config)

    def keys(purpose: int) -> Array:
        base = jax.random.fold_in(jax.random.key(config.seed), purpose)
        return jax.vmap(lambda seed: jax.random.fold_in(base, seed))(jnp.asarray(seeds))

    trainer = Trainer(games(config)[name], RING, batch=config.batch)
    states = trainer.advance(trainer.init(keys(0), *rates), keys(1), config.steps, *rates)
    found = []
    for x in np.asarray(trainer.generate(states, keys(2), config.points)):
        labels, distance = nearest_mode(x, jnp.asarray(RING.means, x.dtype))
        found.append(mode_scores(labels, distance <= 3 * STD, jnp.asarray(RING.weights, x.dtype)))
    shape = (len(config.rates), len(config.rates), config.seeds)
    return {
        "modes": np.reshape([int(score.modes) for score in found], shape).tolist(),
        "high_quality": np.reshape([float(score.high_quality) for score in found], shape).tolist(),
    }


def main(config: Config) -> None:
    """Train what is not yet trained and draw the maps."""
    virtual_devices()
    run = open_run(config)
    picture = run.directory / "gan_learning_rates.png"
    if run.said_done(picture.name):
        return
    for name in games(config):
        if name not in {record["loss"] for record in run.records()}:
            run.log(loss=name, **measure(config, name))
            print(f"{name}: trained at {len(config.rates) ** 2} pairs of rates", flush=True)
    rows = {record["loss"]: {score: np.array(record[score]) for score in SHOWN} for record in run.records()}
    scores = {}
    for name, row in rows.items():
        covered = row["modes"].mean(2)
        i, j = np.unravel_index(row["high_quality"].mean(2).argmax(), covered.shape)
        scores[name] = {
            "pairs with all modes in every seed": int((row["modes"].min(2) == len(RING.means)).sum()),
            "mean modes": float(covered.mean()),
            "best high-quality share": float(row["high_quality"].mean(2).max()),
            "at rates": [config.rates[i], config.rates[j]],
            "spread over seeds, high-quality share": float(row["high_quality"].std(2).mean()),
        }
        print(f"{name:20} " + ", ".join(f"{key}: {value}" for key, value in scores[name].items()))
    plot(config, rows, picture)
    run.finish(scores)
    print(f"Look at {picture}")


SHOWN = {"modes": "modes covered, of 8", "high_quality": "high-quality share"}


def plot(config: Config, rows: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """Means over seeds: modes above, shares below; a column for each loss, with the number in every cell."""
    import matplotlib

    from experiments._figures import STYLE, figure, save

    ticks = [f"{rate:g}".replace("e-0", "e-") for rate in config.rates]
    with matplotlib.rc_context({**STYLE, "axes.spines.top": True, "axes.spines.right": True}):
        fig = figure(7.4, 5.0)
        axes = fig.subplots(len(SHOWN), len(rows), sharex=True, sharey=True, squeeze=False)
        for line, (score, label) in zip(axes, SHOWN.items(), strict=True):
            top = len(RING.means) if score == "modes" else 1.0
            for ax, (name, row) in zip(line, rows.items(), strict=True):
                mean = row[score].mean(2)
                ax.imshow(mean, origin="lower", cmap="cividis", vmin=0, vmax=top, aspect="auto")
                for (i, j), value in np.ndenumerate(mean):
                    text = f"{value:.1f}" if score == "modes" else f"{value:.2f}"
                    ax.text(j, i, text, ha="center", va="center", fontsize=8, color="wk"[int(value > 0.55 * top)])
                ax.set_xticks(range(len(ticks)), ticks, rotation=45)
                ax.set_yticks(range(len(ticks)), ticks)
                ax.set_title(name) if score == "modes" else ax.set_xlabel("generator's rate")
            line[0].set_ylabel("discriminator's rate")
            fig.colorbar(line[0].images[0], ax=line, label=label)
        save(fig, path)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
