"""The text encoder: padding, order, and the null caption."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from dgm_jax.networks import Text, TextEncoder

TOKENS = jnp.array([[3, 1, 0, 0], [2, 2, 4, 1]])
NET = TextEncoder(5, 8, longest=6, blocks=1, heads=2)


def random_params(net, tokens=TOKENS):
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(net.init, jax.random.key(0), tokens)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


@pytest.fixture(scope="module")
def encoder():
    return random_params(NET), jax.jit(NET.apply)


def norm(x, weights):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * weights["scale"] + weights["bias"]


def dense(x, weights):
    return x @ weights["kernel"] + weights["bias"]


def test_equals_numpy(encoder):
    params, apply = encoder
    context, mask = apply(params, TOKENS)
    np.testing.assert_array_equal(mask, [[True, True, False, False], [True] * 4])
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    for row, tokens in enumerate(np.asarray(TOKENS)):
        tokens = tokens[tokens != 0]  # padding is on the right here, so that the others keep their positions
        h = p["token"]["embedding"][tokens] + p["position"][: len(tokens)]
        block = p["block_0"]
        normed = norm(h, block["norm_1"])
        query, key, value = (dense(normed, block[name]) for name in ("query", "key", "value"))
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            heads.append(scipy.special.softmax(query[:, part] @ key[:, part].T / 2.0, axis=-1) @ value[:, part])
        h = h + dense(np.concatenate(heads, -1), block["out"])
        inner = dense(norm(h, block["norm_2"]), block["mlp_1"])
        gelu = 0.5 * inner * (1 + np.tanh(np.sqrt(2 / np.pi) * (inner + 0.044715 * inner**3)))  # GELU's tanh form
        h = norm(h + dense(gelu, block["mlp_2"]), p["norm_out"])
        np.testing.assert_allclose(context[row, : len(tokens)], h, rtol=1e-3, atol=1e-4)


def test_padding_and_the_length_of_a_batch_do_not_matter(encoder):
    params, apply = encoder
    context, _ = apply(params, TOKENS)
    longer = jnp.concatenate([TOKENS, jnp.zeros((2, 2), TOKENS.dtype)], axis=1)
    np.testing.assert_allclose(apply(params, longer).context[:, :4], context, rtol=1e-5, atol=1e-6)
    # What stands in the padding's own row of the table reaches no word.
    changed = jax.tree.map(lambda leaf: leaf, params)
    table = params["params"]["token"]["embedding"]
    changed["params"]["token"]["embedding"] = table.at[0].add(10.0)
    np.testing.assert_allclose(apply(changed, TOKENS).context[0, :2], context[0, :2], rtol=1e-5, atol=1e-6)


def test_the_order_of_words_matters_and_every_word_reads_the_others(encoder):
    params, apply = encoder
    context = apply(params, TOKENS).context
    swapped = apply(params, TOKENS.at[0, :2].set(jnp.array([1, 3]))).context
    assert np.abs(swapped[0, 1] - context[0, 0]).max() > 1e-2  # the same word at another place
    other = apply(params, TOKENS.at[1, 3].set(3)).context
    assert (np.abs(other[1] - context[1]).max(-1) > 1e-3).all()
    np.testing.assert_allclose(other[0], context[0], rtol=1e-5, atol=1e-6)  # and no other caption


def test_the_null_caption_is_masked_and_finite_with_its_gradient(encoder):
    params, _ = encoder
    null = jnp.zeros_like(TOKENS)
    out = NET.apply(params, null)
    assert isinstance(out, Text)
    assert not out.mask.any()
    assert np.isfinite(out.context).all()
    gradient = jax.jit(jax.grad(lambda params: (NET.apply(params, null).context ** 2).sum()))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_under_jit_numbers_that_are_no_words_give_nan(encoder):
    params, apply = encoder
    for wrong in (-1, 5):
        context = apply(params, TOKENS.at[0, 0].set(wrong)).context
        assert np.isnan(context[0, 0]).all()


def test_gradients_reach_every_parameter(encoder):
    params, _ = encoder
    gradient = jax.jit(jax.grad(lambda params: jnp.sum(NET.apply(params, TOKENS).context ** 3)))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        if "['key']['bias']" not in jax.tree_util.keystr(path):  # adds one number to all logits of a query
            assert np.abs(leaf).max() > 0, path


def test_bfloat16_keeps_float32_parameters():
    half = NET.clone(dtype=jnp.bfloat16)
    (context, _), params = jax.eval_shape(half.init_with_output, jax.random.key(0), TOKENS)
    assert context.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


BAD = [
    (NET, TOKENS[0], r"integer tokens \[batch, tokens\].*\(4,\)"),
    (NET, TOKENS.astype(jnp.float32), "integer tokens.*float32"),
    (NET, jnp.ones((2, 7), int), "at most longest=6.*7"),
    (NET, TOKENS + 1, r"tokens in \[0, 4\].*\[1, 5\]"),
    (NET, TOKENS - 1, r"tokens in \[0, 4\].*\[-1, 3\]"),
    (NET.clone(heads=3), TOKENS, "heads=3, channels=8"),
    (NET.clone(blocks=-1), TOKENS, "blocks >= 0.*-1"),
    (NET, TOKENS[:0], r"integer tokens \[batch, tokens\].*\(0, 4\)"),
    (NET.clone(features=0), TOKENS, "widths and sizes >= 1"),
]


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize(("net", "tokens", "message"), BAD)
def test_refuses(net, tokens, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), tokens) if "tokens in" not in message else net.apply({}, tokens)
