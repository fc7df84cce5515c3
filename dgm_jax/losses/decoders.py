"""Log-likelihoods log p(x | z) of decoders: of what a network returns, and of the data.

In nats, summed over the event, one per example. All are normalised: the probabilities of all data sum, or their
densities integrate, to one. Densities and probabilities do not compare; discretise the data, or dequantise them.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer, Shaped

from dgm_jax.losses.bound import check_levels
from dgm_jax.numerics import check_data, check_like, known, sum_events
from dgm_jax.typing import Data, PerExample


def bernoulli_log_likelihood(logits: Data, x: Shaped[Array, " batch *event"]) -> PerExample:
    """log p(x) of independent coordinates in {0, 1}, p(1) = sigmoid(logit): the decoder of binarised images.

    The cross-entropy with a grey value is no log-likelihood, as it does not normalise. Known data that are not binary
    are refused; under `jit` they give NaN, and gradients of NaN.
    """
    _check_logits(logits)
    values, x = known(x), x.astype(logits.dtype)
    check_like(logits, x, "decoder's logits")
    if values is not None and not ((values == 0) | (values == 1)).all():
        odd = values[(values != 0) & (values != 1)]
        raise ValueError(
            f"Expected binary x in {{0, 1}}, as a Bernoulli decoder gives nothing else a probability (binarise, or "
            f"take another decoder); got {odd.size} other values, such as {odd.flat[0]}."
        )
    sign = jnp.where((x == 0) | (x == 1), 2 * x - 1, jnp.nan)
    return sum_events(jax.nn.log_sigmoid(sign * logits))  # no difference of large numbers, for either value


def gaussian_log_likelihood(mean: Data, log_std: Data | Float[Array, ""], x: Data) -> PerExample:
    """log N(x; mean, diag std^2), a density: it has no upper bound where std is learned and data repeat a value.

    Args:
        log_std: of the shape of x, or one number for all (a learned scalar, or a constant).
    """
    check_data(x, "x")
    check_like(mean, x, "decoder's mean")
    _check_scale(log_std, x, "log_std")
    error = (x - mean) * jnp.exp(-log_std)
    return sum_events(-(error**2) / 2 - log_std - math.log(2 * math.pi) / 2)


def discretized_logistic_log_likelihood(
    mean: Data, log_scale: Data | Float[Array, ""], x: Data, *, levels: int
) -> PerExample:
    """The mass that Logistic(mean, scale) gives to the bin around x; the outermost bins reach to infinity.

    Args:
        log_scale: of the shape of x, or one number for all.
        x: at the centres (2 i - (levels - 1))/(levels - 1) in [-1, 1], as `dgm_jax.data.to_unit` places them.

    Reference: Salimans et al. 2017, arXiv:1701.05517, eq. 2 with one component.
    """
    check_levels(x, levels, "x")
    check_like(mean, x, "decoder's mean")
    _check_scale(log_scale, x, "log_scale")
    half, precision = 1 / (levels - 1), jnp.exp(-log_scale)
    low, high = (x - half - mean) * precision, (x + half - mean) * precision
    below, above = jax.nn.log_sigmoid(high), jax.nn.log_sigmoid(-low)
    # sigmoid(high) - sigmoid(low) = sigmoid(high) sigmoid(-low) (1 - exp(low - high)): nothing cancels
    inside = below + above + jnp.log(-jnp.expm1(-2 * half * precision))
    return sum_events(jnp.where(x < half - 1, below, jnp.where(x > 1 - half, above, inside)))


def categorical_log_likelihood(
    logits: Float[Array, " batch *event classes"], x: Integer[Array, " batch *event"]
) -> PerExample:
    """log p(x) of independent coordinates in 0 .. classes - 1, p = softmax(logits).

    Known data out of range are refused; under `jit` they give NaN.
    """
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise ValueError(f"Expected integer x, as it names classes; got dtype {x.dtype}.")
    _check_logits(logits)
    x = x.astype(jnp.int32)  # 256 classes are none in uint8
    if logits.shape[:-1] != x.shape:
        raise ValueError(f"Expected logits of shape {(*x.shape, 'classes')}, one for each class; got {logits.shape}.")
    classes, values = logits.shape[-1], known(x)
    if values is not None and not ((values >= 0) & (values < classes)).all():
        raise ValueError(f"Expected x in [0, {classes}), the decoder's classes; got {values.min()} to {values.max()}.")
    log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), jnp.clip(x, 0, classes - 1)[..., None], axis=-1)[..., 0]
    return sum_events(jnp.where((x >= 0) & (x < classes), log_p, jnp.nan))


def _check_logits(logits: Data) -> None:
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"Expected floating-point logits, as a decoder's output is; got dtype {logits.dtype}.")


def _check_scale(scale: Float[Array, "..."], x: Data, name: str) -> None:
    if not hasattr(scale, "shape"):
        raise ValueError(f"Expected {name} to be an array, [] for one number, as a learned one is; got {scale!r}.")
    if scale.shape not in ((), x.shape):
        raise ValueError(
            f"Expected {name} of the shape of x, {x.shape}, or one number, as broadcasting would hide a mistake; got "
            f"{scale.shape}."
        )
