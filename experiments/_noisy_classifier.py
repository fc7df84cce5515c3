"""log p_t(c | x_t) of colour digits: a classifier of noisy digits that is told the time, for classifier guidance.

It sees x_t at its size in units of the data's, and log-SNR as two more channels. Trained by cross-entropy at all noise
levels at once (Dhariwal & Nichol 2021, arXiv:2105.05233, section 4), in about a minute on 2 CPU cores.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from dgm_jax.data import batches, source
from dgm_jax.numerics import expand_to, normal_like
from dgm_jax.processes import log_snr_uniform
from dgm_jax.training import init_state, make_step
from dgm_jax.typing import Data, PerExample
from experiments._colour_digits import CLASSES, SHAPE, coloured, drawn_hues
from experiments._digit_features import kept_parameters, moved
from experiments.colour_digits import PROCESS, T_MIN

LogProb = Callable[[Data, PerExample], PerExample]


class NoisyClassifier(nn.Module):
    """x_t [batch, 16, 16, 3] and t [batch] to log probabilities [batch, 10]."""

    @nn.compact
    def __call__(self, x_t: Float[Array, "batch height width 3"], t: PerExample) -> Float[Array, "batch 10"]:
        """Smooth in x_t, as its gradient is what guides."""
        alpha, variance = PROCESS.alpha(t), PROCESS.variance(t)
        seen = (x_t + expand_to(alpha, x_t)) / expand_to(
            jnp.sqrt(alpha**2 / 4 + variance), x_t
        )  # black is at alpha(-1)
        level = jnp.stack([PROCESS.log_snr(t) / 10, jnp.tanh(PROCESS.log_snr(t) / 4)], -1)
        h = jnp.concatenate([seen, jnp.broadcast_to(level[:, None, None, :], (*x_t.shape[:3], 2))], -1)
        for i, channels in enumerate((32, 64)):
            h = nn.silu(nn.Conv(channels, (3, 3), strides=(2, 2), name=f"conv_{i}")(h))
        h = nn.silu(nn.Dense(128, name="hidden")(h.reshape(len(h), -1)))
        return nn.log_softmax(nn.Dense(CLASSES, name="logits")(jnp.concatenate([h, level], -1)))


def load_noisy_classifier(directory: Path, *, steps: int = 2500) -> Callable[[jax.Array], LogProb]:
    """labels [batch] -> (x_t, t) -> log p_t(label | x_t), of the classifier kept in `directory` or trained for it."""
    params = kept_parameters(directory / "noisy_classifier.npz", _init, SHAPE, lambda: train(steps))

    def of_labels(labels: jax.Array) -> LogProb:
        def log_prob(x_t: Data, t: PerExample) -> PerExample:
            log_probabilities: Any = NoisyClassifier().apply(params, x_t, t)
            return jnp.take_along_axis(log_probabilities, labels[:, None], axis=1)[:, 0]

        return log_prob

    return of_labels


def _init(key: Array, x: Data) -> Any:
    return NoisyClassifier().init(key, x, jnp.full(len(x), 0.5, x.dtype))


def train(steps: int, *, batch: int = 128) -> Any:
    """Parameters, averaged over the last steps, by cross-entropy at noise levels uniform in log-SNR."""
    times = log_snr_uniform(PROCESS, T_MIN, 1.0)

    def loss(params: Any, digits: dict[str, Array], key: Array) -> Array:
        key_hue, key_move, key_time, key_noise = jax.random.split(key, 4)
        x_0 = moved(coloured(digits["image"], drawn_hues(key_hue, len(digits["image"]))), key_move, 1)
        t = times(key_time, len(x_0))
        found: Any = NoisyClassifier().apply(params, PROCESS.perturb(x_0, t, normal_like(key_noise, x_0)), t)
        return -jnp.take_along_axis(found, digits["label"].reshape(-1, 1), axis=1).mean()

    optimizer = optax.adamw(optax.cosine_decay_schedule(2e-3, max(steps, 1)), weight_decay=1e-3)
    params = _init(jax.random.key(0), jnp.zeros((1, *SHAPE)))
    state = init_state(params, optimizer, jax.random.key(1))
    step = jax.jit(make_step(loss, optimizer, ema_decay=0.98), donate_argnums=0)
    rows = batches(source("mnist5k", "train"), batch, seed=0)
    for _ in range(steps):
        state, _ = step(state, next(rows))
    return state.ema
