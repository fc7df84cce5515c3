"""The marginal likelihood of a latent-variable model by importance sampling.

    p(x) = E_q[w],   w = p(x, z)/q(z | x),   estimated by the mean weight of k samples z ~ q(z | x)

The mean weight is unbiased for p(x), so that its logarithm lies below log p(x) in expectation (Jensen's inequality),
by about the squared standard error over two. The weights pass in chunks and only their sums are kept, relative to the
largest, so that memory holds one chunk whatever k is.

References: Burda et al. 2016, arXiv:1509.00519, eq. 8; Rezende et al. 2014, arXiv:1401.4082, appendix E.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.losses.draws import Draw, LogDensity, Observed, check_observed, check_per_example
from dgm_jax.numerics import example_keys, is_count
from dgm_jax.typing import Keys, PerExample, Size


class MarginalEstimate(NamedTuple):
    """An estimate of log p(x) from weights, and what the weights tell of it. Each is [batch].

    log_likelihood: nats, the logarithm of the mean weight.
    effective_sample_size: (sum w)^2 / sum w^2, between 1 and the number of samples; 0 where all weights are 0.
    standard_error: nats, by the delta method: the weights' standard error over their mean. It trusts the weights that
    were seen, and means little where the effective sample size is small. Infinite for a single sample.
    """

    log_likelihood: PerExample
    effective_sample_size: PerExample
    standard_error: PerExample


class WeightSums(NamedTuple):
    """Running sums of weights: the largest log-weight, and the sums of w and of w^2 relative to it. Each is [batch]."""

    largest: PerExample
    first: PerExample
    second: PerExample


def importance_log_likelihood(
    draw: Draw, log_joint: LogDensity, x: Observed, key: Keys, *, samples: int, chunk: int
) -> MarginalEstimate:
    """log p(x) of each example from `samples` draws of its proposal: below log p(x) in expectation.

    Args:
        draw: the proposal (x, key) -> (z, log_q), z [batch, *latent]; mapped over samples, so
            that what depends on x alone (an encoder) is computed once for a chunk.
        log_joint: (x, z) -> log p(x, z), nats, summed over the event and the latents.
        key: one key, or one per example; sample j of an example has the key that j is folded into, so that the
            result depends on `chunk` by rounding alone.
        samples: k, for each example. Wu et al. 2017 (arXiv:1611.04273) show that thousands may not suffice where the
            proposal is far from the posterior: see the effective sample size, and `annealed_log_likelihood`.
        chunk: how many samples of the whole batch are held at a time.
    """
    check_count(samples, "samples", "weights are averaged")
    check_count(chunk, "chunk", "samples pass in chunks")
    check_observed(x)
    keys, chunk = example_keys(key, x.shape[0]), min(chunk, samples)

    def log_weight(j: Array) -> PerExample:
        z, log_q = draw(x, numbered_keys(keys, j))
        log_q = check_per_example(log_q, x, "proposal's log-density")
        return check_per_example(log_joint(x, z), x, "joint log-density") - log_q

    def step(sums: WeightSums, start: Array) -> tuple[WeightSums, None]:
        j = start + jnp.arange(chunk)
        log_w = jax.vmap(log_weight)(j)
        return add_weights(sums, jnp.where((j < samples)[:, None], log_w, -jnp.inf)), None

    dtype = jax.eval_shape(log_weight, jax.ShapeDtypeStruct((), jnp.int32)).dtype
    sums, _ = jax.lax.scan(step, no_weights(x.shape[0], dtype), jnp.arange(0, samples, chunk))
    return MarginalEstimate(*summarize(sums, samples))


def numbered_keys(keys: Keys, number: Array) -> Keys:
    """The keys [batch] of one sample, or move, of each example."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)


def no_weights(batch: Size, dtype: jnp.dtype) -> WeightSums:
    """The sums before the first weight."""
    zeros = jnp.zeros(batch, dtype)
    return WeightSums(zeros - jnp.inf, zeros, zeros)


def add_weights(sums: WeightSums, log_w: Float[Array, "samples batch"]) -> WeightSums:
    """The sums with more weights."""
    largest = jnp.maximum(sums.largest, log_w.max(0))
    # -inf - -inf is NaN: where every weight is 0 so far, they are taken relative to 1
    shift = jnp.where(largest == -jnp.inf, 0.0, largest)
    w, scale = jnp.exp(log_w - shift[None]), jnp.exp(sums.largest - shift)
    return WeightSums(largest, scale * sums.first + w.sum(0), scale**2 * sums.second + (w**2).sum(0))


def summarize(sums: WeightSums, samples: int) -> tuple[PerExample, PerExample, PerExample]:
    """Log mean weight, effective sample size, and the delta method's standard error of the former."""
    none = sums.largest == -jnp.inf
    log_mean = jnp.where(none, -jnp.inf, sums.largest + jnp.log(jnp.where(none, 1.0, sums.first) / samples))
    size = jnp.where(none, 0.0, sums.first**2 / jnp.where(none, 1.0, sums.second))
    if samples == 1:
        return log_mean, size, jnp.full_like(size, jnp.inf)
    # variance over (k - 1) of the weights over k times their squared mean; rounding may take it below 0
    variance = jnp.maximum(samples / size - 1, 0.0) / (samples - 1)
    return log_mean, size, jnp.sqrt(variance)


def check_count(count: int, name: str, reason: str) -> None:
    """Raise `ValueError` unless `count` is a whole number from 1."""
    if not is_count(count):
        raise ValueError(f"Expected a whole number {name} >= 1, as {reason}; got {name}={count!r}.")
