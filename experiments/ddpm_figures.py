"""DDPM figures 5 and 6 on digits: Ho, Jain & Abbeel 2020 (arXiv:2006.11239), rate-distortion, progressive generation.

    python -m experiments.ddpm_figures            # 3 minutes on 2 CPU cores, after `make demo`
    python -m experiments.ddpm_figures --smoke    # the same code on tiny sizes, in seconds

The network of `experiments.quickstart`, class-conditional on 28 x 28 digits and trained under VP, is seen through the
paper's chain of 1,000 betas from 1e-4 to 0.02: at equal sigma/alpha the two states are the same. Its estimates of x_0
along 1,000 steps of ancestral sampling are figure 6. For figure 5, held-out digits are sent as the paper's section 4.3
sends them: the rate after a step is the sum of the variational bound's terms so far, in bits per dimension of 256
levels, the distortion is the root mean squared error of the estimate at that step, in levels. Both come from one
evaluation of the bound, as with the posterior's variance a term is (SNR(s) - SNR(t))/2 times the squared error. Lossy
digits are the estimates at some rates. It writes rate_distortion.png, progressive.png, rate_distortion.csv.

Expected, on 40 digits given their class, mean +- standard error, with the network of a demo of 4 minutes:

    lossless code 2.57 +- 0.08 bits/dim, of which rate 1.47 +- 0.06 and L_0 1.10 +- 0.02
    distortion 1.18 +- 0.03 levels at the last step but one; half of the steps leave 48 levels and cost 0.011 bits/dim

The paper's CIFAR-10 has 3.75 = 1.78 + 1.97 bits/dim, and a distortion of 0.95 levels.
"""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.data import load, source, to_unit
from dgm_jax.likelihood import variational_bound
from dgm_jax.numerics import normal_like, split
from dgm_jax.parameterizations.posterior import posterior_of
from dgm_jax.processes import GaussianProcess, from_betas, uniform
from dgm_jax.samplers import ddpm
from dgm_jax.training.parallel import pmap_sampler
from experiments._comparison import plus_minus
from experiments._network import STAND_IN, denoisers, labels_of, seen_through
from experiments._run import begin, parse
from experiments.quickstart import PROCESS, SHAPE

DIM = int(np.prod(SHAPE))
LEVELS = 256


@dataclass(frozen=True)
class Config:
    """Send held-out digits through the chain, and draw some."""

    chain: int = 1000  # steps; the betas keep their sum
    sent: int = 40  # held-out digits, as many of each class; a multiple of 40
    drawn: int = 40  # of which ten are shown
    trained: str = "runs/quickstart"  # the run of experiments.quickstart
    seed: int = 0
    run_dir: str = "runs/ddpm_figures"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(chain=50, trained=STAND_IN, run_dir="runs/ddpm_figures-smoke", smoke=True)


def chain_of(steps: int) -> GaussianProcess:
    """The paper's chain, or one of fewer steps with as much noise in all."""
    return from_betas(np.linspace(1e-4, 0.02, steps) * 1000 / steps)


