"""Evaluations against tolerance: adaptive steps, after figure 3 and appendix D.4 of Score SDE (arXiv:2011.13456).

    python -m experiments.tolerance            # 4 minutes on 2 CPU cores, after `make demo`
    python -m experiments.tolerance --smoke    # the same code on tiny sizes, in seconds

The probability-flow ODE from t = 1 to t = 0.001 by Tsit5, Dopri5 and Heun, whose steps adapt to a relative and absolute
tolerance that the worst example of the batch keeps, in coordinates "time" and "noise"; the reverse SDE by Heun on a
Brownian tree; and for comparison Heun on fixed grids of Karras et al. Each is run on 28 x 28 digits by the network of
`experiments.quickstart`, and on three unequal Gaussians in the plane with the exact denoiser. The error is the root
mean square over points and coordinates, in units of the data, of the difference from a fine solve from the same noise,
for the SDE along the same Brownian path; the fine solve's own error is its difference from a coarser one. The paper has
images in place of errors, and RK45 (Dopri5) in time alone. It writes tables.md and tolerance.png.

Expected, evaluations and error at a tolerance of 0.01 | 1e-4; no spread, as batches are of 1,000 points and 16 digits:

    mixture  Tsit5 in time   55, 1e-3 | 103, 4e-5        digits  Tsit5 in time    67, 0.08 | 241, 0.014
             Heun in time    76, 2e-3 | 499, 4e-5                Heun in time     51, 0.02 | 392, 0.003
             Heun, 36 fixed steps 72, 9e-3                       Heun, 36 fixed steps 72, 0.008

With the exact denoiser a high order pays. On the network, perhaps as its embedding of time oscillates fast, it does
not: at 1e-4 errors are 10 to 150 times the tolerance, and fixed steps of Heun are the cheapest way to any error down to
0.005. The fine solve's own error is 4e-6 and 0.003. At high order "time" takes about half the evaluations of "noise".
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import jax.numpy as jnp
import numpy as np

from dgm_jax.data import unequal_mixture
from dgm_jax.processes import karras_grid, uniform
from dgm_jax.samplers import Samples, edm_heun, sample_ode, sample_sde
from experiments._comparison import finish, markdown
from experiments._frontier_exact import Diffused
from experiments._network import STAND_IN, Drawn, denoisers, drawer
from experiments._run import Run, begin, parse
from experiments.quickstart import PROCESS, SHAPE, T_MIN


class Method(NamedTuple):
    """A sampler with a controller, a solver, and its coordinates."""

    sample: Callable[..., Samples]
    solver: diffrax.AbstractSolver
    coordinates: str


ODES = {
    f"{name} in {coordinates}": Method(sample_ode, solver, coordinates)
    for coordinates in ("time", "noise")
    for name, solver in (("Tsit5", diffrax.Tsit5()), ("Dopri5", diffrax.Dopri5()), ("Heun", diffrax.Heun()))
}
SDES = {"SDE, Heun in time": Method(sample_sde, diffrax.Heun(), "time")}
FIXED = "Heun, fixed steps"


@dataclass(frozen=True)
class Config:
    """Every solver at every tolerance."""

    solvers: tuple[str, ...] = tuple(ODES)
    tolerances: tuple[float, ...] = (0.1, 0.03, 0.01, 1e-3, 1e-4)
    tight: float = 1e-6  # the tolerance of Tsit5 from which errors are measured on the mixture
    fine: int = 512  # steps of Heun from which they are measured on the network
    sde_tolerances: tuple[float, ...] = (0.3, 0.1, 0.03)
    sde_tight: float = 3e-3  # on the mixture alone; on the network the smallest tolerance serves
    fixed: tuple[int, ...] = (5, 9, 18, 36, 72)  # steps of the grid, two evaluations each
    points: int = 1000  # of the mixture
    digits: int = 16  # a multiple of 8
    sde_digits: int = 8
    most: int = 4096  # steps, after which a solve has failed
    trained: str = "runs/quickstart"  # the run of experiments.quickstart
    seed: int = 0
    run_dir: str = "runs/tolerance"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    solvers=("Heun in noise",),
    tolerances=(0.1, 0.03, 0.01),
    tight=1e-4,
    fine=50,
    sde_tolerances=(0.3, 0.1),
    sde_tight=0.03,
    fixed=(9,),
    points=40,
    trained=STAND_IN,
    run_dir="runs/tolerance-smoke",
    smoke=True,
)


def adaptive(method: Method, config: Config, *arguments: Any, tolerance: Any) -> Samples:
    """A solve whose steps keep the tolerance."""
    ts, controller = uniform(1, t_min=T_MIN), diffrax.PIDController(rtol=tolerance, atol=tolerance)
    options = {"solver": method.solver, "coordinates": method.coordinates, "max_steps": config.most}
    return method.sample(*arguments, ts=ts, controller=controller, **options)


def on_grid(steps: int) -> Callable[..., Samples]:
    """Heun in coordinates "noise" on a fixed grid."""
    return partial(edm_heun, ts=karras_grid(PROCESS, steps, t_min=T_MIN))


def solver_of(data: str, config: Config, sample: Callable[..., Samples], n: int) -> Callable[..., Drawn]:
    """(**options) -> end points, from the same noise each time; compiled once."""
    exact = Diffused(unequal_mixture()).denoiser(PROCESS)
    network, event = (lambda labels: exact, (2,)) if data == "mixture" else (denoisers(config.trained), SHAPE)
    draw = drawer(network, PROCESS, sample, event)

    def solve(**options: Any) -> Drawn:
        found = draw({name: jnp.asarray(value) for name, value in options.items()}, n, config.seed)
        if not found.succeeded:
            raise RuntimeError(f"Expected a solve within {config.most} steps; got a failure at {options}.")
        return found

    return solve


def measure(data: str, config: Config, run: Run) -> None:
    """Every solve of one kind of data that the run does not have yet."""
    n, n_sde, sde_tight = config.points, config.points, config.sde_tight
    if data == "digits":
        n, n_sde, sde_tight = config.digits, config.sde_digits, config.sde_tolerances[-1]
    made = {(record["method"], record["size"]) for record in run.records() if record["data"] == data}

    def compare(name: str, size: float, solve: Callable[[], Drawn], exact: Callable[[], Drawn]) -> None:
        if (name, size) in made:
            return
        found = solve()
        error = difference(found, exact())
        run.log(data=data, method=name, size=size, evaluations=found.evaluations, error=error)
        print(f"{data}, {name}, {size:g}: {found.evaluations} evaluations, error {error:.2g}", flush=True)

    if data == "mixture":
        reference = solver_of(data, config, partial(adaptive, ODES["Tsit5 in time"], config), n)
        exact, coarser = (
            cache(partial(reference, tolerance=config.tight)),
            partial(reference, tolerance=10 * config.tight),
        )
    else:  # tolerances do not bind on a network
        exact = cache(solver_of(data, config, on_grid(config.fine), n))
        coarser = solver_of(data, config, on_grid(config.fine // 2), n)
    run.measured(f"{data}_resolution", lambda: difference(exact(), coarser()))
    for name in config.solvers:
        solve = solver_of(data, config, partial(adaptive, ODES[name], config), n)
        for tolerance in config.tolerances:
            compare(name, tolerance, partial(solve, tolerance=tolerance), exact)
    for steps in config.fixed:
        compare(FIXED, steps, solver_of(data, config, on_grid(steps), n), exact)
    for name, method in SDES.items():
        solve = solver_of(data, config, partial(adaptive, method, config), n_sde)
        exact = cache(partial(solve, tolerance=sde_tight))
        for tolerance in config.sde_tolerances:
            if tolerance > sde_tight:
                compare(name, tolerance, partial(solve, tolerance=tolerance), exact)


def difference(a: Drawn, b: Drawn) -> float:
    """Root mean square, in units of the data."""
    return float(np.sqrt(np.mean((a.x - b.x) ** 2)))


def table(config: Config, records: list[dict[str, Any]]) -> str:
    """Evaluations and error of each method at each tolerance."""
    tolerances = sorted({*config.tolerances, *config.sde_tolerances}, reverse=True)
    found = {(r["method"], r["size"]): f"{r['evaluations']}, {r['error']:.1g}" for r in records}
    rows = [[name, *(found.get((name, t), "") for t in tolerances)] for name in (*config.solvers, *SDES)]
    fixed = [f"{r['size']} steps {r['evaluations']}, {r['error']:.1g}" for r in records if r["method"] == FIXED]
    lines = markdown(["evaluations, error", *(f"{t:g}" for t in tolerances)], rows)
    return f"{lines}\n{FIXED}: {'; '.join(fixed)}.\n"


def main(config: Config) -> None:
    """Compute what is missing, then show all."""
    run = begin(config)
    texts = []
    for data, title in (("mixture", "Exact denoiser, mixture in the plane"), ("digits", "Trained network, digits")):
        measure(data, config, run)
        texts.append(f"{title}:\n\n" + table(config, [record for record in run.records() if record["data"] == data]))
    scores = {"solves": len(run.records())}
    picture = partial(plot, config, run)
    finish(run, "\n".join(texts), page="tables.md", picture="tolerance.png", plot=picture, scores=scores)


def plot(config: Config, run: Run, path: Path) -> None:
    """Above the price of a tolerance, below the error for the price: mixture, and digits."""
    import matplotlib
    from matplotlib.patches import Patch

    from experiments._figures import BLACK, BLUE, GREEN, ORANGE, PURPLE, STYLE, figure, save

    colors = {"Tsit5": BLUE, "Dopri5": ORANGE, "Heun": GREEN}
    with matplotlib.rc_context(STYLE):
        fig = figure(6.8, 5.4)
        axes = fig.subplots(2, 2, sharey="row")
        panels = {"mixture": "exact denoiser, mixture", "digits": "trained network, digits"}
        for (above, below), (data, title) in zip(axes.T, panels.items(), strict=True):
            for name in (*config.solvers, *SDES, FIXED):
                rows = [row for row in run.records() if (row["data"], row["method"]) == (data, name)]
                style: dict[str, Any] = {"ms": 4, "lw": 1.2, "label": name}
                if name in ODES:
                    style |= {"color": colors[name.split()[0]], "marker": "o", "mfc": "white"}
                    style |= {"ls": "-", "mfc": None} if name.endswith("time") else {"ls": "--"}
                else:
                    style |= {"color": PURPLE if name in SDES else BLACK, "marker": "s" if name in SDES else "x"}
                evaluations, error = ([row[key] for row in rows] for key in ("evaluations", "error"))
                if name != FIXED:
                    above.plot([row["size"] for row in rows], evaluations, **style)
                below.plot(evaluations, error, **style)
            below.axhspan(1e-9, run.measured(f"{data}_resolution", dict), color="0.9", lw=0)
            lowest = min(row["error"] for row in run.records())
            above.set(xscale="log", yscale="log", xlabel="tolerance, relative and absolute", title=title)
            above.set_yticks([20, 50, 100, 200, 500], ["20", "50", "100", "200", "500"])
            above.minorticks_off()
            above.invert_xaxis()
            below.set(xscale="log", yscale="log", xlabel="evaluations", ylim=(lowest / 2, None))
        axes[0, 0].set_ylabel("evaluations")
        axes[1, 0].set_ylabel("error, RMS in units of the data")
        handles, names = axes[1, 0].get_legend_handles_labels()
        handles, names = [*handles, Patch(color="0.9")], [*names, "fine solve's own error"]
        fig.legend(handles, names, loc="outside lower center", ncols=3, frameon=False)
        save(fig, path, dpi=150)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
