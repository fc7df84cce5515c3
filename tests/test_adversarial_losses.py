"""Adversarial losses against the papers' formulas in probabilities and in T, and their optima by quadrature."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from dgm_jax.data import GaussianMixture
from dgm_jax.losses import adversarial

LOSSES = {name: value for name, value in vars(adversarial).items() if isinstance(value, adversarial.AdversarialLoss)}
PLAYERS = [(name, player) for name in LOSSES for player in ("discriminator", "generator")]
LOGITS = np.linspace(-6, 6, 25)
REAL, FAKE = (grid.ravel() for grid in np.meshgrid(LOGITS, LOGITS + 0.1))


def probability(logit):
    return 1 / (1 + np.exp(-logit))


def conjugate_of_kl(t):
    return np.exp(t - 1)


def conjugate_of_reverse_kl(t):
    return -1 - np.log(-t)


PAPERS = {  # each (x's V, g's V) -> (discriminator, generator), to be minimised
    "minimax": lambda v, w: (-np.log(probability(v)) - np.log(1 - probability(w)), np.log(1 - probability(w))),
    "non_saturating": lambda v, w: (-np.log(probability(v)) - np.log(1 - probability(w)), -np.log(probability(w))),
    "wasserstein": lambda v, w: (-(v - w), -w),
    "hinge": lambda v, w: (-np.minimum(0, v - 1) - np.minimum(0, -1 - w), -w),
    "least_squares": lambda v, w: ((v - 1) ** 2 / 2 + (w - 0) ** 2 / 2, (w - 1) ** 2 / 2),
    "kl": lambda v, w: (-(v - conjugate_of_kl(w)), -conjugate_of_kl(w)),
    "reverse_kl": lambda v, w: (
        -(-np.exp(-v) - conjugate_of_reverse_kl(-np.exp(-w))),
        -conjugate_of_reverse_kl(-np.exp(-w)),
    ),
    "relativistic": lambda v, w: (-np.log(probability(v - w)), -np.log(probability(w - v))),
}


def test_every_loss_is_here():
    assert set(LOSSES) == set(PAPERS)
    assert len(LOSSES) == 8


@pytest.mark.parametrize("name", LOSSES)
def test_the_papers_formula_in_probabilities_and_in_t(name):
    expected = PAPERS[name](REAL, FAKE)
    with jax.enable_x64(True):
        for loss, values in zip(LOSSES[name], expected, strict=True):
            found = loss(jnp.asarray(REAL), jnp.asarray(FAKE))
            np.testing.assert_allclose(found, values, rtol=1e-9, atol=1e-12)  # 1 - D loses three digits at V = 6
            single = loss(jnp.asarray(REAL, np.float32), jnp.asarray(FAKE, np.float32))
            assert single.dtype == np.float32
            np.testing.assert_allclose(single, values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "player"), PLAYERS)
def test_extreme_logits_have_finite_values_and_gradients(name, player, dtype):
    with jax.enable_x64(True):
        extremes = np.array([-1e4, -50.0, 0.0, 50.0, 1e4], dtype)
        real, fake = (jnp.asarray(grid.ravel()) for grid in np.meshgrid(extremes, extremes))
        loss = getattr(LOSSES[name], player)
        assert np.isfinite(loss(real, fake)).all()
        gradients = jax.grad(lambda real, fake: loss(real, fake).sum(), argnums=(0, 1))(real, fake)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_extreme_logits_have_the_limits_of_the_formulas():
    """log(1 - D) is -V far to the right, where 1 - D is 0 in floating point; and its gradient is -1, not NaN."""
    far = jnp.asarray([1e4, -1e4])
    np.testing.assert_array_equal(adversarial.minimax.generator(far, far), [-1e4, 0])
    np.testing.assert_array_equal(adversarial.non_saturating.generator(far, far), [0, 1e4])
    np.testing.assert_array_equal(adversarial.relativistic.discriminator(far, -far), [0, 2e4])
    gradient = jax.grad(lambda fake: adversarial.minimax.generator(far, fake).sum())(far)
    np.testing.assert_array_equal(gradient, [-1, 0])


def test_the_exponentials_are_exact_up_to_their_tangent():
    """exp is itself up to 44.36, half of the logarithm of the largest float, and then a line of the same slope."""
    edge = np.log(np.finfo(np.float32).max) / 2
    fake = jnp.asarray([edge, edge + 1, edge + 3], np.float32)  # V - 1, which is what is exponentiated
    found = np.asarray(adversarial.kl.generator(fake + 1, fake + 1), np.float64)
    np.testing.assert_allclose(found / -np.exp(edge), [1, 2, 4], rtol=1e-4)  # exp(44) has a condition number of 44
    found = np.asarray(adversarial.reverse_kl.discriminator(-fake, fake * 0 + 1), np.float64)
    np.testing.assert_allclose(found / np.exp(edge), [1, 2, 4], rtol=1e-4)


# ----------------------------------------------------------------------------------------------------------------
# Known densities: a lopsided mixture as the data, a Gaussian as the generator.

DATA = GaussianMixture(np.array([0.7, 0.3]), np.array([[1.0], [-1.5]]), np.array([[[0.25]], [[0.64]]]))
MODEL = GaussianMixture(np.array([1.0]), np.array([[0.3]]), np.array([[[1.69]]]))
POINTS = np.linspace(-12, 12, 601)  # both densities vanish at the ends: the trapezoidal rule is exact to rounding
STEP = POINTS[1] - POINTS[0]
P = 0.7 * scipy.stats.norm.pdf(POINTS, 1.0, 0.5) + 0.3 * scipy.stats.norm.pdf(POINTS, -1.5, 0.8)
Q = scipy.stats.norm.pdf(POINTS, 0.3, 1.3)


def kl(p, q):
    return float(np.sum(scipy.special.rel_entr(p, q)) * STEP)


def js(p, q):
    return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2


def shannon_of_pairs():
    """JSD of the pairs (x, g) and (g, x)."""
    one, other = P[:, None] * Q[None], Q[:, None] * P[None]
    return float(np.sum(scipy.special.rel_entr(one, (one + other) / 2)) * STEP**2)  # both halves are equal


OPTIMA = {  # the best V from log p/q, and the mean discriminator loss there
    "minimax": (lambda ratio: ratio, lambda: -(2 * js(P, Q) - np.log(4))),
    "non_saturating": (lambda ratio: ratio, lambda: -(2 * js(P, Q) - np.log(4))),
    "least_squares": (jax.nn.sigmoid, lambda: (2 - float(np.sum((P - Q) ** 2 / (P + Q)) * STEP)) / 8),
    "kl": (lambda ratio: 1 + ratio, lambda: -kl(P, Q)),
    "reverse_kl": (lambda ratio: ratio, lambda: -kl(Q, P)),
    "hinge": (jnp.sign, lambda: 2 - float(np.sum(np.abs(P - Q)) * STEP)),
    "relativistic": (lambda ratio: ratio + 0.7, lambda: np.log(2) - shannon_of_pairs()),
}


def log_ratio():
    x = jnp.asarray(POINTS[:, None])
    return DATA.log_prob(x) - MODEL.log_prob(x)


def mean_loss(loss, logits):
    """E of a loss over x from P and g from Q, over every pair of points of the grid, whatever the loss's form."""
    n = len(POINTS)
    weights = jnp.asarray((P[:, None] * Q[None]).ravel() * STEP**2)
    return jnp.sum(weights * loss(jnp.repeat(logits, n), jnp.tile(logits, n)))