def send(config: Config) -> dict[str, np.ndarray]:
    """The bound's terms [steps, digits] in bits per dimension, and the distortion at every step, of held-out digits.

    Also the digits themselves and their estimates at the times that are shown.
    """
    chain, network = chain_of(config.chain), denoisers(config.trained)
    ts = uniform(config.chain, t_min=0.0)
    digits = load(source("mnist5k", "test"))
    order = np.argsort(digits["label"].reshape(-1), kind="stable").reshape(10, -1).T.reshape(-1)[: config.sent]
    shown = jnp.asarray(ts[shown_steps(config.chain)])

    def program(_: Any, keys: jax.Array, images: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        x_0 = to_unit(images)
        denoise = seen_through(jax.jit(network(labels)), PROCESS, chain)
        keys_bound, keys_shown = split(keys)
        bound = variational_bound(denoise, chain, x_0, keys_bound, ts=ts, variance="posterior", levels=LEVELS)
        noise = normal_like(keys_shown, x_0)

        def estimate(t: jax.Array) -> jax.Array:
            at = jnp.full(len(x_0), t)
            return denoise(chain.perturb(x_0, at, noise), at)

        terms = jnp.concatenate([bound.prior[None], bound.transitions, bound.reconstruction[None]])
        estimates = jax.lax.map(estimate, shown)
        return {"nats": terms.T, "estimates": jnp.moveaxis(estimates, 1, 0)}

    keys = jax.random.split(jax.random.key(config.seed), config.sent)
    images, labels = digits["image"][order], digits["label"].reshape(-1)[order]
    found = jax.tree.map(np.asarray, pmap_sampler(program)({}, keys, images, labels))
    # of_data^2/(2 posterior) |x_0 - D|^2 is a term; 127.5 levels are a unit
    kernel = posterior_of(chain, jnp.asarray(ts[:-2]), jnp.asarray(ts[1:-1]))
    weight = np.asarray(kernel.of_data**2 / (2 * kernel.posterior))
    return {
        "bits": found["nats"] / DIM / np.log(2),
        "distortion": 127.5 * np.sqrt(found["nats"][:, 1:-1] / weight / DIM),
        "estimates": found["estimates"],
        "sent": images,
    }


def draw(config: Config) -> np.ndarray:
    """Estimates of x_0 along the reverse chain, [digits, times, 28, 28, 1]; the last is the sample itself."""
    chain, network = chain_of(config.chain), denoisers(config.trained)
    ts, shown = uniform(config.chain, t_min=0.0), shown_steps(config.chain)

    def program(_: Any, keys: jax.Array, labels: jax.Array) -> jax.Array:
        denoise = seen_through(jax.jit(network(labels)), PROCESS, chain)
        found = ddpm(denoise, chain, keys, (len(keys), *SHAPE), ts=ts, save_path=True)
        states = jnp.asarray(found.path)[shown]
        estimates = jax.lax.map(lambda at: denoise(at[0], jnp.full(len(keys), at[1])), (states, jnp.asarray(ts[shown])))
        return jnp.moveaxis(jnp.concatenate([estimates, found.x[None]]), 1, 0)

    keys = jax.random.split(jax.random.key(config.seed + 1), config.drawn)
    return np.asarray(pmap_sampler(program)({}, keys, labels_of(config.drawn)))


def shown_steps(chain: int) -> np.ndarray:
    """Ten steps, from the noise on, up to the last but one."""
    return np.linspace(0, chain - 1, 10).round().astype(int)


def main(config: Config) -> None:
    """Send, draw and plot."""
    run = begin(config)
    if run.done:
        print(f"{run.directory} is done: look at {run.directory}/rate_distortion.png. To begin anew: --fresh.")
        return
    stored = {name: run.directory / f"{name}.npz" for name in ("sent", "drawn")}
    if not stored["sent"].exists():
        np.savez_compressed(stored["sent"], **send(config))  # type: ignore[arg-type]
    if not stored["drawn"].exists():
        np.savez_compressed(stored["drawn"], estimates=draw(config))
    sent, drawn = np.load(stored["sent"]), np.load(stored["drawn"])["estimates"]
    scores = summarise(sent["bits"], sent["distortion"])
    with (run.directory / "rate_distortion.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "rate (bits/dim)", "distortion (RMSE, levels)"])
        rate, distortion = curves(sent["bits"], sent["distortion"])
        writer.writerows([i, f"{r:.5g}", f"{d:.5g}"] for i, (r, d) in enumerate(zip(rate, distortion, strict=True)))
    for name, (value, error) in scores.items():
        print(f"{name:34} {plus_minus(value, error, 3)}")
    rate_figure(config, sent["bits"], sent["distortion"], run.directory / "rate_distortion.png")
    progressive_figure(config, sent, drawn, run.directory / "progressive.png")
    run.finish(scores)
    print(f"Look at {run.directory}/rate_distortion.png and progressive.png")


def curves(bits: np.ndarray, distortion: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(rate so far, distortion) before each transition, means over digits: what has been received when x_t is known."""
    rate = np.cumsum(bits.mean(0))[: distortion.shape[1]]
    return rate, np.sqrt((distortion**2).mean(0))


def summarise(bits: np.ndarray, distortion: np.ndarray) -> dict[str, tuple[float, float]]:
    """Means over digits with standard errors, of the paper's numbers: lossless code, its rate, what is left to send."""
    parts = {
        "lossless code (bits/dim)": bits.sum(1),
        "rate, all but the last term": bits[:, :-1].sum(1),
        "last term L_0 (bits/dim)": bits[:, -1],
        "distortion at the end (RMSE, levels)": distortion[:, -1],
    }
    return {name: (float(v.mean()), float(v.std(ddof=1) / np.sqrt(len(v)))) for name, v in parts.items()}


def rate_figure(config: Config, bits: np.ndarray, distortion: np.ndarray, path: Path) -> None:
    """Figure 5: distortion and rate against reverse steps, and distortion against rate."""
    import matplotlib

    from experiments._figures import BLUE, STYLE, figure, save

    rate, error = curves(bits, distortion)
    steps = np.arange(len(rate))
    with matplotlib.rc_context(STYLE):
        fig = figure(6.8, 2.4)
        panels = (
            (steps, error, f"reverse steps of {config.chain}", "distortion (RMSE, levels of 255)"),
            (steps, rate, f"reverse steps of {config.chain}", "rate (bits/dim)"),
            (rate, error, "rate (bits/dim)", "distortion (RMSE, levels of 255)"),
        )
        for ax, (x, y, x_label, y_label) in zip(fig.subplots(1, 3), panels, strict=True):
            ax.plot(x, y, color=BLUE)
            ax.set(xlabel=x_label, ylabel=y_label, ylim=(0, None), xlim=(0, None))
        save(fig, path, dpi=150)


def progressive_figure(config: Config, sent: Any, drawn: np.ndarray, path: Path) -> None:
    """Left figure 6, estimates while ten digits are drawn; right ten digits sent, and what is received of them."""
    import matplotlib

    from experiments._figures import STYLE, figure, save, tiled

    rate, _ = curves(sent["bits"], sent["distortion"])
    shown = shown_steps(config.chain)
    rates = rate[np.minimum(shown, len(rate) - 1)]
    truth = np.asarray(to_unit(sent["sent"][:10]))[:, None]
    panels = (
        (drawn[:10], [f"{i}" for i in shown] + ["x"], "reverse steps made", "drawn: estimates of x_0"),
        (
            np.concatenate([sent["estimates"][:10], truth], axis=1),
            [f"{r:.3f}" if r >= 0.001 else "<0.001" for r in rates] + ["sent"],
            "rate so far (bits/dim)",
            "sent: what is received",
        ),
    )
    with matplotlib.rc_context(STYLE):
        fig = figure(6.8, 3.5)
        for ax, (images, ticks, label, title) in zip(fig.subplots(1, 2), panels, strict=True):
            ax.imshow(-tiled(images.reshape(-1, *SHAPE), 11), cmap="gray", vmin=-1, vmax=1)
            ax.set_xticks(28 * np.arange(11) + 14, ticks, rotation=60, fontsize=7)
            ax.set(title=title, xlabel=label, yticks=[])
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        save(fig, path, dpi=150)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
