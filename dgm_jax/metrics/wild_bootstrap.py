"""Two-sample tests by the wild bootstrap: random signs in place of permutations, for sets of one size.

    statistic = sum_{i != j} h_ij/(n (n - 1)),   h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(x_j, y_i)

and its draws under the null hypothesis are sum_{i != j} w_i w_j h_ij/(n (n - 1)) with w = +1 or -1. A sign -1 swaps x_i
with y_i, so that for independent pairs the p-value is as valid as a permutation's, at any n. Pairs may depend within,
as two samplers from the same noise do, where x_i and y_i are exchangeable.

Reference: Fromont et al. 2012, COLT, PMLR 23:23; the statistic, Gretton et al. 2012, JMLR 13:723, eq. 4.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.metrics.discrepancies import Others, different, gram, tiled, upper
from dgm_jax.metrics.kernels import Gram, Kernel, distance_kernel, gaussian, median_distance
from dgm_jax.metrics.samples import First, Points, Second, Test, check_samples, check_varied, flat
from dgm_jax.metrics.two_sample import SIDE, counted
from dgm_jax.numerics import is_count, typed_key
from dgm_jax.typing import Keys, Scalar


def wild_mmd_test(x: First, y: Second, key: Keys, *, kernel: Kernel | None = None, draws: int = 999) -> Test:
    """The unbiased estimate of MMD^2 without the pairs (x_i, y_i), and its p-value under the null hypothesis.

    Args:
        kernel: `None` is the Gaussian at the median distance of pooled points, which swaps leave as it is.
    """
    check_samples(x=x, y=y)
    if len(x) != len(y):
        raise ValueError(f"Expected as many points in x as in y, as signs swap pairs; got {len(x)} and {len(y)}.")
    if not is_count(draws):
        raise ValueError(f"Expected a whole number of draws >= 1, as the p-value is a share of them; got {draws=}.")
    x, y, n = flat(x), flat(y), len(x)
    check_varied(**{"x and y pooled": jnp.concatenate([x, y])})
    kernel = gaussian(median_distance(x, y)) if kernel is None else kernel
    signs = jax.random.rademacher(typed_key(key), (n, draws), x.dtype)
    signs = jnp.concatenate([jnp.ones((n, 1), x.dtype), signs], axis=1)
    (of_x, side), (of_y, _), (columns, _) = tiled(x, SIDE), tiled(y, SIDE), tiled(signs, SIDE)

    def tile(pair: Array) -> tuple[Float[Array, " draws"], Scalar]:
        i, j = pair
        h = signed_gram(kernel, of_x[i], of_y[i], of_x[j], of_y[j])
        h = jnp.where(different(i, j, side, n), h, 0)
        both = jnp.where(i == j, 1, 2).astype(x.dtype)  # a tile off the diagonal stands for its mirror image
        products = jnp.matmul(h, columns[j], precision=jax.lax.Precision.HIGHEST)
        return both * (columns[i] * products).sum(0), both * jnp.abs(h).sum(1).sum()

    values, sizes = jax.lax.map(tile, upper(len(of_x)))
    pairs = n * (n - 1)
    return counted(values.sum(0) / pairs, 4 * jnp.finfo(x.dtype).eps * sizes.sum() / pairs)


def wild_energy_test(x: First, y: Second, key: Keys, *, draws: int = 999) -> Test:
    """The energy distance without the pairs (x_i, y_i), and its p-value under the null hypothesis."""
    return wild_mmd_test(x, y, key, kernel=distance_kernel(), draws=draws)


def signed_gram(kernel: Kernel, x: Points, y: Points, x_2: Others, y_2: Others) -> Gram:
    """h_ij of the pairs (x_i, y_i) and (x_2_j, y_2_j)."""
    own = gram(kernel, x, x_2) + gram(kernel, y, y_2)
    return own - gram(kernel, x, y_2) - gram(kernel, y, x_2)
