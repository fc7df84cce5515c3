"""Measures of latent spaces where their values are known: linear decoders and Gaussian classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from dgm_jax.latents import (
    LatentSpace,
    direction_effects,
    linear,
    linear_separability,
    perceptual_path_length,
    reconstruction_error,
    spherical,
)

RNG = np.random.default_rng(0)
MATRIX = jnp.asarray(RNG.standard_normal((3, 5)), jnp.float32)


def decode(z):
    return z @ MATRIX


def test_reconstruction_error_is_the_mean_square_of_what_is_lost():
    x = jnp.asarray(RNG.standard_normal((4, 2, 3)), jnp.float32)
    found = reconstruction_error(LatentSpace(lambda x: x + 0.5, lambda z: 2 * z), x)
    np.testing.assert_allclose(found, np.mean((np.asarray(x) + 1) ** 2, axis=(1, 2)), rtol=1e-5)


def test_path_length_of_a_linear_decoder():
    """|(z_1 - z_0) M|^2 on straight paths, wherever they are looked at; along arcs of the identity the angle's square
    times the radius'."""
    z_0, z_1 = jnp.asarray(RNG.standard_normal((2, 6, 3)), jnp.float32)
    found = perceptual_path_length(decode, z_0, z_1, lambda x: x, jax.random.key(0), epsilon=1e-2, rule=linear)
    np.testing.assert_allclose(found, np.sum(np.asarray((z_1 - z_0) @ MATRIX) ** 2, 1), rtol=1e-3)
    with jax.enable_x64(True):
        a, b = (np.asarray(z, np.float64) for z in (z_0, z_1))
        a, b = (2 * z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b))
        arcs = perceptual_path_length(
            lambda z: z, jnp.asarray(a), jnp.asarray(b), lambda x: x, jax.random.key(1), epsilon=1e-5, rule=spherical
        )
    np.testing.assert_allclose(arcs, (2 * np.arccos(np.sum(a * b, 1) / 4)) ** 2, rtol=1e-6)


def test_path_length_is_a_mean_over_the_path():
    """Of z^2 from a to b the speed 2 z (b - a) differs along the way: the mean of its square is an integral."""
    a, b, n = 0.5, 2.0, 4000
    z_0, z_1 = jnp.full((n, 1), a), jnp.full((n, 1), b)
    found = perceptual_path_length(lambda z: z**2, z_0, z_1, lambda x: x, jax.random.key(0), epsilon=1e-2, rule=linear)
    exact = 4 * (b - a) ** 2 * (a**2 + a * b + b**2) / 3
    np.testing.assert_allclose(found.mean(), exact, atol=4 * float(found.std()) / np.sqrt(n) + 1e-4 * exact)


def test_separability_of_gaussian_classes():
    """Two equal classes at distance d: accuracy Phi(d/2), entropy that of a channel with this error."""
    n, d = 20_000, 1.5
    labels = np.arange(n) // 2 % 2
    z = RNG.standard_normal((n, 3)).astype(np.float32)
    z[:, 1] += d * labels
    found = linear_separability(jnp.asarray(z), jnp.asarray(labels), penalty=1.0)
    right = norm.cdf(d / 2)
    error = np.sqrt(right * (1 - right) / (n / 2))
    assert abs(float(found.accuracy) - right) < 4 * error + 1e-3
    entropy = -right * np.log(right) - (1 - right) * np.log(1 - right)
    slope = np.log(right / (1 - right))
    assert abs(float(found.conditional_entropy) - entropy) < 4 * slope * error + 2e-3
    none = linear_separability(jnp.asarray(RNG.standard_normal((n, 3)), jnp.float32), jnp.asarray(labels), penalty=1.0)
    assert abs(float(none.conditional_entropy) - np.log(2)) < 1e-2
    assert quad(norm.pdf, -np.inf, d / 2)[0] == pytest.approx(right)


def test_separability_is_of_examples_that_the_hyperplane_was_not_fitted_to():
    """Labels that mean nothing: 100 examples in 150 dimensions are separable, and the other 100 are not told apart."""
    z = jnp.asarray(RNG.standard_normal((200, 150)), jnp.float32)
    found = linear_separability(z, jnp.asarray(RNG.integers(0, 2, 200)), penalty=1e-3)
    assert abs(float(found.accuracy) - 0.5) < 4 * 0.5 / np.sqrt(100)


def test_effects_of_directions_on_linear_attributes():
    """Attributes that are coordinates: a direction's entries in units of their spread."""
    z = jnp.asarray(RNG.standard_normal((500, 3)) * [1.0, 2.0, 0.5], jnp.float32)
    directions = jnp.asarray([[1.0, 0.0, 0.5], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]], jnp.float32)
    found = direction_effects(lambda z: z, z, directions, lambda x: x, strength=2.0)
    expected = 2 * np.asarray(directions) / np.asarray(z).std(0)
    np.testing.assert_allclose(found.matrix, expected, atol=1e-4)
    np.testing.assert_allclose(found.share[0], expected[0, 0] / np.abs(expected[0]).sum(), rtol=1e-4)
    np.testing.assert_allclose(found.share[1:], [1.0, 0.0], atol=1e-5)


Z = jnp.ones((4, 3))
BAD = {
    "no epsilon": (
        lambda: perceptual_path_length(decode, Z, Z, decode, jax.random.key(0), epsilon=0.0, rule=linear),
        "epsilon in",
    ),
    "a space of other events": (lambda: reconstruction_error(LatentSpace(decode, lambda z: z), Z), "decodes to"),
    "a half without the attribute": (
        lambda: linear_separability(Z, jnp.arange(4) % 2, penalty=1.0),
        "both present",
    ),
    "a held-out half of one class": (
        lambda: linear_separability(Z, jnp.asarray([0, 0, 1, 0]), penalty=1.0),
        "both present",
    ),
    "features of another batch": (
        lambda: perceptual_path_length(decode, Z, Z, lambda x: x[:2], jax.random.key(0), epsilon=0.1, rule=linear),
        "as each path has its own",
    ),
    "no data": (lambda: reconstruction_error(LatentSpace(lambda x: x, lambda z: z), Z[:0]), "at least one value"),
    "attributes that are one number": (
        lambda: direction_effects(lambda z: z, Z, jnp.ones((3, 3)), lambda x: x, strength=1.0),
        "attributes that vary",
    ),
    "more attributes than directions": (
        lambda: direction_effects(decode, Z, jnp.ones((2, 3)), lambda x: x, strength=1.0),
        "as many attributes",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, untyped):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