@pytest.mark.parametrize("name", OPTIMA)
def test_the_optimal_discriminator_leaves_the_divergence(name):
    best, expected = OPTIMA[name]
    with jax.enable_x64(True):
        found = jax.jit(lambda v: mean_loss(LOSSES[name].discriminator, v))(best(log_ratio()))
    np.testing.assert_allclose(found, expected(), rtol=1e-9)


@pytest.mark.parametrize("name", [name for name in OPTIMA if name != "hinge"])
def test_the_optimum_is_a_stationary_minimum(name):
    """Along three directions that are not constant the first derivative is 0 and the second is positive."""
    with jax.enable_x64(True):
        best = OPTIMA[name][0](log_ratio())

        @jax.jit
        def slopes(direction):
            along = lambda step: mean_loss(LOSSES[name].discriminator, best + step * direction)  # noqa: E731
            return jax.grad(along)(0.0), jax.grad(jax.grad(along))(0.0)

        for direction in (np.sin(POINTS), np.exp(-((POINTS - 1) ** 2)), np.tanh(POINTS)):
            first, second = slopes(jnp.asarray(direction))
            assert abs(first) < 1e-9
            assert second > 1e-3


def test_the_hinges_optimum_is_a_minimum():
    """Not differentiable there: steps either way cost."""
    with jax.enable_x64(True):
        best = jnp.sign(log_ratio())
        run = jax.jit(partial(mean_loss, adversarial.hinge.discriminator))
        least = run(best)
        for direction in (np.sin(POINTS), np.tanh(POINTS), np.ones_like(POINTS)):
            assert run(best + 0.1 * direction) > least
            assert run(best - 0.1 * direction) > least


