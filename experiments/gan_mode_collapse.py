"""Mode collapse and its cures on points in the plane: a ring of 8 and a grid of 25 Gaussians, seven GANs, ten seeds.

    python -m experiments.gan_mode_collapse            # about 25 minutes on 2 CPU cores
    python -m experiments.gan_mode_collapse --smoke    # the same code on tiny sizes, in seconds

The pictures are those of Metz et al. 2017 (arXiv:1611.02163, figure 2), the scores those of Srivastava et al. 2017
(arXiv:1705.07761) and Lin et al. 2018 (arXiv:1712.04086, table 1), of 2,500 points: modes with at least one point of
high quality, which is within three standard deviations of its nearest mode; the share of such points; the reverse KL
in nats of all points' nearest modes against equal shares; and the support size by the birthday paradox (Arora & Zhang
2017, arXiv:1706.08224), pairs over duplicate pairs, two points being duplicates if they are at most one standard
deviation of a mode apart. Each is to be read beside that of draws from the data: a support that is smaller is a
collapse, one that is larger is a blur. Mean and standard deviation over 10 seeds:

    ring of 8            modes          high quality      reverse KL        support size
    GAN, minimax         4.9 +- 1.2     0.147 +- 0.133    0.352 +- 0.215    5205 +- 8595
    non-saturating       5.3 +- 1.9     0.734 +- 0.163    0.558 +- 0.465    16 +- 10
    unrolled 5 steps     2.1 +- 1.7     0.457 +- 0.370    1.371 +- 0.707    152 +- 329
    PacGAN-2             8.0 +- 0.0     0.415 +- 0.064    0.020 +- 0.013    124 +- 31
    PacGAN-4             7.8 +- 0.4     0.078 +- 0.034    0.004 +- 0.003    1119 +- 450
    WGAN, clipping       4.0 +- 1.6     0.002 +- 0.001    0.007 +- 0.007    16588 +- 8171
    WGAN-GP              8.0 +- 0.0     0.161 +- 0.080    0.002 +- 0.001    211 +- 65
    R1                   7.9 +- 0.3     0.340 +- 0.074    0.005 +- 0.009    158 +- 43
    draws from the data  8.0 +- 0.0     0.989 +- 0.002    0.001 +- 0.001    36 +- 1

    grid of 25           modes          high quality      reverse KL        support size
    GAN, minimax         18.9 +- 2.9    0.020 +- 0.003    0.107 +- 0.030    7151 +- 1976
    non-saturating       13.7 +- 3.0    0.024 +- 0.009    0.326 +- 0.081    1678 +- 808
    unrolled 5 steps     13.5 +- 2.8    0.018 +- 0.004    0.486 +- 0.197    4616 +- 1537
    PacGAN-2             20.8 +- 1.4    0.019 +- 0.003    0.030 +- 0.013    11302 +- 1019
    PacGAN-4             18.6 +- 1.0    0.016 +- 0.001    0.097 +- 0.050    9725 +- 801
    WGAN, clipping       16.5 +- 2.1    0.015 +- 0.002    0.173 +- 0.182    10661 +- 3275
    WGAN-GP              22.1 +- 2.3    0.047 +- 0.017    0.016 +- 0.004    4455 +- 699
    R1                   18.9 +- 2.1    0.017 +- 0.002    0.059 +- 0.019    5986 +- 2093
    draws from the data  25.0 +- 0.0    0.989 +- 0.002    0.005 +- 0.001    114 +- 3

The data are those of the papers: eight modes on a circle of radius 2 with std 0.02 (Metz et al.), 25 on a grid of
spacing 2 with std 0.05 (Lin et al.). All methods have the same two networks, batch and number of generator updates,
and Adam at 1e-3 with beta_1 = 0.5 (Metz et al.), on the non-saturating loss; but the first is Goodfellow et al.'s
(arXiv:1406.2661) minimax game. Of each paper: unrolled updates of the discriminator are Adam's too (Metz et al.),
begun afresh; PacGAN joins 2 or 4 points; WGAN has five critic updates, RMSProp and weights within 0.01
(arXiv:1701.07875); WGAN-GP has five, beta = (0, 0.9) (arXiv:1704.00028) and the weight 0.1 of its authors' code for
such points, where the paper's 10 is for images; R1 is arXiv:1801.04406. Deviations: Metz et al. train longer, at
1e-4, with a generator of 2 x 128 rectifiers, 256 latents and a discriminator of one layer; Lin et al. for 400 epochs,
with wider networks and batch norm. Here are 5,000 steps of 2 x 64 with 16 latents. Gamma of R1 (0.1 for 10) and the
unrolled updates (Adam's, damped, for plain descent) are the better of a few trials on the ring with two seeds each; the
clipped WGAN's rate (5e-4 for 5e-5) was raised for the short training; the others were not tuned.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dgm_jax.data import GaussianMixture, grid, ring
from dgm_jax.losses import gradient_penalty, minimax, non_saturating, r1_penalty, wasserstein
from dgm_jax.metrics import ModeScores, duplicate_pairs, mode_scores, nearest_mode, support_size
from dgm_jax.training import clip_weights, unrolled
from experiments._plane_gans import Game, Trainer, both, losses_of
from experiments._run import Run, open_run, parse, virtual_devices

DATA: dict[str, tuple[GaussianMixture, float]] = {"ring": (ring(8), 0.02), "grid": (grid(5), 0.05)}  # with modes' std
EXACT = "draws from the data"
SCORES = ("modes", "high_quality", "reverse_kl", "support")


@dataclass(frozen=True)
class Config:
    """Mode collapse of seven GANs on a ring of 8 and a grid of 25 Gaussians."""

    steps: int = 5000  # updates of the generator
    batch: int = 128
    rate: float = 1e-3  # Adam's, with beta_1 = 0.5, where the method's paper does not ask for another optimiser
    unroll: int = 5
    unroll_damping: float = 1e-4  # added to squared gradients in the unrolled Adam
    clip: float = 0.01
    clip_rate: float = 5e-4  # RMSProp's
    gradient_penalty: float = 0.1
    r1: float = 0.1  # gamma
    methods: tuple[str, ...] = ()  # by name; all where none is given
    seeds: int = 10
    points: int = 2500  # scored
    frames: tuple[int, ...] = (0, 250, 500, 1000, 2500)  # steps in the film strip, of seed 0
    seed: int = 0
    run_dir: str = "runs/gan_mode_collapse"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    steps=4,
    batch=8,
    methods=("PacGAN-2",),
    seeds=2,
    points=100,
    frames=(0, 2),
    run_dir="runs/gan_mode_collapse-smoke",
    smoke=True,
)


def methods(config: Config) -> dict[str, Callable[[], Game]]:
    """Every method on the same networks, batch and number of generator updates."""
    adam = both(optax.adam(config.rate, b1=0.5))
    standard = losses_of(non_saturating)
    # Adam's root has no derivative where a gradient is zero, as that of a dead unit is.
    inner = optax.adam(config.rate, b1=0.5, eps_root=config.unroll_damping)
    foreseeing = standard._replace(generator=unrolled(standard, inner, steps=config.unroll))

    def lipschitz(critic: Any, real: Any, fake: Any, key: Any) -> Any:
        return config.gradient_penalty * gradient_penalty(critic, real, fake, key)

    def smooth(critic: Any, real: Any, fake: Any, key: Any) -> Any:
        return config.r1 / 2 * r1_penalty(critic, real)

    root_mean_square = optax.rmsprop(config.clip_rate)
    clipped = both(root_mean_square)._replace(discriminator=optax.chain(root_mean_square, clip_weights(config.clip)))
    without_momentum = both(optax.adam(config.rate, b1=0.0, b2=0.9))
    return {
        "GAN, minimax": lambda: Game(losses_of(minimax), adam),
        "non-saturating": lambda: Game(standard, adam),
        f"unrolled {config.unroll} steps": lambda: Game(foreseeing, adam),
        "PacGAN-2": lambda: Game(losses_of(non_saturating, degree=2), adam, degree=2),
        "PacGAN-4": lambda: Game(losses_of(non_saturating, degree=4), adam, degree=4),
        "WGAN, clipping": lambda: Game(losses_of(wasserstein), clipped, critic_steps=5),
        "WGAN-GP": lambda: Game(losses_of(wasserstein, penalty=lipschitz), without_momentum, critic_steps=5),
        "R1": lambda: Game(losses_of(non_saturating, penalty=smooth), adam),
    }


def chosen(config: Config) -> list[str]:
    """The names of the methods to compare, in the table's order."""
    known = list(methods(config))
    unknown = sorted(set(config.methods) - set(known))
    if unknown:
        raise SystemExit(f"Expected methods among {known}, as these are implemented; got {unknown}.")
    return [name for name in known if not config.methods or name in config.methods]


