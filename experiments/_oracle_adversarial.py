"""Rows of the oracle table for adversarial losses, penalties and a critic that is trained; of no process.

The data are a lopsided mixture on the line and the generator a Gaussian, so that every divergence is an integral of
known densities; the trapezoidal rule is exact to rounding for smooth functions that vanish at the ends. Expectations
are over every pair of points, so that no form of a loss is assumed.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.special
import scipy.stats

from dgm_jax.data import GaussianMixture
from dgm_jax.losses import (
    adversarial,
    gradient_penalty,
    one_sided_penalty,
    r1_penalty,
    r2_penalty,
    zero_centred_penalty,
)
from dgm_jax.networks import spectral_normalize
from experiments._oracle_rows import ALL, Row, paper, relative, worst

DATA = GaussianMixture(np.array([0.7, 0.3]), np.array([[1.0], [-1.5]]), np.array([[[0.25]], [[0.64]]]))
MODEL = GaussianMixture(np.array([1.0]), np.array([[0.3]]), np.array([[[1.69]]]))
POINTS = np.linspace(-12, 12, 801)
STEP = POINTS[1] - POINTS[0]
P = 0.7 * scipy.stats.norm.pdf(POINTS, 1.0, 0.5) + 0.3 * scipy.stats.norm.pdf(POINTS, -1.5, 0.8)
Q = scipy.stats.norm.pdf(POINTS, 0.3, 1.3)
SHIFT, WEIGHT = 2.0, 10.0


def adversarial_rows(names: Sequence[str]) -> Iterator[Row]:
    """Optimal discriminators, penalties, spectral norms, and the critic of two shifted Gaussians."""
    yield from optimum_rows()
    yield from penalty_rows()
    yield from critic_rows()


def kl(p: np.ndarray, q: np.ndarray) -> float:
    """KL(p, q) in nats."""
    return float(np.sum(scipy.special.rel_entr(p, q)) * STEP)


def optimum_rows() -> Iterator[Row]:
    """Each discriminator's mean loss at its optimum, from log p and log q of the library's densities."""
    x = jnp.asarray(POINTS[:, None])
    ratio, n = DATA.log_prob(x) - MODEL.log_prob(x), len(POINTS)
    mass = jnp.asarray((P[:, None] * Q[None]).ravel() * STEP**2)
    half = (P + Q) / 2
    shannon = (kl(P, half) + kl(Q, half)) / 2
    joint, swapped = P[:, None] * Q[None], Q[:, None] * P[None]
    of_pairs = float(np.sum(scipy.special.rel_entr(joint, (joint + swapped) / 2)) * STEP**2)
    cases = {
        "minimax": (paper("1406.2661", "theorem 1"), "2 JSD - log 4", ratio, 0.0, 2 * shannon - np.log(4)),
        "non_saturating": (paper("1406.2661", "sec. 3"), "2 JSD - log 4", ratio, 0.0, 2 * shannon - np.log(4)),
        "least_squares": (
            paper("1611.04076", "eq. 7"),
            "an eighth of Pearson's chi^2",
            jax.nn.sigmoid(ratio),
            0.25,
            np.sum((P - Q) ** 2 / (P + Q)) * STEP / 8,
        ),
        "hinge": (
            paper("1802.05957", "eq. 16"),
            "twice the total variation",
            jnp.sign(ratio),
            2.0,
            np.sum(np.abs(P - Q)) * STEP,
        ),
        "kl": (paper("1606.00709", "eq. 4"), "KL(p, q)", 1 + ratio, 0.0, kl(P, Q)),
        "reverse_kl": (paper("1606.00709", "eq. 4"), "KL(q, p)", ratio, 0.0, kl(Q, P)),
        "relativistic": (paper("1807.00734", "sec. 4.1"), "JSD of pairs", ratio, np.log(2), of_pairs),
    }
    for name, (source, divergence, logits, constant, expected) in cases.items():
        loss: adversarial.AdversarialLoss = getattr(adversarial, name)
        mean = jax.jit(lambda v, d=loss.discriminator: jnp.sum(mass * d(jnp.repeat(v, n), jnp.tile(v, n))))(logits)
        oracle = f"{divergence} by quadrature at the best discriminator"
        yield Row(f"`{name}`", source, ALL, oracle, worst(relative(constant - mean, expected), 1e-9))
    rng = np.random.default_rng(0)
    fake = rng.standard_normal(500)
    real = fake + rng.uniform(0.5, 1.5, 500)
    found = -adversarial.wasserstein.discriminator(jnp.asarray(real), jnp.asarray(fake)).mean()
    expected = scipy.stats.wasserstein_distance(real, fake)
    oracle = "SciPy's earth mover's distance, with V(x) = x"
    yield Row("`wasserstein`", paper("1701.07875", "eq. 2"), ALL, oracle, worst(relative(found, expected), 1e-12))


def penalty_rows() -> Iterator[Row]:
    """V = sum of sin(w x) over one, two and three event axes, whose gradient is written down; and SVDs."""
    rng = np.random.default_rng(1)
    errors: dict[str, list[Any]] = {name: [] for name in ("gradient", "one-sided", "r1", "r2", "both")}
    for event in ((3,), (3, 2), (2, 2, 3)):
        w, real, fake = (rng.standard_normal((size, *event)) for size in (1, 5, 5))
        critic = lambda x, w=w: jnp.sum(jnp.sin(jnp.asarray(w) * x), axis=tuple(range(1, x.ndim)))  # noqa: E731
        squared = lambda x, w=w: np.sum((w * np.cos(w * x)) ** 2, axis=tuple(range(1, x.ndim)))  # noqa: E731
        pair = jnp.asarray(real), jnp.asarray(fake)
        keys = jax.random.split(jax.random.key(2), len(real))
        shares = np.array([float(jax.random.uniform(key)) for key in keys]).reshape(-1, *(1 for _ in event))
        norm = np.sqrt(squared(shares * real + (1 - shares) * fake))
        errors["gradient"].append(relative(gradient_penalty(critic, *pair, keys), (norm - 1) ** 2))
        errors["one-sided"].append(relative(one_sided_penalty(critic, *pair, keys), np.maximum(norm - 1, 0) ** 2))
        errors["r1"].append(relative(r1_penalty(critic, pair[0]), squared(real)))
        errors["r2"].append(relative(r2_penalty(critic, pair[1]), squared(fake)))
        errors["both"].append(relative(zero_centred_penalty(critic, *pair), squared(real) + squared(fake)))
    methods = {
        "gradient": ("gradient_penalty", paper("1704.00028", "eq. 3")),
        "one-sided": ("one_sided_penalty", paper("1709.08894", "eq. 8")),
        "r1": ("r1_penalty", paper("1801.04406", "eq. 9")),
        "r2": ("r2_penalty", paper("1801.04406", "eq. 10")),
        "both": ("zero_centred_penalty", paper("1801.04406", "eq. 9 and 10")),
    }
    for name, (method, source) in methods.items():
        oracle = "a gradient in closed form, 1 to 3 event axes"
        yield Row(f"`{method}`", source, ALL, oracle, worst(np.concatenate(errors[name]), 1e-12))
    params = {"dense": {"kernel": rng.standard_normal((6, 4))}, "conv": {"kernel": rng.standard_normal((3, 3, 2, 4))}}
    normalized = jax.device_get(jax.jit(partial(spectral_normalize, iterations=300))(jax.tree.map(jnp.asarray, params)))
    norms = [np.linalg.norm(layer["kernel"].reshape(-1, 4), 2) for layer in normalized.values()]
    oracle = "NumPy's largest singular value, dense and convolution"
    yield Row("`spectral_normalize`", paper("1802.05957", "eq. 8"), ALL, oracle, worst(np.array(norms) - 1, 1e-9))


def critic_rows() -> Iterator[Row]:
    """A linear critic V = w x under WGAN-GP on N(2, 1) against N(0, 1): w = 1 + shift/(2 lambda)."""
    rng = np.random.default_rng(2)
    fake, real = (jnp.asarray(values - values.mean()) for values in rng.standard_normal((2, 500, 1)))
    real, optimizer = real + SHIFT, optax.adam(optax.cosine_decay_schedule(0.1, 400))

    def objective(w: jax.Array, key: jax.Array) -> jax.Array:
        critic: Callable[[jax.Array], jax.Array] = lambda x: w * x[:, 0]  # noqa: E731
        distance = adversarial.wasserstein.discriminator(critic(real), critic(fake))
        return (distance + WEIGHT * gradient_penalty(critic, real, fake, key)).mean()

    def body(state: Any, key: jax.Array) -> tuple[Any, None]:
        w, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(objective)(w, key), opt_state)
        return (optax.apply_updates(w, updates), opt_state), None

    keys, start = jax.random.split(jax.random.key(3), 400), jnp.asarray(0.3)
    with jax.numpy_dtype_promotion("standard"):  # optax counts steps in integers
        slope = jax.jit(lambda w: jax.lax.scan(body, (w, optimizer.init(w)), keys)[0][0])(start)
    found = -adversarial.wasserstein.discriminator(slope * real[:, 0], slope * fake[:, 0]).mean()
    # (the trained difference) less what the penalty lets a linear critic exceed the distance by
    shift = float(found) - SHIFT**2 / (2 * WEIGHT)
    oracle = "a trained critic gives the shift of two Gaussians"
    yield Row(
        "`gradient_penalty`, `wasserstein`", paper("1704.00028", "eq. 3"), ALL, oracle, worst(shift - SHIFT, 1e-5)
    )
