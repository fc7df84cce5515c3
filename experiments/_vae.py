"""What the experiments with autoencoders share: binary digits, networks as functions, epochs, distances.

Digits are binary: each pixel is drawn with its grey level as probability (Salakhutdinov & Murray 2008). Training draws
every epoch anew, as Burda et al. 2016 (arXiv:1509.00519) do; digits that score are drawn once, from a fixed key.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PyTree

from dgm_jax.data import load, source
from dgm_jax.losses.decoders import bernoulli_log_likelihood
from dgm_jax.networks import DenseDecoder, DenseEncoder
from dgm_jax.training import Checkpoints, TrainState, init_state, load_params, make_step, saved_steps
from experiments._digits import energy_distance, noise_floor
from experiments._run import Run

SHAPE = (28, 28, 1)
PARTS = 4  # in which drawn digits are split for a standard error
Images = Float[Array, "batch height width channels"]
Latents = Float[Array, "batch latent"]


class Digits(NamedTuple):
    """Grey levels in [0, 1] and classes."""

    grey: Images
    labels: Int[np.ndarray, " batch"]

    def binary(self, seed: int = 2016) -> Images:
        """Fixed binary digits, the same in every experiment."""
        return binarize(jax.random.key(seed), self.grey)


def digits(split: str) -> Digits:
    """Of the 5,000 digits of 28 x 28: `split` of "train" (4,500) or "test" (500), or a slice such as "train[:4000]"."""
    records = load(source("mnist5k", split))
    return Digits(jnp.asarray(records["image"], jnp.float32) / 255, records["label"].reshape(-1))


def binarize(key: Array, grey: Images) -> Images:
    """Pixels in {0, 1} with the grey levels as probabilities."""
    return jax.random.bernoulli(key, grey).astype(grey.dtype)


class Autoencoder(NamedTuple):
    """An encoder and a decoder of binary digits as functions of their parameters."""

    encoder: DenseEncoder
    decoder: DenseDecoder

    def init(self, key: Array) -> PyTree:
        """Parameters of both."""
        key_encoder, key_decoder = jax.random.split(key)
        z = jnp.zeros((1, self.encoder.latent))
        return {
            "encoder": self.encoder.init(key_encoder, jnp.zeros((1, *SHAPE))),
            "decoder": self.decoder.init(key_decoder, z),
        }

    def encode(self, params: PyTree, x: Images) -> tuple[Latents, Latents]:
        """Mean and log_std of q(z | x)."""
        return self.encoder.apply(params["encoder"], x)  # type: ignore[return-value]

    def decode(self, params: PyTree, z: Latents) -> Images:
        """Logits of p(x | z)."""
        return self.decoder.apply(params["decoder"], z)  # type: ignore[return-value]

    def log_likelihood(self, params: PyTree, x: Images, z: Latents) -> Float[Array, " batch"]:
        """log p(x | z) in nats."""
        return bernoulli_log_likelihood(self.decode(params, z), x)


def dense(widths: tuple[int, ...], latent: int) -> Autoencoder:
    """Multilayer perceptrons with tanh, `widths` from the data to the latents."""
    return Autoencoder(DenseEncoder(widths, latent), DenseDecoder(widths[::-1], SHAPE))


# training -------------------------------------------------------------------------------------------------------

Epoch = Callable[..., tuple[TrainState, dict[str, Array]]]


def make_epoch(loss_fn: Callable[..., Any], optimizer: optax.GradientTransformation, *, batch: int) -> Epoch:
    """`epoch(state, grey, key, *given) -> (state, metrics)`, one program for all its steps; metrics are its means.

    Args:
        loss_fn: (params, x, key, *given) -> scalar; x are binary digits, drawn from `grey` and shuffled by `key`.
            What is `given` is traced, so that losses of other weights share one program.
    """

    def loss(params: PyTree, batch: tuple[Images, tuple[Any, ...]], key: Array) -> Any:
        x, given = batch
        return loss_fn(params, x, key, *given)

    step = make_step(loss, optimizer, ema_decay=0.0)

    @jax.jit
    def epoch(state: TrainState, grey: Images, key: Array, *given: Any) -> tuple[TrainState, dict[str, Array]]:
        key_order, key_bits = jax.random.split(key)
        steps = len(grey) // batch
        order = jax.random.permutation(key_order, len(grey))[: steps * batch]
        x = binarize(key_bits, grey[order]).reshape(steps, batch, *grey.shape[1:])
        state, metrics = jax.lax.scan(lambda state, x: step(state, (x, given)), state, x)
        return state, jax.tree.map(lambda values: values.mean(0), metrics)

    return epoch


def epochs(
    epoch: Epoch,
    optimizer: optax.GradientTransformation,
    params: PyTree,
    grey: Images,
    key: Array,
    *given: Any,
    count: int,
) -> Iterator[tuple[int, PyTree]]:
    """(number, parameters) after each of `count` epochs."""
    key_state, key_data = jax.random.split(key)
    state = init_state(params, optimizer, key_state)
    for number in range(1, count + 1):
        state, metrics = epoch(state, grey, jax.random.fold_in(key_data, number - 1), *given)
        loss = float(metrics["loss"])
        if not np.isfinite(loss):
            raise FloatingPointError(f"The loss of epoch {number} is {loss}.")
        yield number, state.params


def trained(*args: Any, count: int) -> PyTree:
    """The parameters after the last of `epochs`, of the same arguments."""
    return deque((params for _, params in epochs(*args, count=count)), maxlen=1).pop()


def kept(run: Run, name: str, train: Callable[[], PyTree]) -> PyTree:
    """The parameters of a model of the run: read from its checkpoints, or trained now and kept there."""
    directory = run.directory / "checkpoints" / name
    if saved_steps(directory):
        return load_params(directory, part="params")
    params = train()
    with Checkpoints(directory, keep=1) as checkpoints:
        checkpoints.save(1, {"params": params})
    return params


# scores and pictures --------------------------------------------------------------------------------------------


class Reference:
    """Held-out binary digits, from which the energy distance of drawn ones is taken; its floor is of real ones."""

    def __init__(self, digits: Images, others: Iterable[Images] = ()):
        self.levels = levels(digits)
        self.real = np.concatenate([self.levels, *(levels(other) for other in others)])

    def __call__(self, x: Images) -> dict[str, float]:
        """Unbiased energy distance of binary x, and its standard error from parts of x; the reference is fixed."""
        drawn = levels(x)
        parts = [energy_distance(part, self.levels) for part in np.array_split(drawn, PARTS)]
        error = float(np.std(parts, ddof=1) / np.sqrt(PARTS))
        return {"energy": energy_distance(drawn, self.levels), "energy_error": error}

    def floor(self) -> dict[str, float]:
        """Mean and 95 % point for disjoint parts of the real digits, of the reference's size."""
        mean, worst = noise_floor(self.real, (len(self.levels), len(self.levels)))
        return {"energy": mean, "energy_95": worst}


class Sets(NamedTuple):
    """Digits to train on, to reconstruct, and to compare with: no two of the sets share one."""

    known: Digits
    shown: Images
    reference: Reference


def three_sets(train: int, drawn: int) -> Sets:
    """The first `train` of 4,000 digits, up to 500 others that are reconstructed, and up to 500 more."""
    known, shown = digits(f"train[:{train}]"), digits("train[4000:]").binary()[:drawn]
    return Sets(known, shown, Reference(digits("test").binary()[:drawn], [known.binary(), shown]))


def levels(x: Images) -> np.ndarray:
    """Probabilities, or bits, as grey levels 0 to 255."""
    return 255 * np.asarray(x)


def show_images(ax: Any, x: Images | np.ndarray, columns: int, title: str = "") -> None:
    """Probabilities in [0, 1] as tiles, ink dark."""
    from experiments._figures import tiled

    ax.imshow(tiled(np.asarray(x), columns), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    ax.set_title(title)
    ax.axis("off")


@jax.jit
def draw_bits(key: Array, logits: Images) -> Images:
    """Binary digits with these logits."""
    return binarize(key, jax.nn.sigmoid(logits))
