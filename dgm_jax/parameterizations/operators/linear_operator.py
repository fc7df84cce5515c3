"""Linear measurements A of whole batches: what inverse problems, y = A x_0 + noise, are made of.

An operator is `apply`, its `adjoint` A^T, and `solve`, the inverse of a A A^T + b I, which is all that posteriors of
Gaussians ask: A^T (A A^T)^-1 is the pseudo-inverse (a = 1, b = 0), r^2 A^T (r^2 A A^T + s^2 I)^-1 Kalman's gain. Where
A A^T is diagonal in a known basis `solve` is a division there, otherwise conjugate gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Bool, Float

from dgm_jax.numerics import known
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
            example; None is conjugate gradients, which run `apply` and `adjoint` on batches of one.
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
    if jnp.shape(y) not in (predicted.shape, predicted.shape[1:]):
        raise ValueError(
            f"Expected y of shape {predicted.shape}, as the operator's output, or {predicted.shape[1:]}, one for the "
            f"batch; got {jnp.shape(y)}."
        )
    return jnp.broadcast_to(jnp.asarray(y).astype(predicted.dtype), predicted.shape)


def observed_like(observed: Array, y: Array) -> Bool[Array, "..."]:
    """The mask for the whole batch, or `ValueError` where it is not of its shape."""
    if observed.shape not in (y.shape, y.shape[1:]):
        raise ValueError(
            f"Expected a mask of shape {y.shape[1:]}, or {y.shape} with one per example, as broadcasting would hide a "
            f"mistake; got {observed.shape}."
        )
    return jnp.broadcast_to(observed, y.shape)


def check_measured(y: Array | np.ndarray, observed: Array | None = None) -> None:
    """Raise `ValueError` where y is known, is measured, and is not finite."""
    values, seen = known(y), known(True if observed is None else observed)
    if values is None or seen is None:
        return
    axes = min(values.ndim, seen.ndim)
    if values.shape[values.ndim - axes :] != seen.shape[seen.ndim - axes :]:
        return  # `observed_like` says so
    bad = int(np.count_nonzero(~np.isfinite(values) & seen))
    if bad:
        raise ValueError(f"Expected finite y where it is measured, as one NaN or inf spoils x; got {bad} such values.")


def solved(operator: LinearOperator, y: Observation, of_gram: Factor, of_identity: Factor) -> Observation:
    """(a A A^T + b I)^-1 y on the range of A, by the operator's own `solve` or by conjugate gradients."""
    if operator.solve is not None:
        return operator.solve(y, of_gram, of_identity)
    adjoint = adjoint_of(operator)
    tolerance = float(jnp.finfo(y.dtype).eps) ** (2 / 3)

    def alone(y: Array, a: Array, b: Array) -> Array:
        def product(v: Array) -> Array:
            back_and_forth = operator(adjoint(v[None]))
            if back_and_forth.shape != (1, *v.shape):
                raise ValueError(
                    "Expected an operator of batches of any size, as conjugate gradients take each example alone (one "
                    f"with arrays [batch, ...] needs its own `solve`); got {back_and_forth.shape} from one example."
                )
            return a * back_and_forth[0] + b * v

        return cg(product, y, tol=tolerance, maxiter=MOST_STEPS)[0]

    return jax.vmap(alone)(y, each(of_gram, y), each(of_identity, y))


def pseudo_inverse(operator: LinearOperator, y: Observation) -> Data:
    """A^+ y = A^T (A A^T)^-1 y, the shortest x among those with A x nearest y."""
    return adjoint_of(operator)(solved(operator, y, 1.0, 0.0))


def carried_back(operator: LinearOperator, y: Observation, x: Data) -> Data:
    """A^T y, or `ValueError` where it is not of the shape of x."""
    found = adjoint_of(operator)(y)
    if found.shape != x.shape:
        raise ValueError(f"Expected an adjoint that returns x_0's shape {x.shape}, as it is added; got {found.shape}.")
    return found


def adjoint_of(operator: LinearOperator) -> Callable[[Observation], Data]:
    """The operator's adjoint, or `ValueError` where it has none."""
    if not isinstance(operator, LinearOperator) or operator.adjoint is None:
        raise ValueError(
            "Expected a LinearOperator with an adjoint, as a residual is carried back to x_0 by it "
            f"(operators.linear(apply, event_shape) derives one); got {operator}."
        )
    return operator.adjoint


def each(value: Factor, y: Observation) -> PerExample:
    """One number for each example."""
    return jnp.broadcast_to(jnp.asarray(value).astype(y.dtype), (y.shape[0],))
