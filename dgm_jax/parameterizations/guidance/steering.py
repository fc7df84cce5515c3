"""Guidance: what steers a denoiser towards a condition, as functions of denoisers.

As a denoiser is its score, D = (x_t + sigma^2 score)/alpha, every rule that adds scores adds denoisers. With a scale w,

    classifier-free   D = (1 - w) D(x_t) + w D(x_t | c)                     the score of p_t(x)^(1 - w) p_t(x | c)^w
    classifier        D = D(x_t) + w sigma^2/alpha grad log p_t(c | x_t)    the score of p_t(x) p_t(c | x)^w
    autoguidance      D = (1 - w) D_weaker(x_t) + w D(x_t)

w = 0 is no guidance and w = 1 the conditional model, exactly. Ho & Salimans' strength is w - 1. For other scales the
first two agree, but the tilted densities at different t are no forward process of any data: what is drawn at t = 0 is
not p(x) p(c | x)^w.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PyTree

from dgm_jax.numerics import check_like, example_keys, expand_to, in_order, known, known_number
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.typing import Data, Denoiser, Keys, PerExample, Size

Scale = float | Float[Array, ""] | PerExample  # one for the batch, or one per example
Given = Callable[[Data, PerExample, PyTree], Data]  # (x_t, t, condition) -> E[x_0 | x_t, condition]


def classifier_free(conditional: Denoiser, unconditional: Denoiser, scale: Scale) -> Denoiser:
    """Classifier-free guidance of two denoisers; for two calls of one network, `classifier_free_batched` is faster.

    Args:
        scale: w >= 0; 0 is the unconditional model, 1 the conditional one, above 1 exaggerates the condition.

    Reference: Ho & Salimans 2022, arXiv:2207.12598, eq. 6, where w is scale - 1.
    """
    check_scale(scale)

    def guided(x_t: Data, t: PerExample) -> Data:
        return _extrapolated(unconditional(x_t, t), conditional(x_t, t), x_t, scale)

    return guided


def classifier_free_batched(denoise_given: Given, condition: PyTree, null: PyTree, scale: Scale) -> Denoiser:
    """Classifier-free guidance by one call of the network on twice the batch.

    Args:
        denoise_given: (x_t, t, condition) -> E[x_0 | x_t, condition], of any batch.
        condition: labels, embeddings, ...: a tree of arrays [batch, ...].
        null: the same tree for "no condition", with or without the axis of the batch, such as the null label.
        scale: as in `classifier_free`.
    """
    check_scale(scale)
    null, batch = _like_condition(null, condition), _batch_of(condition)
    # an example's two rows are neighbours, so that a batch that is split over devices stays where it is
    both = jax.tree.map(_where_known(_interleaved), condition, null)

    def guided(x_t: Data, t: PerExample) -> Data:
        if x_t.shape[0] != batch:
            raise ValueError(f"Expected {x_t.shape[0]} conditions, as each example of x_t has its own; got {batch}.")
        twice = _interleaved(x_t, x_t)
        estimates = check_like(denoise_given(twice, _interleaved(t, t), both), twice, "denoiser")
        estimates = estimates.reshape(x_t.shape[0], 2, *estimates.shape[1:])
        return _extrapolated(estimates[:, 1], estimates[:, 0], x_t, scale)

    return guided


def autoguided(denoise: Denoiser, weaker: Denoiser, scale: Scale) -> Denoiser:
    """Away from what a weaker model of the same task says: less trained, or smaller; scale 1 is no guidance.

    Reference: Karras et al. 2024, arXiv:2406.02507, eq. 3.
    """
    return classifier_free(denoise, weaker, scale)


def classifier_guided(
    denoise: Denoiser, process: GaussianProcess, log_prob: Callable[[Data, PerExample], PerExample], scale: Scale
) -> Denoiser:
    """Guidance by the gradient of a noise-aware classifier; of the exact classifier, scale 1 samples p(x | c).

    Where alpha(t) = 0 the state says nothing of c and the answer is not finite: begin below t = 1 there.

    Args:
        log_prob: (x_t, t) -> log p_t(c | x_t) of each example's own condition, nats, up to a constant; or the log of
            any other factor, with c a sentence, a measurement, a preference.
        scale: w >= 0, with which log_prob is multiplied.

    Reference: Dhariwal & Nichol 2021, arXiv:2105.05233, algorithm 2; Song et al. 2021, arXiv:2011.13456, eq. 14.
    """
    check_scale(scale)

    def guided(x_t: Data, t: PerExample) -> Data:
        process.refuse_pure_noise(t, "a classifier's guidance")

        def total(x: Data) -> Float[Array, ""]:
            values = log_prob(x, t)
            if values.shape != t.shape:
                raise ValueError(
                    f"Expected log_prob of shape {t.shape}, as each example has a gradient; got {values.shape}."
                )
            return values.sum()

        towards = process.variance(t) / process.alpha(t) * scale_like(scale, t)
        return check_like(denoise(x_t, t), x_t, "denoiser") + expand_to(towards, x_t) * jax.grad(total)(x_t)

    return guided


def limited_interval(
    guided: Denoiser,
    otherwise: Denoiser,
    process: GaussianProcess,
    *,
    low: float | Float[Array, ""],
    high: float | Float[Array, ""],
) -> Denoiser:
    """`guided` where low < sigma/alpha <= high, and `otherwise` elsewhere.

    Where all times of a batch are on one side, as in a solve, only that side's network is called.

    Args:
        low, high: noise levels in units of the data, EDM's sigma; `process.noise_ratio` gives those of times.

    Reference: Kynkaanniemi et al. 2024, arXiv:2404.07724, eq. 5.
    """
    if not in_order(0, low, high) or (known(low) is not None and known_number(low) == known_number(high)):
        raise ValueError(f"Expected 0 <= low < high, as guidance is limited to that interval; got {low=}, {high=}.")

    def steered(x_t: Data, t: PerExample) -> Data:
        ratio = process.sigma(t) / process.alpha(t)  # inf where alpha = 0, which is above every finite `high`
        inside = (jnp.asarray(low, ratio.dtype) < ratio) & (ratio <= jnp.asarray(high, ratio.dtype))

        def where_any(needed: Array, denoise: Denoiser) -> Data:
            def called(x_t: Data, t: PerExample) -> Data:
                return check_like(denoise(x_t, t), x_t, "denoiser")

            return jax.lax.cond(needed.any(), called, lambda x_t, t: jnp.zeros_like(x_t), x_t, t)

        return jnp.where(expand_to(inside, x_t), where_any(inside, guided), where_any(~inside, otherwise))

    return steered


def drop_conditions(condition: PyTree, null: PyTree, key: Keys, *, rate: float | Float[Array, ""]) -> PyTree:
    """The conditions of a batch, each replaced by `null` with probability `rate`: trains both models of one network.

    Args:
        condition, null: as in `classifier_free_batched`.

    Reference: Ho & Salimans 2022, arXiv:2207.12598, algorithm 1.
    """
    if not in_order(0, rate, 1):
        raise ValueError(f"Expected rate in [0, 1], as a probability; got {rate}.")
    null = _like_condition(null, condition)
    keys = example_keys(key, _batch_of(condition))
    dropped = jax.vmap(lambda key: jax.random.bernoulli(key, rate))(keys)
    return jax.tree.map(lambda c, n: jnp.where(expand_to(dropped, c), n, c), condition, null)


def check_scale(scale: Scale) -> None:
    """Raise `ValueError` unless the scale is one number or one per example, finite and not negative where known."""
    values = known(scale)
    if len(jnp.shape(scale)) > 1:
        raise ValueError(
            f"Expected scale to be a number, or one per example, as it weighs estimates; got shape {jnp.shape(scale)}."
        )
    if values is not None and not ((values >= 0) & (values < jnp.inf)).all():
        raise ValueError(f"Expected a finite scale >= 0, as less than 0 steers away from the condition; got {scale}.")


def _extrapolated(from_: Data, to: Data, x_t: Data, scale: Scale) -> Data:
    """(1 - w) from_ + w to, which is `to` to the bit at w = 1."""
    w = expand_to(scale_like(scale, x_t[(slice(None),) + (0,) * (x_t.ndim - 1)]), x_t)
    return (1 - w) * check_like(from_, x_t, "denoiser") + w * check_like(to, x_t, "denoiser")


def scale_like(scale: Scale, each: PerExample) -> PerExample:
    """One scale per example."""
    if jnp.ndim(scale) == 1 and jnp.shape(scale) != each.shape:
        raise ValueError(
            f"Expected one scale, or one per example {each.shape}, as broadcasting would hide a mistake; got "
            f"{jnp.shape(scale)}."
        )
    return jnp.broadcast_to(jnp.asarray(scale, each.dtype), each.shape)


def _batch_of(condition: PyTree) -> Size:
    """The number of examples, which all leaves share."""
    return jax.tree.leaves(condition)[0].shape[0]


def _where_known(function: Callable[[ArrayLike, ArrayLike], Array]) -> Callable[[ArrayLike, ArrayLike], Array]:
    """The function, computed now where its values are known: inside a solve a network's checks still see its labels."""

    def computed(a: ArrayLike, b: ArrayLike) -> Array:
        if known(a) is None or known(b) is None:
            return function(a, b)
        with jax.ensure_compile_time_eval():
            return function(a, b)

    return computed


