"""The conflict inside the VAE's loss: reconstructions against a posterior that matches the prior, over the weight beta.

    python -m experiments.vae_conflict            # about 6 minutes on 2 CPU cores
    python -m experiments.vae_conflict --smoke    # the same code on tiny sizes, in seconds

The loss -E log p(x | z) + beta KL(q(z | x) || p(z)) pays for two things at once (survey section 2.2; Higgins et al.
2017): small beta reconstructs well, but the posteriors of all data together, q(z) = E q(z | x), leave the prior that
samples are drawn from; large beta keeps them together and forgets x. For 7 weights and 2 and 10 latents:

- rate KL(q(z | x) || p(z)) against distortion -E log p(x | z), on held-out digits (Alemi et al. 2018,
  arXiv:1711.00464, figure 3); beta = 1 maximises the bound, which is minus their sum;
- KL(q(z) || p(z)), with q(z) the equal mixture of the posteriors of the training digits and the expectation by draws
  from it. With the mutual information of digit and latent it adds up to the mean rate (Hoffman & Johnson 2016). The
  information is at most log 4,000 = 8.3 nats, the rest of a rate above that is KL(q(z) || p(z));
- energy distance of binary samples from 500 held-out digits: drawn from the prior, and as reconstructions of 500 other
  held-out digits; the first are what the model offers, the second what its decoder could do.

Networks are two hidden layers of 200 with tanh on either side; Adam at 1e-3, batches of 100, no early stopping.

Expected with 2 latents at beta = 0.125, seed 0: rate 9.6, distortion 142.1, KL(q(z) || p(z)) 2.5 +- 0.1, energy
distance 0.068 +- 0.006 from the prior and 0.018 +- 0.006 of reconstructions. docs/vaes.md has all.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from dgm_jax.losses.divergences import gaussian_kl
from dgm_jax.losses.priors import standard_normal, vamp
from dgm_jax.losses.variational import beta_loss, gaussian_elbo
from experiments._comparison import markdown, plus_minus
from experiments._run import Run, begin, parse
from experiments._vae import (
    Autoencoder,
    Images,
    Latents,
    Sets,
    dense,
    draw_bits,
    kept,
    make_epoch,
    three_sets,
    trained,
)

PICTURES = ("rate_distortion.png", "aggregate.png")


LABEL = {"boxstyle": "circle,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.7}


@dataclass(frozen=True)
class Config:
    """Every beta with few and with more latents."""

    betas: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    latents: tuple[int, ...] = (2, 10)
    pictured: tuple[float, ...] = (0.125, 1.0, 8.0)  # betas
    widths: tuple[int, ...] = (200, 200)
    epochs: int = 100
    batch: int = 100
    rate: float = 1e-3  # Adam's
    train: int = 4000  # digits; the last 500 of 4,500 are reconstructed, 500 more are the reference
    drawn: int = 500  # digits from the prior, and reconstructed; at most 500
    seed: int = 0
    run_dir: str = "runs/vae_conflict"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    betas=(0.5, 4.0),
    latents=(2, 3),
    pictured=(0.5, 4.0),
    widths=(16, 16),
    epochs=3,
    batch=20,
    train=100,
    drawn=80,
    run_dir="runs/vae_conflict-smoke",
    smoke=True,
)


def make_trainer(config: Config, model: Autoencoder) -> Any:
    """`train(beta) -> parameters`; one program serves all weights."""
    optimizer = optax.adam(config.rate)

    def loss_fn(params: PyTree, x: Images, key: Array, beta: Array) -> Array:
        terms = gaussian_elbo(partial(model.encode, params), partial(model.log_likelihood, params), x, key)
        return beta_loss(terms, beta=beta).mean()

    epoch = make_epoch(loss_fn, optimizer, batch=config.batch)

    def train(beta: float, grey: Images) -> PyTree:
        key_init, key_train = jax.random.split(jax.random.key(config.seed))
        params = model.init(key_init)
        return trained(epoch, optimizer, params, grey, key_train, jnp.asarray(beta), count=config.epochs)

    return train


# scores ---------------------------------------------------------------------------------------------------------


def aggregate_kl(
    encode: Callable[[Images], tuple[Latents, Latents]], x: Images, key: Array, *, draws: int
) -> tuple[Float[Array, " draws"], Float[Array, ""]]:
    """Of q(z), the mean of the posteriors of all x: log q(z) - log p(z) at draws from it, and the mean rate.

    The first's mean is KL(q(z) || p(z)), and the rate less that is the mutual information of x's index and z.
    """
    mean, log_std = encode(x)
    aggregate, prior = vamp(encode, x), standard_normal(mean.shape[1])
    z = aggregate.sample(key, draws)
    log_q = jax.lax.map(lambda z: aggregate.log_prob(z[None])[0], z, batch_size=20)
    return log_q - prior.log_prob(z), gaussian_kl(mean, log_std).mean()


def make_score(config: Config, model: Autoencoder, data: Sets) -> Callable[[PyTree], dict[str, float]]:
    """`score(params)`: rate, distortion, the aggregate posterior's divergence, and both energy distances."""
    key_bound, key_aggregate, key_bits = jax.random.split(jax.random.key(config.seed + 1), 3)
    known = data.known.binary()

    @jax.jit
    def measure(params: PyTree) -> tuple[Any, Any, Any, dict[str, Images]]:
        encode = partial(model.encode, params)
        terms = gaussian_elbo(encode, partial(model.log_likelihood, params), data.shown, key_bound)
        excess, rate = aggregate_kl(encode, known, key_aggregate, draws=1000)
        logits = decoded(config, model, params, data)
        return terms, excess, rate, {name: draw_bits(key_bits, values) for name, values in logits.items()}

    def score(params: PyTree) -> dict[str, float]:
        terms, excess, rate, bits = measure(params)
        prior, reconstructed = data.reference(bits["prior"]), data.reference(bits["reconstruction"])
        return {
            "rate": float(terms.kl.mean()),
            "distortion": -float(terms.log_likelihood.mean()),
            "bound_error": float(terms.value.std() / math.sqrt(len(terms.value))),
            "aggregate_kl": float(excess.mean()),
            "aggregate_kl_error": float(excess.std() / math.sqrt(len(excess))),
            "information": float(rate - excess.mean()),
            **{f"prior_{name}": value for name, value in prior.items()},
            **{f"reconstruction_{name}": value for name, value in reconstructed.items()},
        }

    return score


