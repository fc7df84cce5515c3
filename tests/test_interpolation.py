"""Paths between latents: ends to the bit, SciPy's arcs, and flows in which a straight path stays straight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, PROCESSES
from scipy.spatial import geometric_slerp

from dgm_jax.latents import diffusion_space, interpolate, linear, noised_space, spherical
from dgm_jax.processes import log_snr_grid
from dgm_jax.samplers import solve_sde

RULES = {"linear": linear, "spherical": spherical}
Z_0, Z_1 = (jnp.asarray(z, jnp.float32) for z in np.random.default_rng(0).standard_normal((2, 5, 3, 4)))
SHARES = np.linspace(0, 1, 7)


@pytest.mark.parametrize("rule", RULES)
def test_ends_are_the_latents_to_the_bit(rule):
    path = RULES[rule](Z_0, Z_1, SHARES)
    assert path.shape == (7, 5, 3, 4)
    np.testing.assert_array_equal(path[0], Z_0)
    np.testing.assert_array_equal(path[-1], Z_1)
    same = RULES[rule](Z_0, Z_0, SHARES)
    np.testing.assert_allclose(same, np.broadcast_to(Z_0, same.shape), rtol=1e-6)


def test_arcs_are_scipys():
    with jax.enable_x64(True):
        a, b = (np.asarray(z, np.float64).reshape(5, -1) for z in (Z_0, Z_1))
        a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b))
        path = spherical(jnp.asarray(a), jnp.asarray(b), SHARES)
        for i in range(5):
            np.testing.assert_allclose(path[:, i], geometric_slerp(a[i], b[i], SHARES), atol=1e-12)


def test_arcs_of_bfloat16_are_as_wide_as_those_of_float32():
    """At 20 degrees, and at 170, rounding to bfloat16 moves the path by its own rounding and no more."""
    for degrees in (20, 170):
        angle = np.deg2rad(degrees)
        a, b = (np.array([[np.cos(x), np.sin(x)]], np.float32) for x in (0.0, angle))
        middle = spherical(jnp.asarray(a, jnp.bfloat16), jnp.asarray(b, jnp.bfloat16), np.array([0.5]))
        assert middle.dtype == jnp.bfloat16
        exact = [np.cos(angle / 2), np.sin(angle / 2)]
        np.testing.assert_allclose(middle[0, 0].astype(jnp.float32), exact, atol=0.06)


def test_vectors_of_no_length_are_joined_straight_and_have_a_gradient():
    gradient = jax.grad(lambda z: spherical(z, z, SHARES).sum())(jnp.zeros((2, 3)))
    np.testing.assert_allclose(gradient, len(SHARES))


def test_shares_of_each_example():
    shares = jnp.asarray(np.random.default_rng(1).uniform(size=(3, 5)), jnp.float32)
    for rule in RULES.values():
        path = rule(Z_0, Z_1, shares)
        for i in range(5):
            np.testing.assert_allclose(path[:, i], rule(Z_0, Z_1, shares[:, i])[:, i], rtol=1e-5, atol=1e-6)


def test_arcs_keep_noise_as_long_as_it_is_and_straight_ways_do_not():
    a, b = jax.random.normal(jax.random.key(0), (2, 400, 64))
    middle = np.array([0.5])
    assert abs(float((spherical(a, b, middle) ** 2).mean()) - 1) < 4 * np.sqrt(2 / (400 * 64))
    assert abs(float((linear(a, b, middle) ** 2).mean()) - 0.5) < 4 * 0.5 * np.sqrt(2 / (400 * 64))


def test_through_the_noise_of_gaussian_data_a_straight_path_stays_straight():
    """The flow of Gaussian data is affine; its ends are the space's reconstructions."""
    with jax.enable_x64(True):
        process = PROCESSES["vp"]
        ts = log_snr_grid(process, 30, t_min=0.02, t_max=1.0)
        space = diffusion_space(GAUSSIAN.denoise(process), process, ts=ts, coordinates="noise")
        x_0, x_1 = (jnp.asarray(GAUSSIAN.sample(np.random.default_rng(k), 4, np.float64)) for k in (0, 1))
        path = interpolate(space, x_0, x_1, SHARES, rule=linear)
        ends = [space.decode(space.encode(x)) for x in (x_0, x_1)]
        np.testing.assert_allclose(path, linear(*ends, SHARES), atol=1e-10)
        np.testing.assert_allclose(path[0], x_0, atol=0.02)


def test_in_x_t_the_reverse_sde_decodes_as_it_does_a_sample():
    """DDPM's interpolation: from little noise the ends come back, from much they need not."""
    process = PROCESSES["vp"]
    exact = GAUSSIAN.denoise(process)
    x_0, x_1 = (jnp.asarray(GAUSSIAN.sample(np.random.default_rng(k), 200)) for k in (0, 1))
    found = []
    for t in (0.02, 0.9):
        ts = log_snr_grid(process, 8, t_min=0.01, t_max=t)

        def sample(x_t, ts=ts):
            return solve_sde(exact, process, x_t, jax.random.key(5), ts=ts).x

        space = noised_space(process, sample, jax.random.key(4), t=t)
        path = interpolate(space, x_0, x_1, np.array([0.0, 1.0]), rule=linear)
        found.append(float(jnp.sqrt(jnp.mean((path[0] - x_0) ** 2))))
        np.testing.assert_array_equal(path[0], space.decode(space.encode(x_0)))
    assert found[0] < 0.1
    assert found[1] > 0.4


BAD = {
    "other shapes": (lambda: linear(Z_0, Z_1[:2], SHARES), "of one shape"),
    "opposite latents": (lambda: spherical(Z_0, -Z_0, SHARES), "not opposite"),
    "a matrix of shares": (lambda: linear(Z_0, Z_1, jnp.ones((2, 3))), "shares"),
    "NaN": (lambda: linear(Z_0 * jnp.nan, Z_1, SHARES), "finite z_0"),
    "no noise": (lambda: noised_space(PROCESSES["vp"], lambda x: x, jax.random.key(0), t=0.0), "t in"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, untyped):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
