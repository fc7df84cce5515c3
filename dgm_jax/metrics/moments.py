"""Mean and covariance of features that come in batches, in float64 on the host.

    S = sum_i (x_i - m)(x_i - m)',   of both sets: S_1 + S_2 + n_1 n_2/(n_1 + n_2) (m_1 - m_2)(m_1 - m_2)'

Sums of squares less squares of sums would cancel; float32 sums of 50,000 features would lose the digits that a Frechet
distance between near laws is made of.

Reference: Chan et al. 1983, doi:10.1080/00031305.1983.10483115, eq. 1.5.
"""

from dataclasses import dataclass

import jax
import numpy as np
from jaxtyping import Float

from dgm_jax.metrics.samples import check_samples
from dgm_jax.numerics import is_count


@dataclass(frozen=True)
class Moments:
    """How many features were seen, their mean `[dim]`, and the scatter `[dim, dim]` about it."""

    count: int
    mean: Float[np.ndarray, " dim"]
    scatter: Float[np.ndarray, "dim dim"]

    @property
    def covariance(self) -> Float[np.ndarray, "dim dim"]:
        """The unbiased covariance, over count - 1."""
        if self.count < 2:
            raise ValueError(f"Expected at least 2 features, as one has no covariance; got {self.count}.")
        return self.scatter / (self.count - 1)


def init_moments(dim: int) -> Moments:
    """The moments of nothing yet."""
    if not is_count(dim):
        raise ValueError(f"Expected a whole number dim >= 1, as features have coordinates; got {dim=}.")
    return Moments(0, np.zeros(dim), np.zeros((dim, dim)))


def update_moments(moments: Moments, features: jax.Array | np.ndarray) -> Moments:
    """With a further batch of features `[n, *event]`, flattened."""
    check_samples(least=1, features=features)
    x = np.asarray(features, np.float64).reshape(len(features), -1)
    if x.shape[1] != len(moments.mean):
        raise ValueError(
            f"Expected features of {len(moments.mean)} coordinates, as the moments are of so many; got {x.shape[1]}."
        )
    mean = x.mean(0)
    return merge_moments(moments, Moments(len(x), mean, (x - mean).T @ (x - mean)))


def merge_moments(first: Moments, second: Moments) -> Moments:
    """The moments of both sets together, as from two hosts."""
    if first.mean.shape != second.mean.shape:
        raise ValueError(
            f"Expected moments of features of one size, as they are pooled; got {len(first.mean)} and "
            f"{len(second.mean)} coordinates."
        )
    count = first.count + second.count
    if count == 0:
        return first
    step = second.mean - first.mean
    between = np.outer(step, step) * (first.count * second.count / count)
    return Moments(count, first.mean + step * (second.count / count), first.scatter + second.scatter + between)
