"""Operators for the usual measurements, with their adjoints and the inverses of a A A^T + b I.

| operator | y | A A^T |
|---|---|---|
| `mask(mask)` | x where the mask is true, 0 elsewhere | diagonal |
| `blur(kernel)` | circular convolution with a kernel about its centre | diagonal after a Fourier transform |
| `downsample(factor)` | means over blocks | I / size of a block |
| `grayscale(weights)` | a weighted sum over channels | the sum of squared weights |
| `matrix(matrix)` | inner products with the matrix's rows | by its singular values, once |
| `linear(apply, event_shape)` | any linear function | conjugate gradients |
"""

from collections.abc import Callable
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from dgm_jax.numerics import expand_to, is_count, known, sum_dtype
from dgm_jax.parameterizations.operators.linear_operator import (
    Factor,
    LinearOperator,
    Observation,
    Solve,
    each,
    observed_like,
)
from dgm_jax.typing import Data


def as_mask(mask: Array | np.ndarray) -> Bool[Array, "..."]:
    """The mask as booleans, or `ValueError` where its values are known and others than 0 and 1."""
    values = known(mask)
    if values is not None and not np.isin(values, (0, 1)).all():
        raise ValueError(
            "Expected a mask of true and false, or 1 and 0, as entries are measured or not; got values such as "
            f"{np.unique(values)[:5]}."
        )
    return jnp.asarray(mask).astype(bool)


def mask(mask: Array | np.ndarray) -> LinearOperator:
    """x where the mask is true, and 0 elsewhere; of shape [*event], or [batch, *event] with one per example."""
    keep = as_mask(mask)

    def apply(x: Data) -> Data:
        return jnp.where(observed_like(keep, x), x, 0.0)

    def solve(y: Observation, of_gram: Factor, of_identity: Factor) -> Observation:
        return apply(y) / (_column(of_gram, y) + _column(of_identity, y))

    return LinearOperator(apply, apply, solve, keep)


