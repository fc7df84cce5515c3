"""Bounds against probabilistic PCA, whose likelihood and posterior are known, and against quadrature."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact_latent import CORRELATED, DIAGONAL, LINE, LinearGaussian

from dgm_jax.losses import (
    Elbo,
    beta_loss,
    capacity_loss,
    diagonal_log_density,
    diagonal_posterior,
    dreg_bound,
    elbo,
    free_bits,
    full_covariance_posterior,
    gaussian_elbo,
    gaussian_kl,
    iwae_bound,
    log_mean_exp,
)
from dgm_jax.numerics import normal_like, split

KEY = jax.random.key(0)


@pytest.fixture
def _double():
    with jax.enable_x64(True):
        yield


double = pytest.mark.usefixtures("_double")


def off(model, x, shift=0.3, log_std=0.2):
    """A posterior beside the exact one, so that bounds are not tight."""
    mean, exact = model.encode_diagonal(x)
    return mean + shift, exact + log_std


def off_law(model, x, shift=0.3, log_std=0.2):
    """Its mean and covariance, in NumPy."""
    return model.mean(x) + shift, np.diag(np.exp(2 * log_std) / np.diag(np.linalg.inv(model.covariance)))


def within(values, expected, axis=0):
    """The mean over draws is what it should be, within four standard errors."""
    values = np.asarray(values)
    error = values.std(axis=axis, ddof=1) / np.sqrt(values.shape[axis])
    np.testing.assert_array_less(np.abs(values.mean(axis) - expected), 4 * error + 1e-12)


def test_the_oracle_is_consistent():
    """Bayes' rule at any z, and the bound's two closed forms."""
    x, z = CORRELATED.sample(np.random.default_rng(0), 4), np.random.default_rng(1).standard_normal((4, 3))
    with jax.enable_x64(True):
        joint = np.asarray(CORRELATED.log_joint(jnp.asarray(x), jnp.asarray(z)))
    away = z - CORRELATED.mean(x)
    precision = np.linalg.inv(CORRELATED.covariance)
    log_q = -np.einsum("bi,ij,bj->b", away, precision, away) / 2 + np.linalg.slogdet(precision / 2 / np.pi)[1] / 2
    np.testing.assert_allclose(joint - log_q, CORRELATED.log_prob(x), rtol=1e-12)
    mean, covariance = off_law(CORRELATED, x)
    values = (mean**2).sum(1) + np.trace(covariance) - 3 - np.linalg.slogdet(covariance)[1]
    expected = CORRELATED.reconstruction(x, mean, covariance) - values / 2
    np.testing.assert_allclose(CORRELATED.elbo(x, mean, covariance), expected, rtol=1e-12)


@double
@pytest.mark.parametrize("samples", [1, 7])
def test_at_the_exact_posterior_every_draw_is_the_log_likelihood(samples):
    """No variance at all: to float rounding for each draw, single and double precision."""
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 1e-5)):
        x = jnp.asarray(CORRELATED.sample(np.random.default_rng(0), 16), dtype)
        draw = full_covariance_posterior(CORRELATED.encode_full)
        values = jax.jit(partial(iwae_bound, draw, CORRELATED.log_joint, samples=samples))(x, KEY)
        np.testing.assert_allclose(values, CORRELATED.log_prob(x), rtol=tolerance, atol=tolerance)
        if samples == 1:
            single = jax.jit(partial(elbo, draw, CORRELATED.log_joint))(x, KEY)
            np.testing.assert_allclose(single, values, rtol=tolerance)


@double
def test_both_forms_have_the_exact_bound_for_their_expectation():
    """Equations 7 and 8 with the same draws: each within 4 standard errors of its value, and of the other."""
    x, n = DIAGONAL.sample(np.random.default_rng(0), 3), 4000
    expected = DIAGONAL.elbo(x, *off_law(DIAGONAL, x))
    many, encode = jnp.repeat(jnp.asarray(x), n, axis=0), partial(off, DIAGONAL)
    joint = jax.jit(partial(elbo, diagonal_posterior(encode), DIAGONAL.log_joint))(many, KEY).reshape(3, n)
    split_form = jax.jit(partial(gaussian_elbo, encode, DIAGONAL.log_likelihood))(many, KEY)
    value = split_form.value.reshape(3, n)
    within(joint, expected, axis=1)
    within(value, expected, axis=1)
    within(joint - value, 0, axis=1)
    assert (expected < DIAGONAL.log_prob(x)).all()
    mean, covariance = off_law(DIAGONAL, x)
    within(split_form.log_likelihood.reshape(3, n), DIAGONAL.reconstruction(x, mean, covariance), axis=1)
    np.testing.assert_allclose(split_form.kl, gaussian_kl(*encode(many)), rtol=1e-14)


@double
def test_gaussian_elbo_is_its_formula_at_the_draw():
    x = jnp.asarray(DIAGONAL.sample(np.random.default_rng(2), 4))
    mean, log_std = (np.asarray(part) for part in off(DIAGONAL, x))
    z = mean + np.exp(log_std) * np.asarray(normal_like(KEY, jnp.asarray(mean)))
    error = np.asarray(x) - z @ DIAGONAL.weight.T - DIAGONAL.offset
    log_p = -(error**2).sum(1) / (2 * 0.8**2) - 5 * np.log(0.8 * np.sqrt(2 * np.pi))
    actual = jax.jit(partial(gaussian_elbo, partial(off, DIAGONAL), DIAGONAL.log_likelihood))(x, KEY)
    np.testing.assert_allclose(actual.log_likelihood, log_p, rtol=1e-12)
    np.testing.assert_array_equal(actual.value, actual.log_likelihood - actual.kl)


@double
def test_iwae_rises_with_its_samples_and_stays_below():
    """Expectations for k = 1, 2, 3 by Gauss-Hermite quadrature in k dimensions, then monotone up to k = 50."""
    x, n = np.array([[0.9, 0.4]]), 20_000
    mean, covariance = off_law(LINE, x, 0.6, 0.5)
    std = np.sqrt(covariance[0, 0])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    z = mean[0, 0] + std * nodes
    error = x[0] - z[:, None] * LINE.weight[:, 0] - LINE.offset
    log_w = -(error**2).sum(1) / (2 * LINE.std**2) - 2 * np.log(LINE.std) - np.log(2 * np.pi) - z**2 / 2
    log_w += nodes**2 / 2 + np.log(std)
    many = jnp.asarray(np.repeat(x, n, 0))
    draw = diagonal_posterior(partial(off, LINE, shift=0.6, log_std=0.5))
    bound = jax.jit(partial(iwae_bound, draw, LINE.log_joint), static_argnames="samples")
    values = {k: np.asarray(bound(many, jax.random.key(k), samples=k)) for k in (1, 2, 3, 50)}
    for k in (1, 2, 3):
        grid = np.stack(np.meshgrid(*[log_w] * k))
        mass = np.prod(np.stack(np.meshgrid(*[weights] * k)), axis=0)
        peak = grid.max(0)
        within(values[k], np.sum(mass * (peak + np.log(np.exp(grid - peak).mean(0)))))
    within(values[1], LINE.elbo(x, mean, covariance)[0])
    ladder = [*values.values(), np.full(n, LINE.log_prob(x))]
    for lower, upper in pairwise(ladder):
        gain = upper - lower
        assert gain.mean() > 4 * gain.std() / np.sqrt(n)


def test_log_mean_exp_is_stable():
    x = np.random.default_rng(0).standard_normal((5, 3))
    for shift in (0.0, 3e4, -3e4):
        actual = log_mean_exp(jnp.asarray(x + shift, jnp.float32))
        np.testing.assert_allclose(actual - shift, np.log(np.exp(x).mean(0)), atol=3e4 * 2e-7)


def affine_model(params):
    """Encoder and decoder with parameters of their own: (encode, log_joint)."""
    encoder, decoder = params

    def encode(x):
        mean = x @ encoder["gain"] + encoder["shift"][None]
        return mean, jnp.broadcast_to(encoder["log_std"][None], mean.shape)

    def log_joint(x, z):
        log_p = jax.scipy.stats.norm.logpdf(x, z @ decoder["weight"] + decoder["offset"][None], 0.8).sum(1)
        return log_p + jax.scipy.stats.norm.logpdf(z).sum(1)

    return encode, log_joint


def affine_params(model, shift=0.3, log_std=0.2):
    gain = model.weight @ model.covariance / model.std**2
    exact = -np.log(np.diag(np.linalg.inv(model.covariance))) / 2
    encoder = {"gain": gain, "shift": -model.offset @ gain + shift, "log_std": exact + log_std}
    return jax.tree.map(jnp.asarray, (encoder, {"weight": model.weight.T, "offset": model.offset}))


def iwae(params, x, key, samples):
    encode, log_joint = affine_model(params)
    return iwae_bound(diagonal_posterior(encode), log_joint, x, key, samples=samples).mean()


def dreg(params, x, key, samples):
    encode, log_joint = affine_model(params)
    still, _ = affine_model(jax.lax.stop_gradient(params))
    log_q = diagonal_log_density(still)
    return dreg_bound(diagonal_posterior(encode), log_q, log_joint, x, key, samples=samples).mean()


def gradients(loss, params, x, keys, samples):
    """Of each key; flattened to [keys, parameters] for the encoder and for the decoder."""
    each = jax.jit(jax.vmap(jax.grad(lambda params, key: loss(params, x, key, samples)), in_axes=(None, 0)))
    return [
        np.concatenate([np.asarray(leaf).reshape(len(keys), -1) for leaf in jax.tree.leaves(part)], axis=1)
        for part in each(params, keys)
    ]


@double
@pytest.mark.parametrize("samples", [1, 8])
def test_dreg_has_iwaes_value_and_decoder_gradient_and_in_expectation_its_encoder_gradient(samples):
    x, params = jnp.asarray(DIAGONAL.sample(np.random.default_rng(0), 2)), affine_params(DIAGONAL)
    values = [jax.jit(loss, static_argnums=3)(params, x, KEY, samples) for loss in (dreg, iwae)]
    np.testing.assert_allclose(*values, rtol=1e-13)
    keys = jax.random.split(KEY, 3000)
    exact, doubly = (gradients(loss, params, x, keys, samples) for loss in (iwae, dreg))
    np.testing.assert_allclose(doubly[1], exact[1], rtol=1e-9, atol=1e-11)
    within(exact[0] - doubly[0], 0)
    assert doubly[0].var(0).sum() < 0.8 * exact[0].var(0).sum()


@double
@pytest.mark.parametrize("samples", [1, 5])
def test_dreg_is_the_papers_formula(samples):
    """sum_i w_i^2 d log w_i/dz_i dz_i/d parameters for one latent, with the derivatives by hand."""
    x, (encoder, decoder) = jnp.asarray([[0.9, 0.4]]), affine_params(LINE)
    model = LinearGaussian(LINE.weight, LINE.offset, 0.8)  # the standard deviation of `affine_model`
    grads = jax.jit(jax.grad(dreg), static_argnums=3)((encoder, decoder), x, KEY, samples)[0]
    keys = split(jax.random.split(KEY, 1), samples)
    eps = np.array([float(normal_like(key, jnp.zeros((1, 1)))[0, 0]) for key in keys])
    encoder = jax.device_get(encoder)
    mean, std = (np.asarray(x) @ encoder["gain"])[0, 0] + encoder["shift"][0], np.exp(encoder["log_std"][0])
    z = mean + std * eps
    error = np.asarray(x) - model.offset - z[:, None] * model.weight[:, 0]
    log_w = -(error**2).sum(1) / (2 * 0.8**2) - z**2 / 2 + eps**2 / 2
    w = np.exp(log_w - log_w.max())
    w /= w.sum()
    slope = w**2 * (error @ model.weight[:, 0] / 0.8**2 - z + (z - mean) / std**2)
    np.testing.assert_allclose(grads["shift"][0], slope.sum(), rtol=1e-10)
    np.testing.assert_allclose(grads["log_std"][0], (slope * std * eps).sum(), rtol=1e-10)
    np.testing.assert_allclose(grads["gain"][:, 0], slope.sum() * np.asarray(x[0]), rtol=1e-10)


@double
def test_dreg_has_no_variance_at_the_exact_posterior():
    x, params = jnp.asarray(DIAGONAL.sample(np.random.default_rng(0), 2)), affine_params(DIAGONAL, 0.0, 0.0)
    keys = jax.random.split(KEY, 50)
    exact, doubly = (gradients(loss, params, x, keys, 4)[0] for loss in (iwae, dreg))
    np.testing.assert_allclose(doubly, 0, atol=1e-12)
    assert exact.std(0).max() > 0.01


@double
def test_dreg_is_one_forward_pass_when_compiled():
    """The second evaluation of the weights is the first one: as many matrix products as without a first."""
    x, params = jnp.asarray(DIAGONAL.sample(np.random.default_rng(0), 4)), affine_params(DIAGONAL)

    def flops(loss):
        compiled = (
            jax.jit(jax.value_and_grad(partial(loss, samples=64)))
            .lower(params, x, KEY)
            .compile({"xla_backend_optimization_level": 2})
        )
        return compiled.as_text().count(" dot(")

    assert flops(dreg) <= flops(iwae)


def test_beta_and_capacity_are_their_formulas():
    terms = Elbo(jnp.asarray([-3.0, -5.0]), jnp.asarray([4.0, 1.0]))
    np.testing.assert_allclose(beta_loss(terms, beta=1.0), -terms.value)
    np.testing.assert_allclose(beta_loss(terms, beta=4.0), [19.0, 9.0])
    np.testing.assert_allclose(capacity_loss(terms, capacity=2.5, gamma=10.0), [18.0, 20.0])
    rising = jax.jit(lambda c: capacity_loss(terms, capacity=c, gamma=10.0))
    np.testing.assert_allclose(rising(1.0), [33.0, 5.0])


def test_free_bits_are_the_papers_sum_of_maxima():
    """Equation 15: the minibatch mean decides, latent by latent, value and gradient."""
    kl = jnp.asarray(np.random.default_rng(0).gamma(1.0, [0.1, 0.6, 2.0], (50, 3)), jnp.float32)
    nats = 0.5
    expected = np.maximum(nats, np.asarray(kl).mean(0)).sum()
    np.testing.assert_allclose(free_bits(kl, nats=nats).mean(), expected, rtol=1e-6)
    gradient = jax.grad(lambda kl: free_bits(kl, nats=nats).mean())(kl)
    np.testing.assert_allclose(gradient, np.broadcast_to((np.asarray(kl).mean(0) > nats) / 50, kl.shape), rtol=1e-6)
    np.testing.assert_allclose(free_bits(kl, nats=0.0), kl.sum(1), rtol=1e-6)


def test_one_key_is_a_key_for_each_example():
    """A device's slice of examples and keys has its slice of the values."""
    x = jnp.asarray(DIAGONAL.sample(np.random.default_rng(0), 8), jnp.float32)
    draw = diagonal_posterior(partial(off, DIAGONAL))
    bound = jax.jit(partial(iwae_bound, draw, DIAGONAL.log_joint, samples=3))
    whole, keys = bound(x, KEY), jax.random.split(KEY, 8)
    np.testing.assert_array_equal(bound(x, keys), whole)
    np.testing.assert_allclose(bound(x[2:5], keys[2:5]), whole[2:5], rtol=1e-5)
    sharded = jax.pmap(bound)(x.reshape(4, 2, -1), keys.reshape(4, 2))
    np.testing.assert_allclose(sharded.reshape(-1), whole, rtol=1e-5)


def test_the_encoder_is_computed_once_for_all_samples():
    calls = []

    def encode(x):
        calls.append(x.shape)
        return off(DIAGONAL, x)

    x = jnp.asarray(DIAGONAL.sample(np.random.default_rng(0), 8), jnp.float32)
    draw = diagonal_posterior(encode)
    jaxpr = jax.make_jaxpr(lambda x: iwae_bound(draw, DIAGONAL.log_joint, x, KEY, samples=6))(x)
    assert calls == [(8, 5)]
    products = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "dot_general"]
    shapes = [eqn.outvars[0].aval.shape for eqn in products]
    assert shapes[0] == (8, 3)  # the encoder: no axis of samples
    assert np.prod(shapes[1]) == 6 * 8 * 5  # the decoder: one product for all
