"""Noise floors by NumPy, and means of likelihoods with the intervals that scipy gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dgm_jax.likelihood import summarize_likelihood
from dgm_jax.metrics import noise_floor


def mean_difference(x, y):
    return jnp.abs(x.mean() - y.mean())


def test_the_floor_of_a_difference_of_means_is_its_law():
    """Of halves of one set the means differ by N(0, 4 s^2/N), given the set of N points, so |.| has a known mean."""
    real = jnp.asarray(np.random.default_rng(0).normal(3.0, 2.0, (400, 1)), jnp.float32)
    floor = noise_floor(mean_difference, real, jax.random.key(0), splits=200)
    scale = 2 * np.std(real) * np.sqrt(1 / 399)  # halves without replacement: var of the difference is 4 S^2/N
    expected, spread = scale * np.sqrt(2 / np.pi), scale * np.sqrt(1 - 2 / np.pi)
    assert abs(floor.mean - expected) < 4 * spread / np.sqrt(200)
    assert abs(floor.std - spread) < 4 * spread / np.sqrt(200)  # the half-normal law's std has a standard error below
    np.testing.assert_allclose(floor.mean, np.mean(floor.values), rtol=1e-6)
    np.testing.assert_allclose(floor.std, np.std(floor.values, ddof=1), rtol=1e-6)


@pytest.mark.parametrize("points", [None, 3])
def test_the_parts_are_disjoint_and_of_the_size_asked(points):
    real = jnp.arange(9.0)[:, None]
    seen = []

    def metric(x, y):
        seen.append((set(np.ravel(x).tolist()), set(np.ravel(y).tolist())))
        return 0.0

    noise_floor(metric, real, jax.random.key(1), splits=5, points=points)
    size = points or 4
    assert all(len(x) == len(y) == size and not x & y for x, y in seen)
    assert len({frozenset(x) for x, _ in seen}) > 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"real": jnp.zeros((3, 2))}, "at least 4 points.*3"),
        ({"points": 5}, "2 <= points <= 4.*points=5"),
        ({"points": 1}, "2 <= points"),
        ({"splits": 1}, "splits >= 2.*splits=1"),
        ({"metric": lambda x, y: x[:, 0]}, r"one number.*\(4,\)"),
        ({"real": jnp.full((8, 1), jnp.nan)}, "8 NaN and 0 inf in 8 of 8 points of real, the first at index 0"),
        ({"real": jnp.zeros((8, 1), jnp.uint8)}, "floating point.*uint8"),
    ],
)
def test_bad_floors(change, message, untyped):
    arguments = {"metric": mean_difference, "real": jnp.arange(8.0)[:, None], "splits": 2, "points": None} | change
    metric, real = arguments.pop("metric"), arguments.pop("real")
    with pytest.raises(ValueError, match=f"Expected.*{message}"):
        noise_floor(metric, real, jax.random.key(0), **arguments)


def test_intervals_are_scipys_and_bits_are_the_definition():
    nats = np.random.default_rng(1).normal(-90.0, 7.0, 250)
    with jax.enable_x64(True):
        found = summarize_likelihood(jnp.asarray(nats), 4, dequantization="uniform", levels=256, confidence=0.9)
        low, high = scipy.stats.norm.interval(0.9, nats.mean(), scipy.stats.sem(nats))
        np.testing.assert_allclose(found.nats, (nats.mean(), low, high), rtol=1e-12)
        # a level is 2/256 wide in [-1, 1]: its log-probability is the log-density plus 4 log(2/256)
        levels = -(np.array([nats.mean(), high, low]) + 4 * np.log(2 / 256)) / 4 / np.log(2)
        np.testing.assert_allclose(found.bits_per_dim, levels, rtol=1e-12)
        discrete = summarize_likelihood(jnp.asarray(nats), 4, dequantization="none", confidence=0.9)
        np.testing.assert_allclose(discrete.bits_per_dim.mean, -nats.mean() / 4 / np.log(2), rtol=1e-12)
    assert found.bits_per_dim.low < found.bits_per_dim.mean < found.bits_per_dim.high
    assert (found.examples, found.dequantization, found.confidence) == (250, "uniform", 0.9)


def test_intervals_cover():
    """Of 2,000 sets of 100 values, 95 % of the intervals hold the law's mean, within 4 standard errors."""
    values = jax.random.gamma(jax.random.key(2), 4.0, (2000, 100))

    def held(x):
        interval = summarize_likelihood(x, 1, dequantization="none").nats
        return (interval.low < 4.0) & (interval.high > 4.0)

    share = jax.jit(jax.vmap(held))(values).mean()
    # Edgeworth: skewness 1 of a gamma law of shape 4 moves a two-sided normal interval by about (1 + z^2)/n = 0.005
    assert abs(share - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000) + 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dequantization": "noise"}, "dequantization.*'noise'"),
        ({"dequantization": "uniform"}, "levels with dequantised data.*levels=None"),
        ({"levels": 256}, "levels with dequantised data and with no other.*levels=256"),
        ({"nats": jnp.zeros(1)}, r"2 or more.*\(1,\)"),
        ({"nats": jnp.array([0.0, jnp.nan])}, "without NaN.*1"),
        ({"confidence": 1.0}, "confidence < 1.*1.0"),
        ({"event_size": 0}, "event_size >= 1.*0"),
    ],
)
def test_bad_summaries(change, message, untyped):
    arguments = {"nats": jnp.arange(3.0), "event_size": 2, "dequantization": "none"} | change
    nats, size = arguments.pop("nats"), arguments.pop("event_size")
    with pytest.raises(ValueError, match=f"Expected.*{message}"):
        summarize_likelihood(nats, size, **arguments)
