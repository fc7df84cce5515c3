"""How faithful samples are and how much of the data they cover: precision, recall, density, coverage.

Around each point is the ball that reaches to its k-th nearest neighbour in its own set.

    precision   share of generated points in some ball of a real point
    recall      share of real points in some ball of a generated point
    density     mean number of real balls that hold a generated point, over k
    coverage    share of real balls that hold a generated point

For equal laws without atoms density is 1 on average, and coverage is 1 - (n-1)...(n-k)/((n+m-1)...(n+m-k)) for n real
and m generated points, about 1 - 2^-k for n = m; precision and recall have no closed form. All depend on the numbers
of points: compare at equal ones. An outlier has a wide ball, which flatters precision and recall. Points at the very
edge of a ball are in it, up to rounding.

References: Kynkaanniemi et al. 2019, arXiv:1904.06991, eqs. 1-3; Naeem et al. 2020, arXiv:2002.09797, eqs. 4 and 6,
lemmas 1 and 2.
"""

from typing import NamedTuple

from jaxtyping import Array, Float, Int

from dgm_jax.metrics.kernels import squared_distances
from dgm_jax.metrics.neighbours import Rows, by_rows, check_neighbours, nearest, nearest_other
from dgm_jax.metrics.samples import check_samples, check_varied, flat
from dgm_jax.typing import Scalar

Real = Float[Array, " real *event"]
Fake = Float[Array, " fake *event"]


class PrecisionRecall(NamedTuple):
    """Shares of generated points near real ones, and of real points near generated ones."""

    precision: Scalar
    recall: Scalar


class DensityCoverage(NamedTuple):
    """Mean share of k of the real balls around a generated point, which may exceed 1; share of real balls reached."""

    density: Scalar
    coverage: Scalar


def precision_recall(real: Real, fake: Fake, *, k: int = 3, chunk: int = 512) -> PrecisionRecall:
    """Improved precision and recall, the paper's k = 3, in the memory of `chunk` x points numbers."""
    check_samples(real=real, fake=fake)
    check_varied(real=real, fake=fake)
    real, fake = flat(real), flat(fake)
    precise = _counts(fake, real, _radii(real, k, "real", chunk), chunk) > 0
    recalled = _counts(real, fake, _radii(fake, k, "fake", chunk), chunk) > 0
    return PrecisionRecall(_mean(precise, real), _mean(recalled, real))


def density_coverage(real: Real, fake: Fake, *, k: int = 5, chunk: int = 512) -> DensityCoverage:
    """Density and coverage, the paper's k = 5, in the memory of `chunk` x points numbers."""
    check_samples(real=real, fake=fake)
    check_varied(real=real)
    real, fake = flat(real), flat(fake)
    radii = _radii(real, k, "real", chunk)
    reached = nearest(fake, real, k=1, chunk=chunk).distances[:, 0] <= radii
    return DensityCoverage(_mean(_counts(fake, real, radii, chunk), real) / k, _mean(reached, real))


def _radii(x: Rows, k: int, name: str, chunk: int) -> Float[Array, " rows"]:
    check_neighbours(k, len(x) - 1, f"other points of {name}")
    return nearest_other(x, k=k, chunk=chunk).distances[:, -1]


def _counts(
    queries: Float[Array, "queries dim"],
    centres: Float[Array, "centres dim"],
    radii: Float[Array, " centres"],
    chunk: int,
) -> Int[Array, " queries"]:
    def block(rows: Rows, _: Array) -> Array:
        return (squared_distances(rows, centres) <= radii[None] ** 2).sum(1)

    return by_rows(block, queries, chunk)


def _mean(values: Array, like: Array) -> Scalar:
    return values.astype(like.dtype).mean()
