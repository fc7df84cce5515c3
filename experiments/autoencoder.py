"""A plain autoencoder's latent space generates nothing (survey section 2.2): beside a VAE, and a VQ-VAE.

    python -m experiments.autoencoder             # about 3 minutes on 2 CPU cores
    python -m experiments.autoencoder --smoke     # the same code on tiny sizes, in seconds

Three models of binary 28 x 28 digits, each with one hidden layer of 500 (tanh) on either side:

- an autoencoder with 10 latents: the encoder's mean alone, trained on -log p(x | z);
- a VAE with 10 latents, beta = 1: the same and the KL, with a draw for the mean;
- a VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937): 16 positions, each one of 64 codes of 8 dimensions that are
  moving averages (appendix A.1), commitment 0.25; 96 bits, which take a learned prior to sample, not attempted here.

Each is scored on digits it has not seen: -log p(x | z) of reconstructions, and the energy distance, from 500 other
digits, of binary samples: as reconstructions; decoded from a simple law, N(0, I) or codes drawn uniformly; and decoded
from a law fitted to the training digits' codes, a Gaussian of their mean and covariance, or each position's
frequencies. Were the latent space generative, the last would be as good as the first.

Expected, seed 0, energy distances with standard errors over parts of the samples; real digits are below 0.010 in 95 %:

                  -log p(x | z)    reconstructions    simple law        fitted law
    autoencoder   93.7 +- 1.6      0.009 +- 0.003     5.66 +- 0.39      0.040 +- 0.015
    VAE           98.3 +- 1.5      0.004 +- 0.004     0.068 +- 0.004    0.029 +- 0.006
    VQ-VAE        74.7 +- 1.1      0.012 +- 0.005     4.70 +- 0.18      0.074 +- 0.005
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

from dgm_jax.losses.quantization import (
    Quantized,
    code_book,
    code_perplexity,
    code_sums,
    init_code_averages,
    quantize,
    update_code_averages,
)
from dgm_jax.losses.variational import gaussian_elbo
from dgm_jax.training import init_state, make_step
from experiments._comparison import markdown, plus_minus
from experiments._run import Run, begin, parse
from experiments._vae import (
    Autoencoder,
    Images,
    Sets,
    binarize,
    dense,
    draw_bits,
    kept,
    make_epoch,
    three_sets,
    trained,
)

MODELS = ("autoencoder", "VAE", "VQ-VAE")
SAMPLES = ("reconstruction", "simple law", "fitted law")


@dataclass(frozen=True)
class Config:
    """Three autoencoders and what their latents generate."""

    latent: int = 10  # of the first two
    positions: int = 16  # of the VQ-VAE
    dim: int = 8  # of its codes
    codes: int = 64
    commitment: float = 0.25
    decay: float = 0.99  # of the codes' averages
    hidden: int = 500
    epochs: int = 100
    batch: int = 100
    rate: float = 1e-3  # Adam's
    train: int = 4000  # digits; the last 500 of 4,500 are reconstructed, 500 more are the reference
    drawn: int = 500  # digits of each kind; at most 500
    seed: int = 0
    run_dir: str = "runs/autoencoder"
    fresh: bool = False  # move a run that is there aside
    smoke: bool = False  # the same code on tiny sizes


SMOKE = Config(
    latent=3,
    positions=4,
    dim=2,
    codes=8,
    hidden=16,
    epochs=2,
    batch=20,
    train=100,
    drawn=80,
    run_dir="runs/autoencoder-smoke",
    smoke=True,
)


# models ---------------------------------------------------------------------------------------------------------


def network(config: Config, name: str) -> Autoencoder:
    """The encoder and decoder of a model."""
    return dense((config.hidden,), config.positions * config.dim if name == "VQ-VAE" else config.latent)


def loss_of(config: Config, name: str) -> Any:
    """(params, x, key) -> the loss of the first two models, nats."""
    model = network(config, name)

    def plain(params: PyTree, x: Images, key: Array) -> Array:
        mean, _ = model.encode(params, x)
        return -model.log_likelihood(params, x, mean).mean()

    def variational(params: PyTree, x: Images, key: Array) -> Array:
        encode, log_likelihood = partial(model.encode, params), partial(model.log_likelihood, params)
        return -gaussian_elbo(encode, log_likelihood, x, key).value.mean()

    return plain if name == "autoencoder" else variational


def train(config: Config, name: str, data: Sets) -> PyTree:
    """Parameters after the last epoch; the VQ-VAE's hold its codes."""
    if name == "VQ-VAE":
        return train_quantized(config, data)
    optimizer = optax.adam(config.rate)
    epoch = make_epoch(loss_of(config, name), optimizer, batch=config.batch)
    key_init, key_train = jax.random.split(jax.random.key(config.seed))
    params = network(config, name).init(key_init)
    return trained(epoch, optimizer, params, data.known.grey, key_train, count=config.epochs)