def scores(x: np.ndarray, data: GaussianMixture, std: float) -> dict[str, float]:
    """The four scores of a set of points; two points at most one std apart are duplicates."""
    means, weights = (jnp.asarray(part, x.dtype) for part in (data.means, data.weights))
    found, duplicates = _scores(x, means, weights, std)
    modes, share, kl = (score.item() for score in found)
    return {"modes": modes, "high_quality": share, "reverse_kl": kl, "support": float(support_size(duplicates, len(x)))}


@jax.jit
def _scores(x: jax.Array, means: jax.Array, weights: jax.Array, std: float) -> tuple[ModeScores, jax.Array]:
    labels, distance = nearest_mode(x, means)
    return mode_scores(labels, distance <= 3 * std, weights), duplicate_pairs(x, radius=std)


def seed_keys(config: Config, purpose: int) -> jax.Array:
    """A key for each seed, that depends on neither the method nor the number of seeds."""
    base = jax.random.fold_in(jax.random.key(config.seed), purpose)
    return jax.vmap(lambda seed: jax.random.fold_in(base, seed))(jnp.arange(config.seeds))


def cell(config: Config, run: Run, name: str, data_name: str) -> None:
    """Train all seeds of one method on one data set; score their ends, keep the frames of seed 0."""
    data, std = DATA[data_name]
    if name == EXACT:
        points = [np.asarray(data.sample(key, config.points)) for key in seed_keys(config, 3)]
        run.log(data=data_name, method=name, scores=[scores(x, data, std) for x in points])
        return
    start = time.monotonic()
    trainer = Trainer(methods(config)[name], data, batch=config.batch)
    keys = seed_keys(config, 1)
    states, frames, points, done = trainer.init(seed_keys(config, 0)), {}, np.empty((0, 0, 2)), 0
    for mark in marks(config):
        states = trainer.advance(states, keys, mark - done)
        points = np.asarray(trainer.generate(states, seed_keys(config, 2), config.points))
        frames[str(mark)], done = points[0], mark
    found = [scores(x, data, std) for x in points]
    np.savez_compressed(frames_path(run, name, data_name), **frames)
    run.log(data=data_name, method=name, scores=found, seconds=round(time.monotonic() - start, 1))
    print(line(data_name, name, found), flush=True)


