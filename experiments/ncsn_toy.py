"""Why noise levels: Song & Ermon 2019 (arXiv:1907.05600), figures 2 and 3, on 1/5 N((-5, -5), I) + 4/5 N((5, 5), I).

    python -m experiments.ncsn_toy            # half a minute on 2 CPU cores

Figure 2: a score network trained without noise, by sliced score matching, beside the true score. It is right where the
data are and wrong where they are not. Figure 3: exact draws, Langevin dynamics and annealed Langevin dynamics with
exact scores. Between the modes there is no density to carry the ratio of their weights, so that Langevin dynamics keeps
the shares of its start; at large noise there is. The run writes runs/ncsn_toy/ncsn_toy.png and prints the relative
error of the score, sqrt(sum |s - s*|^2 / sum |s*|^2) on a grid over [-8, 8]^2, inside and outside the smallest region
that holds 99 % of the data, and the fraction of points at the mode of weight 0.8.

Mean and standard deviation over 5 seeds; one fraction has a standard error of 0.004 to 0.005:

    relative error of the score, where the data are    0.110 +- 0.029
    relative error of the score, elsewhere             0.662 +- 0.029
    fraction at (5, 5), exact draws                    0.798 +- 0.004
    fraction at (5, 5), Langevin                       0.507 +- 0.002
    fraction at (5, 5), annealed Langevin              0.779 +- 0.004

The last is 0.02 short of 0.8: while the weights still change, at noise of about the modes' distance, 100 steps a level
do not quite keep up with the levels. With 400 (--chain 4000) it is 0.796.

Settings are those of the authors' code: 10,000 steps of Adam at 1e-3 with 128 fresh points each; chains start uniform
on [-8, 8]^2; epsilon = 0.1, 1,000 steps of Langevin dynamics, or 100 at each of 10 levels, geometric from sigma = 20 to
the data's own 1. The mixture is thus the law of two points under VE at its last level. Deviations: the library's MLP
has SiLU for softplus, slices are signs for Gaussian vectors, and fractions are of 10,000 points for 1,280.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from dgm_jax.data import isotropic
from dgm_jax.losses import sliced_score_matching_vr
from dgm_jax.networks import MLP
from dgm_jax.processes import log_snr_grid, variance_exploding
from dgm_jax.samplers import solve_langevin
from dgm_jax.training import init_state, make_step
from experiments._run import open_run, parse, progress

MODE = np.array([5.0, 5.0])
DATA = isotropic(np.array([0.2, 0.8]), np.stack([-MODE, MODE]), std=1.0)
PROCESS = variance_exploding(1.0, 20.0)
LIMIT = 8.0
NETWORK = MLP((128, 128))
Points = Float[Array, "points 2"]


@dataclass(frozen=True)
class Config:
    """Score matching without noise, and Langevin dynamics with and without noise levels."""

    steps: int = 10_000  # of training
    batch: int = 128
    rate: float = 1e-3  # Adam's
    points: int = 10_000  # drawn by each method
    epsilon: float = 0.1
    chain: int = 1000  # steps of Langevin dynamics; annealed, these are divided among the levels
    levels: int = 10
    seed: int = 0
    run_dir: str = "runs/ncsn_toy"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(steps=200, points=400, chain=100, run_dir="runs/ncsn_toy-smoke", smoke=True)


def score(params: PyTree, x: Points) -> Points:
    """The network's score; its time is fixed, as there is one noise level: none."""
    return NETWORK.apply(params, x, jnp.zeros(len(x)))  # type: ignore[return-value]


def train(config: Config, key: Array) -> PyTree:
    """Parameters after sliced score matching on fresh points of the mixture."""
    key_init, key_train = jax.random.split(key)
    optimizer = optax.adam(config.rate)

    def loss_fn(params: PyTree, _: None, key: Array) -> Array:
        key_data, key_slices = jax.random.split(key)
        x = DATA.sample(key_data, config.batch)
        return sliced_score_matching_vr(partial(score, params), x, key_slices, slices=1).mean()

    step = make_step(loss_fn, optimizer, ema_decay=0.0)
    made_at_once = config.steps // 20

    @partial(jax.jit, donate_argnums=0)
    def steps(state):
        state, metrics = jax.lax.scan(lambda state, _: step(state, None), state, length=made_at_once)
        return state, metrics["loss"].mean()

    state = init_state(NETWORK.init(key_init, jnp.zeros((1, 2)), jnp.zeros(1)), optimizer, key_train)
    with progress(config.steps) as report:
        while int(state.step) < config.steps:
            state, loss = steps(state)
            report(int(state.step), float(loss))
    return state.params


def denoise(x_t: Points, t: Float[Array, " points"]) -> Points:
    """The exact denoiser of the two modes' centres: their mean, weighted by their posterior probabilities."""
    mode = jnp.asarray(MODE, x_t.dtype)
    log_odds = jnp.log(4.0) + 2 * jnp.sum(mode * x_t, axis=1) / PROCESS.variance(t)
    return jnp.tanh(log_odds / 2)[:, None] * mode