def quantized(config: Config, params: PyTree, x: Images, codes: Float[Array, "codes dim"]) -> tuple[Array, Quantized]:
    """The encoder's vectors [batch, positions, dim], and their codes."""
    mean, _ = network(config, "VQ-VAE").encode(params, x)
    z = mean.reshape(len(x), config.positions, config.dim)
    return z, quantize(z, codes)


def train_quantized(config: Config, data: Sets) -> PyTree:
    """Gradients for encoder and decoder, moving averages for the codes, which begin as vectors of some digits."""
    model, optimizer = network(config, "VQ-VAE"), optax.adam(config.rate)
    key_init, key_codes, key_train, key_data = jax.random.split(jax.random.key(config.seed), 4)

    def loss_fn(params: PyTree, batch: tuple[Images, Any], key: Array) -> tuple[Array, dict[str, Array]]:
        x, averages = batch
        z, found = quantized(config, params, x, code_book(averages, smoothing=1e-5))
        log_likelihood = model.log_likelihood(params, x, found.z.reshape(len(x), -1))
        counts, sums = code_sums(z, found.indices, codes=config.codes)
        loss = jnp.mean(-log_likelihood + config.commitment * found.commitment_loss)
        return loss, {"counts": counts, "sums": sums}

    step = make_step(loss_fn, optimizer, ema_decay=0.0)

    @jax.jit
    def epoch(state: Any, averages: Any, key: Array) -> Any:
        def one(carry: Any, x: Images) -> tuple[Any, None]:
            state, averages = carry
            state, found = step(state, (x, averages))
            new = type(averages)(found["counts"], found["sums"])
            return (state, update_code_averages(averages, new, decay=config.decay)), None

        key_order, key_bits = jax.random.split(key)
        steps = len(data.known.grey) // config.batch
        order = jax.random.permutation(key_order, len(data.known.grey))[: steps * config.batch]
        x = binarize(key_bits, data.known.grey[order]).reshape(steps, config.batch, *data.known.grey.shape[1:])
        return jax.lax.scan(one, (state, averages), x)[0]

    params = model.init(key_init)
    vectors = model.encode(params, data.known.binary())[0].reshape(-1, config.dim)
    averages = init_code_averages(jax.random.choice(key_codes, vectors, (config.codes,), replace=False))
    state = init_state(params, optimizer, key_train)
    for number in range(config.epochs):
        state, averages = epoch(state, averages, jax.random.fold_in(key_data, number))
    return {**state.params, "codes": code_book(averages, smoothing=1e-5)}


# samples --------------------------------------------------------------------------------------------------------


def latents(config: Config, name: str, params: PyTree, data: Sets, key: Array) -> dict[str, Array]:
    """z [drawn, latent] of each kind of sample: of digits to reconstruct, of the simple law, of the fitted one."""
    key_shown, key_known, key_simple, key_fitted = jax.random.split(key, 4)
    if name == "VQ-VAE":
        codes, known = params["codes"], quantized(config, params, data.known.binary(), params["codes"])[1].indices
        shape = (config.drawn, config.positions)
        # each position takes that of some training digit, independently of the other positions
        rows = jax.random.randint(key_fitted, shape, 0, len(known))
        indices = {
            "reconstruction": quantized(config, params, data.shown, codes)[1].indices,
            "simple law": jax.random.randint(key_simple, shape, 0, config.codes),
            "fitted law": jnp.take_along_axis(known, rows, axis=0),
        }
        return {kind: codes[chosen].reshape(config.drawn, -1) for kind, chosen in indices.items()}

    def encoded(x: Images, key: Array) -> Array:
        mean, log_std = network(config, name).encode(params, x)
        noise = jax.random.normal(key, mean.shape)
        return mean if name == "autoencoder" else mean + jnp.exp(log_std) * noise

    known, shape = encoded(data.known.binary(), key_known), (config.drawn, config.latent)
    factor = jnp.linalg.cholesky(jnp.cov(known, rowvar=False))
    return {
        "reconstruction": encoded(data.shown, key_shown),
        "simple law": jax.random.normal(key_simple, shape),
        "fitted law": known.mean(0) + jax.random.normal(key_fitted, shape) @ factor.T,
    }


