"""Annealed importance sampling against probabilistic PCA: unbiased weights, bounds from both sides, the gap."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from latent_proposals import draw_prior, log_joint, log_prior, log_prob, posterior_samples, simulate

from dgm_jax.likelihood import (
    annealed_log_likelihood,
    annealed_step_sizes,
    linear_betas,
    reverse_annealed_log_likelihood,
    sigmoid_betas,
)

FORWARD = partial(annealed_log_likelihood, draw_prior, log_prior, log_joint)
REVERSE = partial(reverse_annealed_log_likelihood, log_prior, log_joint)
PILOT = partial(annealed_step_sizes, draw_prior, log_prior, log_joint)
MOVES = {"step_size": 0.5, "leapfrog_steps": 3}


@pytest.fixture(scope="module")
def pairs():
    z, x = simulate(np.random.default_rng(0), 8)
    return jnp.asarray(z, jnp.float32), jnp.asarray(x, jnp.float32), log_prob(x)


@pytest.fixture(scope="module")
def repeated():
    """log w of single chains both ways for many copies of one x, exact posterior samples, by temperatures."""
    n, rng = 4_000, np.random.default_rng(1)
    _, x = simulate(rng, 1)
    exact = log_prob(x)
    x = np.repeat(x, n, axis=0)
    z = jnp.asarray(posterior_samples(rng, x), jnp.float32)
    x = jnp.asarray(x, jnp.float32)

    def both(temperatures):
        betas = sigmoid_betas(temperatures)

        @jax.jit
        def run(x, z, key):
            keys = jax.random.split(key)
            options = {"betas": betas, "chains": 1, **MOVES}
            return FORWARD(x, keys[0], **options).log_likelihood, REVERSE(x, z, keys[1], **options).log_likelihood

        return tuple(np.asarray(part, np.float64) - exact for part in run(x, z, jax.random.key(temperatures)))

    return {temperatures: both(temperatures) for temperatures in (4, 24)}


def error(values):
    return values.std() / np.sqrt(len(values))


def test_weights_are_unbiased_for_the_likelihood_and_its_inverse(repeated):
    forward, reverse = repeated[24]  # with 4 temperatures 1/w has no variance to take an error from: see the docstring
    for weights in (np.exp(forward), np.exp(-reverse)):
        assert abs(weights.mean() - 1) < 4 * error(weights)


def test_the_exact_value_lies_between_and_the_gap_falls(repeated):
    gaps = []
    for forward, reverse in repeated.values():
        assert forward.mean() < -4 * error(forward)
        assert reverse.mean() > 4 * error(reverse)
        gaps.append((reverse.mean() - forward.mean(), np.hypot(error(forward), error(reverse))))
    (gap, of_gap), (next_gap, of_next) = gaps
    assert next_gap < gap - 4 * np.hypot(of_gap, of_next)


def test_many_chains_are_within_their_stated_error(pairs):
    _, x, exact = pairs
    run = jax.jit(partial(FORWARD, betas=sigmoid_betas(20), chains=100, **MOVES))
    out = jax.device_get(run(x, jax.random.key(2)))
    assert (np.abs(out.log_likelihood - exact) < 4 * out.standard_error + out.standard_error**2 / 2 + 1e-4).all()
    assert ((out.effective_sample_size > 10) & (out.effective_sample_size < 100)).all()
    assert ((out.acceptance > 0.5) & (out.acceptance < 1)).all()


def test_reverse_chains_from_the_models_own_latents_are_above(pairs):
    """Over many simulated pairs: the mean excess of both bounds in standard errors over the pairs."""
    z, x = simulate(np.random.default_rng(4), 500)
    exact = log_prob(x)
    x, z = jnp.asarray(x, jnp.float32), jnp.asarray(z, jnp.float32)

    @jax.jit
    def run(x, z, key):
        keys = jax.random.split(key)
        options = {"betas": linear_betas(24), "chains": 4, **MOVES}
        return FORWARD(x, keys[0], **options).log_likelihood, REVERSE(x, z, keys[1], **options).log_likelihood

    below, above = (np.asarray(part, np.float64) - exact for part in run(x, z, jax.random.key(3)))
    assert below.mean() < 4 * error(below)
    assert above.mean() > -4 * error(above)
    for weights in (np.exp(below), np.exp(-above)):
        assert abs(weights.mean() - 1) < 4 * error(weights)


def test_one_temperature_is_importance_sampling(pairs):
    z, x, _ = pairs
    options = {"betas": linear_betas(1), **MOVES}
    out = jax.jit(partial(REVERSE, chains=1, **options))(x, z, jax.random.key(0))
    np.testing.assert_allclose(out.log_likelihood, log_joint(x, z) - log_prior(x, z), rtol=1e-5)
    np.testing.assert_array_equal(out.acceptance, 1.0)
    forward = partial(annealed_log_likelihood, lambda x, key: (z, log_prior(x, z)), log_prior, log_joint)
    out = jax.jit(partial(forward, chains=1, **options))(x, jax.random.key(1))
    np.testing.assert_allclose(out.log_likelihood, log_joint(x, z) - log_prior(x, z), rtol=1e-5)


def test_pilot_sizes_have_the_asked_acceptance_and_leave_the_weights_valid(pairs):
    _, x, exact = pairs
    options = {"betas": sigmoid_betas(20), "leapfrog_steps": 3}
    pilot = jax.jit(partial(PILOT, chains=32, initial=0.2, passes=20, **options))
    sizes = pilot(x, jax.random.key(5))
    assert sizes.shape == (19, len(x))
    run = jax.jit(lambda x, key, sizes: FORWARD(x, key, chains=64, step_size=sizes, **options))
    out = jax.device_get(run(x, jax.random.key(6), sizes))
    assert (np.abs(out.log_likelihood - exact) < 4 * out.standard_error + out.standard_error**2 / 2 + 1e-4).all()
    # the standard error if all moves of a chain were one, and each accepted or not as a coin falls
    assert abs(out.acceptance.mean() - 0.65) < 4 * 0.5 / np.sqrt(64 * len(x))
    assert out.acceptance.std() < 0.1


def test_one_key_per_example_and_sizes_per_move(pairs):
    z, x, _ = pairs
    keys = jax.random.split(jax.random.key(7), len(x))
    sizes = jnp.asarray(np.random.default_rng(2).uniform(0.2, 0.6, (4, len(x))), x.dtype)

    @jax.jit
    def run(x, z, keys, sizes):
        options = {"betas": sigmoid_betas(5), "chains": 3, "leapfrog_steps": 2, "step_size": sizes}
        return FORWARD(x, keys, **options), REVERSE(x, z, keys, **options)

    whole = run(x, z, keys, sizes)
    part = run(x[2:5], z[2:5], keys[2:5], sizes[:, 2:5])
    for a, b in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b[2:5], rtol=1e-4, atol=1e-4)
    single = run(x, z, jax.random.key(7), sizes)
    np.testing.assert_allclose(single[0].log_likelihood, whole[0].log_likelihood, rtol=1e-5)


@pytest.mark.parametrize("temperatures", [1, 2, 7, 1000])
def test_betas_rise_from_zero_to_one_on_the_papers_curve(temperatures):
    for betas in (linear_betas(temperatures), sigmoid_betas(temperatures)):
        assert betas[0] == 0
        assert betas[-1] == 1
        assert len(betas) == temperatures + 1
        assert (np.diff(betas) > 0).all()
    curve = scipy.special.expit(4 * (2 * np.arange(temperatures + 1) / temperatures - 1))
    np.testing.assert_allclose(
        sigmoid_betas(temperatures), (curve - curve[0]) / (curve[-1] - curve[0]), rtol=1e-9, atol=1e-12
    )


X, Z, KEY = jnp.zeros((3, 5)), jnp.zeros((3, 2)), jax.random.key(0)
GOOD = {"betas": linear_betas(3), "chains": 2, "step_size": 0.1, "leapfrog_steps": 2}


def never(*_):
    raise AssertionError("called before the input was checked")


def forward(**options):
    return annealed_log_likelihood(never, never, never, X, KEY, **(GOOD | options))


BAD = {
    "no temperatures": (lambda: linear_betas(0), "temperatures >= 1.*temperatures=0"),
    "half a temperature": (lambda: sigmoid_betas(2.5), "whole number temperatures.*2.5"),
    "no steepness": (lambda: sigmoid_betas(5, steepness=0.0), "0 < steepness.*0.0"),
    "no chains": (lambda: forward(chains=0), "chains >= 1.*chains=0"),
    "a true number of chains": (lambda: forward(chains=True), "whole number chains"),
    "no leapfrog steps": (lambda: forward(leapfrog_steps=0), "steps >= 1.*0"),
    "no step size": (lambda: forward(step_size=0.0), "0 < step_size < inf.*0.0"),
    "sizes of other moves": (lambda: forward(step_size=jnp.ones((3, 3))), r"\(2, 3\); got shape \(3, 3\)"),
    "falling betas": (lambda: forward(betas=linear_betas(3)[::-1]), "rising from 0 to 1"),
    "betas that stop early": (lambda: forward(betas=np.array([0.0, 0.5])), "rising from 0 to 1"),
    "one beta": (lambda: forward(betas=np.array([0.0])), r"2 points or more.*\(1,\)"),
    "z of other examples": (
        lambda: reverse_annealed_log_likelihood(never, never, X, Z[:2], KEY, **GOOD),
        r"one z per example \(3,\).*\(2, 2\)",
    ),
    "an acceptance of one": (
        lambda: annealed_step_sizes(
            *(never, never, never, X, KEY),
            **{"betas": linear_betas(3), "chains": 2, "initial": 0.1, "leapfrog_steps": 2, "passes": 2},
            acceptance=1.0,
        ),
        "0 < acceptance < 1.*1.0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_says_rule_reason_and_value(name, untyped):
    call, match = BAD[name]
    with pytest.raises(ValueError, match=match):
        call()