def decoded(config: Config, model: Autoencoder, params: PyTree, data: Sets) -> dict[str, Images]:
    """Logits of samples from the prior, and of reconstructions by one draw of the posterior."""
    key_prior, key_posterior = jax.random.split(jax.random.key(config.seed + 2))
    mean, log_std = model.encode(params, data.shown)
    z = mean + jnp.exp(log_std) * jax.random.normal(key_posterior, mean.shape)
    prior = standard_normal(model.encoder.latent).sample(key_prior, config.drawn)
    return {"prior": model.decode(params, prior), "reconstruction": model.decode(params, z)}


def compute(config: Config, run: Run, data: Sets) -> dict[tuple[int, float], PyTree]:
    """Parameters by (latents, beta), and the scores of those that the run does not have yet."""
    made = {(record["latents"], record["beta"]) for record in run.records()}
    run.measured("floor", data.reference.floor)
    found = {}
    for latent in config.latents:
        model = dense(config.widths, latent)
        train, score = make_trainer(config, model), make_score(config, model, data)
        for beta in config.betas:
            found[latent, beta] = kept(run, f"{latent}-{beta:g}", partial(train, beta, data.known.grey))
            if (latent, beta) not in made:
                row = score(found[latent, beta])
                run.log(latents=latent, beta=beta, **row)
                print(f"{latent} latents, beta {beta:g}: R {row['rate']:.2f}, D {row['distortion']:.1f}", flush=True)
    return found


def table(config: Config, run: Run) -> str:
    """One row for each model."""
    floor = run.measured("floor", dict)
    header = ["latents", "beta", "rate", "distortion", "bound", "KL(q(z), p(z))", "information", "prior", "posterior"]
    rows = [
        [
            row["latents"],
            f"{row['beta']:g}",
            f"{row['rate']:.2f}",
            f"{row['distortion']:.1f}",
            plus_minus(-row["rate"] - row["distortion"], row["bound_error"], 1),
            plus_minus(row["aggregate_kl"], row["aggregate_kl_error"], 2),
            f"{row['information']:.2f}",
            *(
                plus_minus(row[f"{name}_energy"], row[f"{name}_energy_error"], 3)
                for name in ("prior", "reconstruction")
            ),
        ]
        for row in run.records()
    ]
    return (
        f"{markdown(header, rows)}\nThe last two columns are energy distances from {config.drawn} held-out digits, of "
        "samples from the prior and of reconstructions of other digits; between real digits "
        f"{floor['energy']:.3f}, and below {floor['energy_95']:.3f} in 95 %.\n"
    )


def main(config: Config) -> None:
    """Train, score and plot."""
    run = begin(config, devices=1)
    if run.said_done(*PICTURES):
        return
    data = three_sets(config.train, config.drawn)
    found = compute(config, run, data)
    text = table(config, run)
    print(text)
    (run.directory / "table.md").write_text(text)
    plot_curves(config, run, run.directory / PICTURES[0])
    plot_aggregate(config, found, data, run, run.directory / PICTURES[1])
    run.finish({f"{row['latents']} latents, beta {row['beta']:g}": row for row in run.records()})
    print(f"Look at {run.directory}/{PICTURES[0]} and {PICTURES[1]}")


# pictures -------------------------------------------------------------------------------------------------------


