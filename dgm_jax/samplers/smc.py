"""Posteriors by sequential Monte Carlo: the twisted diffusion sampler, exact as its particles grow.

The target of a chain of ancestral kernels p(x_s | x_t), from x at ts[0] to x_0, is

    p(x_T) prod p(x_s | x_t) p(y | x_0),

and any positive `twist` of level t, a guess at p(y | x_t), steers particles towards it: they move by the kernel whose
denoiser is D + sigma^2/alpha grad log twist, and carry the weight

    w_s = w_t p(x_s | x_t) twist_s(x_s) / (moved(x_s | x_t) twist_t(x_t)),        twist_0 = p(y | x_0).

The twists cancel: a poor one costs particles, and makes nothing wrong. What is left is the chain's own discretisation,
and the spread of finitely many particles, which is small where `effective_size` stays a good share of them all.

Reference: Wu et al. 2023, arXiv:2306.17775, algorithm 1; Doucet and Johansen 2009, section 3.5 (resampling by need).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dgm_jax.numerics import check_like, in_order, is_count, known, normal, rounded, split, typed_key
from dgm_jax.parameterizations.posterior import posterior_of
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.samplers.coordinates import traced_once
from dgm_jax.samplers.grid import Grid, reverse_grid
from dgm_jax.samplers.ode import draw_prior
from dgm_jax.typing import Data, Denoiser, Keys, PerExample, Scalar, Shape, Size


class Particles(NamedTuple):
    """Weighted points of the posterior p(x_0 | y).

    x: [particles, *event]. log_weights: nats, of sum 1. log_evidence: log p(y), nats; its exponential is unbiased.
    effective_size: 1 / sum of squared weights, before each step and at the end. evaluations: batched calls of the
    network. Where all weights are 0 log_weights and effective_size are NaN; log_evidence is -inf or, before the last
    step, NaN.
    """

    x: Data
    log_weights: PerExample
    log_evidence: Scalar
    effective_size: Float[Array, " points"]
    evaluations: Int[Array, ""]


def smc(
    denoise: Denoiser,
    process: GaussianProcess,
    log_likelihood: Callable[[Data], PerExample],
    twist: Callable[[Data, PerExample], PerExample],
    key: Keys,
    shape: Shape,
    *,
    ts: Grid,
    threshold: float | Float[Array, ""] = 0.5,
) -> Particles:
    """Draw weighted particles of one posterior; `jax.vmap` over keys and y draws those of many.

    Args:
        log_likelihood: x_0 -> log p(y | x_0) [particles], nats: `gaussian_likelihood`, or any other function.
        twist: (D(x_t), t) -> log of a guess at p(y | x_t), up to a function of t: `gaussian_twist`, or log_likelihood
            of D itself, which is the paper's and steers too hard where noise is far below the data's width.
        key: one key, as particles are resampled from each other.
        shape: (particles, *event).
        ts: falling. Where it ends at t = 0 with sigma(0) = 0 the last step is the denoiser's own estimate.
        threshold: resample where the effective size falls below this share of the particles; 1 is always, 0 never.
    """
    if not in_order(0, threshold, 1):
        raise ValueError(f"Expected threshold in [0, 1], as a share of the particles; got {threshold}.")
    key = typed_key(key)
    if key.ndim:
        raise ValueError(f"Expected one key, as particles are resampled from each other; got keys {key.shape}.")
    key_prior, key_steps = split(key)
    x = draw_prior(process, key_prior, shape, ts)
    plan, count = reverse_grid(process, x, ts), x.shape[0]
    of_likelihood = jax.eval_shape(log_likelihood, x).shape
    if of_likelihood != (count,):
        raise ValueError(
            f"Expected log_likelihood of shape {(count,)}, as each particle is weighed; got {of_likelihood}."
        )
    denoise = traced_once(denoise)

    def steered(x: Data, t: Scalar) -> tuple[Data, PerExample, Data]:
        """The estimate, the log twist, and its gradient by x."""
        each = jnp.full(count, t)
        estimate, pull = jax.vjp(lambda x: check_like(denoise(x, each), x, "denoiser"), x)
        value, pull_twist = jax.vjp(lambda estimate: twist(estimate, each), estimate)
        if value.shape != each.shape:
            raise ValueError(f"Expected twist of shape {each.shape}, as each particle is weighed; got {value.shape}.")
        return estimate, value, pull(pull_twist(jnp.ones_like(value))[0])[0]

    def step(carry: tuple, now: tuple) -> tuple[tuple, Scalar]:
        x, (estimate, value, gradient), log_weights, evidence = carry
        (t, s), key = now
        key_resample, key_noise = split(key)
        size = effective_size(log_weights)
        total = jax.nn.logsumexp(log_weights)
        again = size < jnp.asarray(threshold, x.dtype) * count
        rows = jnp.where(again, systematic(log_weights, key_resample, count), jnp.arange(count, dtype=jnp.int32))
        log_weights = jnp.where(again, -jnp.log(jnp.asarray(count, x.dtype)), log_weights - total)
        x, estimate, value, gradient = (a[rows] for a in (x, estimate, value, gradient))
        kernel = posterior_of(process, t, s)
        std = jnp.sqrt(kernel.posterior)
        of_gradient = kernel.of_data * process.variance(t) / process.alpha(t) / std
        of_state, of_data, std, of_gradient = rounded((kernel.of_state, kernel.of_data, std, of_gradient))
        noise, shift = normal(key_noise, x.shape, x.dtype), of_gradient * gradient  # shift in units of std
        moved = of_state * x + of_data * estimate + std * (noise + shift)
        # log p(x_s | x_t) - log moved(x_s | x_t): both Gaussians of one width, their means `shift` apart
        quotient = -jnp.sum((noise + shift / 2) * shift, axis=tuple(range(1, x.ndim)))
        after = steered(moved, s)
        return (moved, after, log_weights + quotient + after[1] - value, evidence + total), size

    begin = steered(x, plan.ts[0])
    log_weights = begin[1] - jnp.log(jnp.asarray(count, x.dtype))
    pairs = plan.ts[:-1], plan.ts[1:]
    keys = jax.random.split(key_steps, len(plan.ts) - 1)
    carry = x, begin, log_weights, jnp.zeros((), x.dtype)
    (x, last, log_weights, evidence), sizes = jax.lax.scan(step, carry, (pairs, keys))
    x = last[0] if plan.to_zero else x
    log_weights = log_weights + log_likelihood(x) - last[1]
    total = jax.nn.logsumexp(log_weights)
    sizes = jnp.concatenate([sizes, effective_size(log_weights)[None]])
    evaluations = jnp.asarray(len(plan.ts), jnp.int32)
    return Particles(x, log_weights - total, evidence + total, sizes, evaluations)


def resample(particles: Particles, key: Keys, n: int) -> Data:
    """`n` unweighted points [n, *event] in random order.

    Resampling is systematic: each particle is drawn n times its weight, rounded up or down.
    """
    if not is_count(n):
        raise ValueError(f"Expected a whole number n >= 1 of points, as they are drawn; got {n}.")
    weights = known(particles.log_weights)
    if weights is not None and np.isnan(weights).any():
        raise ValueError(f"Expected weights that are numbers, as points are drawn by them; got {weights}.")
    key_rows, key_order = split(key)
    rows = systematic(particles.log_weights, key_rows, n)
    return particles.x[jax.random.permutation(key_order, rows)]


def systematic(log_weights: PerExample, key: Keys, n: Size) -> Int[Array, " n"]:
    """Rows of n draws with these weights: one uniform number, and n equal steps along the cumulated weights."""
    ends = jnp.cumsum(jax.nn.softmax(log_weights))
    uniform = jax.random.uniform(typed_key(key), (), ends.dtype)
    points = (jnp.arange(n, dtype=ends.dtype) + uniform) / n * ends[-1]
    ordered = jnp.argsort(jnp.concatenate([ends, points]), stable=True)  # searchsorted takes no symbolic batch
    places = jnp.argsort(ordered)[ends.shape[0] :]  # both rise, so a point's row is the number of ends before it
    return jnp.minimum(places - jnp.arange(n), ends.shape[0] - 1).astype(jnp.int32)


def effective_size(log_weights: PerExample) -> Scalar:
    """1 / sum of squared weights of sum 1 (Kong 1992)."""
    return 1 / jnp.sum(jax.nn.softmax(log_weights) ** 2)
