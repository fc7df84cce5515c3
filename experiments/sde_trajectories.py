"""A one-dimensional mixture carried to noise and back: Song et al. 2021 (arXiv:2011.13456), figure 2.

    python -m experiments.sde_trajectories            # 20 seconds on 2 CPU cores, nearly all of it compilation

Paths of the SDE and lines of the probability-flow ODE over the density p_t(x), for VP, sub-VP and VE, with the exact
score. It writes runs/sde_trajectories/trajectories.png and prints the weight of the right mode (exactly 0.7 in the
data) and the Wasserstein-1 distance to the data of 4,000 points by each method. Mean and standard deviation over 5
seeds; one weight has a standard error of 0.0072:

    process   points by      weight              W1 to data
    VP        SDE            0.7014 +- 0.0052    0.0126 +- 0.0056
    VP        ODE            0.7016 +- 0.0057    0.0128 +- 0.0058
    sub-VP    SDE            0.6971 +- 0.0042    0.0124 +- 0.0039
    sub-VP    ODE            0.6941 +- 0.0125    0.0282 +- 0.0127
    VE        SDE            0.7048 +- 0.0037    0.0156 +- 0.0077
    VE        ODE            0.6929 +- 0.0084    0.0238 +- 0.0121
              exact draws    0.6978 +- 0.0085    0.0191 +- 0.0102

A point drawn by the ODE keeps its rank, so what the prior N(0, sigma(1)^2) neglects of the data's mean, 0.54, shifts
the weight: by 0.004 under VE with sigma(1) = 50, and by 0.02 were sigma(1) = 10.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.data import GaussianMixture
from dgm_jax.parameterizations import as_denoiser
from dgm_jax.processes import (
    GaussianProcess,
    sub_variance_preserving,
    uniform,
    variance_exploding,
    variance_preserving,
)
from dgm_jax.samplers import sample_ode, sample_sde, simulate_forward, solve_ode
from experiments._run import open_run, parse

WEIGHTS, MEANS, STDS = np.array([0.3, 0.7]), np.array([-1.0, 1.2]), np.array([0.2, 0.3])
DATA = GaussianMixture(WEIGHTS, MEANS[:, None], (STDS**2)[:, None, None])
PROCESSES = {
    "VP": variance_preserving(),
    "sub-VP": sub_variance_preserving(),
    "VE": variance_exploding(),
}
T_MIN = 1e-3
Paths = Float[Array, "times points"]


@dataclass(frozen=True)
class Config:
    """Trajectories of a one-dimensional mixture under VP, sub-VP and VE."""

    points: int = 4000  # for the table and the histograms
    paths: int = 5  # drawn in each panel
    steps: int = 1000  # of Euler-Maruyama; the ODE takes a tenth as many of Heun
    seed: int = 0
    run_dir: str = "runs/sde_trajectories"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(points=100, steps=50, run_dir="runs/sde_trajectories-smoke", smoke=True)


def log_density(process: GaussianProcess, x: Array, t: Array) -> Array:
    """log p_t(x), for x and t of one shape: mode k of the data becomes N(alpha m_k, alpha^2 s_k^2 + sigma^2)."""
    alpha, variance = process.alpha(t)[..., None], process.variance(t)[..., None]
    weights, means, stds = (jnp.asarray(values, x.dtype) for values in (WEIGHTS, MEANS, STDS))
    scale = jnp.sqrt(alpha**2 * stds**2 + variance)
    log_modes = jax.scipy.stats.norm.logpdf(x[..., None], alpha * means, scale)
    return jax.nn.logsumexp(log_modes + jnp.log(weights), axis=-1)


def exact_score(process: GaussianProcess, x_t: Array, t: Array) -> Array:
    """The gradient of log p_t at x_t [batch, 1]: the network that a perfect training would end in."""
    return jax.vmap(jax.grad(partial(log_density, process)))(x_t[:, 0], t)[:, None]


@partial(jax.jit, static_argnums=(0, 1, 2))
def draw(process: GaussianProcess, points: int, steps: int, key: Array) -> dict[str, Paths]:
    """Paths [times, points] of the SDE and of the ODE, forward from the data and in reverse from the prior."""
    key_data, key_forward, key_sde, key_ode = jax.random.split(key, 4)
    denoise = as_denoiser(partial(exact_score, process), process, prediction="score")
    fine, coarse = grids(steps)
    x_0 = DATA.sample(key_data, points)
    solves = {
        "forward SDE": simulate_forward(process, x_0, key_forward, ts=fine[::-1], save_path=True),
        "forward ODE": solve_ode(denoise, process, x_0, ts=coarse[::-1], save_path=True),
        "reverse SDE": sample_sde(denoise, process, key_sde, (points, 1), ts=fine, save_path=True),
        "reverse ODE": sample_ode(denoise, process, key_ode, (points, 1), ts=coarse, save_path=True),
    }
    return {name: jnp.asarray(solve.path)[..., 0] for name, solve in solves.items()}


def grids(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Falling times for Euler-Maruyama, and a tenth as many for Heun on the ODE."""
    return np.asarray(uniform(steps, t_min=T_MIN)), np.asarray(uniform(steps // 10, t_min=T_MIN))


def weight_of_right_mode(x: np.ndarray) -> tuple[float, float]:
    """The mean posterior probability of the right mode at the points, and its standard error; exactly 0.7 on data."""
    modes = jax.scipy.stats.norm.logpdf(x[:, None], MEANS, STDS) + np.log(WEIGHTS)
    right = np.asarray(jax.nn.softmax(modes, axis=1)[:, 1])
    return float(right.mean()), float(right.std() / np.sqrt(len(x)))


def wasserstein_1(x: np.ndarray) -> float:
    """The integral over x of |F_n - F|: Wasserstein-1 distance of the points to the exact mixture."""
    grid = np.linspace(-4.0, 5.0, 9001)
    exact = np.asarray(jax.scipy.stats.norm.cdf(grid[:, None], MEANS, STDS)) @ WEIGHTS
    empirical = np.searchsorted(np.sort(x), grid, side="right") / len(x)
    return float(np.abs(empirical - exact).sum() * (grid[1] - grid[0]))


def score(draws: dict[str, np.ndarray], key: Array) -> dict[str, dict[str, float]]:
    """Weight and distance of the points drawn by the SDE, by the ODE, and of as many exact draws."""
    drawn = {"SDE": draws["reverse SDE"][-1], "ODE": draws["reverse ODE"][-1]}
    drawn["exact draws"] = DATA.sample(key, len(drawn["SDE"]))[:, 0]
    rows = {}
    for name, x in drawn.items():
        points = np.asarray(x, np.float64)
        weight, error = weight_of_right_mode(points)
        rows[name] = {"weight": weight, "standard_error": error, "wasserstein_1": wasserstein_1(points)}
    return rows


def main(config: Config) -> None:
    """Draw, score, and plot each process."""
    run = open_run(config)
    picture = run.directory / "trajectories.png"
    if run.said_done(picture.name):
        return
    draws, scores = {}, {}
    print(f"{'process':8} {'points by':12} {'weight':>16} {'W1 to data':>12}")
    for i, (name, process) in enumerate(PROCESSES.items()):
        key_draw, key_exact = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), i))
        draws[name] = jax.tree.map(np.asarray, draw(process, config.points, config.steps, key_draw))
        scores[name] = score(draws[name], key_exact)
        for method, row in scores[name].items():
            weight = f"{row['weight']:.4f} +- {row['standard_error']:.4f}"
            print(f"{name:8} {method:12} {weight:>16} {row['wasserstein_1']:12.4f}")
            run.log(process=name, points=method, **row)
    plot(draws, config, picture)
    run.finish(scores)
    print(f"Look at {picture}")


