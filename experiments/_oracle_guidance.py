"""Rows of the oracle table for guidance: a mixture whose components are the classes, so that p(c | x_t) is exact."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from dgm_jax.parameterizations import (
    autoguided,
    classifier_free,
    classifier_free_batched,
    classifier_guided,
    drop_conditions,
    dynamic_threshold,
    limited_interval,
    projected,
    score_of,
    static_threshold,
)
from dgm_jax.processes import GaussianProcess
from experiments._oracle_rows import ALL, Row, paper, relative, standard_errors, worst
from tests.oracles import MIXTURE, PROCESSES, Mixture, last_time

DOUBLE: Any = np.float64
SCALE = 2.5
HO, DHARIWAL, KARRAS = paper("2207.12598", "eq. 6"), paper("2105.05233", "algorithm 2"), paper("2406.02507", "eq. 3")
SAHARIA = paper("2205.11487", "section 2.3")
CLASSES = [
    Mixture(np.ones(1), MIXTURE.means[k : k + 1], MIXTURE.covariances[k : k + 1]) for k in range(len(MIXTURE.weights))
]


def guidance_rows(names: Sequence[str]) -> Iterator[Row]:
    """Scores of guided denoisers against those of the tilted densities; thresholds against NumPy."""
    for name in names:
        yield from tilted_rows(name)
    yield from threshold_rows()
    dropped = drop_conditions(jnp.zeros(20_000), 1.0, jax.random.key(0), rate=0.15)
    yield Row("`drop_conditions`", HO, ALL, "share of null conditions", standard_errors(dropped, 0.15))


def states(name: str) -> tuple[GaussianProcess, Array, Array]:
    """A process, and states with their times."""
    process, rng = PROCESSES[name], np.random.default_rng(5)
    t = jnp.linspace(0.1, 0.95 * last_time(name), 16, dtype=DOUBLE)
    noise = jnp.asarray(rng.standard_normal((16, 2)))
    return process, process.perturb(jnp.asarray(MIXTURE.sample(rng, 16, DOUBLE)), t, noise), t


def tilted_rows(name: str) -> Iterator[Row]:
    """grad log [p_t(x)^(1-w) p_t(x | c)^w] by autodiff of the densities, and p_t(x | c) itself at w = 1."""
    process, x_t, t = states(name)
    everything, first = MIXTURE.denoise(process), CLASSES[0].denoise(process)

    def log_prob(x: Array, t: Array) -> Array:
        return float(np.log(MIXTURE.weights[0])) + CLASSES[0].log_prob(process, x, t) - MIXTURE.log_prob(process, x, t)

    def score(w: float) -> np.ndarray:
        def tilted(x: Array) -> Array:
            return ((1 - w) * MIXTURE.log_prob(process, x, t) + w * CLASSES[0].log_prob(process, x, t)).sum()

        return np.asarray(jax.grad(tilted)(x_t))

    def given(x: Array, t: Array, labels: Array) -> Array:
        return jnp.where((labels == 0)[:, None], first(x, t), everything(x, t))

    labels = jnp.zeros(16, int)
    rules: dict[str, tuple[str, Callable[[float], Any]]] = {
        "`classifier_guided`": (DHARIWAL, lambda w: classifier_guided(everything, process, log_prob, w)),
        "`classifier_free`": (HO, lambda w: classifier_free(first, everything, w)),
        "`classifier_free_batched`": (HO, lambda w: classifier_free_batched(given, labels, 1, w)),
        "`autoguided`": (KARRAS, lambda w: autoguided(first, everything, w)),
    }
    for method, (source, rule) in rules.items():
        found = [score_of(rule(w), process)(x_t, t) for w in (1.0, SCALE)]
        error = relative(np.stack([np.asarray(f) for f in found]), np.stack([score(1.0), score(SCALE)]))
        yield Row(method, source, name, "score of the tilted density, scales 1 and 2.5", worst(error, 1e-9))
    ratio = np.asarray(process.sigma(t) / process.alpha(t))
    low, high = np.quantile(ratio, [0.3, 0.7])
    inside = (ratio > low) & (ratio <= high)
    steered = limited_interval(first, everything, process, low=float(low), high=float(high))
    expected = np.where(inside[:, None], first(x_t, t), everything(x_t, t))
    source = paper("2404.07724", "eq. 5")
    yield Row("`limited_interval`", source, name, "either model", worst(relative(steered(x_t, t), expected), 1e-12))


def threshold_rows() -> Iterator[Row]:
    """Of estimates that are given."""
    rng = np.random.default_rng(0)
    estimates, t = 2 * rng.standard_normal((6, 40)), jnp.full(6, 0.5, DOUBLE)

    def said(x_t: Array, t: Array) -> Array:
        return x_t

    x = jnp.asarray(estimates)
    s = np.quantile(np.abs(estimates), 0.9, axis=1, keepdims=True)
    dynamic = dynamic_threshold(said, quantile=0.9, bound=1.0)(x, t)
    error = relative(dynamic, np.clip(estimates / s, -1, 1))
    yield Row("`dynamic_threshold`", SAHARIA, ALL, "NumPy's quantile", worst(error, 1e-12))
    static = static_threshold(said, low=-1.0, high=0.5)(x, t)
    yield Row("`static_threshold`", SAHARIA, ALL, "clipped", worst(relative(static, estimates.clip(-1, 0.5)), 1e-12))
    onto = projected(said, jax.vmap(optax.projections.projection_l2_ball))(x, t)  # by optax, of radius 1
    expected = estimates / np.maximum(np.linalg.norm(estimates, axis=1, keepdims=True), 1)
    yield Row("`projected`", "", ALL, "the nearest point of a ball", worst(relative(onto, expected), 1e-12))
