"""The whole networks: parameter counts, shapes, symmetries, conditioning, dtypes and refused inputs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgm_jax.networks import MLP, ScoreUNet, UNet, ddpm_cifar10, unet_8x8, unet_28x28
from dgm_jax.networks.layers import check_inputs
from dgm_jax.typing import Network

BATCH = 3
CLASSES = 2
UNET = UNet(4, (1, 2), 1, (2,), groups=2, num_classes=CLASSES, dropout=0.5, patch=2)
NETWORKS = {
    "unet": (UNET, (8, 8, 1)),
    "ncsn++": (ScoreUNet(8, (1, 2), 1, (4,), 0.5, True, CLASSES, 0.5), (8, 8, 1)),
    "mlp": (MLP((8, 8), embedding=4, num_classes=CLASSES, dropout=0.5), (2, 3)),
}


def inputs(event):
    key_x, key_t = jax.random.split(jax.random.key(1))
    x_t = 1.0 + 2.0 * jax.random.normal(key_x, (BATCH, *event))
    return x_t, jax.random.uniform(key_t, (BATCH,)), jnp.array([0, 1, CLASSES])


def random_params(net, *args):
    """Parameters of the right shapes and none zero, as zero-initialised layers hide what comes before them."""
    rng = np.random.default_rng(2)
    shapes = jax.eval_shape(net.init, jax.random.key(0), *args)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.normal(size=leaf.shape), leaf.dtype), shapes)


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    net, event = NETWORKS[request.param]
    x_t, t, labels = inputs(event)
    params = random_params(net, x_t, t, labels)
    return net, params, x_t, t, labels, jax.jit(net.apply, static_argnames="train")


def parameter_count(net, shape):
    params = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[0]))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def test_ddpm_cifar10_has_the_papers_parameter_count():
    def conv(i, o):
        return 3 * 3 * i * o + o

    def dense(i, o):
        return i * o + o

    def norm(c):
        return 2 * c

    def block(i, o):
        return norm(i) + conv(i, o) + dense(512, o) + norm(o) + conv(o, o) + (dense(i, o) if i != o else 0)

    attention = norm(256) + 4 * dense(256, 256)  # query, key, value, output
    time = dense(128, 512) + dense(512, 512)
    down_32 = conv(3, 128) + 2 * block(128, 128)
    down_16 = conv(128, 128) + block(128, 256) + block(256, 256) + 2 * attention
    down_8 = conv(256, 256) + 2 * block(256, 256)
    down_4 = conv(256, 256) + 2 * block(256, 256)
    middle = 2 * block(256, 256) + attention
    # Skips come back last in, first out; each level starts with its own blocks and ends with the entry to the level.
    up_4 = 3 * block(256 + 256, 256) + conv(256, 256)
    up_8 = 3 * block(256 + 256, 256) + conv(256, 256)
    up_16 = 2 * block(256 + 256, 256) + block(256 + 128, 256) + 3 * attention + conv(256, 256)
    up_32 = block(256 + 128, 128) + 2 * block(128 + 128, 128)
    out = norm(128) + conv(128, 3)
    expected = time + down_32 + down_16 + down_8 + down_4 + middle + up_4 + up_8 + up_16 + up_32 + out
    count = parameter_count(ddpm_cifar10(), (2, 32, 32, 3))
    assert count == expected
    assert round(count / 1e6, 1) == 35.7  # Ho et al. 2020, appendix B


@pytest.mark.parametrize(
    ("net", "shape", "low", "high"), [(unet_8x8(), (2, 8, 8, 1), 0.3, 0.6), (unet_28x28(), (2, 28, 28, 1), 0.6, 1.55)]
)
def test_small_configurations_keep_shape_and_size(net, shape, low, high):
    out, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), jnp.zeros(shape), jnp.zeros(2))
    assert out.shape == shape
    assert out.dtype == jnp.float32
    assert low < parameter_count(net, shape) / 1e6 < high


def test_unet_is_zero_at_initialisation():
    x_t, t, _ = inputs((4, 4, 1))
    out, _ = jax.jit(UNet(4, (1,), 1, groups=2).init_with_output)(jax.random.key(0), x_t, t)
    np.testing.assert_array_equal(out, np.zeros(x_t.shape))


def test_shape_dtype_and_protocol(case):
    net, params, x_t, t, labels, apply = case
    network = partial(net.apply, params)
    assert isinstance(network, Network)
    out = apply(params, x_t, t, labels)
    assert out.shape == x_t.shape
    assert out.dtype == x_t.dtype
    assert np.abs(out).max() > 1e-2


def test_examples_do_not_mix(case):
    _, params, x_t, t, labels, apply = case
    order = jnp.array([2, 0, 1])
    expected = apply(params, x_t, t, labels)[order]
    np.testing.assert_allclose(apply(params, x_t[order], t[order], labels[order]), expected, rtol=1e-4, atol=1e-4)
    # A batch mean would pass the permutation: changing the first example must leave the others.
    changed = apply(params, x_t.at[0].multiply(-3.0), t.at[0].set(0.9), labels.at[0].set(1))
    np.testing.assert_allclose(changed[1:], apply(params, x_t, t, labels)[1:], rtol=1e-4, atol=1e-4)


def test_one_trace_for_two_calls(case):
    net, params, x_t, t, labels, _ = case
    traces = []

    @jax.jit
    def network(params, x_t, t, labels):
        traces.append(1)
        return net.apply(params, x_t, t, labels)

    network(params, x_t, t, labels)
    network(jax.tree.map(jnp.zeros_like, params), -x_t, t / 2, labels)
    assert len(traces) == 1


def test_gradients_are_finite_and_reach_every_parameter(case):
    net, params, x_t, t, labels, _ = case

    def loss(params, x_t, t):
        return jnp.mean(net.apply(params, x_t, t, labels) ** 2)

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    of_params, of_x_t, of_t = gradient(params, x_t, t)
    for path, leaf in jax.tree_util.tree_leaves_with_path(of_params):
        assert np.isfinite(leaf).all(), path
        # A key's bias adds one number to all logits of a query, which softmax ignores.
        if "['key']['bias']" not in jax.tree_util.keystr(path):
            assert np.abs(leaf).max() > 0, path
    assert np.abs(of_x_t).max() > 0
    assert np.abs(of_t).max() > 0
    constant = gradient(params, jnp.ones_like(x_t), jnp.zeros_like(t))  # no variance within any group
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((of_x_t, of_t, constant)))


def test_float64_derivative_agrees_with_differences(case):
    net, params, x_t, t, labels, _ = case
    with jax.enable_x64(True):
        x_t, t = jnp.asarray(np.asarray(x_t), jnp.float64), jnp.asarray(np.asarray(t), jnp.float64)
        direction = jax.random.normal(jax.random.key(5), x_t.shape, jnp.float64)
        network = jax.jit(lambda x: net.apply(params, x, t, labels))
        value, derivative = jax.jvp(network, (x_t,), (direction,))
        assert value.dtype == jnp.float64
        step = 1e-5
        difference = (network(x_t + step * direction) - network(x_t - step * direction)) / (2 * step)
        np.testing.assert_allclose(derivative, difference, rtol=1e-5, atol=1e-5 * float(np.abs(derivative).max()))


def test_dropout_is_off_by_default_and_follows_its_key(case):
    _, params, x_t, t, labels, apply = case
    plain = apply(params, x_t, t, labels)
    keys = jax.random.split(jax.random.key(3))
    first, again, second = (
        apply(params, x_t, t, labels, train=True, rngs={"dropout": k}) for k in (keys[0], keys[0], keys[1])
    )
    np.testing.assert_array_equal(first, again)
    np.testing.assert_array_equal(plain, apply(params, x_t, t, labels, rngs={"dropout": keys[0]}))
    assert np.abs(first - plain).max() > 1e-3
    assert np.abs(first - second).max() > 1e-3


def test_dropout_with_a_key_per_example_ignores_the_batch(case):
    net, params, x_t, t, labels, _ = case
    keys = jax.random.split(jax.random.key(3), BATCH)

    @jax.jit
    @jax.vmap
    def network(x, t, label, key):
        return net.apply(params, x[None], t[None], label[None], train=True, rngs={"dropout": key})[0]

    order = jnp.array([2, 0, 1])
    whole = network(x_t, t, labels, keys)
    np.testing.assert_allclose(
        network(x_t[order], t[order], labels[order], keys[order]), whole[order], rtol=1e-4, atol=1e-4
    )


def test_time_and_labels_change_the_output(case):
    _, params, x_t, t, labels, apply = case
    out = apply(params, x_t, t, labels)
    for other in (apply(params, x_t, t / 2, labels), apply(params, x_t, t, (labels + 1) % (CLASSES + 1))):
        assert (np.abs(other - out).reshape(BATCH, -1).max(axis=1) > 1e-3).all()


def test_time_scale_multiplies_t(case):
    net, params, x_t, t, labels, apply = case
    t = jnp.array([0.0, 0.25, 1.0])  # exact in float32 when scaled
    unscaled = jax.jit(net.clone(time_scale=1.0).apply)(params, x_t, net.time_scale * t, labels)
    np.testing.assert_allclose(unscaled, apply(params, x_t, t, labels), rtol=1e-4, atol=1e-4)


def test_bfloat16_compute_keeps_float32_parameters(case):
    net, params, x_t, t, labels, apply = case
    half = net.clone(dtype=jnp.bfloat16)
    initial = jax.eval_shape(half.init, jax.random.key(0), x_t, t, labels)
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype("float32")}
    jaxpr = jax.make_jaxpr(half.apply)(params, x_t, t, labels)
    products = [e for e in jaxpr.eqns if e.primitive.name in ("conv_general_dilated", "dot_general")]
    assert {e.outvars[0].aval.dtype for e in products} == {jnp.dtype("bfloat16")}
    out, expected = jax.jit(half.apply)(params, x_t, t, labels), apply(params, x_t, t, labels)
    assert out.dtype == x_t.dtype
    roundings = len(products)  # each rounds to 8 bits, at worst all in one direction
    assert np.linalg.norm(out - expected) < roundings * 2.0**-8 * np.linalg.norm(expected)


BAD_UNETS = [
    (UNET, (2, 8), r"Expected images \[batch, height, width, channels\]"),
    (UNET, (2, 10, 8, 1), r"divisible by 4, as patch \* 2\*\*\(levels - 1\) = 4.* got \(10, 8\)"),
    (UNET.clone(patch=1, attention=()), (2, 8, 7, 1), r"divisible by 2.* got \(8, 7\)"),
    (UNET.clone(groups=3), (2, 8, 8, 1), r"multiples of groups=3.*widths=\[4, 4, 8\]"),
    (UNET.clone(attention=(8,)), (2, 8, 8, 1), r"attention at heights among \[4, 2\].*attention=\(8,\)"),
    (UNET.clone(multipliers=()), (2, 8, 8, 1), "one or more multipliers"),
    (UNET.clone(blocks=0), (2, 8, 8, 1), "blocks >= 1.*blocks=0"),
    (UNET.clone(patch=0), (2, 8, 8, 1), "patch >= 1.*patch=0"),
]


@pytest.mark.parametrize(("net", "shape", "message"), BAD_UNETS)
def test_unet_refuses(net, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(2), jnp.zeros(2, jnp.int32))


X, T, LABELS = np.zeros((2, 3), np.float32), np.zeros(2, np.float32), np.array([0, 3])
BAD_INPUTS = [
    (X.astype(np.uint8), T, None, None, "floating-point batch.*uint8"),
    (X, T[:1], None, None, r"t of shape \(2,\).*\(1,\)"),
    (X, LABELS, None, None, "floating-point t.*int64"),
    (X, T, LABELS, None, "labels=None"),
    (X, T, None, 3, "null label of an unconditional call is 3"),
    (X, T, T, 3, "integer labels.*float32"),
    (X, T, LABELS[:1], 3, r"labels of shape \(2,\).*\(1,\)"),
    (X, T, LABELS + 1, 3, r"labels in \[0, 3\].*\[1, 4\]"),
    (X, T, LABELS - 1, 3, r"labels in \[0, 3\].*\[-1, 2\]"),
]


@pytest.mark.parametrize(("x_t", "t", "labels", "num_classes", "message"), BAD_INPUTS)
def test_bad_inputs(x_t, t, labels, num_classes, message):
    with jax.enable_x64(True):
        arrays = [a if a is None else jnp.asarray(a) for a in (x_t, t, labels)]
        with pytest.raises(ValueError, match=message):
            check_inputs(*arrays, num_classes)


def test_networks_check_their_labels(case):
    net, params, x_t, t, _, _ = case
    with pytest.raises(ValueError, match="Expected labels, as the network has num_classes=2"):
        net.apply(params, x_t, t)
    with pytest.raises(ValueError, match="Expected labels=None"):
        net.clone(num_classes=None).apply(params, x_t, t, jnp.zeros(BATCH, jnp.int32))
