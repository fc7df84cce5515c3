"""DDPM table 2 at this scale: Ho, Jain & Abbeel 2020 (arXiv:2006.11239), what to predict and which objective.

    python -m experiments.ddpm_table2            # 9 minutes on 2 CPU cores
    python -m experiments.ddpm_table2 --smoke    # the same code on tiny sizes, in seconds

Rows as in the paper: a network that predicts the posterior's mean mu, or the noise; trained on the variational bound L
with a fixed variance, or on its target's own squared error (for the noise L_simple). Beside them the prediction of x_0,
which is mu without the part that x_t has in it. Equal U-Nets of 0.1 M parameters learn 1,497 digits of 8 x 8 pixels and
17 levels in equal steps, on a chain of 100 betas, 10 times the paper's, as predicting mu ties a network to its chain.
Scores, with both of the paper's fixed variances "beta" and "posterior": the bound on 300 digits held out in bits per
dimension, and on drawn digits the energy distance and a classifier's certainty in place of FID and Inception score
(pixels tripled to 24 x 24, so that both are as in `experiments._digits`). Needs no other run. It writes table2.md and
table2.png.

Expected with variance "beta", +- standard errors over digits; real digits' energy distance is below 0.008 in 95 %:

    predicts, trained on    bound, bits/dim   energy distance    sure and right (real 0.79)
    mu, L                   3.07 +- 0.01      0.053 +- 0.006     0.28 +- 0.03
    mu, error               3.10 +- 0.02      0.050 +- 0.005     0.82 +- 0.03
    x_0, L                  3.14 +- 0.02      0.449 +- 0.048     0.00 +- 0.01
    x_0, error              5.48 +- 0.11      0.015 +- 0.016     0.93 +- 0.02
    noise, L                2.56 +- 0.01      0.017 +- 0.002     0.77 +- 0.03
    noise, error: L_simple  2.49 +- 0.01      0.002 +- 0.006     0.85 +- 0.02

As in the paper noise with L_simple draws best, and mu's own error is the least stable: its largest gradient is 76 times
the median, for 7 to 57 of the others. It does not diverge here, as gradients are clipped. "posterior" costs 0.4 to 2.6
bits/dim more, and draws alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree

from dgm_jax.data import batches, from_unit, load, source, to_unit
from dgm_jax.likelihood import discrete_bits_per_dim, variational_bound
from dgm_jax.losses import diffusion_loss, weights
from dgm_jax.networks import UNet
from dgm_jax.numerics import expand_to
from dgm_jax.parameterizations import as_denoiser, error_ratio
from dgm_jax.parameterizations.posterior import posterior_of
from dgm_jax.processes import from_betas, uniform
from dgm_jax.processes.times import levels as at_levels
from dgm_jax.samplers import ddpm
from dgm_jax.training import ema_warmup, init_state
from dgm_jax.training.parallel import pmap_sampler, pmap_step, replicate, shard, unreplicate
from dgm_jax.typing import Data, Denoiser, PerExample
from experiments._budget import warmup_cosine
from experiments._comparison import DigitScores, excess_energy, finish, markdown, plus_minus
from experiments._run import Run, begin, parse, progress

STEPS = 100
CHAIN = from_betas(10 * np.linspace(1e-4, 0.02, STEPS))
TIMES = np.arange(1, STEPS + 1, dtype=np.float32) / STEPS
SHAPE, LEVELS = (8, 8, 1), 17
Target = Literal["mu", "x_0", "noise"]
Variance = Literal["beta", "posterior"]
TARGETS: tuple[Target, ...] = ("mu", "x_0", "noise")
OBJECTIVES = {"L": "L, fixed variance", "error": "squared error of the target"}
VARIANCES: tuple[Variance, ...] = ("beta", "posterior")


@dataclass(frozen=True)
class Config:
    """Train a network for each target and objective, then score it."""

    targets: tuple[Target, ...] = TARGETS
    objectives: tuple[str, ...] = tuple(OBJECTIVES)
    variances: tuple[Variance, ...] = VARIANCES
    channels: int = 16  # of the U-Net; its levels of 8 and 4 pixels have `multipliers` times as many
    multipliers: tuple[int, ...] = (2, 3)
    steps: int = 1200  # of training, each network
    batch: int = 64
    learning_rate: float = 2e-3  # at its highest
    drawn: int = 200  # digits by each network and variance, a multiple of 40
    repeats: int = 20  # of the noise floor
    seed: int = 0
    run_dir: str = "runs/ddpm_table2"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    targets=("mu",),
    objectives=("L",),
    variances=("beta",),
    channels=8,
    multipliers=(1,),
    steps=3,
    drawn=40,
    repeats=3,
    run_dir="runs/ddpm_table2-smoke",
    smoke=True,
)


def network(config: Config) -> UNet:
    """A small class-conditional U-Net."""
    return UNet(config.channels, config.multipliers, blocks=1, groups=8, num_classes=10, time_scale=1000.0)


def denoiser(net: Any, target: Target, params: PyTree, labels: jax.Array) -> Denoiser:
    """E[x_0 | x_t] on the chain, for a batch of these classes."""

    def apply(x_t: Data, t: PerExample) -> Data:
        return net.apply(params, x_t, t, labels)  # type: ignore[return-value]

    if target != "mu":
        return as_denoiser(apply, CHAIN, prediction=target)

    def from_mean(x_t: Data, t: PerExample) -> Data:
        """mu = of_state x_t + of_data x_0, solved for x_0; at t = 1/T mu is x_0."""
        kernel = posterior_of(CHAIN, t, before(t))
        return (apply(x_t, t) - expand_to(kernel.of_state, x_t) * x_t) / expand_to(kernel.of_data, x_t)

    return from_mean


def before(t: PerExample) -> PerExample:
    """The chain's time before t, from whole numbers."""
    return (jnp.round(t * STEPS) - 1) / STEPS


