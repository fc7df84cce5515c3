"""Importance-weighted autoencoders: Burda et al. 2016 (arXiv:1509.00519), table 1's columns for one stochastic layer.

    python -m experiments.iwae_table1             # about 12 minutes on 2 CPU cores
    python -m experiments.iwae_table1 --smoke     # the same code on tiny sizes, in seconds

VAE and IWAE trained with k = 1, 5 and 50 draws, and with k = 50 the IWAE's doubly reparametrised gradient (DReG,
Tucker et al. 2019, arXiv:1810.04152). Columns: negative log-likelihood of 500 test digits by importance sampling with
5,000 draws, and the active units, latents whose posterior mean has a variance above 0.01 over the test digits. The
VAE's k draws are averaged outside the logarithm. With k = 1 all three are one model. Networks are the paper's: two
hidden layers of 200 with tanh on either side and 50 latents, batches of 20, Adam with its epsilon of 1e-4.

The 5,000 digits are too few for the paper's 3,280 epochs at falling rates: every model gets `epochs` epochs of the
first 4,000 with a rate that falls to 0 as a cosine, and keeps the parameters of its best bound with 50 draws on 500
others, looked at every `every` epochs. That bound is the same for all, so that none is favoured. Beside the standard
error over test digits stands that of the difference to k = 1 digit by digit, which is what a comparison needs.

Expected, seed 0: a negative log-likelihood of 116.6 nats and 47 active units for k = 1, 107.6 and 18 for the VAE with
k = 5, 107.0 and 45 for the IWAE with k = 5; with k = 50, 107.8 and 11, 105.2 and 49, and 104.7 and 49 with DReG.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

from dgm_jax.likelihood.importance import importance_log_likelihood
from dgm_jax.losses.posteriors import diagonal_log_density, diagonal_posterior
from dgm_jax.losses.priors import standard_normal
from dgm_jax.losses.variational import dreg_bound, gaussian_elbo, iwae_bound
from experiments._comparison import markdown, plus_minus
from experiments._run import Run, begin, parse
from experiments._vae import (
    Autoencoder,
    Images,
    dense,
    digits,
    epochs,
    make_epoch,
)

PerDigit = Float[Array, " batch"]
Bound = Callable[[Autoencoder, PyTree, Images, Array, int], PerDigit]
ACTIVE = 0.01  # the paper's threshold on the variance of the posterior mean


@dataclass(frozen=True)
class Config:
    """Every objective, and its negative log-likelihood."""

    draws: tuple[int, ...] = (5, 50)  # k, beside 1
    widths: tuple[int, ...] = (200, 200)
    latent: int = 50
    batch: int = 20
    rate: float = 2e-3  # Adam's, at first
    epochs: int = 50
    every: int = 5  # epochs between two looks at the validation digits
    watched: int = 50  # draws of that bound
    importance: int = 5000  # draws of the likelihood
    train: int = 4000  # digits; the rest of 4,500 decide when to stop
    test: int = 500
    seed: int = 0
    run_dir: str = "runs/iwae_table1"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    draws=(3,),
    widths=(16, 16),
    latent=4,
    epochs=2,
    every=1,
    watched=2,
    importance=20,
    train=100,
    test=40,
    run_dir="runs/iwae_table1-smoke",
    smoke=True,
)


# objectives -----------------------------------------------------------------------------------------------------


def log_joint(model: Autoencoder, params: PyTree, x: Images, z: Array) -> PerDigit:
    """log p(x, z)."""
    return model.log_likelihood(params, x, z) + standard_normal(model.encoder.latent).log_prob(z)


def vae(model: Autoencoder, params: PyTree, x: Images, key: Array, draws: int) -> PerDigit:
    """The mean of `draws` bounds with one draw each."""
    encode, log_likelihood = partial(model.encode, params), partial(model.log_likelihood, params)
    keys = jax.random.split(key, draws)
    return jax.vmap(lambda key: gaussian_elbo(encode, log_likelihood, x, key).value)(keys).mean(0)


def iwae(model: Autoencoder, params: PyTree, x: Images, key: Array, draws: int) -> PerDigit:
    """The logarithm of the mean weight."""
    draw = diagonal_posterior(partial(model.encode, params))
    return iwae_bound(draw, partial(log_joint, model, params), x, key, samples=draws)


def dreg(model: Autoencoder, params: PyTree, x: Images, key: Array, draws: int) -> PerDigit:
    """The same value with the other gradient."""
    draw = diagonal_posterior(partial(model.encode, params))
    log_q = diagonal_log_density(partial(model.encode, jax.lax.stop_gradient(params)))
    return dreg_bound(draw, log_q, partial(log_joint, model, params), x, key, samples=draws)


OBJECTIVES: dict[str, Bound] = {"VAE": vae, "IWAE": iwae, "DReG": dreg}


def models(config: Config) -> list[tuple[str, int]]:
    """(objective, k) of each row."""
    most = max(config.draws)
    return [("VAE", 1), *((name, k) for k in config.draws for name in ("VAE", "IWAE")), ("DReG", most)]


# training and scores --------------------------------------------------------------------------------------------


def train(config: Config, model: Autoencoder, objective: Bound, draws: int) -> tuple[PyTree, list[tuple[int, float]]]:
    """The parameters of the best validation bound, and that bound after each look as (epoch, nats)."""
    steps = config.epochs * (config.train // config.batch)
    optimizer = optax.adam(optax.cosine_decay_schedule(config.rate, steps), eps=1e-4)

    def loss_fn(params: PyTree, x: Images, key: Array) -> Array:
        return -objective(model, params, x, key, draws).mean()

    epoch = make_epoch(loss_fn, optimizer, batch=config.batch)
    look = jax.jit(lambda params, x, key: iwae(model, params, x, key, config.watched).mean())
    known, watched = digits(f"train[:{config.train}]"), digits("train[4000:]").binary()
    key_init, key_train, key_look = jax.random.split(jax.random.key(config.seed), 3)
    best, seen, initial = None, [], model.init(key_init)
    for number, params in epochs(epoch, optimizer, initial, known.grey, key_train, count=config.epochs):
        if number % config.every == 0:
            seen.append((number, float(look(params, watched, key_look))))
            if best is None or seen[-1][1] > max(value for _, value in seen[:-1]):
                best = params
    return best, seen


def score(config: Config, model: Autoencoder, params: PyTree) -> dict[str, Any]:
    """log p(x) of every test digit, the share of draws that count, the delta method's error, and active units."""
    x = digits("test").binary()[: config.test]
    draw = diagonal_posterior(partial(model.encode, params))

    def estimate(x: Images, keys: Array) -> Any:
        return importance_log_likelihood(
            draw, partial(log_joint, model, params), x, keys, samples=config.importance, chunk=10
        )

    keys = jax.random.split(jax.random.key(config.seed + 1), len(x))
    estimate, parts = jax.jit(estimate), [slice(i, i + 100) for i in range(0, len(x), 100)]
    found = jax.tree.map(lambda *parts: np.concatenate(parts), *(estimate(x[part], keys[part]) for part in parts))
    mean, _ = model.encode(params, x)
    return {
        "log_likelihood": [round(float(value), 4) for value in found.log_likelihood],
        "effective_sample_size": float(np.median(found.effective_sample_size)),
        "sampling_error": float(np.sqrt(np.mean(found.standard_error**2))),
        "active": int(np.sum(np.var(np.asarray(mean), axis=0) > ACTIVE)),
    }