@partial(jax.jit, static_argnums=0)
def draw(config: Config, key: Array) -> dict[str, Points]:
    """Points of the mixture, and ends of chains that start uniform on the square."""
    keys = jax.random.split(key, 5)
    ts = log_snr_grid(PROCESS, config.levels - 1, t_min=0.0, t_max=1.0)

    def chains(key_start: Array, key_path: Array, ts: np.ndarray) -> Points:
        start = jax.random.uniform(key_start, (config.points, 2), minval=-LIMIT, maxval=LIMIT)
        steps = config.chain // len(ts)
        return solve_langevin(denoise, PROCESS, start, key_path, ts=ts, epsilon=config.epsilon, steps=steps).x

    return {
        "exact draws": DATA.sample(keys[0], config.points),
        "Langevin": chains(keys[1], keys[2], np.asarray(ts[-1:])),
        "annealed Langevin": chains(keys[3], keys[4], np.asarray(ts)),
    }


def lattice(side: int) -> Points:
    """side x side points over the square, rows along the second coordinate."""
    ticks = np.linspace(-LIMIT, LIMIT, side, dtype=np.float32)
    return jnp.asarray(np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2))


def dense_region(x: Points, *, mass: float = 0.99) -> np.ndarray:
    """Which points of a lattice lie in the smallest region that holds `mass` of the data."""
    density = np.exp(np.asarray(DATA.log_prob(x), np.float64))
    order = np.argsort(-density)
    held = np.cumsum(density[order]) / density.sum()
    inside = np.zeros(len(density), bool)
    inside[order[: np.searchsorted(held, mass) + 1]] = True
    return inside


def score_errors(params: PyTree) -> dict[str, float]:
    """Relative error of the score where the data are and where they are not."""
    x = lattice(161)
    exact, found = np.asarray(DATA.score(x), np.float64), np.asarray(score(params, x), np.float64)
    inside = dense_region(x)
    return {
        name: float(np.sqrt(np.sum((found - exact)[rows] ** 2) / np.sum(exact[rows] ** 2)))
        for name, rows in (("inside", inside), ("outside", ~inside))
    }


def fraction(x: np.ndarray) -> tuple[float, float]:
    """The share of points on the side of the heavier mode, and its standard error; 0.8 on data."""
    share = float(np.mean(x.sum(1) > 0))
    return share, float(np.sqrt(share * (1 - share) / len(x)))


def main(config: Config) -> None:
    """Train, draw, score and plot."""
    run = open_run(config)
    picture = run.directory / "ncsn_toy.png"
    if run.said_done(picture.name):
        return
    key_train, key_draw = jax.random.split(jax.random.key(config.seed))
    params = train(config, key_train)
    errors = score_errors(params)
    run.log(steps=config.steps, **{f"score_error_{name}": error for name, error in errors.items()})
    print(f"relative error of the score: {errors['inside']:.3f} where the data are, {errors['outside']:.3f} elsewhere")
    found = draw(config, key_draw)
    drawn = {name: np.asarray(found[name]) for name in ("exact draws", "Langevin", "annealed Langevin")}
    fractions = {name: fraction(x) for name, x in drawn.items()}
    for name, (share, error) in fractions.items():
        run.log(points=name, fraction=share, standard_error=error)
        print(f"{name:18} {share:.4f} +- {error:.4f} at the mode of weight 0.8")
    plot(params, drawn, picture)
    run.finish({"score_error": errors, "fraction": {name: share for name, (share, _) in fractions.items()}})
    print(f"Look at {picture}")


def plot(params: PyTree, drawn: dict[str, np.ndarray], path: Path) -> None:
    """Figure 2 above: true score, estimate, error. Figure 3 below: exact draws, Langevin, annealed Langevin."""
    import matplotlib
    from matplotlib.colors import LogNorm

    from experiments._figures import BLUE, STYLE, VERMILION, figure, save

    x, side = lattice(161), (161, 161)
    ticks = np.linspace(-LIMIT, LIMIT, 161)
    error = np.linalg.norm(np.asarray(score(params, x) - DATA.score(x)), axis=1).reshape(side)
    with matplotlib.rc_context(STYLE):
        fig = figure(7.4, 4.9)
        above, below = fig.subplots(2, 3, sharex=True, sharey=True)
        for ax, title, field in (
            (above[0], "true score", DATA.score),
            (above[1], "sliced score matching", partial(score, params)),
        ):
            _arrows(ax, field)
            ax.set_title(title)
        image = above[2].pcolormesh(
            ticks, ticks, np.maximum(error, 0.03), norm=LogNorm(0.03, 10), cmap="cividis", rasterized=True
        )
        fig.colorbar(image, cax=above[2].inset_axes((1.04, 0.0, 0.05, 1.0)), label="|s - s*|")
        above[2].set_title("its error")
        for ax in above:
            ax.contour(ticks, ticks, dense_region(x).reshape(side), levels=[0.5], colors=VERMILION, linewidths=1.0)
        for ax, (name, points) in zip(below, drawn.items(), strict=True):
            ax.plot(*points[:1280].T, ".", color=BLUE, ms=2.2, mew=0)
            ax.text(-7.4, 7.2, "{:.3f} \u00b1 {:.3f}\nat (5, 5)".format(*fraction(points)), va="top", fontsize=8)
            ax.set_title(name)
        for ax in (*above, *below):
            ax.set(xlim=(-LIMIT, LIMIT), ylim=(-LIMIT, LIMIT), aspect="equal", xticks=(-5, 0, 5), yticks=(-5, 0, 5))
        save(fig, path)


def _arrows(ax: Any, field: Any) -> None:
    """The field, with arrows of the same scale in all panels."""
    x = lattice(17)
    ax.quiver(*np.asarray(x).T, *np.asarray(field(x)).T, color="0.2", width=0.007, scale=110, pivot="mid")


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