def plot(draws: dict[str, dict[str, np.ndarray]], config: Config, path: Path) -> None:
    """One row per process: data, forward in time, noise, in reverse, data again."""
    import matplotlib
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    from experiments._figures import SKY, STYLE, VERMILION, figure, save

    fine, coarse = grids(config.steps)
    with matplotlib.rc_context(STYLE):
        fig = figure(9.0, 6.6)
        grid = fig.subplots(3, 5, width_ratios=[0.7, 3, 0.7, 3, 0.7], sharey="row")
        for axes, (name, process) in zip(grid, PROCESSES.items(), strict=True):
            found = draws[name]
            end = jnp.ones(())
            spread = float(jnp.sqrt(process.variance(end) + process.alpha(end) ** 2))
            limit = 3.2 * max(spread, 1.0)
            ends = {
                0: ("data", T_MIN, None),
                2: ("noise", 1.0, found["forward SDE"][-1]),
                4: ("drawn", T_MIN, found["reverse SDE"][-1]),
            }
            for column, (label, t, points) in ends.items():
                _marginal(axes[column], process, t, points, limit)
                axes[column].set_title(label)
            for column, direction in ((1, "forward"), (3, "reverse")):
                ax = axes[column]
                ax.pcolormesh(*_density(process, limit), cmap="magma", vmin=0.0, vmax=1.25, rasterized=True)
                order = -1 if direction == "forward" else 1
                ax.plot(fine[::order], found[f"{direction} SDE"][:, : config.paths], color=SKY, lw=0.6)
                ax.plot(coarse[::order], found[f"{direction} ODE"][:, : config.paths], color="white", lw=1.0)
                ax.set_xlim((0, 1) if direction == "forward" else (1, 0))
                ax.set_xlabel("t")
                ax.set_title(f"{name}, {direction}")
            axes[0].set_ylabel("x")
            axes[0].set_ylim(-limit, limit)
            if name == "VE":
                axes[0].set_yscale("asinh", linear_width=2.0)
                axes[0].set_yticks([-100, -20, -5, 0, 5, 20, 100], ["-100", "-20", "-5", "0", "5", "20", "100"])
        handles = [
            Line2D([], [], color=SKY, label="SDE path"),
            Line2D([], [], color="0.85", label="probability-flow ODE"),
            Line2D([], [], color=VERMILION, label="exact density"),
            Patch(color="0.7", label="end points of the SDE"),
        ]
        fig.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
        save(fig, path)


def _density(process: GaussianProcess, limit: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """p_t(x) on a grid, each time scaled to its own maximum, as VE's density falls a hundredfold."""
    t, x = np.linspace(T_MIN, 1.0, 200, dtype=np.float32), limit * np.linspace(-1, 1, 301, dtype=np.float32) ** 3
    times, states = np.meshgrid(t, x)
    density = np.exp(np.asarray(log_density(process, jnp.asarray(states), jnp.asarray(times))))
    return t, x, density / density.max(0)


def _marginal(ax: Any, process: GaussianProcess, t: float, points: np.ndarray | None, limit: float) -> None:
    from experiments._figures import VERMILION

    width = min(limit, 3.0 * float(process.sigma(t)) + 2.5)
    x = np.linspace(-width, width, 400, dtype=np.float32)
    exact = np.exp(np.asarray(log_density(process, jnp.asarray(x), jnp.full(400, t))))
    if points is not None:
        ax.hist(points, bins=60, range=(-width, width), density=True, orientation="horizontal", color="0.7")
    ax.plot(exact, x, color=VERMILION, lw=1.2)
    ax.set_xticks([])
    ax.set_xlabel("density")


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