def weight_of(target: Target, objective: str) -> Callable[[PerExample], PerExample]:
    """Of the squared x_0 error: L per dimension of the event, or what makes it the squared error of the target."""
    if objective == "L":
        event = int(np.prod(SHAPE))
        return lambda t: weights.variational(CHAIN, t, steps=STEPS, event_size=event, variance="beta") / event / STEPS
    if target == "mu":
        return lambda t: posterior_of(CHAIN, t, before(t)).of_data ** 2
    return partial(error_ratio, CHAIN, prediction=target)


def train_network(config: Config, target: Target, objective: str, run: Run) -> PyTree:
    """Averaged parameters; the same initial ones, batches and noise for all. NaN is handed back as it is."""
    net, weight = network(config), weight_of(target, objective)
    example = (jnp.zeros((1, *SHAPE)), jnp.zeros(1), jnp.zeros(1, int))
    params = jax.jit(net.init)(jax.random.key(config.seed), *example)
    schedule = warmup_cosine(config.steps, peak=config.learning_rate)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam(b2=0.99), schedule)

    def loss_fn(params: PyTree, batch: dict[str, jax.Array], keys: jax.Array) -> jax.Array:
        x_0 = to_unit(batch["image"], levels=LEVELS)
        denoise = denoiser(net, target, params, batch["label"])
        return diffusion_loss(denoise, CHAIN, x_0, keys, weight=weight, times=at_levels(TIMES)).mean()

    step = pmap_step(loss_fn, optimizer, ema_decay=ema_warmup(0.99))
    digits = batches(source("digits", "train"), config.batch, seed=config.seed)
    state = replicate(init_state(params, optimizer, jax.random.key(config.seed + 1)))
    norms, values = [], {"loss": np.nan}
    with progress(config.steps) as report:
        for made in range(1, config.steps + 1):
            state, metrics = step(state, shard(next(digits)))
            if made % 10 == 0 or made == config.steps:
                values = {name: float(value) for name, value in unreplicate(metrics).items()}
                norms.append(values["gradient_norm"])
                report(made, values["loss"])
    quantiles = np.quantile(norms, (0.5, 1.0))
    row = {"loss": values["loss"], "gradient_median": float(quantiles[0]), "gradient_largest": float(quantiles[1])}
    run.log(target=target, objective=objective, kind="training", **row)
    return unreplicate(state).ema


def score(config: Config, target: Target, params: PyTree, variance: Variance, scores: DigitScores) -> dict[str, Any]:
    """Bound on held-out digits, and scores of drawn ones."""
    net, ts = network(config), uniform(STEPS, t_min=0.0)
    held_out = load(source("digits", "test"))
    coded = len(held_out["label"]) // 40 * 40 if not config.smoke else 40

    def bound(params: PyTree, keys: jax.Array, images: jax.Array, labels: jax.Array) -> jax.Array:
        x_0, denoise = to_unit(images, levels=LEVELS), denoiser(net, target, params, labels)
        found = variational_bound(denoise, CHAIN, x_0, keys, ts=ts, variance=variance, levels=LEVELS)
        return discrete_bits_per_dim(-found.total, x_0[0].size)

    def sample(params: PyTree, keys: jax.Array, labels: jax.Array) -> jax.Array:
        denoise = jax.jit(denoiser(net, target, params, labels))
        return ddpm(denoise, CHAIN, keys, (len(keys), *SHAPE), ts=ts, variance=variance).x

    keys = jax.random.split(jax.random.key(config.seed + 2), coded)
    labels = held_out["label"].reshape(-1)[:coded]
    bits = np.asarray(pmap_sampler(bound)(params, keys, held_out["image"][:coded], labels))
    keys, labels = jax.random.split(jax.random.key(config.seed + 3), config.drawn), np.arange(config.drawn) % 10
    x = np.asarray(pmap_sampler(sample)(params, keys, labels))
    images = np.asarray(from_unit(np.nan_to_num(np.clip(x, -1, 1)), levels=LEVELS))
    return {
        "bits": float(bits.mean()),
        "bits_error": float(bits.std(ddof=1) / np.sqrt(len(bits))),
        **scores(tripled(images), labels),
        "digits": images[:10].reshape(10, -1).tolist(),
    }