def score(config: Config, name: str, params: PyTree, data: Sets) -> tuple[dict[str, Any], dict[str, Images]]:
    """Distortion, energy distances, for codes how evenly they are used; and the probabilities of each sample."""
    model, (key_latents, key_bits) = network(config, name), jax.random.split(jax.random.key(config.seed + 1))

    @jax.jit
    def decode(params: PyTree) -> Any:
        z = latents(config, name, params, data, key_latents)
        logits = {kind: model.decode(params, value) for kind, value in z.items()}
        bits = {kind: draw_bits(key_bits, value) for kind, value in logits.items()}
        return jax.tree.map(jax.nn.sigmoid, logits), bits, model.log_likelihood(params, data.shown, z["reconstruction"])

    images, bits, log_likelihood = decode(params)
    row: dict[str, Any] = {"distortion": -float(log_likelihood.mean())}
    row["distortion_error"] = float(log_likelihood.std() / np.sqrt(len(log_likelihood)))
    for kind in SAMPLES:
        row[kind] = data.reference(bits[kind])
    if name == "VQ-VAE":
        indices = quantized(config, params, data.known.binary(), params["codes"])[1].indices
        row["perplexity"] = float(code_perplexity(indices, codes=config.codes))
        row["used"] = len(np.unique(indices))
    return row, images


def compute(config: Config, run: Run, data: Sets) -> tuple[dict[str, Any], dict[str, dict[str, Images]]]:
    """Every model, trained where the run does not have it yet."""
    run.measured("floor", data.reference.floor)
    rows, pictures = {}, {}
    for name in MODELS:
        params = kept(run, name, partial(train, config, name, data))
        rows[name], pictures[name] = score(config, name, params, data)
        print(f"{name}: distortion {rows[name]['distortion']:.1f}", flush=True)
    run.forget_after(-1)
    for name, row in rows.items():
        run.log(step=0, model=name, **row)
    return rows, pictures


def table(config: Config, rows: dict[str, Any], floor: dict[str, float]) -> str:
    """One row for each model."""
    header = ["model", "-log p(x given z), nats", "reconstructions", "simple law", "fitted law"]

    def energies(row: dict[str, Any]) -> list[str]:
        return [plus_minus(row[kind]["energy"], row[kind]["energy_error"], 3) for kind in SAMPLES]

    lines = [
        [name, plus_minus(row["distortion"], row["distortion_error"], 1), *energies(row)] for name, row in rows.items()
    ]
    codes = rows["VQ-VAE"]
    return (
        f"{markdown(header, lines)}\nEnergy distances from {config.drawn} digits; between real ones "
        f"{floor['energy']:.3f}, below {floor['energy_95']:.3f} in 95 %. Of {config.codes} codes {codes['used']} are "
        f"used, with a perplexity of {codes['perplexity']:.1f}.\n"
    )


def main(config: Config) -> None:
    """Train, score and plot."""
    run = begin(config, devices=1)
    if run.said_done("autoencoder.png"):
        return
    data = three_sets(config.train, config.drawn)
    rows, pictures = compute(config, run, data)
    text = table(config, rows, run.measured("floor", dict))
    print(text)
    (run.directory / "table.md").write_text(text)
    plot(rows, pictures, data, run.directory / "autoencoder.png")
    run.finish(rows)
    print(f"Look at {run.directory}/autoencoder.png")


def plot(rows: dict[str, Any], pictures: dict[str, dict[str, Images]], data: Sets, path: Path) -> None:
    """Columns are models; rows are reconstructions below their digits, and samples of both laws."""
    import matplotlib

    from experiments._figures import STYLE, figure, save
    from experiments._vae import show_images

    laws = {"simple law": ("N(0, I)", "uniform codes"), "fitted law": ("fitted Gaussian", "codes' frequencies")}
    with matplotlib.rc_context(STYLE):
        fig = figure(8.6, 4.6)
        for column, (name, images) in zip(fig.subplots(3, len(rows)).T, pictures.items(), strict=True):
            below = np.stack([np.asarray(x[:20]).reshape(2, 10, 28, 28, 1) for x in (data.shown, images[SAMPLES[0]])])
            found = [f"{rows[name][kind]['energy']:.3f}" for kind in SAMPLES]
            again = below.transpose(1, 0, 2, 3, 4, 5).reshape(40, 28, 28, 1)
            show_images(column[0], again, 10, f"{name}\ndigits, reconstructed below: {found[0]}")
            for ax, kind, energy in zip(column[1:], SAMPLES[1:], found[1:], strict=True):
                show_images(ax, images[kind][:40], 10, f"{laws[kind][name == 'VQ-VAE']}: {energy}")
        save(fig, path, dpi=110)


if __name__ == "__main__":
    main(parse(Config(), SMOKE))
