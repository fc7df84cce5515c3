"""Spaces of diffusion models, VAEs and GANs: what they keep, and generators inverted where the answer is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import GAUSSIAN, PROCESSES

from dgm_jax.latents import ddim_space, diffusion_space, gan_space, invert_generator, reconstruction_error, vae_space
from dgm_jax.processes import log_snr_grid

RNG = np.random.default_rng(0)
MATRIX = RNG.standard_normal((3, 6))
SEARCH = {"latent_shape": (3,), "optimizer": optax.adam(0.05), "steps": 400, "starts": 2}


def generate(z):
    """A linear generator, whose best latents are least squares."""
    return (z @ jnp.asarray(MATRIX, z.dtype)).reshape(len(z), 2, 3)


@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_the_inverse_of_a_linear_generator_is_least_squares(weight):
    with jax.enable_x64(True):
        x = jnp.asarray(RNG.standard_normal((4, 2, 3)))
        found = invert_generator(generate, x, jax.random.key(0), prior_weight=weight, **SEARCH)
    flat = np.asarray(x).reshape(4, 6)
    # |zM - x|^2/6 + weight |z|^2/(2 3): normal equations with weight
    expected = np.linalg.solve(MATRIX @ MATRIX.T + weight * np.eye(3), MATRIX @ flat.T).T
    np.testing.assert_allclose(found.z, expected, atol=1e-5)
    np.testing.assert_allclose(found.error, np.mean((expected @ MATRIX - flat) ** 2, 1), rtol=1e-4)


def test_the_best_of_several_starts_is_kept():
    """sin has many minima; of many starts one is in the right one."""
    z = jnp.asarray([[0.3], [-1.1]])

    def waves(z):
        return jnp.sin(3 * z) + 0.5 * z

    search = {"latent_shape": (1,), "optimizer": optax.adam(0.02), "steps": 300}
    few = invert_generator(waves, waves(z), jax.random.key(0), starts=1, **search)
    many = invert_generator(waves, waves(z), jax.random.key(0), starts=20, **search)
    assert many.error.max() < 1e-6
    assert (many.error <= few.error + 1e-6).all()
    assert many.spread.max() > 1e-3
    keys = jax.random.split(jax.random.key(0), 2)
    alone = invert_generator(waves, waves(z)[1:], keys[1:], starts=20, **search)
    np.testing.assert_allclose(alone.z, many.z[1:], atol=1e-4)


def test_starts_without_a_finite_error_are_out_of_the_race():
    """log has no value at half of all starts; where no start has one there is no error either."""
    search = {"latent_shape": (1,), "optimizer": optax.adam(0.02), "steps": 200, "starts": 12}
    found = invert_generator(jnp.log, jnp.full((2, 1), -0.5), jax.random.key(0), **search)
    np.testing.assert_allclose(found.z, np.exp(-0.5), atol=1e-3)
    assert np.isfinite(found.spread).all()
    none = invert_generator(lambda z: z * jnp.nan, jnp.ones((2, 1)), jax.random.key(0), **search)
    assert np.isposinf(none.error).all()


def test_a_diffusion_models_latents_are_noise_in_units_of_one():
    process = PROCESSES["ve"]
    exact = GAUSSIAN.denoise(process)
    ts = log_snr_grid(process, 40, t_min=0.02, t_max=1.0)
    space = diffusion_space(exact, process, ts=ts, coordinates="noise")
    z = jax.random.normal(jax.random.key(0), (3000, 2))
    x = np.asarray(jax.jit(space.decode)(z), np.float64)
    spread = GAUSSIAN.covariances[0]
    error = np.sqrt((spread**2 + np.outer(np.diag(spread), np.diag(spread))) / len(x))
    np.testing.assert_array_less(np.abs(np.cov(x.T) - spread), 4 * error + 0.01)
    np.testing.assert_allclose(jax.jit(space.encode)(jnp.asarray(x[:50], jnp.float32)), z[:50], atol=2e-3)


def test_ddims_space_loses_nothing_once_corrected():
    process = PROCESSES["vp"]
    x = jnp.asarray(GAUSSIAN.sample(np.random.default_rng(0), 20))
    ts = log_snr_grid(process, 8, t_min=0.02, t_max=1.0)
    errors = [
        float(reconstruction_error(ddim_space(GAUSSIAN.denoise(process), process, ts=ts, corrections=k), x).max())
        for k in (0, 30)
    ]
    assert errors[0] > 1e-2
    assert errors[1] < 1e-8


def test_vaes_and_gans_are_spaces_too():
    x = jnp.asarray(RNG.standard_normal((4, 2, 3)), jnp.float32)
    pseudo = jnp.asarray(np.linalg.pinv(MATRIX), jnp.float32)
    vae = vae_space(lambda x: (x.reshape(len(x), 6) @ pseudo, jnp.zeros((len(x), 3))), generate)
    gan = gan_space(generate, jax.random.key(0), **SEARCH)
    np.testing.assert_allclose(gan.encode(x), vae.encode(x), atol=1e-3)
    np.testing.assert_allclose(reconstruction_error(gan, x), reconstruction_error(vae, x), rtol=1e-3)


X = jnp.ones((2, 2, 3))
BAD = {
    "no steps": ({"steps": 0}, "steps >= 1"),
    "no starts": ({"starts": 0}, "starts >= 1"),
    "a negative weight": ({"prior_weight": -1.0}, "prior_weight >= 0"),
    "a generator of other events": ({"generate": lambda z: z}, "return events of shape"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, untyped):
    changed, message = BAD[case]
    options = {"generate": generate, **SEARCH, **changed}
    with pytest.raises(ValueError, match=message):
        invert_generator(options.pop("generate"), X, jax.random.key(0), **options)