def _interleaved(a: ArrayLike, b: ArrayLike) -> Array:
    """a_0, b_0, a_1, b_1, ..."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    return jnp.stack([a, b], axis=1).reshape(2 * a.shape[0], *a.shape[1:])


def _like_condition(null: PyTree, condition: PyTree) -> PyTree:
    """The null condition in the shape of the conditions."""
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(condition)]
    if not shapes or any(not shape or shape[0] != shapes[0][0] for shape in shapes):
        raise ValueError(f"Expected conditions [batch, ...], as each example has its own; got shapes {shapes}.")
    if jax.tree.structure(null) != jax.tree.structure(condition):
        raise ValueError(
            "Expected null to be a tree like the condition, as it takes its place; got "
            f"{jax.tree.structure(null)} for {jax.tree.structure(condition)}."
        )

    def like(n: ArrayLike, c: ArrayLike) -> Array:
        values = known(n)
        c, n = jnp.asarray(c), jnp.asarray(n)
        if values is not None and jnp.issubdtype(c.dtype, jnp.integer):
            with np.errstate(invalid="ignore"):
                held = np.array_equal(values, values.astype(c.dtype))
            if not held:
                raise ValueError(f"Expected a null that {c.dtype} holds, as the condition has that type; got {values}.")
        if n.shape not in (c.shape, c.shape[1:]):
            raise ValueError(f"Expected null of shape {c.shape[1:]} or {c.shape}, as the condition; got {n.shape}.")
        return jnp.broadcast_to(n.astype(c.dtype).reshape((1,) * (c.ndim - n.ndim) + n.shape), c.shape)

    return jax.tree.map(_where_known(like), null, condition)
