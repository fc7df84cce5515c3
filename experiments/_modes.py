"""Which modes a generator covers, how evenly, and how large its support is: scores of mode collapse.

    modes covered       modes that are the nearest to at least one point of high quality
    high-quality share  points within three standard deviations of the nearest mode, over all points
    reverse KL          sum_k q_k log(q_k/p_k) in nats: q the shares of all points over the modes, p the data's
    support size        pairs / duplicate pairs

The first three are those of Srivastava et al. 2017 (arXiv:1705.07761) and Lin et al. 2018 (arXiv:1712.04086), on 2,500
points. Of n independent draws from N equal atoms, the chance that no two agree is about exp(-n(n - 1)/(2N)), the
birthday paradox, by which Arora and Zhang 2017 (arXiv:1706.08224) bound a generator's support: of the order s^2, where
s draws hold a duplicate half of the time. The share of duplicate pairs, 1/N there, holds the same and uses every pair.
For atoms of unequal probabilities pi it is sum pi^2, so that the support size is an effective one. What makes a
duplicate is the caller's to say, and a support size is only to be read beside that of as many draws from the data.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial import KDTree

Labels = Int[np.ndarray, " points"]
Weights = Float[np.ndarray, " modes"]


class ModeScores(NamedTuple):
    """The scores of one set of points; `reverse_kl` in nats."""

    modes: int
    high_quality: float
    reverse_kl: float


def mode_scores(labels: Labels, high_quality: Bool[np.ndarray, " points"], weights: Weights) -> ModeScores:
    """Scores from each point's mode and whether it is one of high quality.

    Args:
        weights: of the modes in the data; a point's label is an index into it.
    """
    return ModeScores(
        modes=len(np.unique(labels[high_quality])),
        high_quality=float(np.mean(high_quality)),
        reverse_kl=reverse_kl(labels, weights),
    )


def nearest_mode(
    x: Float[np.ndarray, "points dim"], centers: Float[np.ndarray, "modes dim"]
) -> tuple[Labels, Float[np.ndarray, " points"]]:
    """Each point's nearest centre, and the distance to it; a point that is not finite is infinitely far from mode 0."""
    finite = np.all(np.isfinite(x), axis=1)
    distance, label = KDTree(centers).query(np.where(finite[:, None], x, 0.0))
    return np.where(finite, label, 0), np.where(finite, distance, np.inf)


def reverse_kl(labels: Labels, weights: Weights) -> float:
    """KL(shares of the labels || weights) in nats; of n draws from the data about (modes - 1)/(2n)."""
    counts = np.bincount(labels, minlength=len(weights))
    seen = np.flatnonzero(counts)
    shares = counts[seen] / len(labels)
    return float(np.sum(shares * np.log(shares / weights[seen])))


def duplicate_pairs(x: Float[np.ndarray, "points dim"], *, radius: float) -> int:
    """Pairs of finite points at most `radius` apart."""
    x = x[np.isfinite(x).all(axis=1)]
    tree = KDTree(x)
    return (int(tree.count_neighbors(tree, radius)) - len(x)) // 2


def support_size(duplicates: int, points: int) -> float:
    """Pairs over duplicate pairs: N for draws from N equal atoms, infinite where no pair is a duplicate."""
    return points * (points - 1) / 2 / duplicates if duplicates else float("inf")


def birthday_batch(support: float) -> float:
    """How many draws hold a duplicate half of the time: n(n - 1)/(2N) = log 2."""
    return (1 + np.sqrt(1 + 8 * np.log(2) * support)) / 2
