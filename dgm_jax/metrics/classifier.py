"""The classifier two-sample test: can a classifier tell held-out points of x from those of y?

Half of the smaller set, and as many points of the other, are held out in pairs (x_i, y_i); a classifier learns from
the rest. Points are said to be of y where its probability exceeds the share of y among what it learnt from.

    statistic   held-out accuracy: 1/2 under the null hypothesis
    p-value     of pairs whose two points are told apart, right ones against wrong ones: binomial with chance 1/2

The number of right answers is not binomial, as the number of points of each set is given; but swapping the points of a
pair changes nothing under the null hypothesis, so that the sign test of pairs is exact, whatever was learnt and
however many points of each set it was learnt from. Pairs that are not told apart add one right and one wrong answer.

Reference: Lopez-Paz & Oquab 2017, arXiv:1610.06545.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from dgm_jax.metrics.neighbours import nearest
from dgm_jax.metrics.samples import Points, Test, check_samples, check_varied, flat
from dgm_jax.numerics import is_count, known_number, split
from dgm_jax.typing import Keys, Scalar

Labels = Int[Array, " points"]
Probabilities = Float[Array, " n"]
Classifier = Callable[[Float[Array, "n dim"]], Probabilities]
Fit = Callable[[Points, Labels, Keys], Classifier]


def classifier_test(
    x: Float[Array, " first *event"], y: Float[Array, " second *event"], key: Keys, *, fit: Fit
) -> Test:
    """Small p-values where `fit` learns to tell x and y apart.

    Args:
        fit: (points [n, dim], labels [n], key) -> (points -> probability of label 1): labels are 0 for x, 1 for y.

    Returns:
        `Test` whose null is the standard deviation of the accuracy under the null hypothesis, given the number of
        pairs told apart.
    """
    check_samples(least=4, x=x, y=y)
    check_varied(pooled=jnp.concatenate([x, y]))
    key_x, key_y, key_fit = split(key, 3)
    x, y = (jax.random.permutation(k, flat(part)) for k, part in ((key_x, x), (key_y, y)))
    pairs = min(len(x), len(y)) // 2
    learn = jnp.concatenate([x[pairs:], y[pairs:]])
    labels = jnp.concatenate([jnp.zeros(len(x) - pairs, jnp.int32), jnp.ones(len(y) - pairs, jnp.int32)])
    classify = fit(learn, labels, key_fit)
    probability = classify(jnp.concatenate([x[:pairs], y[:pairs]]))
    if probability.shape != (2 * pairs,):
        raise ValueError(f"Expected one probability per point, {(2 * pairs,)}; got shape {probability.shape}.")
    said = probability > (len(y) - pairs) / len(learn)
    said_x, said_y = said[:pairs], said[pairs:]
    right, wrong = (said_y & ~said_x).sum(), (said_x & ~said_y).sum()
    dtype = learn.dtype
    accuracy = 0.5 + (right - wrong).astype(dtype) / (2 * pairs)
    told_apart = right + wrong
    spread = jnp.sqrt(told_apart.astype(dtype)) / (2 * pairs)
    return Test(accuracy, at_least(right, told_apart, dtype, most=pairs), spread)


def at_least(successes: Int[Array, ""], trials: Int[Array, ""], dtype: DTypeLike, *, most: int) -> Scalar:
    """P(Binomial(trials, 1/2) >= successes) of at most `most` trials.

    A sum of terms over the sum of all. Their logarithms are relative to the middle term's and summed outwards from it,
    so that each is right to a few roundings of itself; through the gamma function it would be to n of them.
    """
    j = jnp.arange(most + 1, dtype=trials.dtype)
    middle = (trials + 1) // 2
    at = middle + j
    # of the ratio of terms at + 1 and at, less 1
    change = (trials - 2 * at - 1).astype(dtype) / (at + 1).astype(dtype)
    steps = jnp.where(at < trials, jnp.log1p(jnp.where(at < trials, change, 0)), 0)
    logs = jnp.concatenate([jnp.zeros(1, dtype), jnp.cumsum(steps)])
    terms = jnp.where(j <= trials, jnp.exp(logs[jnp.maximum(j, trials - j) - middle]), 0)
    return jnp.where(j >= successes, terms, 0).sum() / terms.sum()


def logistic(*, penalty: float) -> Fit:
    """Logistic regression by Newton's method on standardised coordinates, the sum of losses + penalty |w|^2/2."""
    _check_positive(penalty, "penalty", "the minimum of separable data is at infinity without")

    def fit(x: Points, labels: Labels, key: Keys) -> Classifier:
        weights, intercept = logistic_weights(x, labels, penalty=penalty)
        return lambda x: jax.nn.sigmoid(x @ weights + intercept)

    return fit


