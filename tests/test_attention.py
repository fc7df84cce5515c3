"""Attention to a context, against SciPy; and the U-Net's context and its bottleneck."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from dgm_jax.networks import CrossAttention, UNet, multi_head_attention

X, CONTEXT = (2, 3, 2, 4), (2, 5, 3)
MASK = np.array([[True, True, False, True, False], [True, False, True, True, True]])
UNET = UNet(4, (1, 2), 1, groups=2, context_attention=(2,), context_heads=2)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def random_params(net, *args, **kwargs):
    """Parameters of the right shapes and none zero, as zero-initialised layers hide what comes before them."""
    shapes = jax.eval_shape(lambda *args: net.init(jax.random.key(0), *args, **kwargs), *args)
    return jax.tree.map(lambda leaf: 0.5 * normal(leaf.size, *leaf.shape), shapes)


def attention_by_loops(query, key, value, mask, heads):
    """One example, one head and one query at a time, on the tokens that are there and no others."""
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    out = np.zeros(query.shape)
    width = query.shape[-1] // heads
    for b, h, q in np.ndindex(len(query), heads, query.shape[1]):
        part, there = slice(h * width, (h + 1) * width), np.flatnonzero(mask[b])
        if len(there):
            weights = scipy.special.softmax(key[b, there, part] @ query[b, q, part] / np.sqrt(width))
            out[b, q, part] = weights @ value[b, there, part]
    return out


@pytest.fixture(scope="module")
def layer():
    net = CrossAttention(heads=2, groups=2)
    return net, random_params(net, jnp.zeros(X), jnp.zeros(CONTEXT)), normal(0, *X), normal(1, *CONTEXT)


@pytest.fixture(scope="module")
def unet():
    x_t, t, context = normal(0, 2, 4, 4, 1), jnp.array([0.2, 0.8]), normal(1, *CONTEXT)
    params = random_params(UNET, x_t, t, context=context)
    return params, x_t, t, context, jax.jit(UNET.apply)


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("mask", [np.ones((2, 5), bool), MASK, MASK & [[True], [False]]])
def test_multi_head_attention_equals_loops_over_the_tokens_that_are_there(heads, mask):
    query, key, value = normal(0, 2, 6, 8), normal(1, 2, 5, 8), normal(2, 2, 5, 8)
    out = multi_head_attention(query, key, value, jnp.asarray(mask), heads=heads)
    np.testing.assert_allclose(out, attention_by_loops(query, key, value, mask, heads), rtol=1e-5, atol=1e-6)
    if mask.all():
        np.testing.assert_array_equal(out, multi_head_attention(query, key, value, heads=heads))


def test_cross_attention_equals_its_parts(layer):
    net, params, x, context = layer
    weights = {name: np.asarray(leaf["kernel"]) for name, leaf in params["params"].items() if "kernel" in leaf}
    grouped = np.asarray(x, np.float64).reshape(2, 6, 2, 2)
    normed = (grouped - grouped.mean((1, 3), keepdims=True)) / grouped.std((1, 3), keepdims=True)
    norm = {name: np.asarray(leaf) for name, leaf in params["params"]["norm"].items()}
    h, tokens = normed.reshape(2, 6, 4) * norm["scale"] + norm["bias"], np.asarray(context)
    mixed = attention_by_loops(h @ weights["query"], tokens @ weights["key"], tokens @ weights["value"], MASK, 2)
    expected = x + (mixed @ weights["out"]).reshape(X)
    np.testing.assert_allclose(net.apply(params, x, context, jnp.asarray(MASK)), expected, rtol=1e-4, atol=1e-5)


def test_tokens_have_no_order_and_masked_ones_do_not_matter(layer):
    net, params, x, context = layer
    order = np.array([3, 0, 4, 2, 1])
    out = net.apply(params, x, context, jnp.asarray(MASK))
    permuted = net.apply(params, x, context[:, order], jnp.asarray(MASK[:, order]))
    np.testing.assert_allclose(permuted, out, rtol=1e-5, atol=1e-6)
    spoilt = jnp.where(jnp.asarray(MASK)[..., None], context, 1e3 * normal(2, *CONTEXT))
    np.testing.assert_array_equal(net.apply(params, x, spoilt, jnp.asarray(MASK)), out)
    other = net.apply(params, x, context.at[:, 0].add(1.0), jnp.asarray(MASK))
    assert np.abs(other - out).max() > 1e-2


def test_an_example_with_no_token_comes_back_as_it_is_and_has_a_gradient(layer):
    net, params, x, context = layer
    mask = jnp.asarray(MASK & [[True], [False]])
    out = net.apply(params, x, context, mask)
    np.testing.assert_array_equal(out[1], x[1])
    assert np.abs(out[0] - x[0]).max() > 1e-2

    def loss(params, context):
        return (net.apply(params, x, context, mask) ** 2).sum()

    of_params, of_context = jax.jit(jax.grad(loss, argnums=(0, 1)))(params, context)
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(of_params))
    reached = np.abs(of_context).max(-1) > 0
    np.testing.assert_array_equal(reached, mask)


def test_cross_attention_is_the_identity_at_initialisation(layer):
    net, _, x, context = layer
    np.testing.assert_array_equal(net.apply(net.init(jax.random.key(0), x, context), x, context), x)


def test_bfloat16_softmax_is_in_float32(layer):
    net, params, x, context = layer
    half = net.clone(dtype=jnp.bfloat16)
    jaxpr = str(jax.make_jaxpr(half.apply)(params, x, context, jnp.asarray(MASK)))
    exponentials = [line for line in jaxpr.splitlines() if "= exp" in line]
    assert exponentials
    assert all("f32" in line for line in exponentials)
    out = half.apply(params, x, context, jnp.asarray(MASK))
    assert out.dtype == jnp.bfloat16
    expected = net.apply(params, x, context, jnp.asarray(MASK))
    # 7 products and sums in a row, each rounded to 8 bits.
    assert np.linalg.norm(out.astype(jnp.float32) - expected) < 7 * 2.0**-8 * np.linalg.norm(expected)


def test_unet_sees_its_context_and_an_empty_one_is_the_same_for_all(unet):
    params, x_t, t, context, apply = unet
    names = {name for name in params["params"] if "context" in name}
    assert names == {"down_1_context_0", "middle_context", "up_1_context_0", "up_1_context_1"}
    out = apply(params, x_t, t, context=context, context_mask=jnp.ones((2, 5), bool))
    np.testing.assert_allclose(apply(params, x_t, t, context=context), out, rtol=1e-5, atol=1e-5)
    # The second example's tokens reach the second example alone.
    other = apply(params, x_t, t, context=context.at[1].multiply(-2.0), context_mask=jnp.ones((2, 5), bool))
    np.testing.assert_allclose(other[0], out[0], rtol=1e-5, atol=1e-5)
    assert np.abs(other[1] - out[1]).max() > 1e-3
    empty = [
        apply(params, x_t, t, context=c, context_mask=jnp.zeros((2, 5), bool)) for c in (context, 3.0 * context + 1.0)
    ]
    np.testing.assert_array_equal(*empty)


def test_the_bottleneck_is_sown_and_shifted(unet):
    params, x_t, t, context, apply = unet
    plain = apply(params, x_t, t, context=context)
    out, state = UNET.apply(params, x_t, t, context=context, mutable="intermediates")
    (h,) = state["intermediates"]["bottleneck"]
    assert h.shape == (2, 2, 2, 8)
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(apply(params, x_t, t, context=context, shift=jnp.zeros_like(h)), plain)
    shift = normal(5, *h.shape)
    shifted, state = UNET.apply(params, x_t, t, context=context, shift=shift, mutable="intermediates")
    np.testing.assert_array_equal(state["intermediates"]["bottleneck"][0], h)
    assert np.abs(shifted - plain).max() > 1e-3
    # All that the way up knows of the middle is h: with another middle, the difference of the two h makes it good.
    other = jax.tree.map(lambda leaf: leaf, params)
    other["params"]["middle_block_1"] = jax.tree.map(lambda leaf: 1.5 * leaf, params["params"]["middle_block_1"])
    _, state = UNET.apply(other, x_t, t, context=context, mutable="intermediates")
    back = apply(other, x_t, t, context=context, shift=h - state["intermediates"]["bottleneck"][0])
    np.testing.assert_allclose(back, plain, rtol=1e-3, atol=1e-3)


def test_the_order_of_attributes_and_the_parameters_without_a_context_stay():
    net = UNet(4, (1, 2), 1, (2,), 0.5, 2, 3, 2, 10.0, jnp.bfloat16)
    assert (net.groups, net.num_classes, net.patch, net.time_scale, net.dtype) == (2, 3, 2, 10.0, jnp.bfloat16)
    args = jnp.zeros((2, 8, 8, 1)), jnp.zeros(2), jnp.zeros(2, jnp.int32)
    variables = jax.eval_shape(net.init, jax.random.key(0), *args)
    assert list(variables) == ["params"]
    assert not [name for name in variables["params"] if "context" in name]


BAD = [
    ({}, r"Expected a context where.*context_attention=\(2,\); got None"),
    ({"context": jnp.zeros((2, 3))}, r"floating-point context \[2, tokens, features\].*\(2, 3\)"),
    ({"context": jnp.zeros((3, 5, 3))}, r"context \[2, tokens, features\].*\(3, 5, 3\)"),
    ({"context": jnp.zeros(CONTEXT, jnp.int32)}, "floating-point context.*int32"),
    ({"context": jnp.zeros(CONTEXT), "context_mask": jnp.ones((2, 4), bool)}, r"mask of shape \(2, 5\).*\(2, 4\)"),
    ({"context": jnp.zeros(CONTEXT), "context_mask": jnp.ones((2, 5))}, "boolean mask.*float32"),
    ({"context": jnp.zeros(CONTEXT), "shift": jnp.zeros((1, 2, 2, 8))}, r"bottleneck, \(2, 2, 2, 8\).*\(1, 2, 2, 8\)"),
    ({"context": jnp.zeros(CONTEXT), "shift": jnp.zeros((2, 2, 2, 8), jnp.int32)}, "shift to be floating.*int32"),
]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("kwargs", "message"), BAD)
def test_unet_refuses(kwargs, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x, t: UNET.init(jax.random.key(0), x, t, **kwargs), jnp.zeros((2, 4, 4, 1)), jnp.zeros(2))


@pytest.mark.parametrize(
    ("net", "kwargs", "message"),
    [
        (UNET.clone(context_attention=()), {"context": jnp.zeros(CONTEXT)}, r"else none.*\(2, 5, 3\)"),
        (UNET.clone(context_attention=()), {"context_mask": jnp.ones((2, 5), bool)}, "context_mask=None"),
        (UNET.clone(context_attention=(8,)), {"context": jnp.zeros(CONTEXT)}, r"among \[4, 2\].*context_attention=\(8"),
        (UNET.clone(context_heads=3), {"context": jnp.zeros(CONTEXT)}, "heads=3, channels=8"),
    ],
)
def test_unet_refuses_a_context_that_it_does_not_look_at(net, kwargs, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x, t: net.init(jax.random.key(0), x, t, **kwargs), jnp.zeros((2, 4, 4, 1)), jnp.zeros(2))