def compute(config: Config, run: Run) -> None:
    """Every model that the run does not have yet."""
    made = {(record["objective"], record["k"]) for record in run.records()}
    model = dense(config.widths, config.latent)
    for name, k in models(config):
        if (name, k) not in made:
            params, seen = train(config, model, OBJECTIVES[name], k)
            row = score(config, model, params)
            run.log(objective=name, k=k, validation=seen, **row)
            print(f"{name} k = {k}: NLL {-np.mean(row['log_likelihood']):.2f}, {row['active']} active", flush=True)


def table(records: list[dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """The table, and its numbers."""
    base = -np.array(records[0]["log_likelihood"])
    lines, scores = [], {}
    for row in records:
        nll = -np.array(row["log_likelihood"])
        root, epoch = math.sqrt(len(nll)), max(row["validation"], key=lambda at: at[1])[0]
        mean, error, gain = nll.mean(), nll.std(ddof=1) / root, (nll - base).mean()
        gain_error = (nll - base).std(ddof=1) / root
        name = f"{row['objective']}, k = {row['k']}" if row["k"] > 1 else "VAE = IWAE, k = 1"
        scores[name] = {"nll": float(mean), "error": float(error), "gain": float(gain), "gain_error": float(gain_error)}
        scores[name] |= {key: row[key] for key in ("active", "effective_sample_size", "sampling_error")}
        size = f"{row['effective_sample_size']:.0f}"
        gained = plus_minus(gain, gain_error, 2) if row["k"] > 1 else ""
        lines.append([name, plus_minus(mean, error, 2), gained, row["active"], size, epoch])
    header = ["trained as", "NLL, nats", "less that of k = 1", "active units", "effective draws, median", "epochs"]
    return markdown(header, lines), scores


def main(config: Config) -> None:
    """Train, score, print and plot."""
    run = begin(config, devices=1)
    if run.said_done("iwae_table1.png", "table.md"):
        return
    compute(config, run)
    text, scores = table(run.records())
    print(text)
    (run.directory / "table.md").write_text(text)
    plot(run.records(), scores, run.directory / "iwae_table1.png")
    run.finish(scores)
    print(f"Look at {run.directory}/iwae_table1.png and table.md")


def plot(records: list[dict[str, Any]], scores: dict[str, Any], path: Path) -> None:
    """The validation bound while training; likelihood and active units, bars the error of the difference to k = 1."""
    import matplotlib

    from experiments._figures import BLUE, GREEN, STYLE, VERMILION, figure, save

    colors, ks = {"VAE": BLUE, "IWAE": VERMILION, "DReG": GREEN}, sorted({row["k"] for row in records})
    styles, markers = dict(zip(ks, (":", "--", "-"), strict=False)), dict(zip(ks, "osD", strict=False))
    with matplotlib.rc_context(STYLE):
        fig = figure(7.0, 2.9)
        left, right = fig.subplots(1, 2)
        for row, (name, score) in zip(records, scores.items(), strict=True):
            color, k = colors[row["objective"]] if row["k"] > 1 else "black", row["k"]
            left.plot(*zip(*row["validation"], strict=True), styles[k], color=color)
            at, marker = (score["nll"], score["active"]), markers[k]
            right.errorbar(
                *at, xerr=score["gain_error"], color=color, marker=marker, ls=styles[k], capsize=2, label=name
            )
        final = [row["validation"][-1][1] for row in records]
        left.set(xlabel="epoch", ylabel="validation bound, 50 draws, nats", ylim=(min(final) - 15, max(final) + 3))
        right.set(xlabel="test NLL, nats", ylabel="active units")
        right.margins(x=0.15, y=0.15)
        fig.legend(*right.get_legend_handles_labels(), loc="outside right center", frameon=False)
        save(fig, path, dpi=150)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
