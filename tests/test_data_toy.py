"""Toy densities against scipy, quadrature and the closed-form moments of their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from dgm_jax.data import (
    Checkerboard,
    Density,
    GaussianMixture,
    checkerboard,
    grid,
    isotropic,
    ring,
    swiss_roll,
    two_moons,
    unequal_mixture,
)

MIXTURES = {
    "ring": ring,
    "grid": grid,
    "unequal_mixture": unequal_mixture,
    "two_moons": two_moons,
    "swiss_roll": swiss_roll,
}
N = 8192


@pytest.fixture(params=MIXTURES, scope="module")
def mixture(request):
    return MIXTURES[request.param]()


@pytest.fixture(scope="module")
def drawn(mixture):
    return np.asarray(jax.jit(mixture.sample, static_argnums=1)(jax.random.key(0), N), np.float64)


def scipy_log_prob(mixture, x):
    modes = [
        np.log(w) + scipy.stats.multivariate_normal(m, c).logpdf(x).reshape(len(x))
        for w, m, c in zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    ]
    return scipy.special.logsumexp(modes, axis=0)


def points_about(mixture, n=40):
    """Points within a few standard deviations of random means."""
    rng = np.random.default_rng(1)
    std = np.sqrt(np.trace(mixture.covariances[0]) / 2)
    return mixture.means[rng.integers(len(mixture.means), size=n)] + 1.5 * std * rng.normal(size=(n, 2))


@pytest.fixture(scope="module")
def evaluated(mixture):
    """Points, log_prob, score and the gradient of log_prob there, in float64."""

    @jax.jit
    def evaluate(x):
        return mixture.log_prob(x), mixture.score(x), jax.grad(lambda x: mixture.log_prob(x).sum())(x)

    with jax.enable_x64(True):
        x = points_about(mixture)
        return x, *(np.asarray(values) for values in evaluate(jnp.asarray(x)))


def test_log_prob_equals_scipy_in_float64(mixture, evaluated):
    x, log_prob, _, _ = evaluated
    np.testing.assert_allclose(log_prob, scipy_log_prob(mixture, x), rtol=1e-10, atol=1e-9)


def test_log_prob_equals_scipy_in_float32(mixture):
    x = points_about(mixture).astype(np.float32)
    std = np.sqrt(np.linalg.eigvalsh(mixture.covariances).min())
    # x and the means are rounded to 2^-24 of their size, and d log p = offset/std^2 dx with offset of a few std
    tolerance = 6 / std * np.abs(x).max() * 2.0**-22 + 1e-5
    np.testing.assert_allclose(jax.jit(mixture.log_prob)(x), scipy_log_prob(mixture, x), atol=tolerance)


def test_score_is_the_gradient_of_log_prob(evaluated):
    _, _, score, gradient = evaluated
    np.testing.assert_allclose(score, gradient, rtol=1e-9, atol=1e-9)


def test_score_equals_finite_differences_of_scipy(mixture, evaluated):
    x, _, score, _ = evaluated
    std = np.sqrt(np.linalg.eigvalsh(mixture.covariances).min())
    h = 1e-4 * std
    differences = [(scipy_log_prob(mixture, x + s) - scipy_log_prob(mixture, x - s)) / (2 * h) for s in h * np.eye(2)]
    # the error is h^2/6 of the third derivative, of order 1/std^3, and rounding over h
    tolerance = 100 * (h**2 / std**3 + 1e-14 / h)
    np.testing.assert_allclose(score, np.stack(differences, axis=1), atol=tolerance)


@pytest.mark.parametrize(
    "density",
    [ring(std=0.1), grid(3, spacing=1.0, std=0.1), unequal_mixture(), two_moons(), swiss_roll(std=0.1)],
    ids=list(MIXTURES),
)
def test_log_prob_integrates_to_one(density):
    with jax.enable_x64(True):
        std = np.sqrt(np.linalg.eigvalsh(density.covariances).min())
        reach = 8 * np.sqrt(np.linalg.eigvalsh(density.covariances).max())
        axes = [np.arange(m.min() - reach, m.max() + reach, 0.7 * std) for m in density.means.T]
        x = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 2)
        log_prob = jax.jit(density.log_prob)
        total = sum(np.exp(log_prob(jnp.asarray(part))).sum() for part in np.array_split(x, len(x) // 4096 + 1))
        # the trapezoid rule with steps of 0.7 std errs by exp(-2 pi^2/0.7^2) on a Gaussian
        np.testing.assert_allclose(total * (0.7 * std) ** 2, 1, rtol=1e-9)


def test_sampler_has_the_mean_and_covariance_of_the_mixture(mixture, drawn):
    w, m, c = mixture.weights, mixture.means, mixture.covariances
    mean = w @ m
    covariance = np.einsum("k,kij->ij", w, c) + np.einsum("k,ki,kj->ij", w, m - mean, m - mean)
    errors = drawn.mean(0) - mean
    assert (np.abs(errors) < 4 * np.sqrt(np.diag(covariance) / N)).all()
    products = np.einsum("ni,nj->nij", drawn - mean, drawn - mean)
    assert (np.abs(products.mean(0) - covariance) < 4 * products.std(0) / np.sqrt(N)).all()


def test_sampler_follows_the_density_along_three_directions(mixture, drawn):
    for direction in ([1.0, 0.0], [0.0, 1.0], [0.6, 0.8]):
        means = mixture.means @ direction
        stds = np.sqrt(np.einsum("kij,i,j->k", mixture.covariances, direction, direction))

        def cdf(y, means=means, stds=stds):
            return scipy.stats.norm.cdf((y[:, None] - means) / stds) @ mixture.weights

        assert scipy.stats.kstest(drawn @ direction, cdf).pvalue > 1e-4


def test_sampler_visits_modes_by_weight():
    x = np.asarray(grid().sample(jax.random.key(3), N))
    nearest = ((x[:, None] - grid().means) ** 2).sum(-1).argmin(1)
    assert scipy.stats.chisquare(np.bincount(nearest, minlength=25)).pvalue > 1e-4


def test_names_mean_what_they_say():
    np.testing.assert_allclose(np.linalg.norm(ring(5, radius=3.0).means, axis=1), 3.0)
    assert len(ring(5).means) == 5
    assert {tuple(m) for m in grid(3, spacing=2.0).means} == {(a, b) for a in (-2, 0, 2) for b in (-2, 0, 2)}
    upper, lower = np.split(two_moons().means, 2)
    np.testing.assert_allclose(np.linalg.norm(upper, axis=1), 1)
    np.testing.assert_allclose(np.linalg.norm(lower - [1.0, 0.5], axis=1), 1)
    assert (upper[:, 1] > 0).all()
    assert (lower[:, 1] < 0.5).all()
    radii = np.linalg.norm(swiss_roll(radius=2.0).means, axis=1)
    assert (np.diff(radii) > 0).all()
    np.testing.assert_allclose([radii[0], radii[-1]], [2 / 3, 2.0], atol=0.01)


@pytest.mark.parametrize("curve", [two_moons, swiss_roll])
@pytest.mark.parametrize("std", [0.02, 0.3])
def test_curves_are_finely_sampled_at_every_noise_level(curve, std):
    steps = np.linalg.norm(np.diff(curve(std=std).means, axis=0), axis=1)
    on_curve = steps[steps < 0.5]  # two moons jump once, from one moon to the other
    assert len(on_curve) >= 198
    assert on_curve.max() <= std / 2 * (1 + 1e-9)


def test_mixtures_in_other_dimensions():
    one = GaussianMixture(np.array([0.3, 0.7]), np.array([[-1.0], [2.0]]), np.array([[[0.25]], [[1.0]]]))
    x = np.linspace(-4, 5, 30)[:, None]
    expected = 0.3 * scipy.stats.norm(-1, 0.5).pdf(x[:, 0]) + 0.7 * scipy.stats.norm(2, 1).pdf(x[:, 0])
    np.testing.assert_allclose(np.exp(one.log_prob(jnp.asarray(x, jnp.float32))), expected, rtol=1e-5)
    many = isotropic(np.ones(1), np.arange(7.0)[None], 2.0)
    assert many.sample(jax.random.key(0), 3).shape == (3, 7)
    np.testing.assert_allclose(many.score(jnp.zeros((1, 7))), np.arange(7.0)[None] / 4, rtol=1e-6)


def test_checkerboard_covers_half_the_square_uniformly():
    board = checkerboard()
    ticks = np.arange(-5, 5, 0.1) + 0.05  # cell centres of a grid that the squares' edges belong to
    x = jnp.asarray(np.stack(np.meshgrid(ticks, ticks), axis=-1).reshape(-1, 2), jnp.float32)
    density = np.exp(board.log_prob(x))
    np.testing.assert_allclose(density.sum() * 0.1**2, 1, rtol=1e-5)
    np.testing.assert_allclose(np.unique(density), [0, 1 / 32], rtol=1e-6)  # 8 squares of side 2
    at = jnp.array([[-3.0, -3.0], [-1.0, -1.0], [-3.0, -1.0], [3.0, 3.0], [5.0, 3.0], [-5.0, -3.0]])
    assert np.isfinite(board.log_prob(at)).tolist() == [True, True, False, True, False, False]


def test_checkerboard_with_an_odd_number_of_cells():
    board = checkerboard(3, half_width=1.5)
    np.testing.assert_allclose(board.log_prob(jnp.array([[0.0, 0.0], [-1.0, 1.0], [0.0, 1.0]]))[:2], -np.log(5), 1e-6)
    assert np.isneginf(board.log_prob(jnp.array([[0.0, 1.0]]))[0])


def test_checkerboard_score_is_zero_on_the_squares_and_undefined_off_them():
    x = jnp.array([[-3.0, -3.0], [-3.0, -1.0]])
    score = checkerboard().score(x)
    np.testing.assert_array_equal(score, [[0, 0], [np.nan, np.nan]])
    gradient = jax.grad(lambda x: checkerboard().log_prob(x).sum())(x[:1])
    np.testing.assert_array_equal(score[:1], gradient)


@pytest.mark.parametrize("board", [checkerboard(), checkerboard(3, half_width=0.7)])
def test_checkerboard_sampler_is_uniform_on_the_squares(board):
    x = jax.jit(board.sample, static_argnums=1)(jax.random.key(1), N)
    assert np.isfinite(board.log_prob(x)).all()
    offset = (np.asarray(x, np.float64) + board.half_width) / (2 * board.half_width / board.cells)
    cells = np.floor(offset).astype(int) @ [board.cells, 1]
    counts = np.unique(cells, return_counts=True)[1]
    assert len(counts) == (board.cells**2 + 1) // 2
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    assert scipy.stats.kstest((offset % 1).ravel(), "uniform").pvalue > 1e-4


def test_checkerboard_draws_stay_below_the_upper_edge(monkeypatch):
    largest = np.nextafter(np.float32(1), np.float32(0))  # rounds onto the edge once the corner is added
    monkeypatch.setattr(jax.random, "uniform", lambda key, shape, dtype: jnp.full(shape, largest, dtype))
    board = checkerboard()
    assert np.isfinite(jax.jit(lambda key: board.log_prob(board.sample(key, 64)))(jax.random.key(0))).all()


ALL = {**MIXTURES, "checkerboard": checkerboard}


@pytest.mark.parametrize("name", ALL)
def test_all_are_densities(name):
    assert isinstance(ALL[name](), Density)


@pytest.mark.parametrize("density", [unequal_mixture(), checkerboard()], ids=["mixture", "checkerboard"])
def test_sampling_is_a_function_of_the_keys(density):
    sample = jax.jit(density.sample, static_argnums=1)
    key, keys = jax.random.key(7), jax.random.split(jax.random.key(7), 16)
    x = sample(key, 16)
    assert x.shape == (16, 2)
    assert x.dtype == jnp.float32
    np.testing.assert_array_equal(x, sample(key, 16))
    np.testing.assert_array_equal(x, sample(keys, 16))
    np.testing.assert_array_equal(x[4:8], sample(keys[4:8], 4))
    assert (x != sample(jax.random.key(8), 16)).any()
    with jax.enable_x64(True):
        assert jax.eval_shape(lambda key: density.sample(key, 2), key).dtype == jnp.float64
        assert jax.eval_shape(density.log_prob, jax.ShapeDtypeStruct((2, 2), jnp.float32)).dtype == jnp.float32
        assert jax.eval_shape(density.score, jax.ShapeDtypeStruct((2, 2), jnp.float32)).dtype == jnp.float32


@pytest.mark.parametrize("density", [unequal_mixture(), checkerboard()], ids=["mixture", "checkerboard"])
def test_the_same_with_and_without_jit_and_with_old_keys(density):
    x = density.sample(jax.random.key(7), 16)
    np.testing.assert_array_equal(x, density.sample(jax.random.PRNGKey(7), 16))
    np.testing.assert_allclose(jax.jit(density.sample, static_argnums=1)(jax.random.key(7), 16), x, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(density.log_prob)(x), density.log_prob(x), rtol=1e-5)
    np.testing.assert_allclose(jax.jit(density.score)(x), density.score(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: isotropic(np.array([0.5, 0.6]), np.zeros((2, 2)), 1.0), "sum one"),
        (lambda: isotropic(np.array([1.5, -0.5]), np.zeros((2, 2)), 1.0), "positive weights"),
        (lambda: isotropic(np.ones(1), np.array([[np.nan, 0.0]]), 1.0), "finite means"),
        (lambda: isotropic(np.ones(1), np.zeros((1, 2)), 0.0), "std > 0"),
        (lambda: GaussianMixture(np.ones(1), np.zeros(2), np.eye(2)[None]), r"means \[modes, dim\]"),
        (lambda: GaussianMixture(np.ones(1), np.zeros((1, 2)), np.eye(3)[None]), r"covariances \[modes, dim, dim\]"),
        (lambda: GaussianMixture(np.ones(1), np.zeros((1, 2)), -np.eye(2)[None]), "positive definite"),
        (lambda: GaussianMixture(np.ones(1), np.zeros((1, 2)), np.array([[[1.0, 0.5], [0.0, 1.0]]])), "symmetric"),
        (lambda: unequal_mixture().log_prob(jnp.zeros((3, 5))), r"shape \[batch, 2\]"),
        (lambda: checkerboard().log_prob(jnp.zeros((3, 5))), r"shape \[batch, 2\]"),
        (lambda: Checkerboard(0), "cells >= 1"),
        (lambda: two_moons(std=0.0), "std > 0"),
        (lambda: swiss_roll(std=-1.0), "std > 0"),
        (lambda: ring().sample(jax.random.split(jax.random.key(0), 3), 4), "one key per example"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()
