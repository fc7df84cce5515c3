"""Moving averages whose width is chosen after training: power-function profiles, and any of them from stored ones.

    average(t) = (gamma + 1) / t^(gamma + 1) integral_0^t tau^gamma params(tau) d tau
    decay(t)   = (1 - 1/t)^(gamma + 1),            t the number of updates, this one among them
    width      = std of the profile / t = (gamma + 1)^(1/2) / ((gamma + 2) (gamma + 3)^(1/2))

Averages of two widths, stored now and then, span what averages of other widths would have been: their least-squares
combination is computed from the profiles alone.

Reference: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models", arXiv:2312.02696,
section 3 and appendix C.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from dgm_jax.numerics import is_count

WIDEST = 12**-0.5  # of the plain mean of all parameters so far, gamma = 0


def power_decay(width: float) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """For `ema_decay`: updates made before this one -> decay. The initial parameters have no weight.

    Args:
        width: relative, in (0, 12^(-1/2)]; of 0.05 and 0.1, the paper's two, the profile's std is so much of the run.
    """
    gamma = exponent(width)

    def decay(step: Int[Array, ""]) -> Float[Array, ""]:
        t = (step + 1).astype(jnp.result_type(float))
        # 1 - 1/t in float32 has an error of a hundredth of 1/t where t is a million.
        return jnp.exp((gamma + 1) * jnp.log1p(-1 / t))

    return decay


def exponent(width: float) -> float:
    """The gamma >= 0 of a relative width: the root of (gamma + 2)^2 (gamma + 3) width^2 = gamma + 1."""
    if not 0 < width <= WIDEST:
        raise ValueError(f"Expected 0 < width <= 12^(-1/2), as that of the mean of all is the widest; got {width=}.")
    return float(np.roots([1.0, 7.0, 16.0 - width**-2, 12.0 - width**-2]).real.max())


def reconstruction_weights(
    steps: Sequence[int], widths: Sequence[float], *, step: int, width: float
) -> Float[np.ndarray, " stored"]:
    """The weight of each stored average, in float64: least squares in the profiles, with a sum of 1.

    Args:
        steps, widths: of each stored average, the number of updates and the relative width.
        step, width: of the average that is wanted; `step` is at most the last that is stored.
    """
    products = _products(steps, widths, step, width)
    scale = np.sqrt(np.diag(products))[:-1]  # columns of one size, as late and narrow profiles are taller
    gram, target = products[:-1, :-1] / np.outer(scale, scale), products[:-1, -1] / scale
    # Lagrange's equations of |sum_i w_i p_i - p|^2 with sum_i w_i = 1: parameters that stand still stay.
    system = np.block([[gram, 1 / scale[:, None]], [1 / scale[None], np.zeros((1, 1))]])
    solution = np.linalg.lstsq(system, np.append(target, 1.0), rcond=1e-13)[0]
    return solution[:-1] / scale


def reconstruction_error(steps: Sequence[int], widths: Sequence[float], *, step: int, width: float) -> float:
    """|sum_i w_i p_i - p| / |p|: how much of the wanted profile the stored ones miss, whatever the parameters did.

    Large where few averages are stored, or where the wanted one is narrower than they are.
    """
    weights = reconstruction_weights(steps, widths, step=step, width=width)
    products = _products(steps, widths, step, width)
    missed = np.append(weights, -1.0)
    return float(np.sqrt(max(missed @ products @ missed, 0.0) / products[-1, -1]))


def reconstruct(
    stored: Sequence[PyTree], steps: Sequence[int], widths: Sequence[float], *, step: int, width: float
) -> PyTree:
    """The average of `width` at `step` from stored ones, summed in float64 on the host, in the leaves' dtypes."""
    if len(stored) != len(steps):
        raise ValueError(f"Expected a step for each stored average; got {len(steps)} for {len(stored)}.")
    weights = reconstruction_weights(steps, widths, step=step, width=width)

    def combined(*leaves: Array | np.ndarray) -> Array:
        total = sum(w * np.asarray(leaf, np.float64) for w, leaf in zip(weights, leaves, strict=True))
        return jnp.asarray(total, leaves[0].dtype)

    return jax.tree.map(combined, *stored)


def _products(steps: Sequence[int], widths: Sequence[float], step: int, width: float) -> np.ndarray:
    """All inner products of the stored profiles and, last, the wanted one."""
    if not steps or len(steps) != len(widths) or not all(is_count(s) for s in steps):
        raise ValueError(f"Expected a step >= 1 and a width for each stored average; got {steps=}, {widths=}.")
    if not is_count(step) or step > max(steps):
        raise ValueError(f"Expected a step up to the last that is stored, {max(steps)}; got {step=}.")
    t, gamma = np.asarray([*steps, step], float), np.asarray([exponent(w) for w in (*widths, width)])
    return _inner_product(t[:, None], gamma[:, None], t[None], gamma[None])


def _inner_product(s: np.ndarray, a: np.ndarray, t: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The integral of the product of the profiles (s, gamma = a) and (t, gamma = b), which end at s and at t."""
    early, late = np.minimum(s, t), np.maximum(s, t)
    of_late = np.where(s > t, a, b)
    return (a + 1) * (b + 1) / (a + b + 1) * (early / late) ** of_late / late
