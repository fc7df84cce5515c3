"""Encoder and decoder pairs: the papers' parameter counts, NumPy's arithmetic, shapes, symmetries, refused inputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from dgm_jax.networks import ConvDecoder, ConvEncoder, DenseDecoder, DenseEncoder

BATCH, LATENT = 3, 2
EVENT = (8, 12, 1)  # not square, so that no axis is taken for another
ENCODERS = {
    "dense": DenseEncoder((7, 5), LATENT),
    "conv": ConvEncoder((4, 6), LATENT, hidden=5),
}
DECODERS = {
    "dense": DenseDecoder((5, 7), EVENT),
    "conv": ConvDecoder((6, 4), EVENT, hidden=5),
}
each_pair = pytest.mark.parametrize("name", ENCODERS)


def random_params(net, x):
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(net.init, jax.random.key(0), x)
    return jax.tree.map(lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


def images(batch=BATCH, event=EVENT):
    return jax.random.normal(jax.random.key(1), (batch, *event))


def latents():
    return jax.random.normal(jax.random.key(2), (BATCH, LATENT))


def parameter_count(net, shape):
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape))))


def test_the_papers_networks_have_their_parameter_counts():
    def dense(i, o):
        return i * o + o

    kingma = DenseEncoder((500,), 20), DenseDecoder((500,), (28, 28, 1))
    assert parameter_count(kingma[0], (1, 28, 28, 1)) == dense(784, 500) + 2 * dense(500, 20)
    assert parameter_count(kingma[1], (1, 20)) == dense(20, 500) + dense(500, 784)
    burda = DenseEncoder((200, 200), 50), DenseDecoder((200, 200), (28, 28, 1))
    assert parameter_count(burda[0], (1, 28, 28, 1)) == dense(784, 200) + dense(200, 200) + 2 * dense(200, 50)
    assert parameter_count(burda[1], (1, 50)) == dense(50, 200) + dense(200, 200) + dense(200, 784)


def test_the_dense_pair_is_numpys():
    x, z = images(), latents()
    encoder, decoder = ENCODERS["dense"], DECODERS["dense"]
    params = random_params(encoder, x)
    layers = jax.tree.map(np.asarray, params["params"])

    def through(h, names):
        for name in names:
            h = np.tanh(h @ layers[name]["kernel"] + layers[name]["bias"])
        return h

    h = through(np.asarray(x).reshape(BATCH, -1), ["hidden_0", "hidden_1"])
    for actual, name in zip(jax.jit(encoder.apply)(params, x), ["mean", "log_std"], strict=True):
        np.testing.assert_allclose(actual, h @ layers[name]["kernel"] + layers[name]["bias"], atol=1e-5)
    params = random_params(decoder, z)
    layers = jax.tree.map(np.asarray, params["params"])
    h = through(np.asarray(z), ["hidden_0", "hidden_1"])
    expected = (h @ layers["out"]["kernel"] + layers["out"]["bias"]).reshape(BATCH, *EVENT)
    np.testing.assert_allclose(jax.jit(decoder.apply)(params, z), expected, atol=1e-5)


def test_the_conv_decoder_doubles_and_convolves_as_scipy_does():
    decoder, z = ConvDecoder((2, 3), (4, 8, 1), hidden=5, activation=nn.tanh), latents()
    params = random_params(decoder, z)
    layers = jax.tree.map(np.asarray, params["params"])
    h = np.asarray(z)
    for name in ("hidden_0", "hidden_1"):
        h = np.tanh(h @ layers[name]["kernel"] + layers[name]["bias"])
    h = h.reshape(BATCH, 1, 2, 2)
    for i in range(2):
        h = np.tanh(h) if i else h
        h = np.kron(h, np.ones((1, 2, 2, 1)))
        kernel, bias = layers[f"conv_{i}"]["kernel"], layers[f"conv_{i}"]["bias"]
        h = np.stack(
            [
                [
                    sum(scipy.signal.correlate2d(image[..., c], kernel[..., c, o], "same") for c in range(h.shape[-1]))
                    for o in range(kernel.shape[-1])
                ]
                for image in h
            ]
        )
        h = np.moveaxis(h, 1, -1) + bias
    np.testing.assert_allclose(jax.jit(decoder.apply)(params, z), h, atol=1e-5)


@pytest.mark.parametrize("channels", [(32, 64), (4,)])
def test_the_conv_pair_fits_digits(channels):
    x = jnp.zeros((BATCH, 28, 28, 1))
    encoder, decoder = ConvEncoder(channels, 10, hidden=16), ConvDecoder(channels[::-1], (28, 28, 1), hidden=16)
    (mean, log_std), _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), x)
    assert mean.shape == log_std.shape == (BATCH, 10)
    out, _ = jax.eval_shape(decoder.init_with_output, jax.random.key(0), mean)
    assert out.shape == x.shape


@each_pair
def test_shapes_dtypes_and_examples_do_not_mix(name):
    encoder, decoder, x = ENCODERS[name], DECODERS[name], images()
    params = random_params(encoder, x)
    encode = jax.jit(encoder.apply)
    mean, log_std = encode(params, x)
    assert mean.shape == log_std.shape == (BATCH, LATENT)
    assert np.abs(mean - log_std).max() > 1e-2
    # A batch mean would pass a permutation: changing the first example must leave the others.
    changed = encode(params, x.at[0].multiply(-3.0))
    for after, before in zip(changed, (mean, log_std), strict=True):
        np.testing.assert_allclose(after[1:], before[1:], atol=1e-5)
        assert np.abs(after[0] - before[0]).max() > 1e-3
    of_decoder = random_params(decoder, mean)
    decode = jax.jit(decoder.apply)
    out = decode(of_decoder, mean)
    assert out.shape == x.shape
    np.testing.assert_allclose(decode(of_decoder, mean.at[0].multiply(-3.0))[1:], out[1:], atol=1e-5)
    half = decoder.clone(dtype=jnp.bfloat16).apply(of_decoder, mean)
    assert half.dtype == mean.dtype
    assert np.abs(half - out).max() > 0  # it did compute in bfloat16
    assert all(part.dtype == x.dtype for part in encoder.clone(dtype=jnp.bfloat16).apply(params, x))


@each_pair
def test_gradients_reach_every_parameter_of_the_pair(name):
    encoder, decoder, x = ENCODERS[name], DECODERS[name], images()
    params = random_params(encoder, x), random_params(decoder, latents())

    @jax.jit
    @jax.grad
    def gradient(params):
        mean, log_std = encoder.apply(params[0], x)
        return jnp.mean(decoder.apply(params[1], mean + jnp.exp(log_std)) ** 2)

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(params)):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path


@pytest.mark.parametrize(
    ("net", "shape", "dtype", "match"),
    [
        (DenseEncoder((0,), 2), (3, 4), jnp.float32, "widths and sizes >= 1.*0"),
        (DenseEncoder((4,), 0), (3, 4), jnp.float32, "widths and sizes >= 1"),
        (DenseEncoder((4,), 2), (3, 4), jnp.uint8, "floating-point batch.*uint8"),
        (DenseDecoder((4,), (2, 2)), (3,), jnp.float32, r"\[batch, latent\].*\(3,\)"),
        (DenseDecoder((4,), (2, 0)), (3, 4), jnp.float32, "sizes >= 1"),
        (ConvEncoder((4, 4), 2, hidden=3), (3, 6, 8, 1), jnp.float32, "divisible by 4.*6"),
        (ConvEncoder((4,), 2, hidden=3), (3, 8), jnp.float32, "images.*convolved"),
        (ConvDecoder((4, 4), (28, 30, 1), hidden=3), (3, 2), jnp.float32, "divisible by 4.*30"),
        (ConvDecoder((), (28, 28, 1), hidden=3), (3, 2), jnp.float32, "one or more channels"),
    ],
)
@pytest.mark.usefixtures("untyped")
def test_bad_input_says_rule_reason_and_value(net, shape, dtype, match):
    with pytest.raises(ValueError, match=match):
        net.init(jax.random.key(0), jnp.zeros(shape, dtype))