def blur(kernel: Array | np.ndarray) -> LinearOperator:
    """Circular convolution of the first axes of the event with a kernel of odd sizes, the same for all channels.

    Frequencies that the kernel takes away, below about 1e-3 in float32 and 1e-7 in float64 of its largest, are not in
    its range.
    """
    kernel = _coefficients(kernel, "kernel")
    if kernel.ndim < 1 or not all(size % 2 for size in kernel.shape):
        raise ValueError(f"Expected a kernel of odd sizes, as it acts about its centre; got shape {kernel.shape}.")
    axes = tuple(range(1, kernel.ndim + 1))

    def transfer(x: Data) -> Array:
        sizes = x.shape[1 : kernel.ndim + 1]
        if len(sizes) < kernel.ndim or any(k > n for k, n in zip(kernel.shape, sizes, strict=True)):
            raise ValueError(
                f"Expected a kernel no larger than the event {x.shape[1:]}, as it goes about once; got {kernel.shape}."
            )
        padded = jnp.pad(kernel.astype(x.dtype), [(0, n - k) for k, n in zip(kernel.shape, sizes, strict=True)])
        about_0 = jnp.roll(padded, [-(k // 2) for k in kernel.shape], axis=tuple(range(kernel.ndim)))
        return expand_to(jnp.fft.rfftn(about_0)[None], x)

    def filtered(x: Data, by: Callable[[Array], Array]) -> Data:
        wide = _wide(x)  # no transform takes 16 bits
        spectrum = by(transfer(wide)) * jnp.fft.rfftn(wide, axes=axes)
        return jnp.fft.irfftn(spectrum, s=x.shape[1 : kernel.ndim + 1], axes=axes).astype(x.dtype)

    def solve(y: Observation, of_gram: Factor, of_identity: Factor) -> Observation:
        a, b = _column(of_gram, _wide(y)), _column(of_identity, _wide(y))
        return filtered(y, lambda h: _reciprocal(a * (h * h.conj()).real + b, axes).astype(h.dtype))

    return LinearOperator(lambda x: filtered(x, lambda h: h), lambda y: filtered(y, lambda h: h.conj()), solve)


def downsample(factor: int | tuple[int, ...]) -> LinearOperator:
    """Means over blocks of the first axes of the event: a factor for each, or one number for two, as images have."""
    factors = factor if isinstance(factor, tuple) else (factor, factor)
    if not factors or not all(is_count(f) for f in factors):
        raise ValueError(f"Expected whole factors >= 1, as blocks are averaged; got {factor}.")

    def apply(x: Data) -> Observation:
        sizes = x.shape[1 : len(factors) + 1]
        if len(sizes) < len(factors) or any(n % f for n, f in zip(sizes, factors, strict=True)):
            raise ValueError(
                f"Expected factors that divide the event {x.shape[1:]}, as blocks are of one size; got {factors}."
            )
        blocks = [size for n, f in zip(sizes, factors, strict=True) for size in (n // f, f)]
        axes = tuple(range(2, 2 * len(factors) + 1, 2))
        return x.reshape(x.shape[0], *blocks, *x.shape[len(factors) + 1 :]).mean(axes)

    def adjoint(y: Observation) -> Data:
        for axis, f in enumerate(factors, start=1):
            y = jnp.repeat(y, f, axis=axis)
        return y / prod(factors)

    return LinearOperator(apply, adjoint, _multiple_of_identity(1 / prod(factors)))


def grayscale(weights: Array | np.ndarray) -> LinearOperator:
    """The weighted sum over channels, the last axis, kept as an axis of size one."""
    weights = _coefficients(weights, "weights")
    if weights.ndim != 1:
        raise ValueError(f"Expected weights [channels], as the last axis is summed; got shape {weights.shape}.")

    def apply(x: Data) -> Observation:
        if x.ndim < 2 or x.shape[-1] != len(weights):
            raise ValueError(f"Expected {len(weights)} channels, as weights are for as many; got x of {x.shape}.")
        return jnp.einsum("...c,c->...", x, weights.astype(x.dtype))[..., None]

    def adjoint(y: Observation) -> Data:
        return jnp.einsum("...,c->...c", y[..., 0], weights.astype(y.dtype))

    return LinearOperator(apply, adjoint, _multiple_of_identity(jnp.sum(weights**2)))


def matrix(matrix: Float[Array, " rows *event"] | Float[np.ndarray, " rows *event"]) -> LinearOperator:
    """Inner products of the event with rows of its own shape: compressed sensing; y is [batch, rows]."""
    if matrix.ndim < 2:
        raise ValueError(f"Expected a matrix [rows, *event], as each row is as an event; got shape {matrix.shape}.")
    event, rows = matrix.shape[1:], _coefficients(matrix, "matrix").reshape(len(matrix), -1)
    basis, singular, _ = jnp.linalg.svd(rows, full_matrices=False)

    def apply(x: Data) -> Observation:
        if x.shape[1:] != event:
            raise ValueError(f"Expected events of shape {event}, as the matrix's rows are; got {x.shape[1:]}.")
        return x.reshape(x.shape[0], -1) @ rows.astype(x.dtype).T

    def adjoint(y: Observation) -> Data:
        return (y @ rows.astype(y.dtype)).reshape(y.shape[0], *event)

    def solve(y: Observation, of_gram: Factor, of_identity: Factor) -> Observation:
        wide = _wide(y)
        a, b, u = _column(of_gram, wide), _column(of_identity, wide), basis.astype(wide.dtype)
        of_range = _reciprocal(a * (singular.astype(wide.dtype) ** 2)[None] + b, (1,))
        return (((wide @ u) * of_range) @ u.T).astype(y.dtype)

    return LinearOperator(apply, adjoint, solve)


def linear(apply: Callable[[Data], Observation], event_shape: tuple[int, ...]) -> LinearOperator:
    """Any function that is linear in [batch, *event]; its adjoint is derived, and its `solve` iterates.

    Args:
        apply: [batch, *event] -> [batch, *observation] for batches of any size, one too: it is tried on zeros.

    Raises:
        ValueError: the function cannot be transposed, has a batch of its own, or is not 0 at 0 (where that is known).
    """
    if not isinstance(event_shape, tuple) or not all(map(is_count, event_shape)):
        raise ValueError(f"Expected event_shape to be a tuple of sizes, as x is [batch, *event]; got {event_shape}.")

    def adjoint(y: Observation) -> Data:
        return jax.linear_transpose(apply, jax.ShapeDtypeStruct((y.shape[0], *event_shape), y.dtype))(y)[0]

    struct = jax.ShapeDtypeStruct((1, *event_shape), jnp.result_type(float))
    try:
        jax.eval_shape(adjoint, jax.eval_shape(apply, struct))
    except Exception as error:  # JAX's own are of many kinds, from a missing rule to an assertion
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ValueError(f"Expected a linear function of x, as its transpose is taken; got {reason}") from error
    if (shape := jax.eval_shape(apply, struct).shape)[:1] != (1,):
        raise ValueError(
            "Expected a function of batches of any size, as its transpose takes each example alone (what differs "
            f"between examples is for a LinearOperator with a `solve`); got shape {shape} from one example."
        )
    with jax.ensure_compile_time_eval():
        at_zero = known(apply(jnp.zeros(struct.shape, struct.dtype)))
    if at_zero is not None and at_zero.any():
        raise ValueError(f"Expected a linear function of x, which is 0 at x = 0; got {np.abs(at_zero).max()} there.")
    return LinearOperator(apply, adjoint)


def _coefficients(values: Array | np.ndarray, name: str) -> Array:
    """The values as an array, or `ValueError` where they are known and measure nothing, or NaN."""
    found = known(values)
    if found is not None and not (np.isfinite(found).all() and found.any()):
        raise ValueError(
            f"Expected the {name} to be finite and not all 0, as nothing is measured by it else; got values such as "
            f"{np.unique(found)[:5]}."
        )
    return jnp.asarray(values)


def _wide(x: Array) -> Array:
    """In float32 at least, as eigenvalues of 16 bits say little."""
    return x.astype(sum_dtype(x.dtype))


def _column(value: Factor, y: Observation) -> Array:
    """One number for each example, ready to multiply the batch."""
    return expand_to(each(value, y), y)


def _multiple_of_identity(gram: float | Array) -> Solve:
    """`solve` where A A^T = gram I."""

    def solve(y: Observation, of_gram: Factor, of_identity: Factor) -> Observation:
        return y / (_column(of_gram, y) * jnp.asarray(gram).astype(y.dtype) + _column(of_identity, y))

    return solve


def _reciprocal(eigenvalues: Array, axes: tuple[int, ...]) -> Array:
    """1 / eigenvalues on the range, 0 where they are rounding next to the largest."""
    largest = jnp.max(eigenvalues, axis=axes, keepdims=True)
    positive = eigenvalues > 10 * jnp.finfo(eigenvalues.dtype).eps * largest
    return jnp.where(positive, 1 / jnp.where(positive, eigenvalues, 1.0), 0.0)
