"""Vector quantisation: vectors replaced by the nearest of a code book's, with a gradient, and code books that follow.

    e(z) = argmin over e_k of |z - e_k|,
    loss = -log p(x | e(z)) + |sg[z] - e(z)|^2 + commitment |z - sg[e(z)]|^2       (sg: stop gradient)

where the decoder's gradient in e(z) passes to z unchanged. Vectors are the last axis of z [batch, *positions, dim]:
each position is quantised by itself. Both squares are sums over positions and dimensions, one value per example, as
log p(x | e) is a sum over the event.

With codes that are moving averages of the vectors assigned to them (appendix A.1) the second term is left out:

    averages = init_code_averages(codes)
    z_q = quantize(z, code_book(averages, smoothing=1e-5))
    averages = update_code_averages(averages, code_sums(z, z_q.indices, codes=len(codes)), decay=0.99)

The sums are linear in the batch: over several devices, add them up between the last two calls.

Reference: van den Oord et al. 2017, arXiv:1711.00937, eq. 1 to 3 and appendix A.1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dgm_jax.numerics import is_count, known, sum_events
from dgm_jax.typing import Data, PerExample

Codes = Float[Array, "codes dim"]
Indices = Int[Array, " batch *positions"]


class Quantized(NamedTuple):
    """Vectors after quantisation, and what it cost.

    z: [batch, *positions, dim], the nearest codes, with the gradient of the input. indices: [batch, *positions].
    code_book_loss: |sg[z] - e|^2, which moves the codes alone. commitment_loss: |z - sg[e]|^2, which moves the
    encoder alone; equal in value, each [batch], squared latent units, summed over positions and dimensions.
    """

    z: Data
    indices: Indices
    code_book_loss: PerExample
    commitment_loss: PerExample


class CodeSums(NamedTuple):
    """For each code the number [codes] and the sum [codes, dim] of the vectors assigned to it, or averages of both."""

    counts: Float[Array, " codes"]
    sums: Float[Array, "codes dim"]


def quantize(z: Data, codes: Codes) -> Quantized:
    """Every vector of z [batch, *positions, dim] replaced by its nearest code (eq. 1 and 2, losses of eq. 3)."""
    indices = nearest_codes(z, codes)
    nearest = codes[indices]
    code_book_loss = sum_events((jax.lax.stop_gradient(z) - nearest) ** 2)
    commitment_loss = sum_events((z - jax.lax.stop_gradient(nearest)) ** 2)
    return Quantized(straight_through(z, nearest), indices, code_book_loss, commitment_loss)


def nearest_codes(z: Data, codes: Codes) -> Indices:
    """The index of the code nearest to each vector, the first of equals (eq. 1)."""
    _check_codes(z, codes)
    # |z - e|^2 less |z|^2, about the codes' mean, as a common offset would drown the differences in rounding
    center = codes.mean(0)
    z, codes = (jax.lax.stop_gradient(a - center.reshape((1,) * (a.ndim - 1) + (-1,))) for a in (z, codes))
    inner = jax.lax.dot_general(z, codes, (((z.ndim - 1,), (1,)), ((), ())), precision=jax.lax.Precision.HIGHEST)
    half_squares = jnp.sum(codes**2, axis=1).reshape((1,) * (z.ndim - 1) + (-1,)) / 2
    return jnp.argmin(half_squares - inner, axis=-1)


def straight_through(z: Data, quantized: Data) -> Data:
    """The values of `quantized`, to the last bit, with the gradient of z; none reaches `quantized`."""
    if z.shape != quantized.shape:
        raise ValueError(f"Expected quantized of the shape of z, {z.shape}, as it replaces it; got {quantized.shape}.")
    return jax.lax.stop_gradient(quantized) + (z - jax.lax.stop_gradient(z))


def code_sums(z: Data, indices: Indices, *, codes: int) -> CodeSums:
    """The number and the sum of the vectors assigned to each of `codes` codes, without gradients."""
    if indices.shape != z.shape[:-1]:
        raise ValueError(f"Expected one index per vector, shape {z.shape[:-1]}; got shape {indices.shape}.")
    flat, vectors = _check_indices(indices, codes), jax.lax.stop_gradient(z).reshape(-1, z.shape[-1])
    counts = jax.ops.segment_sum(jnp.ones(flat.shape, z.dtype), flat, num_segments=codes)
    return CodeSums(counts, jax.ops.segment_sum(vectors, flat, num_segments=codes))


def init_code_averages(codes: Codes) -> CodeSums:
    """Averages that give `codes` back: a count of 1 for each."""
    return CodeSums(jnp.ones(len(codes), codes.dtype), jnp.array(codes))


def update_code_averages(averages: CodeSums, batch: CodeSums, *, decay: float) -> CodeSums:
    """decay * averages + (1 - decay) * batch, of counts and sums (eq. 6 and 7); the paper's decay is 0.99."""
    if not 0 <= decay < 1:
        raise ValueError(f"Expected 0 <= decay < 1, as the rest is the batch's share; got {decay=}.")
    if averages.sums.shape != batch.sums.shape:
        raise ValueError(
            f"Expected sums of the averages' shape {averages.sums.shape}, as both are of the same codes; "
            f"got {batch.sums.shape}."
        )
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, averages, batch)


def code_book(averages: CodeSums, *, smoothing: float) -> Codes:
    """The codes: sums over counts (eq. 8), with the counts' Laplace smoothing n (N_k + smoothing)/(n + K smoothing).

    n is the sum of the K counts, which smoothing keeps. It holds the codes of few vectors back from 0/0; 1e-5 is
    usual, and 0 is none.
    """
    if not 0 <= smoothing < np.inf:
        raise ValueError(f"Expected 0 <= smoothing < inf, as it is a number of vectors; got {smoothing=}.")
    total = averages.counts.sum()
    counts = total * (averages.counts + smoothing) / (total + len(averages.counts) * smoothing)
    return averages.sums / counts[:, None]


def code_perplexity(indices: Indices, *, codes: int) -> Float[Array, ""]:
    """exp of the entropy of the codes' use over all vectors: from 1, one code for all, to `codes`, all alike."""
    flat = _check_indices(indices, codes)
    counts = jax.ops.segment_sum(jnp.ones(flat.shape, jnp.result_type(float)), flat, num_segments=codes)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(counts / flat.size)))


def _check_codes(z: Data, codes: Codes) -> None:
    """Raise `ValueError` unless there are codes of the dimension of z's vectors."""
    if z.ndim < 2 or not jnp.issubdtype(z.dtype, jnp.floating):
        raise ValueError(
            f"Expected floating-point z [batch, *positions, dim], as its vectors are quantised; "
            f"got shape {z.shape}, dtype {z.dtype}."
        )
    if codes.ndim != 2 or len(codes) < 1 or codes.shape[1] != z.shape[-1]:
        raise ValueError(
            f"Expected codes [codes, {z.shape[-1]}], as vectors of that dimension are compared; got {codes.shape}."
        )


def _check_indices(indices: Indices, codes: int) -> Int[Array, " vectors"]:
    if not is_count(codes):
        raise ValueError(f"Expected a whole number of codes >= 1, as vectors are assigned to them; got {codes=}.")
    values = known(indices)
    if values is not None and values.size and not 0 <= values.min() <= values.max() < codes:
        raise ValueError(
            f"Expected indices in [0, {codes}), as they count the codes; got {values.min()} to {values.max()}."
        )
    return indices.reshape(-1)
