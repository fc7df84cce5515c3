"""A relative test: is model A closer to the data than model B?

    D = MMD^2(real, B) - MMD^2(real, A),   both unbiased; the data's own term cancels

D is asymptotically normal. Its variance is that of its first-order projections onto single points, of which each of
the three sets gives its own share, so that the sets may differ in size:

    2 (mean_a k(r, a) - mean_b k(r, b))                                            of a real point r
    2 (mean_r k(r, a) - mean_a' k(a, a')),   2 (mean_b' k(b, b') - mean_r k(r, b))   of points a and b

Where A, B and the data have one law, these projections vanish, and their estimates spread more than D does: the test
then rejects less often than its level.

Reference: Bounliphone et al. 2016, arXiv:1511.04581, sec. 4.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.metrics.discrepancies import Others, gram, row_sums
from dgm_jax.metrics.kernels import Gram, Kernel, gaussian, median_of_pairs
from dgm_jax.metrics.samples import Points, Test, check_samples, check_varied, flat

CHUNK = 2048
THIRD = 500  # points of each set of which the median distance is taken


def relative_mmd_test(
    real: Float[Array, " n *event"],
    model_a: Float[Array, " n_a *event"],
    model_b: Float[Array, " n_b *event"],
    *,
    kernel: Kernel | None = None,
) -> Test:
    """Null hypothesis: A is as far from the data as B, or farther. A small p-value says that A is closer.

    The statistic is D, positive where A is closer; `null` is its standard deviation. The three sets are independent.

    Args:
        kernel: `None` is the Gaussian at the median distance of the three sets pooled, 500 points of each.
    """
    check_samples(real=real, model_a=model_a, model_b=model_b)
    sets = tuple(flat(part) for part in (real, model_a, model_b))
    check_varied(**{"real, model_a and model_b pooled": jnp.concatenate(sets)})
    if kernel is None:
        kernel = gaussian(median_of_pairs(jnp.concatenate([part[:: -(-len(part) // THIRD)] for part in sets])))
    r, a, b = sets
    typical = gram(kernel, r[:256], a[:256]).mean()

    def shifted(x: Float[Array, "n dim"], y: Float[Array, "m dim"]) -> Gram:
        return gram(kernel, x, y) - typical

    def means(x: Points, y: Others) -> Float[Array, " points"]:
        return row_sums(shifted, x, y, CHUNK) / len(y)

    def own_means(x: Points) -> Float[Array, " points"]:
        itself = jax.lax.map(lambda point: shifted(point[None], point[None])[0, 0], x)
        return (row_sums(shifted, x, x, CHUNK) - itself) / (len(x) - 1)

    of_a, of_b = own_means(a), own_means(b)
    to_a, to_b = means(r, a), means(r, b)
    statistic = of_b.mean() - of_a.mean() + 2 * (to_a.mean() - to_b.mean())
    projections = 2 * (to_a - to_b), 2 * (means(a, r) - of_a), 2 * (of_b - means(b, r))
    std = jnp.sqrt(sum(part.var(ddof=1) / len(part) for part in projections))
    # models of the same points are equally far: 0/0
    quotient = jnp.where(std > 0, statistic / jnp.where(std > 0, std, 1), 0)
    return Test(statistic, jax.scipy.stats.norm.sf(quotient), std)
