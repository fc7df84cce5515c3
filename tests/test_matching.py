"""Score matching against Hyvarinen's identity by cubature and quadrature, and against an affine fit in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, MIXTURE, PROCESSES

from dgm_jax.losses import hyvarinen, sliced_score_matching, sliced_score_matching_vr

SLICED = [sliced_score_matching, sliced_score_matching_vr]
A = np.array([[-2.0, 0.7], [-0.4, 0.3]])  # neither symmetric nor negative: no density has this score
B = np.array([0.3, -1.1])


def affine(x):
    return x @ jnp.asarray(A.T, x.dtype) + jnp.asarray(B, x.dtype)[None]


def bent(x):
    """A field with a Jacobian that is not symmetric and changes with x."""
    return jnp.tanh(x @ jnp.asarray([[1.0, -0.5], [0.8, 0.2]], x.dtype)) - x * jnp.flip(x, 1)


def test_the_identity_for_gaussian_data_exactly():
    """The loss of an affine field is quadratic, so that the mean over four points is its expectation."""
    covariance, mean = GAUSSIAN.covariances[0], GAUSSIAN.mean
    precision = np.linalg.inv(covariance)
    directions = np.sqrt(2) * np.concatenate([np.eye(2), -np.eye(2)])
    with jax.enable_x64(True):
        x = jnp.asarray(mean + directions @ np.linalg.cholesky(covariance).T)
        found = hyvarinen(affine, x).mean()
        least = hyvarinen(lambda x: -(x - mean[None]) @ jnp.asarray(precision), x).mean()
    fisher = np.trace(precision)  # E|s*|^2
    slope, offset = A + precision, B + A @ mean
    error = np.trace(slope @ covariance @ slope.T) + offset @ offset  # E|s - s*|^2
    np.testing.assert_allclose(found, error / 2 - fisher / 2, rtol=1e-12)
    np.testing.assert_allclose(least, -fisher / 2, rtol=1e-12)


def test_the_identity_for_a_mixture_by_quadrature():
    """The trapezoidal rule is exact to rounding for smooth functions that vanish at the ends; s* by differentiation."""
    process = PROCESSES["vp"]
    with jax.enable_x64(True):
        axis = np.linspace(-4, 4, 401)
        x = jnp.asarray(np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2))
        t = jnp.zeros(len(x))  # no noise: the data's own density

        def log_prob(x):
            return MIXTURE.log_prob(process, x, t)

        exact = jax.jit(jax.grad(lambda x: log_prob(x).sum()))(x)
        p = jnp.exp(log_prob(x)) * (axis[1] - axis[0]) ** 2
        np.testing.assert_allclose(p.sum(), 1, rtol=1e-9)
        found = jax.jit(lambda x: jnp.sum(p * hyvarinen(bent, x)))(x)
        error, fisher = (jnp.sum(p[:, None] * s**2) for s in (bent(x) - exact, exact))
        np.testing.assert_allclose(found, error / 2 - fisher / 2, rtol=1e-9)
        least = jax.jit(lambda x: jnp.sum(p * hyvarinen(lambda x: jax.grad(lambda x: log_prob(x).sum())(x), x)))(x)
        np.testing.assert_allclose(least, -fisher / 2, rtol=1e-9)


def test_the_affine_minimiser_is_the_samples_gaussian_score():
    """The least mean loss over affine fields is at -S^-1 (x - m), with m and S the sample's own moments."""
    with jax.enable_x64(True):
        x = MIXTURE.sample(np.random.default_rng(0), 50, np.float64)

        def mean_loss(params):
            matrix, offset = params[:4].reshape(2, 2), params[None, 4:]
            return hyvarinen(lambda x: x @ matrix.T + offset, jnp.asarray(x)).mean()

        start = jnp.zeros(6)
        gradient, hessian = jax.jit(jax.grad(mean_loss))(start), jax.jit(jax.hessian(mean_loss))(start)
        fitted = -np.linalg.solve(hessian, gradient)  # one Newton step, as the loss is quadratic
    mean, covariance = x.mean(0), np.cov(x.T, bias=True)
    precision = np.linalg.inv(covariance)
    np.testing.assert_allclose(fitted, [*(-precision).ravel(), *(precision @ mean)], rtol=1e-9)


def jacobian(x):
    return np.asarray(jax.vmap(jax.jacobian(lambda row: bent(row[None])[0]))(x))