def marks(config: Config) -> list[int]:
    """The steps at which points are kept, the last among them."""
    return sorted({step for step in config.frames if step < config.steps} | {config.steps})


def frames_path(run: Run, name: str, data_name: str) -> Path:
    """Where seed 0's points during training are kept."""
    return run.directory / f"{data_name}-{name.replace(', ', '-').replace(' ', '-')}.npz"


def summary(found: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation over seeds of each score."""
    columns = {name: np.array([row[name] for row in found]) for name in SCORES}
    with np.errstate(invalid="ignore"):  # a support without duplicates is infinite, its spread unknown
        return {name: (float(values.mean()), float(values.std(ddof=1))) for name, values in columns.items()}


def line(data_name: str, name: str, found: list[dict[str, float]]) -> str:
    """One row of the table."""
    (modes, d_modes), (share, d_share), (kl, d_kl), (support, d_support) = summary(found).values()
    return (
        f"{data_name:5} {name:20} {modes:5.1f} +- {d_modes:3.1f}   {share:.3f} +- {d_share:.3f}   "
        f"{kl:.3f} +- {d_kl:.3f}   {support:7.1f} +- {d_support:.1f}"
    )


def main(config: Config) -> None:
    """Train what is not yet trained, print the table and draw the strip."""
    virtual_devices()
    run = open_run(config)
    picture = run.directory / "gan_mode_collapse.png"
    if run.said_done(picture.name):
        return
    names = [*chosen(config), EXACT]
    done = {(record["data"], record["method"]) for record in run.records()}
    for data_name in DATA:
        for name in names:
            if (data_name, name) not in done:
                cell(config, run, name, data_name)
    found = {(record["data"], record["method"]): record["scores"] for record in run.records()}
    rows = {(data_name, name): found[data_name, name] for data_name in DATA for name in names}
    print("data  method               modes         high quality      reverse KL        support size")
    for (data_name, name), found in rows.items():
        print(line(data_name, name, found))
    strip(config, run, picture)
    run.finish({f"{data_name}: {name}": summary(found) for (data_name, name), found in rows.items()})
    print(f"Look at {picture}")


def strip(config: Config, run: Run, path: Path) -> None:
    """The ring's points of seed 0: a row for each method, a column for each step."""
    import matplotlib

    from experiments._figures import BLUE, STYLE, VERMILION, figure, save

    data, _ = DATA["ring"]
    names = chosen(config)
    frames = {name: np.load(frames_path(run, name, "ring")) for name in names}
    steps = marks(config)
    with matplotlib.rc_context(STYLE):
        fig = figure(1.05 * len(steps) + 1.0, 1.05 * len(names) + 0.4)
        axes = fig.subplots(len(names), len(steps), sharex=True, sharey=True, squeeze=False)
        for row, name in zip(axes, names, strict=True):
            for ax, step in zip(row, steps, strict=True):
                ax.plot(*data.means.T, "o", color=VERMILION, ms=6, mfc="none", mew=0.7)
                ax.plot(*frames[name][str(step)][:500].T, ".", color=BLUE, ms=1.8, mew=0)
                ax.set(xlim=(-3, 3), ylim=(-3, 3), aspect="equal", xticks=(-2, 2), yticks=(-2, 2))
            row[0].set_ylabel(name.replace(", ", ",\n").replace(" 5", "\n5"), rotation=0, ha="right", va="center")
        for ax, step in zip(axes[0], steps, strict=True):
            ax.set_title(f"step {step:,}" if step == steps[0] else f"{step:,}")
        save(fig, path)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