def tripled(images: np.ndarray) -> np.ndarray:
    """8 x 8 pixels of 17 levels as 24 x 24 of 256, the size for which the classifier's features are made."""
    return np.repeat(np.repeat(images.astype(float) * 255 / (LEVELS - 1), 3, axis=1), 3, axis=2)


def compute(config: Config, run: Run) -> None:
    """Every network that the run does not have yet."""
    known, held_out = (load(source("digits", split)) for split in ("train", "test"))
    scores = DigitScores(*({"image": tripled(d["image"]), "label": d["label"]} for d in (known, held_out)))
    run.measured("floor", lambda: scores.floor(config.drawn, repeats=config.repeats))
    last = config.variances[-1]
    made = {(r["target"], r["objective"]) for r in run.records() if r["kind"] == last}
    for objective in config.objectives:
        for target in config.targets:
            if (target, objective) in made:
                continue
            print(f"{target}, {objective}:", flush=True)
            params = train_network(config, target, objective, run)
            for variance in config.variances:
                row = score(config, target, params, variance, scores)
                run.log(target=target, objective=objective, kind=variance, **row)
                print(f"  {variance}: {row['bits']:.3f} bits/dim, energy distance {row['energy']:.4f}", flush=True)


def table(config: Config, run: Run) -> str:
    """One row for each network and variance; of a network that was cut off and trained again, the last."""
    found = {(r["target"], r["objective"], r["kind"]): r for r in run.records()}
    floor, rows = run.measured("floor", dict), []
    for target in config.targets:
        for objective in config.objectives:
            trained = found[target, objective, "training"]
            for variance in config.variances:
                row = found[target, objective, variance]
                rows.append(
                    [
                        target,
                        OBJECTIVES[objective],
                        variance,
                        plus_minus(row["bits"], row["bits_error"], 2),
                        excess_energy(row, floor),
                        plus_minus(row["sure_and_right"], row["standard_error"], 2),
                        f"{trained['gradient_largest'] / trained['gradient_median']:.0f}",
                    ]
                )
    header = [
        "predicts",
        "trained on",
        "variance",
        "bound, bits/dim",
        "energy distance beyond real digits'",
        "sure and right",
    ]
    real = ["real digits", "", "", "", f"0, 95 % below {floor['energy_95'] - floor['energy']:.3f}"]
    rows.append([*real, f"{floor['sure_and_right']:.2f}", ""])
    return markdown([*header, "largest / median gradient"], rows)


def main(config: Config) -> None:
    """Train, score and show."""
    run = begin(config)
    compute(config, run)
    scores = {"networks": len(config.targets) * len(config.objectives)}
    picture = partial(plot, config, run)
    finish(run, table(config, run), page="table2.md", picture="table2.png", plot=picture, scores=scores)


def plot(config: Config, run: Run, path: Path) -> None:
    """Ten digits of each network, drawn with the larger variance."""
    import matplotlib

    from experiments._figures import STYLE, figure, save, tiled

    found = {(r["target"], r["objective"], r["kind"]): r for r in run.records()}
    with matplotlib.rc_context(STYLE):
        fig = figure(6.8, 1.5)
        axes = fig.subplots(1, len(config.objectives), squeeze=False)[0]
        for ax, objective in zip(axes, config.objectives, strict=True):
            digits = [found[target, objective, config.variances[0]]["digits"] for target in config.targets]
            images = np.pad(np.array(digits, float).reshape(-1, *SHAPE), ((0, 0), (1, 1), (1, 1), (0, 0)))
            ax.imshow(tiled(images, 10), cmap="gray_r", vmin=0, vmax=LEVELS - 1)
            ax.set_yticks(10 * np.arange(len(digits)) + 4.5, config.targets)
            ax.set(title=OBJECTIVES[objective], xticks=[])
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        save(fig, path, dpi=150)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