@pytest.mark.parametrize("loss", SLICED)
def test_a_slice_is_the_papers_formula_and_unbiased(loss):
    """In two dimensions v v^T has entries 1 and v_1 v_2 = +-1, so that a slice misses by one number, up or down."""
    n = 2000
    with jax.enable_x64(True):
        x = jnp.asarray(np.tile(np.array([[0.7, -0.4]]), (n, 1)))
        found = np.asarray(jax.jit(lambda key: loss(bent, x, key, slices=1))(jax.random.key(0)))
        exact = np.asarray(hyvarinen(bent, x))
        j, s = jacobian(x)[0], np.asarray(bent(x))[0]
    across = j[0, 1] + j[1, 0] + (s[0] * s[1] if loss is sliced_score_matching else 0.0)
    np.testing.assert_allclose(np.abs(found - exact), abs(across), rtol=1e-9)
    np.testing.assert_allclose(exact, np.trace(j) + s @ s / 2, rtol=1e-9)
    assert abs(np.sign(found - exact).mean()) < 4 / np.sqrt(n)


@pytest.mark.parametrize("loss", SLICED)
def test_slices_are_independent_and_their_mean_is_taken(loss):
    n, slices = 2000, 5
    with jax.enable_x64(True):
        x = jnp.asarray(np.tile(np.array([[0.7, -0.4]]), (n, 1)))
        one, many = (
            np.asarray(jax.jit(lambda key, k=k: loss(bent, x, key, slices=k))(jax.random.key(1))) for k in (1, slices)
        )
        exact = float(hyvarinen(bent, x[:1])[0])
    deviations = ((many - exact) / np.abs(one - exact)) ** 2  # of the mean of five signs: mean 1/5
    assert abs(deviations.mean() - 1 / slices) < 4 * deviations.std() / np.sqrt(n)
    assert len(np.unique(np.round(many, 6))) == slices + 1  # a binomial's values


def test_one_dimension_needs_no_luck():
    """v^2 = 1: every slice is exact; and events of several axes are summed over all of them."""
    x = jax.random.normal(jax.random.key(2), (5, 1))
    for loss in SLICED:
        np.testing.assert_allclose(
            loss(jnp.sin, x, jax.random.key(3), slices=2), jnp.cos(x[:, 0]) + jnp.sin(x[:, 0]) ** 2 / 2, rtol=1e-5
        )
    x = jax.random.normal(jax.random.key(2), (5, 3, 2))
    np.testing.assert_allclose(hyvarinen(jnp.sin, x), (jnp.cos(x) + jnp.sin(x) ** 2 / 2).sum((1, 2)), rtol=1e-5)
    found = sliced_score_matching_vr(jnp.sin, x, jax.random.key(3), slices=1)  # a diagonal Jacobian: exact
    np.testing.assert_allclose(found, hyvarinen(jnp.sin, x), rtol=1e-5)


@pytest.mark.parametrize("loss", SLICED)
def test_an_examples_loss_depends_on_its_own_key(loss):
    x, keys = jax.random.normal(jax.random.key(0), (6, 3)), jax.random.split(jax.random.key(1), 6)
    field = jnp.cos

    def mixed(x):
        return field(x @ jnp.asarray([[1.0, 0.4, -0.3], [0.2, 1.0, 0.5], [0.1, -0.6, 1.0]]))

    run = jax.jit(lambda x, keys: loss(mixed, x, keys, slices=2))
    np.testing.assert_array_equal(run(x, keys)[2:5], run(x[2:5], keys[2:5]))
    np.testing.assert_array_equal(run(x, jax.random.PRNGKey(4)), run(x, jax.random.key(4)))
    assert not np.array_equal(run(x, keys), run(x, keys[::-1]))


def never(x):
    raise AssertionError("compute was spent")


X = jnp.zeros((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sliced_score_matching(never, X, jax.random.key(0), slices=0), "slices >= 1.*slices=0"),
        (lambda: sliced_score_matching_vr(never, X, jax.random.key(0), slices=-2), "slices >= 1"),
        (lambda: hyvarinen(never, X.at[0, 1].set(jnp.nan)), "finite x"),
        (lambda: hyvarinen(lambda x: x[:, :1], X), "score to return the shape"),
        (lambda: sliced_score_matching(never, X, jax.random.split(jax.random.key(0), 4), slices=1), "one key per"),
    ],
)
def test_bad_input(call, message, untyped):
    with pytest.raises(ValueError, match=f"Expected.*{message}"):
        call()
