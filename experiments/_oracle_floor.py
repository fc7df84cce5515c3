"""Rows of the oracle table for noise floors and intervals of likelihoods. No row depends on a process."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from dgm_jax.likelihood import summarize_likelihood
from dgm_jax.metrics import noise_floor
from experiments._oracle_rows import Row, paper, relative, standard_errors, worst

SPLITS = 400


def floor_rows(names: Sequence[str]) -> Iterator[Row]:
    """The floor of a difference of means, whose law is known, and scipy's interval of a mean."""
    real = np.random.default_rng(0).gamma(2.0, size=(400, 1))
    floor = noise_floor(lambda x, y: jnp.abs(x.mean() - y.mean()), jnp.asarray(real), jax.random.key(0), splits=SPLITS)
    # halves of N points differ in their mean by nearly N(0, 4 S^2/N) given the points
    expected = 2 * real.std(ddof=1) / np.sqrt(len(real)) * np.sqrt(2 / np.pi)
    oracle = "law of the difference of halves' means, in standard errors"
    yield Row("`noise_floor`", "", "none", oracle, standard_errors(floor.values, expected))

    nats = np.random.default_rng(1).normal(-90.0, 7.0, 250)
    found = summarize_likelihood(jnp.asarray(nats), 4, dequantization="uniform", levels=256)
    low, high = scipy.stats.norm.interval(0.95, nats.mean(), scipy.stats.sem(nats))
    bits = -(np.array([nats.mean(), high, low]) / 4 + np.log(2 / 256)) / np.log(2)
    error = relative([*found.nats, *found.bits_per_dim], [nats.mean(), low, high, *bits])
    yield Row(
        "`summarize_likelihood`", paper("1511.01844", "sec. 3.1"), "none", "scipy's interval", worst(error, 1e-12)
    )