def test_the_generators_gradient_is_that_of_the_divergence():
    """At the best discriminator, held fixed, d/d(mean of the generator) of its mean loss is the divergence's own."""
    divergences = {
        "minimax": lambda p, q: 2 * js(p, q),
        "kl": kl,
        "reverse_kl": lambda p, q: kl(q, p),
        "non_saturating": lambda p, q: kl(q, p) - 2 * js(p, q),  # Arjovsky & Bottou 2017, theorem 2.5
    }
    shift = 1e-4
    moved = [scipy.stats.norm.pdf(POINTS, 0.3 + sign * shift, 1.3) for sign in (1, -1)]
    with jax.enable_x64(True):
        for name, divergence in divergences.items():
            logits = OPTIMA[name][0](log_ratio())
            values = np.asarray(LOSSES[name].generator(logits, logits))
            found = np.sum((moved[0] - moved[1]) * values) * STEP / (2 * shift)
            expected = (divergence(P, moved[0]) - divergence(P, moved[1])) / (2 * shift)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)  # differences of order shift^2


def test_wasserstein_is_the_earth_movers_distance_in_one_dimension():
    """Two unequal shifts apart, V(x) = x is the best 1-Lipschitz critic and the distance is SciPy's."""
    rng = np.random.default_rng(0)
    fake = rng.standard_normal(200)
    real = fake + rng.uniform(0.5, 1.5, 200)  # every point moves to the right
    with jax.enable_x64(True):
        found = -adversarial.wasserstein.discriminator(jnp.asarray(real), jnp.asarray(fake)).mean()
    np.testing.assert_allclose(found, scipy.stats.wasserstein_distance(real, fake), rtol=1e-12)


@pytest.mark.parametrize(("name", "player"), PLAYERS)
def test_per_example_pure_and_traced_once(name, player):
    loss, traces = getattr(LOSSES[name], player), []

    @jax.jit
    def run(real, fake):
        traces.append(1)
        return loss(real, fake)

    real, fake = jnp.asarray(REAL[:40], np.float32), jnp.asarray(FAKE[40:80], np.float32)
    whole = run(real, fake)
    np.testing.assert_array_equal(run(real[::-1], fake[::-1]), whole[::-1])
    assert whole.shape == (40,)
    assert len(traces) == 1
    each = jax.vmap(lambda r, f: loss(r[None], f[None])[0])(real, fake)
    np.testing.assert_allclose(each, whole, rtol=1e-6, atol=1e-6)


V = jnp.zeros(3)
BAD = {
    "integer labels": (V, jnp.ones(3, int), "fake_logits to be floating-point.*int32"),
    "decisions": (V > 0, V, "real_logits to be floating-point.*bool"),
    "a column": (V[:, None], V[:, None], r"one shape \[batch\].*\(3, 1\)"),
    "two batches": (V, jnp.zeros(4), r"examples are paired; got \(3,\) float32 and \(4,\)"),
    "two dtypes": (V, V.astype(jnp.bfloat16), "one dtype.*bfloat16"),
    "a scalar": (V[0], V[0], r"one shape \[batch\].*\(\)"),
    "numbers": (0.3, V, "real_logits to be an array.*float"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize(("name", "player"), [("minimax", "discriminator"), ("relativistic", "generator")])
def test_bad_input(name, player, case, untyped):
    real, fake, message = BAD[case]
    with pytest.raises(ValueError, match=f"Expected.*{message}"):
        getattr(LOSSES[name], player)(real, fake)
