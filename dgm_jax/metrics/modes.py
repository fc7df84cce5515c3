"""Which modes a generator covers, how evenly, and how large its support is: scores of mode collapse.

    modes covered       modes that are the nearest to at least one point of high quality
    high-quality share  points within a radius, three standard deviations in the papers, of the nearest mode
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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dgm_jax.metrics.neighbours import Rows, by_rows
from dgm_jax.metrics.samples import Test, check_samples, flat
from dgm_jax.numerics import is_count, known, known_number, typed_key
from dgm_jax.typing import Data, Keys, PerExample, Scalar

Labels = Int[Array, " batch"]
Weights = Float[Array, " modes"]
Count = Int[Array, ""]


class ModeScores(NamedTuple):
    """The scores of one set of points; `reverse_kl` in nats."""

    modes: Count
    high_quality: Scalar
    reverse_kl: Scalar


def modes_captured(
    samples: Data, centers: Float[Array, " modes *event"], *, radius: float | Scalar, weights: Weights | None = None
) -> ModeScores:
    """The scores of samples of a mixture whose modes are known.

    Args:
        radius: up to which a point is one of high quality, in the units of the data.
        weights: of the modes in the data; `None` is equal ones.
    """
    check_samples(least=1, samples=samples, centers=centers)
    _check_radius(radius)
    weights = jnp.full(len(centers), 1 / len(centers), samples.dtype) if weights is None else weights
    if weights.shape != (len(centers),):
        raise ValueError(f"Expected a weight for each of {len(centers)} centers; got shape {weights.shape}.")
    labels, distance = nearest_mode(samples, centers)
    return mode_scores(labels, distance <= radius, weights)


def mode_scores(labels: Labels, high_quality: Bool[Array, " batch"], weights: Weights) -> ModeScores:
    """Scores from each point's mode, an index into the weights, and whether it is one of high quality."""
    good = jnp.bincount(labels, weights=high_quality.astype(jnp.int32), length=len(weights))
    return ModeScores(
        modes=(good > 0).sum(),
        high_quality=high_quality.astype(weights.dtype).mean(),
        reverse_kl=reverse_kl(labels, weights),
    )


def nearest_mode(x: Data, centers: Float[Array, " modes *event"]) -> tuple[Labels, PerExample]:
    """Each point's nearest centre, and the distance to it; a point that is not finite is infinitely far from mode 0."""
    x, centers = flat(x), flat(centers).astype(x.dtype)
    finite = jnp.isfinite(x).all(axis=1)
    here = jnp.where(finite[:, None], x, 0)
    squared = jax.lax.map(lambda center: ((here - center[None]) ** 2).sum(1), centers)
    return jnp.where(finite, squared.argmin(0), 0), jnp.where(finite, jnp.sqrt(squared.min(0)), jnp.inf)


def reverse_kl(labels: Labels, weights: Weights) -> Scalar:
    """KL(shares of the labels || weights) in nats; of n draws from the data about (modes - 1)/(2n)."""
    _check_weights(weights)
    return _divergence(jnp.bincount(labels, length=len(weights)), weights)


def mode_shares_test(labels: Labels, key: Keys, *, weights: Weights, draws: int = 999) -> Test:
    """Are the modes drawn at their weights? The reverse KL against that of `draws` sets of labels from the weights.

    Exact at every size for independent points. The p-value is small where a mode is dropped, too rare or too frequent.
    """
    _check_weights(weights)
    if not is_count(draws):
        raise ValueError(f"Expected a whole number of draws >= 1, as they are the null law; got {draws=}.")
    logits = jnp.log(weights)

    def one(key: Keys) -> Scalar:
        drawn = jax.random.categorical(key, logits, shape=labels.shape)
        return _divergence(jnp.bincount(drawn, length=len(weights)), weights)

    found = reverse_kl(labels, weights)
    null = jax.lax.map(one, jax.random.split(typed_key(key), draws))
    # counts that agree up to their order have one divergence, but for rounding
    slack = 64 * jnp.finfo(weights.dtype).eps
    return Test(found, (1 + (null >= found - slack).sum()).astype(weights.dtype) / (1 + draws), null)


def duplicate_pairs(x: Data, *, radius: float | Scalar, chunk: int = 256) -> Count:
    """Pairs of finite points at most `radius` apart, by the differences of all pairs."""
    _check_radius(radius)
    if len(x) > 2**16:
        raise ValueError(f"Expected at most {2**16} points, as their pairs are counted in 32 bits; got {len(x)}.")
    x = flat(x)
    finite = jnp.isfinite(x).all(axis=1)
    columns = jnp.arange(len(x))

    def block(rows: Rows, index: Int[Array, " rows"]) -> Int[Array, " rows"]:
        def along(squared: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
            return squared + (pair[0][:, None] - pair[1][None]) ** 2, None

        squared = jax.lax.scan(along, jnp.zeros((len(rows), len(x)), x.dtype), (rows.T, x.T))[0]
        pairs = finite[index][:, None] & finite[None] & (index[:, None] < columns[None])
        return (pairs & (squared <= radius**2)).sum(1)

    return by_rows(block, x, chunk).sum()


def support_size(duplicates: int | Count, points: int) -> Scalar:
    """Pairs over duplicate pairs: N for draws from N equal atoms, infinite where no pair is a duplicate."""
    count = jnp.asarray(duplicates).astype(jnp.result_type(float))
    return jnp.where(count > 0, points * (points - 1) / 2 / jnp.maximum(count, 1), jnp.inf)


def birthday_batch(support: float | Scalar) -> Scalar:
    """How many draws hold a duplicate half of the time: n(n - 1)/(2N) = log 2."""
    return (1 + jnp.sqrt(1 + 8 * np.log(2) * jnp.asarray(support))) / 2


def _divergence(counts: Count | Int[Array, " modes"], weights: Weights) -> Scalar:
    shares = counts.astype(weights.dtype) / counts.sum().astype(weights.dtype)
    return jnp.where(counts > 0, shares * jnp.log(jnp.where(counts > 0, shares / weights, 1)), 0).sum()


def _check_radius(radius: float | Scalar) -> None:
    value = known_number(radius)
    if value is not None and not 0 <= value < float("inf"):
        raise ValueError(f"Expected a finite radius >= 0, as points are near within it; got {value}.")


def _check_weights(weights: Weights) -> None:
    values = known(weights)
    if values is not None and not ((values > 0).all() and abs(values.sum() - 1) < 1e-4):
        raise ValueError(f"Expected positive weights with sum 1, as they are shares of the data; got {values}.")
