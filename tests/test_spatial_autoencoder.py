"""The autoencoder with small images as latents: shapes, locality, gradients, dtypes, refused inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgm_jax.networks import ResidualBlock, SpatialDecoder, SpatialEncoder

EVENT, LATENT = (8, 12, 2), (2, 3, 3)  # not square, so that no axis is taken for another
ENCODER = SpatialEncoder((4, 6), 3, groups=2, patch=2)
DECODER = SpatialDecoder((6, 4), 2, groups=2, patch=2)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_params(net, x):
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


@pytest.fixture(scope="module")
def pair():
    x, z = normal(0, 3, *EVENT), normal(1, 3, *LATENT)
    encoder, decoder = random_params(ENCODER, x), random_params(DECODER, z)
    return encoder, decoder, x, z, jax.jit(ENCODER.apply), jax.jit(DECODER.apply)


def test_shapes_dtypes_and_examples_do_not_mix(pair):
    encoder, decoder, x, z, encode, decode = pair
    mean, log_std = encode(encoder, x)
    assert mean.shape == log_std.shape == (3, *LATENT)
    assert np.abs(mean - log_std).max() > 1e-2
    for out, other in zip((mean, log_std), encode(encoder, x.at[0].multiply(-3.0)), strict=True):
        assert np.abs(other[0] - out[0]).max() > 1e-3
        np.testing.assert_allclose(other[1:], out[1:], rtol=1e-4, atol=1e-5)
    out = decode(decoder, z)
    assert out.shape == (3, *EVENT)
    assert out.dtype == z.dtype
    np.testing.assert_allclose(decode(decoder, z.at[0].add(1.0))[1:], out[1:], rtol=1e-4, atol=1e-5)


def test_each_level_has_its_blocks_and_all_but_one_halve():
    net = SpatialEncoder((4, 6, 6), 1, blocks=2, groups=2)
    names = set(jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"])
    levels = {f"level_{level}_block_{i}" for level in range(3) for i in range(2)}
    assert names == {"conv_in", "down_1", "down_2", "norm_out", "conv_out"} | levels
    mean, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))[0]
    assert mean.shape == (1, 2, 2, 1)


def test_the_log_std_is_bounded_and_the_mean_is_not(pair):
    encoder, _, x, _, encode, _ = pair
    large = jax.tree.map(lambda leaf: 30.0 * leaf, encoder)
    mean, log_std = encode(large, x)
    assert np.abs(log_std).max() == 10.0
    assert np.abs(mean).max() > 20.0


def test_gradients_reach_every_parameter(pair):
    encoder, decoder, x, z, _, _ = pair

    def loss(encoder, decoder):
        mean, log_std = ENCODER.apply(encoder, x)
        return jnp.sum(DECODER.apply(decoder, mean + jnp.exp(0.1 * log_std) * z) ** 2)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(encoder, decoder)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


def test_bfloat16_compute_is_near_and_keeps_its_dtypes(pair):
    encoder, decoder, x, z, encode, decode = pair
    half, whole = jax.jit(ENCODER.clone(dtype=jnp.bfloat16).apply)(encoder, x), encode(encoder, x)
    for out, expected in zip(
        (*half, jax.jit(DECODER.clone(dtype=jnp.bfloat16).apply)(decoder, z)), (*whole, decode(decoder, z)), strict=True
    ):
        assert out.dtype == jnp.float32
        # About 10 convolutions in a row, each rounded to 8 bits, and groups of few values.
        assert np.linalg.norm(out - expected) < 20 * 2.0**-8 * np.linalg.norm(expected)


def test_a_block_without_conditioning_is_one_whose_conditioning_adds_nothing():
    x = normal(0, 2, 4, 4, 4)
    block = ResidualBlock(4, groups=2)
    with_one = random_params(block, x)
    full = {"params": {**with_one["params"], "conditioning": {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}}}
    np.testing.assert_allclose(block.apply(with_one, x), block.apply(full, x, normal(1, 2, 3)), rtol=1e-6, atol=1e-6)


BAD = [
    (ENCODER, (2, 8, 8), r"x to be floating-point \[batch, height, width, channels\].*\(2, 8, 8\)"),
    (ENCODER, (2, 8, 10, 1), r"divisible by 4, as the latents have whole pixels; got \(8, 10\)"),
    (ENCODER.clone(channels=()), (2, 8, 8, 1), r"one or more levels.*channels=\(\)"),
    (ENCODER.clone(channels=(4, 5)), (2, 8, 8, 1), r"multiples of groups=2.*\(4, 5\)"),
    (ENCODER.clone(latent=0), (2, 8, 8, 1), "widths and sizes >= 1"),
    (DECODER, (2, 2), r"z to be floating-point"),
    (DECODER.clone(channels=(5,)), (2, 2, 2, 3), r"multiples of groups=2.*\(5,\)"),
    (DECODER.clone(patch=0), (2, 2, 2, 3), "widths and sizes >= 1"),
]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("net", "shape", "message"), BAD)
def test_refuses(net, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))
