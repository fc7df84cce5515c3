"""Training epochs of autoencoders against this machine's matrix products.

The share of the peak is (multiplications and additions of the epoch's matrix products, counted from the layers' sizes)
/ (time of the epoch) / (the same of one large product, timed in the same rounds). An epoch also draws the binary
digits, shuffles them, takes exponentials and updates the parameters; above 0.5 it is bound by its products.

    python -m experiments.benchmarks.variational [--write]

Time: about 2 minutes on 2 cores. Required: at least 0.5 for the VAE of Kingma & Welling in batches of 500, and for
IWAE with k = 50. Measured: see docs/benchmarks.md.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import optax
import tyro

from dgm_jax.training import init_state
from experiments._vae import SHAPE, Autoencoder, dense, make_epoch
from experiments.benchmarks._table import Row, ratio_row, report
from experiments.benchmarks._timing import rounds
from experiments.iwae_table1 import Bound, iwae, vae


@dataclass(frozen=True)
class Config:
    """Sizes of the run; `--smoke` takes seconds, writes nothing, and its ratios mean nothing."""

    digits: int = 4500
    square: int = 3000  # side of the large product
    repeats: int = 7
    write: bool = False
    smoke: bool = False


def flops(model: Autoencoder, *, draws: int) -> float:
    """Of the matrix products for one digit: a layer's own, and two for its gradients, less that of the data's."""
    pixels = SHAPE[0] * SHAPE[1] * SHAPE[2]
    encoder, decoder = (pixels, *model.encoder.widths), (model.encoder.latent, *model.decoder.widths, pixels)

    def products(widths: tuple[int, ...]) -> float:
        return sum(a * b for a, b in pairwise(widths))

    heads = 2 * encoder[-1] * model.encoder.latent  # mean and log_std
    encoding = 3 * (products(encoder) + heads) - encoder[0] * encoder[1]
    return 2 * (encoding + 3 * draws * products(decoder))


def epoch_of(model: Autoencoder, objective: Bound, *, draws: int, batch: int, digits: int) -> Callable[[], object]:
    """One epoch on random grey levels, as values change no time."""
    optimizer = optax.adam(1e-3)
    epoch = make_epoch(lambda params, x, key: -objective(model, params, x, key, draws).mean(), optimizer, batch=batch)
    state = init_state(model.init(jax.random.key(0)), optimizer, jax.random.key(1))
    grey = jax.random.uniform(jax.random.key(2), (digits, *SHAPE))
    return partial(epoch, state, grey, jax.random.key(3))


def table(config: Config) -> list[Row]:
    """The share of the peak for each case."""
    wide, deep = dense((500,), 20), dense((200, 200), 50)
    cases = {
        "Kingma & Welling's VAE, batch 100": (wide, vae, 1, 100, None),
        "Kingma & Welling's VAE, batch 500": (wide, vae, 1, 500, 0.5),
        "Burda's IWAE, k = 50, batch 20": (deep, iwae, 50, 20, 0.5),
    }
    side = config.square
    a, product = jax.random.normal(jax.random.key(4), (side, side)), jax.jit(jnp.matmul)
    rows = []
    for name, (model, objective, draws, batch, required) in cases.items():
        # k draws do k times the work of the decoder
        digits = config.digits if draws == 1 else max(config.digits // 10, batch)
        epoch = epoch_of(model, objective, draws=draws, batch=min(batch, digits), digits=digits)
        seconds = rounds({"epoch": epoch, "product": partial(product, a, a)}, repeats=config.repeats)
        done = flops(model, draws=draws) * (digits // min(batch, digits)) * min(batch, digits)
        at_peak = seconds["product"] * done / (2 * side**3)
        rate = f"{done / 1e9 / float(jnp.median(jnp.asarray(seconds['epoch']))):.0f} GFLOP/s"
        what = f"{name}: an epoch's products at the peak / the epoch, {digits} digits; {rate}"
        rows.append(ratio_row(what, at_peak, seconds["epoch"], at_least=required))
    return rows


def main(config: Config) -> None:
    """Time the epochs and print the table."""
    if config.smoke:
        config = replace(config, digits=40, square=64, repeats=1, write=False)
    report("variational", "python -m experiments.benchmarks.variational", table(config), write=config.write)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
