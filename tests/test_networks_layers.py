"""Each layer against a closed form, SciPy or Flax."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.special

from dgm_jax.networks import (
    Downsample,
    GroupNorm,
    ResidualBlock,
    SelfAttention,
    UNet,
    Upsample,
    depth_to_space,
    group_norm,
    sinusoidal_embedding,
    space_to_depth,
)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_params(layer, *args):
    """Parameters of the right shapes and none zero, as zero-initialised layers hide what comes before them."""
    shapes = jax.eval_shape(layer.init, jax.random.key(0), *args)
    return jax.tree.map(lambda leaf: 0.5 * normal(leaf.size, *leaf.shape), shapes)


def correlate(x, kernel, bias):
    """3x3 cross-correlation of images [batch, height, width, channels], zero outside, by SciPy."""
    x, kernel, bias = (np.asarray(a, np.float64) for a in (x, kernel, bias))
    out = np.zeros((*x.shape[:3], kernel.shape[-1])) + bias
    for b, i, o in np.ndindex(x.shape[0], *kernel.shape[2:]):
        out[b, :, :, o] += scipy.signal.correlate2d(x[b, :, :, i], kernel[:, :, i, o], mode="same")
    return out


def test_sinusoidal_embedding_closed_form():
    position = np.array([0.0, 1.0, 17.5, 999.0])
    rates = np.exp(-np.log(10_000.0) * np.arange(4) / 3)
    angles = position[:, None] * rates
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    out = sinusoidal_embedding(jnp.asarray(position, jnp.float32), 8)
    # float32 keeps an angle near 1000 to 2^-15 of a radian, and each rate to one part in 2^24.
    np.testing.assert_allclose(out, expected, atol=999 * 2.0**-23)


@pytest.mark.parametrize("width", [2, 7])
def test_sinusoidal_embedding_refuses(width):
    with pytest.raises(ValueError, match="even width >= 4"):
        sinusoidal_embedding(jnp.zeros(2), width)


@pytest.mark.parametrize(("shape", "groups"), [((2, 5, 3, 12), 4), ((3, 6), 2), ((2, 4, 8), 8), ((2, 7, 4), 1)])
def test_group_norm_equals_flax_forward_and_gradient(shape, groups):
    x = 3.0 + 2.0 * normal(0, *shape)
    scale, bias, weight = 1.0 + normal(1, shape[-1]), normal(2, shape[-1]), normal(3, *shape)
    flax_norm = nn.GroupNorm(groups, epsilon=1e-6, use_fast_variance=False)

    def reference(x, scale, bias):
        return flax_norm.apply({"params": {"scale": scale, "bias": bias}}, x)

    def ours(x, scale, bias):
        return group_norm(x, scale, bias, groups)

    def value_and_gradients(norm):
        value, vjp = jax.vjp(norm, x, scale, bias)
        return value, *vjp(weight)

    results = zip(*(jax.jit(value_and_gradients, static_argnums=0)(norm) for norm in (ours, reference)), strict=True)
    for out, expected in results:
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))


def test_group_norm_of_bfloat16_sums_in_float32():
    x = (3.0 + normal(0, 2, 8, 8, 4)).astype(jnp.bfloat16)
    module = GroupNorm(2)
    params = {"params": {"scale": jnp.ones(4), "bias": jnp.zeros(4)}}
    out = module.apply(params, x)
    assert out.dtype == jnp.bfloat16
    values = np.asarray(x, np.float64).reshape(2, 64, 2, 2)
    expected = (values - values.mean((1, 3), keepdims=True)) / values.std((1, 3), keepdims=True)
    # One rounding to 8 bits at the end.
    np.testing.assert_allclose(np.asarray(out, np.float64), expected.reshape(x.shape), rtol=2.0**-8, atol=1e-4)


def test_group_norm_refuses_unequal_groups():
    with pytest.raises(ValueError, match="groups=3, channels=4"):
        group_norm(jnp.ones((2, 4)), jnp.ones(4), jnp.ones(4), 3)


def test_attention_is_softmax_of_scaled_products():
    x = normal(0, 2, 3, 2, 4)
    layer = SelfAttention(groups=2)
    params = random_params(layer, x)
    weights = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    h = np.asarray(nn.GroupNorm(2, epsilon=1e-6).apply({"params": params["params"]["norm"]}, x), np.float64)
    h = h.reshape(2, 6, 4)
    query, key, value = (h @ weights[n]["kernel"] + weights[n]["bias"] for n in ("query", "key", "value"))
    mixed = scipy.special.softmax(query @ key.transpose(0, 2, 1) / 2.0, axis=-1) @ value  # sqrt(4 channels) = 2
    expected = np.asarray(x) + (mixed @ weights["out"]["kernel"] + weights["out"]["bias"]).reshape(x.shape)
    np.testing.assert_allclose(layer.apply(params, x), expected, rtol=1e-4, atol=1e-5)


def test_attention_commutes_with_permutations_of_pixels():
    x = normal(0, 2, 4, 3, 4)
    layer = SelfAttention(groups=2)
    params = random_params(layer, x)
    order = np.random.default_rng(0).permutation(12)

    def permuted(a):
        return a.reshape(2, 12, 4)[:, order].reshape(a.shape)

    np.testing.assert_allclose(layer.apply(params, permuted(x)), permuted(layer.apply(params, x)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("features", [4, 6])
def test_residual_block_is_its_shortcut_at_initialisation(features):
    x, conditioning = normal(0, 2, 4, 4, 4), normal(1, 2, 5)
    block = ResidualBlock(features, groups=2)
    params = block.init(jax.random.key(0), x, conditioning)
    expected = np.asarray(x)
    if features != 4:
        expected = expected @ np.asarray(params["params"]["shortcut"]["kernel"])
    np.testing.assert_allclose(block.apply(params, x, conditioning), expected, rtol=1e-5, atol=1e-6)


def test_residual_block_closed_form():
    x, conditioning = normal(0, 2, 4, 4, 4), normal(1, 2, 5)
    block = ResidualBlock(6, groups=2)
    params = random_params(block, x, conditioning)["params"]

    def norm(name, a):
        return nn.GroupNorm(2, epsilon=1e-6).apply({"params": params[name]}, jnp.asarray(a, jnp.float32))

    def silu(a):
        return np.asarray(a, np.float64) * scipy.special.expit(np.asarray(a, np.float64))

    def dense(name, a):
        return np.asarray(a, np.float64) @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])

    h = correlate(silu(norm("norm_1", x)), params["conv_1"]["kernel"], params["conv_1"]["bias"])
    h = h + dense("conditioning", silu(conditioning))[:, None, None, :]
    h = correlate(silu(norm("norm_2", h)), params["conv_2"]["kernel"], params["conv_2"]["bias"])
    expected = dense("shortcut", x) + h
    np.testing.assert_allclose(block.apply({"params": params}, x, conditioning), expected, rtol=1e-4, atol=1e-4)


def test_upsample_is_nearest_then_convolution():
    x = normal(0, 2, 3, 4, 2)
    params = random_params(Upsample(), x)
    expected = correlate(np.asarray(x).repeat(2, axis=1).repeat(2, axis=2), **params["params"]["conv"])
    np.testing.assert_allclose(Upsample().apply(params, x), expected, rtol=1e-4, atol=1e-5)


def test_downsample_keeps_every_second_pixel_of_a_convolution():
    x = normal(0, 2, 6, 4, 2)
    params = random_params(Downsample(), x)
    expected = correlate(x, **params["params"]["conv"])[:, 1::2, 1::2]
    np.testing.assert_allclose(Downsample().apply(params, x), expected, rtol=1e-4, atol=1e-5)


def test_no_transposed_convolution():
    net = UNet(4, (1, 2), 1, groups=2)
    x, t = jnp.zeros((1, 4, 4, 1)), jnp.zeros(1)
    params = jax.eval_shape(net.init, jax.random.key(0), x, t)
    jaxpr = jax.make_jaxpr(net.apply)(params, x, t)
    convolutions = [e for e in jaxpr.eqns if e.primitive.name == "conv_general_dilated"]
    # In and out, two in each of 2 + 2 + 4 blocks, one down, one up.
    assert len(convolutions) == 2 + 2 * 8 + 2
    assert {e.params["lhs_dilation"] for e in convolutions} == {(1, 1)}


def test_space_to_depth_cuts_squares_and_comes_back():
    x = normal(0, 2, 6, 4, 3)
    out = space_to_depth(x, 2)
    assert out.shape == (2, 3, 2, 12)
    np.testing.assert_array_equal(out[1, 2, 1], np.asarray(x)[1, 4:6, 2:4].ravel())
    np.testing.assert_array_equal(depth_to_space(out, 2), x)


def test_space_to_depth_refuses():
    with pytest.raises(ValueError, match=r"divisible by 4.*\(8, 6\)"):
        space_to_depth(jnp.zeros((1, 8, 6, 1)), 4)
    with pytest.raises(ValueError, match="patch=2, depth=6"):
        depth_to_space(jnp.zeros((1, 2, 2, 6)), 2)
