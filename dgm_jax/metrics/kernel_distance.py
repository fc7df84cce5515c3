"""The kernel distance of features: MMD^2 with the polynomial kernel (x.y/dim + 1)^3, unbiased at any number of samples.

The usual estimate is a mean over subsets that overlap, whose spread tells of the choice of subsets alone. Here the
subsets are disjoint, so that the standard error is that of another data set and another sample of the generator.

Reference: Binkowski et al. 2018, arXiv:1801.01401, sec. 4.1.
"""

import jax

from dgm_jax.metrics.discrepancies import BlockEstimate, block_mmd
from dgm_jax.metrics.kernels import polynomial
from dgm_jax.metrics.samples import First, Second, check_samples, flat
from dgm_jax.numerics import split
from dgm_jax.typing import Keys


def kernel_distance(real: First, fake: Second, key: Keys, *, subset_size: int, degree: int = 3) -> BlockEstimate:
    """The estimate and its standard error, from disjoint random subsets of `subset_size` features of each set.

    Features beyond the last whole subset are left out. With Inception's features this is KID.
    """
    check_samples(real=real, fake=fake)
    shuffled = (flat(x)[jax.random.permutation(k, len(x))] for x, k in zip((real, fake), split(key), strict=True))
    return block_mmd(*shuffled, kernel=polynomial(degree), block=subset_size)