def plot_curves(config: Config, run: Run, path: Path) -> None:
    """Rate against distortion, the divergence of the aggregate posterior, and energy distances, over beta."""
    import matplotlib

    from experiments._figures import BLUE, STYLE, VERMILION, figure, save

    colors, floor = dict(zip(config.latents, (VERMILION, BLUE), strict=True)), run.measured("floor", dict)
    with matplotlib.rc_context(STYLE):
        fig = figure(9.0, 3.1)
        trade, divergence, distance = fig.subplots(1, 3)
        for latent, color in colors.items():
            rows = [row for row in run.records() if row["latents"] == latent]
            betas = [row["beta"] for row in rows]
            trade.plot(*_columns(rows, "rate", "distortion"), "o-", color=color, ms=4, label=f"{latent} latents")
            for row in rows:
                at = (row["rate"], row["distortion"])
                trade.annotate(f"{row['beta']:g}", at, fontsize=6.5, xytext=(3, 3), textcoords="offset points")
            kl, error, known = _columns(rows, "aggregate_kl", "aggregate_kl_error", "information")
            divergence.errorbar(betas, kl, error, fmt="o-", color=color, ms=4, capsize=2)
            divergence.plot(betas, known, "s--", color=color, ms=3.5, lw=1)
            for name, style in (("prior", "o-"), ("reconstruction", "s--")):
                points = _columns(rows, f"{name}_energy", f"{name}_energy_error")
                distance.errorbar(betas, *points, fmt=style, color=color, ms=4, capsize=2)
        trade.set(xlabel="rate R, nats", ylabel="distortion D, nats", title="held-out digits; numbers are beta")
        trade.legend(frameon=False)
        divergence.set(xscale="log", xlabel="beta", ylabel="nats", title="KL(q(z) || p(z)), and information")
        divergence.set_yscale("symlog", linthresh=1.0)
        divergence.set_yticks((0, 0.5, 1, 3, 10, 30), ("0", "0.5", "1", "3", "10", "30"))
        divergence.set_ylim(0, 60)
        distance.axhspan(floor["energy"] - (floor["energy_95"] - floor["energy"]), floor["energy_95"], color="0.88")
        distance.set(xscale="log", xlabel="beta", ylabel="energy distance", title="distance from held-out digits")
        _explain(divergence, ("KL(q(z) || p(z))", "information of x and z"))
        _explain(distance, ("samples from the prior", "reconstructions"))
        for ax in (divergence, distance):
            ax.set_xticks(config.betas, [f"{beta:g}" for beta in config.betas], fontsize=7)
            ax.minorticks_off()
        save(fig, path, dpi=150)


def _columns(rows: list[dict[str, Any]], *names: str) -> list[list[float]]:
    return [[row[name] for row in rows] for name in names]


def _explain(ax: Any, names: tuple[str, str]) -> None:
    """What markers mean, in black; colours are the numbers of latents."""
    handles = [ax.plot([], [], style, color="black", ms=4)[0] for style in ("o-", "s--")]
    ax.legend(handles, names, frameon=False)


def plot_aggregate(config: Config, found: dict[tuple[int, float], PyTree], data: Sets, run: Run, path: Path) -> None:
    """For three weights: draws of two-dimensional posteriors by class, samples and reconstructions of each."""
    import matplotlib
    from matplotlib.patches import Circle

    from experiments._figures import STYLE, figure, save
    from experiments._vae import show_images

    few, many = config.latents
    kls = {row["beta"]: row["aggregate_kl"] for row in run.records() if row["latents"] == few}
    labels = data.known.labels
    with matplotlib.rc_context(STYLE):
        fig = figure(8.4, 6.0)
        axes = fig.subplots(3, len(config.pictured), height_ratios=(2.5, 1.1, 1.1))
        for column, beta in zip(axes.T, config.pictured, strict=True):
            mean, log_std = dense(config.widths, few).encode(found[few, beta], data.known.binary())
            z = np.asarray(mean + jnp.exp(log_std) * jax.random.normal(jax.random.key(3), mean.shape))
            column[0].scatter(*z.T, c=labels, s=3, cmap="tab10", linewidths=0, rasterized=True)
            for label in np.unique(labels):  # ten colours are too many to tell apart
                at = np.median(z[labels == label], axis=0)
                column[0].text(*at, str(label), ha="center", va="center", fontsize=9, weight="bold", bbox=LABEL)
            for radius in (1, 2, 3):
                column[0].add_patch(Circle((0, 0), radius, fill=False, color="black", lw=0.8))
            reach = max(3.2, float(np.quantile(np.abs(z), 0.999)))
            column[0].set(aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
            column[0].set_title(f"beta = {beta:g}, {few} latents\nKL(q(z) || p(z)) = {kls[beta]:.2f} nats")
            logits = decoded(config, dense(config.widths, many), found[many, beta], data)
            samples, again = (jax.nn.sigmoid(logits[name]) for name in ("prior", "reconstruction"))
            show_images(column[1], samples[:40], 10, f"samples from the prior, {many} latents")
            pairs = np.stack([data.shown[:20].reshape(2, 10, 28, 28, 1), again[:20].reshape(2, 10, 28, 28, 1)], axis=1)
            show_images(column[2], pairs.reshape(40, 28, 28, 1), 10, "held-out digits, reconstructed below")
        save(fig, path, dpi=110)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
