"""Linear measurements A of whole batches: what inverse problems, y = A x_0 + noise, are made of.

An operator is `apply`, its `adjoint` A^T, and `solve`, the inverse of a A A^T + b I, which is all that posteriors of
Gaussians ask: A^T (A A^T)^-1 is the pseudo-inverse (a = 1, b = 0), r^2 A^T (r^2 A A^T + s^2 I)^-1 Kalman's gain. Where
A A^T is diagonal in a known basis `solve` is a division there, otherwise conjugate gradients.

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
from dataclasses import dataclass
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Bool, Float

from dgm_jax.numerics import expand_to, is_count, known
from dgm_jax.typing import Data, PerExample

Observation = Float[Array, " batch *observation"]
Factor = float | Float[Array, ""] | PerExample
Solve = Callable[[Observation, Factor, Factor], Observation]
MOST_STEPS = 200  # of conjugate gradients


@dataclass(frozen=True, eq=False)
class LinearOperator:
    """A linear function of batches, called as `operator(x)`.

    Args:
        apply: [batch, *event] -> [batch, *observation].
        adjoint: [batch, *observation] -> [batch, *event], with <A x, y> = <x, A^T y>.
        solve: (y, a, b) -> (a A A^T + b I)^-1 y for y in the range of A, with a and b >= 0 one number or one per
            example; None is conjugate gradients.
        observed: which entries of y are measured, [*observation] or [batch, *observation]; None is all. Others are not
            looked at, and may be NaN.
    """

    apply: Callable[[Data], Observation]
    adjoint: Callable[[Observation], Data] | None = None
    solve: Solve | None = None
    observed: Bool[Array, "..."] | None = None

    def __call__(self, x: Data) -> Observation:
        """A x."""
        return self.apply(x)


def residual(operator: Callable[[Data], Observation], y: Array | np.ndarray, x: Data) -> Observation:
    """y - A x where y is measured, 0 elsewhere; y is [batch, *observation], or one for all, [*observation]."""
    predicted = operator(x)
    y = observation_like(y, predicted)
    observed = getattr(operator, "observed", None)
    if observed is None:
        return y - predicted
    return jnp.where(observed_like(observed, y), y - predicted, 0.0)


def observation_like(y: Array | np.ndarray, predicted: Observation) -> Observation:
    """y for the whole batch, or `ValueError` where it is not of the operator's output's shape."""
    if y.shape not in (predicted.shape, predicted.shape[1:]):
        raise ValueError(
            f"Expected y of shape {predicted.shape}, as the operator's output, or {predicted.shape[1:]}, one for the "
            f"batch; got {y.shape}."
        )
    return jnp.broadcast_to(jnp.asarray(y).astype(predicted.dtype), predicted.shape)


def observed_like(observed: Array, y: Array) -> Bool[Array, "..."]:
    """The mask for the whole batch, or `ValueError` where it is not of its shape: broadcasting would hide it."""
    if observed.shape not in (y.shape, y.shape[1:]):
        raise ValueError(
            f"Expected a mask of shape {y.shape[1:]}, or {y.shape} with one per example; got {observed.shape}."
        )
    return jnp.broadcast_to(observed, y.shape)


def as_mask(mask: Array | np.ndarray) -> Bool[Array, "..."]:
    """The mask as booleans, or `ValueError` where its values are known and others than 0 and 1."""
    values = known(mask)
    if values is not None and not np.isin(values, (0, 1)).all():
        raise ValueError(f"Expected a mask of true and false, or 1 and 0; got values such as {np.unique(values)[:5]}.")
    return jnp.asarray(mask).astype(bool)


def solved(operator: LinearOperator, y: Observation, of_gram: Factor, of_identity: Factor) -> Observation:
    """(a A A^T + b I)^-1 y on the range of A, by the operator's own `solve` or by conjugate gradients."""
    if operator.solve is not None:
        return operator.solve(y, of_gram, of_identity)
    adjoint = adjoint_of(operator)
    tolerance = float(jnp.finfo(y.dtype).eps) ** (2 / 3)

    def alone(y: Array, a: Array, b: Array) -> Array:
        def product(v: Array) -> Array:
            return a * operator(adjoint(v[None]))[0] + b * v

        return cg(product, y, tol=tolerance, maxiter=MOST_STEPS)[0]

    return jax.vmap(alone)(y, _each(of_gram, y), _each(of_identity, y))


def pseudo_inverse(operator: LinearOperator, y: Observation) -> Data:
    """A^+ y = A^T (A A^T)^-1 y, the shortest x among those with A x nearest y."""
    return adjoint_of(operator)(solved(operator, y, 1.0, 0.0))