def logistic_weights(x: Points, labels: Labels, *, penalty: float) -> tuple[Float[Array, " dim"], Scalar]:
    """`logistic` in the units of the points: log odds of label 1 are x . weights + intercept."""
    _check_positive(penalty, "penalty", "the minimum of separable data is at infinity without")
    centre, spread = _standardisation(x)
    design = _with_one((x - centre) / spread)
    targets = labels.astype(x.dtype)
    ridge = jnp.full(design.shape[1], penalty, x.dtype).at[-1].set(0)  # the intercept is free

    def objective(w: Array) -> Scalar:
        logits = design @ w
        return (jax.nn.softplus(logits) - targets * logits).sum() + (ridge * w**2).sum() / 2

    def newton(_: Array, w: Array) -> Array:
        probability = jax.nn.sigmoid(design @ w)
        gradient = design.T @ (probability - targets) + ridge * w
        hessian = (design.T * (probability * (1 - probability))[None]) @ design + jnp.diag(ridge)
        # of a whole step and shorter ones the best: far from the minimum a whole one may overshoot
        steps = 0.5 ** jnp.arange(8, dtype=x.dtype)
        tried = w[None] - steps[:, None] * jnp.linalg.solve(hessian, gradient)[None]
        return tried[jnp.argmin(jax.lax.map(objective, tried))]

    w = jax.lax.fori_loop(0, 20, newton, jnp.zeros(design.shape[1], x.dtype))
    weights = w[:-1] / spread[0]
    return weights, w[-1] - centre[0] @ weights


def nearest_neighbours(k: int) -> Fit:
    """The share of label 1 among the k nearest points."""
    if not is_count(k):
        raise ValueError(f"Expected a whole number k >= 1, as neighbours vote; got {k=}.")

    def fit(x: Points, labels: Labels, key: Keys) -> Classifier:
        return lambda queries: labels[nearest(x, queries, k=k).indices].astype(x.dtype).mean(1)

    return fit


def mlp(widths: tuple[int, ...], *, steps: int, rate: float) -> Fit:
    """A ReLU network of these hidden widths on standardised coordinates, by `steps` of Adam on all points at once."""
    if not isinstance(widths, tuple) or not widths or not all(is_count(width) for width in widths):
        raise ValueError(f"Expected a tuple of hidden widths >= 1, as layers have units; got {widths=}.")
    if not is_count(steps):
        raise ValueError(f"Expected a whole number of steps >= 1, as the network starts at random; got {steps=}.")
    _check_positive(rate, "rate", "Adam's steps are of its size")

    def fit(x: Points, labels: Labels, key: Keys) -> Classifier:
        standardise = _standardise(x)
        points, targets = standardise(x), labels.astype(x.dtype)
        sizes = (x.shape[1], *widths, 1)
        keys = split(key, len(sizes) - 1)
        params = [
            (jax.random.normal(k, (n, m), x.dtype) * (2 / n) ** 0.5, jnp.zeros(m, x.dtype))
            for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]

        def logits(params: list, x: Float[Array, "n dim"]) -> Probabilities:
            for weight, bias in params[:-1]:
                x = jax.nn.relu(x @ weight + bias[None])
            weight, bias = params[-1]
            return (x @ weight + bias[None])[:, 0]

        def loss(params: list) -> Scalar:
            return optax.sigmoid_binary_cross_entropy(logits(params, points), targets).mean()

        adam = optax.adam(rate)

        def step(_: Array, carry: tuple) -> tuple:
            params, state = carry
            gradient = jax.grad(loss)(params)
            with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
                updates, state = adam.update(gradient, state)
            return optax.apply_updates(params, updates), state

        params, _ = jax.lax.fori_loop(0, steps, step, (params, adam.init(params)))
        return lambda x: jax.nn.sigmoid(logits(params, standardise(x)))

    return fit


def _standardise(x: Points) -> Callable[[Array], Array]:
    centre, spread = _standardisation(x)
    return lambda points: (points - centre) / spread


def _standardisation(x: Points) -> tuple[Float[Array, "1 dim"], Float[Array, "1 dim"]]:
    """Mean and standard deviation of each coordinate, the latter infinite where a coordinate tells nothing."""
    centre, spread = x.mean(0, keepdims=True), x.std(0, keepdims=True)
    rounding = 16 * jnp.finfo(x.dtype).eps * jnp.abs(centre)
    return centre, jnp.where(spread > rounding, spread, jnp.inf)


def _with_one(x: Array) -> Array:
    return jnp.concatenate([x, jnp.ones((x.shape[0], 1), x.dtype)], axis=1)


def _check_positive(value: float, name: str, reason: str) -> None:
    number = known_number(value)
    if number is not None and not 0 < number < float("inf"):
        raise ValueError(f"Expected a finite {name} > 0, as {reason}; got {number}.")