def adjoint_of(operator: LinearOperator) -> Callable[[Observation], Data]:
    """The operator's adjoint, or `ValueError` where it has none."""
    if not isinstance(operator, LinearOperator) or operator.adjoint is None:
        raise ValueError(
            "Expected a LinearOperator with an adjoint, as a residual is carried back to x_0 by it "
            f"(operators.linear(apply, event_shape) derives one); got {operator}."
        )
    return operator.adjoint


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
    kernel = jnp.asarray(kernel)
    if kernel.ndim < 1 or not all(size % 2 for size in kernel.shape):
        raise ValueError(f"Expected a kernel of odd sizes, as it acts about its centre; got shape {kernel.shape}.")
    axes = tuple(range(1, kernel.ndim + 1))

    def transfer(x: Data) -> Array:
        sizes = x.shape[1 : kernel.ndim + 1]
        if len(sizes) < kernel.ndim or any(k > n for k, n in zip(kernel.shape, sizes, strict=True)):
            raise ValueError(f"Expected a kernel no larger than the event {x.shape[1:]}; got {kernel.shape}.")
        padded = jnp.pad(kernel.astype(x.dtype), [(0, n - k) for k, n in zip(kernel.shape, sizes, strict=True)])
        about_0 = jnp.roll(padded, [-(k // 2) for k in kernel.shape], axis=tuple(range(kernel.ndim)))
        return expand_to(jnp.fft.rfftn(about_0)[None], x)

    def filtered(x: Data, by: Callable[[Array], Array]) -> Data:
        spectrum = by(transfer(x)) * jnp.fft.rfftn(x, axes=axes)
        return jnp.fft.irfftn(spectrum, s=x.shape[1 : kernel.ndim + 1], axes=axes).astype(x.dtype)

    def solve(y: Observation, of_gram: Factor, of_identity: Factor) -> Observation:
        a, b = _column(of_gram, y), _column(of_identity, y)
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
            raise ValueError(f"Expected factors that divide the event {x.shape[1:]}; got {factors}.")
        blocks = [size for n, f in zip(sizes, factors, strict=True) for size in (n // f, f)]
        axes = tuple(range(2, 2 * len(factors) + 1, 2))
        return x.reshape(len(x), *blocks, *x.shape[len(factors) + 1 :]).mean(axes)

    def adjoint(y: Observation) -> Data:
        for axis, f in enumerate(factors, start=1):
            y = jnp.repeat(y, f, axis=axis)
        return y / prod(factors)

    return LinearOperator(apply, adjoint, _multiple_of_identity(1 / prod(factors)))


def grayscale(weights: Array | np.ndarray) -> LinearOperator:
    """The weighted sum over channels, the last axis, kept as an axis of size one."""
    weights = jnp.asarray(weights)
    if weights.ndim != 1:
        raise ValueError(f"Expected weights [channels], as the last axis is summed; got shape {weights.shape}.")

    def apply(x: Data) -> Observation:
        if x.shape[-1] != len(weights):
            raise ValueError(f"Expected {len(weights)} channels, as weights are for as many; got x of {x.shape}.")
        return jnp.einsum("...c,c->...", x, weights.astype(x.dtype))[..., None]

    def adjoint(y: Observation) -> Data:
        return jnp.einsum("...,c->...c", y[..., 0], weights.astype(y.dtype))

    return LinearOperator(apply, adjoint, _multiple_of_identity(jnp.sum(weights**2)))


def matrix(matrix: Float[Array, " rows *event"] | Float[np.ndarray, " rows *event"]) -> LinearOperator:
    """Inner products of the event with rows of its own shape: compressed sensing; y is [batch, rows]."""
    if matrix.ndim < 2:
        raise ValueError(f"Expected a matrix [rows, *event], as each row is as an event; got shape {matrix.shape}.")
    event, rows = matrix.shape[1:], jnp.asarray(matrix).reshape(len(matrix), -1)
    basis, singular, _ = jnp.linalg.svd(rows, full_matrices=False)

    def apply(x: Data) -> Observation:
        if x.shape[1:] != event:
            raise ValueError(f"Expected events of shape {event}, as the matrix's rows are; got {x.shape[1:]}.")
        return x.reshape(len(x), -1) @ rows.astype(x.dtype).T

    def adjoint(y: Observation) -> Data:
        return (y @ rows.astype(y.dtype)).reshape(len(y), *event)

    def solve(y: Observation, of_gram: Factor, of_identity: Factor) -> Observation:
        a, b, u = _column(of_gram, y), _column(of_identity, y), basis.astype(y.dtype)
        of_range = _reciprocal(a * (singular.astype(y.dtype) ** 2)[None] + b, (1,))
        return ((y @ u) * of_range) @ u.T

    return LinearOperator(apply, adjoint, solve)


def linear(apply: Callable[[Data], Observation], event_shape: tuple[int, ...]) -> LinearOperator:
    """Any function that is linear in [batch, *event]; its adjoint is derived, and its `solve` iterates.

    Raises:
        ValueError: the function cannot be transposed, or is not 0 at 0 (where that is known).
    """

    def adjoint(y: Observation) -> Data:
        return jax.linear_transpose(apply, jax.ShapeDtypeStruct((len(y), *event_shape), y.dtype))(y)[0]

    struct = jax.ShapeDtypeStruct((1, *event_shape), jnp.result_type(float))
    try:
        jax.eval_shape(adjoint, jax.eval_shape(apply, struct))
    except Exception as error:  # JAX's own are of many kinds, from a missing rule to an assertion
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ValueError(f"Expected a linear function of x, as its transpose is taken; got {reason}") from error
    with jax.ensure_compile_time_eval():
        at_zero = known(apply(jnp.zeros(struct.shape, struct.dtype)))
    if at_zero is not None and at_zero.any():
        raise ValueError(f"Expected a linear function of x, which is 0 at x = 0; got {np.abs(at_zero).max()} there.")
    return LinearOperator(apply, adjoint)


def _each(value: Factor, y: Observation) -> PerExample:
    """One number for each example."""
    return jnp.broadcast_to(jnp.asarray(value).astype(y.dtype), (len(y),))


def _column(value: Factor, y: Observation) -> Array:
    """One number for each example, ready to multiply the batch."""
    return expand_to(_each(value, y), y)


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
