"""Generators and critics: shapes, initial scales, independence of the batch; spectral norms against NumPy's."""

from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgm_jax.networks import (
    DCGANCritic,
    DCGANGenerator,
    DenseCritic,
    DenseGenerator,
    InstanceNorm,
    layer_norm,
    spectral_normalize,
)
from dgm_jax.networks.dcgan import _halved, upsample

KEY = jax.random.key(0)
LATENT = 5
GENERATORS = {
    "dense, points": (DenseGenerator((8, 8), (2,)), (2,)),
    "dense, a matrix": (DenseGenerator((8,), (3, 2), output=jnp.tanh), (3, 2)),
    "dense, numbers": (DenseGenerator((), ()), ()),
    "dcgan, layer": (DCGANGenerator((4, 3), (8, 8, 1)), (8, 8, 1)),
    "dcgan, instance": (DCGANGenerator((4, 3), (8, 12, 2), norm=InstanceNorm), (8, 12, 2)),
    "dcgan, none": (DCGANGenerator((4,), (4, 4, 3), norm=None), (4, 4, 3)),
}
CRITICS = {
    "dense, points": (DenseCritic((8, 8)), (2,)),
    "dense, an image": (DenseCritic((8,)), (3, 2, 1)),
    "dense, numbers": (DenseCritic((4,)), ()),
    "dcgan, layer": (DCGANCritic((3, 4), layer_norm), (8, 8, 1)),
    "dcgan, instance": (DCGANCritic((3, 4), InstanceNorm), (8, 12, 2)),
    "dcgan, none": (DCGANCritic((3,), None), (4, 4, 3)),
}


def batch_of(shape, n=4, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(1).standard_normal((n, *shape)), dtype)


def random_params(net, x):
    """None zero or small, as scales of 0.02 hide what comes before them."""
    rng, shapes = np.random.default_rng(2), jax.eval_shape(net.init, KEY, x)
    return jax.tree.map(lambda leaf: jnp.asarray(0.5 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


CASES = {
    **{f"generator {name}": (net, (LATENT,), event) for name, (net, event) in GENERATORS.items()},
    **{f"critic {name}": (net, event, ()) for name, (net, event) in CRITICS.items()},
}


@pytest.mark.parametrize("name", CASES)
def test_shapes_dtypes_examples_and_gradients(name):
    net, shape, expected = CASES[name]
    x = batch_of(shape)
    params = random_params(net, x)
    apply = jax.jit(net.apply)
    out = apply(params, x)
    assert out.shape == (4, *expected)
    assert out.dtype == x.dtype
    np.testing.assert_allclose(apply(params, x[::-1]), out[::-1], rtol=1e-5, atol=1e-5)
    changed = apply(params, x.at[0].multiply(-3.0))  # a batch mean would pass the permutation
    np.testing.assert_allclose(changed[1:], out[1:], rtol=1e-5, atol=1e-5)
    assert not np.allclose(changed[0], out[0], rtol=1e-3)
    gradients = jax.jit(jax.grad(lambda params: jnp.sum(net.apply(params, x) ** 2)))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(leaf).all(), path
        # a normalised channel forgets the bias before it
        if not ("instance" in name and "bias" in jax.tree_util.keystr(path)):
            assert np.abs(leaf).max() > 0, path
    with jax.enable_x64(True):
        assert jax.eval_shape(net.apply, params, batch_of(shape, dtype=np.float64)).dtype == np.float64


@pytest.mark.parametrize(("side", "channels"), [(28, (8, 4)), (32, (8, 6, 4))])
def test_the_sizes_of_digits_and_of_cifar(side, channels):
    """28 = 7 * 4 takes two doublings and 32 = 4 * 8 three; parameters counted by hand."""
    generator, critic = DCGANGenerator(channels, (side, side, 3)), DCGANCritic(channels[::-1], layer_norm)
    z, x = jnp.zeros((2, 16)), jnp.zeros((2, side, side, 3))
    images, params = jax.eval_shape(generator.init_with_output, KEY, z)
    assert images.shape == x.shape
    start = side // 2 ** len(channels)
    chain = [*channels, 3]
    expected = 17 * start**2 * channels[0] + sum(2 * c for c in channels)
    expected += sum(9 * i * o + o for i, o in pairwise(chain))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected
    logits, params = jax.eval_shape(critic.init_with_output, KEY, x)
    assert logits.shape == (2,)
    chain = [3, *channels[::-1]]
    expected = start**2 * chain[-1] + 1 + sum(2 * c for c in chain[2:])  # no norm after the first
    expected += sum(16 * i * o + o for i, o in pairwise(chain))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected


def leaves(params, name):
    return {
        jax.tree_util.keystr(path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if jax.tree_util.keystr(path).endswith(f"['{name}']")
    }


def check_std(values, std):
    """Four standard errors of a standard deviation; truncated normal values have a smaller one than normal values."""
    assert abs(values.std() / std - 1) < 4 / np.sqrt(2 * values.size)


def test_initial_scales():
    """DCGAN's 0.02 for convolutions, He's sqrt(2/in) before rectifiers, Glorot's sqrt(2/(in + out)) elsewhere."""
    params = jax.jit(DCGANCritic((32, 32), None).init)(KEY, jnp.zeros((1, 8, 8, 3)))
    for path, kernel in leaves(params, "kernel").items():
        check_std(kernel, 0.02 if "conv" in path else np.sqrt(2 / (kernel.shape[0] + 1)))
    params = jax.jit(DCGANGenerator((32, 16), (8, 8, 3)).init)(KEY, jnp.zeros((1, 64)))
    for path, kernel in leaves(params, "kernel").items():
        check_std(kernel, 0.02 if "conv" in path else np.sqrt(2 / (64 + 4 * 32)))
    params = jax.jit(DenseCritic((128, 64)).init)(KEY, jnp.zeros((1, 32)))
    for path, kernel in leaves(params, "kernel").items():
        check_std(kernel, np.sqrt(2 / 65) if "out" in path else np.sqrt(2 / kernel.shape[0]))
    assert all((bias == 0).all() for bias in leaves(params, "bias").values())


def test_norms_against_numpy():
    """Layer norm over pixels and channels of an example, instance norm over the pixels of each of its channels."""
    x = batch_of((4, 6, 3)) * 2 + 1
    for norm, axes in ((layer_norm, (1, 2, 3)), (InstanceNorm, (1, 2))):
        module = norm(name="norm")
        found = jax.jit(module.init_with_output)(KEY, x)[0]
        expected = (x - x.mean(axes, keepdims=True)) / x.std(axes, keepdims=True)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_images_are_tanhs_and_doubling_repeats_pixels():
    net = DCGANGenerator((4, 4), (8, 8, 1))
    z = batch_of((LATENT,))
    images = np.asarray(jax.jit(net.apply)(random_params(net, z), z))
    assert np.abs(images).max() <= 1
    assert images.std() > 0.1
    x = batch_of((2, 3, 2))
    np.testing.assert_array_equal(upsample(x), np.repeat(np.repeat(x, 2, axis=1), 2, axis=2))


# ----------------------------------------------------------------------------------------------------------------
# Spectral norms


def kernels(params):
    return [np.asarray(kernel, np.float64) for kernel in leaves(params, "kernel").values()]


def test_the_critics_convolution_is_xlas_in_value_and_second_derivative():
    """Written as a product of patches; the second derivative is that of a gradient penalty in the kernel."""
    key_x, key_kernel = jax.random.split(KEY)
    x, kernel = jax.random.normal(key_x, (2, 6, 8, 3)), jax.random.normal(key_kernel, (4, 4, 3, 5))

    def by_xla(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    def penalty(convolution):
        return jax.grad(lambda k: jnp.sum(jax.grad(lambda x: jnp.sum(jnp.sin(convolution(x, k))))(x) ** 2))

    bound = 48 * jnp.finfo(x.dtype).eps  # each output sums 48 products
    for found, expected in (
        (_halved(x, kernel), by_xla(x, kernel)),
        (penalty(_halved)(kernel), penalty(by_xla)(kernel)),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=bound * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(("net", "event"), [(DenseCritic((16, 8)), (6,)), (DCGANCritic((3, 5), layer_norm), (8, 8, 2))])
def test_every_kernel_is_over_numpys_largest_singular_value(net, event):
    """The error after k iterations is at most tan(angle of the start)^2 (sigma_2/sigma_1)^(4 k)."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), random_params(net, batch_of(event)))
        normalized = jax.jit(partial(spectral_normalize, iterations=200))(params)
        for before, after in zip(kernels(params), kernels(normalized), strict=True):
            values = np.linalg.svd(before.reshape(-1, before.shape[-1]), compute_uv=False)
            gap = values[1] / values[0] if len(values) > 1 else 0.0
            np.testing.assert_allclose(after, before / values[0], rtol=1e-12 + 1e4 * gap**800)
        for name in ("bias", "scale"):
            for before, after in zip(leaves(params, name).values(), leaves(normalized, name).values(), strict=True):
                np.testing.assert_array_equal(after, before)


def test_the_estimate_is_from_below_and_improves():
    """Every iteration improves it, up to rounding; with singular values 2, 1.5, ... the error falls as 0.75^(4 k)."""
    u, _, v = np.linalg.svd(np.random.default_rng(3).standard_normal((30, 20)), full_matrices=False)
    values = np.array([2.0, 1.5, *np.linspace(1, 0.1, 18)])
    params = {"kernel": jnp.asarray(u @ np.diag(values) @ v, jnp.float32)}
    norms = [np.linalg.norm(np.asarray(spectral_normalize(params, iterations=k)["kernel"]), 2) for k in (1, 3, 10, 30)]
    assert all(earlier > later - 1e-6 for earlier, later in pairwise(norms))
    assert norms[0] > 1.01
    np.testing.assert_allclose(norms[-1], 1, rtol=1e-5)


def test_the_gradient_is_that_of_the_largest_singular_value():
    """d sigma_1/dW = u v^T is exact, although u and v themselves have no gradient; against differences through SVD."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(4)
        w, direction, probe = rng.standard_normal((3, 6, 4))

        def through_svd(step):
            moved = w + step * direction
            return np.sum(probe * moved) / np.linalg.norm(moved, 2)

        def through_iterations(step):
            params = {"kernel": jnp.asarray(w) + step * direction}
            return jnp.sum(probe * spectral_normalize(params, iterations=300)["kernel"])

        difference = (through_svd(1e-6) - through_svd(-1e-6)) / 2e-6
        np.testing.assert_allclose(jax.jit(jax.grad(through_iterations))(0.0), difference, rtol=1e-6, atol=1e-8)


def test_a_normalised_dense_critic_is_1_lipschitz():
    net = DenseCritic((16, 16))
    x = 3 * batch_of((4,), 200)
    params = random_params(net, x)
    critic = partial(net.apply, spectral_normalize(params, iterations=100))
    slopes = jnp.linalg.norm(jax.vmap(jax.grad(lambda x: critic(x[None])[0]))(x), axis=1)
    assert slopes.max() <= 1 + 1e-4
    plain = jnp.linalg.norm(jax.vmap(jax.grad(lambda x: net.apply(params, x[None])[0]))(x), axis=1)
    assert plain.max() > 2


def test_a_kernel_of_zeros_stays_and_has_a_finite_gradient():
    def total(params):
        return spectral_normalize(params, iterations=5)["a"]["kernel"].sum()

    params = {"a": {"kernel": jnp.zeros((3, 2)), "bias": jnp.ones(2)}}
    value, gradient = jax.value_and_grad(total)(params)
    assert value == 0
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def initialise(net, x):
    return lambda: net.init(KEY, x)


X, Z = jnp.zeros((2, 8, 8, 1)), jnp.zeros((2, 3))
BAD = {
    "images of another rank": (initialise(DCGANCritic((4,), None), X[0]), r"images \[batch.*\(8, 8, 1\)"),
    "integer images": (initialise(DCGANCritic((4,), None), X.astype(int)), "floating-point images.*int"),
    "odd sides": (initialise(DCGANCritic((4, 4), None), X[:, :6]), "divisible by 4.*halves.*6"),
    "odd events": (initialise(DCGANGenerator((4, 4), (6, 8, 1)), Z), "divisible by 4.*doubling.*6"),
    "no channels": (initialise(DCGANCritic((), None), X), "one or more channels"),
    "no channels to start from": (initialise(DCGANGenerator((), (8, 8, 1)), Z), "one or more channels"),
    "channels of zero": (initialise(DCGANCritic((4, 0), None), X), "widths.*4, 0"),
    "latents that are images": (initialise(DCGANGenerator((4,), (8, 8, 1)), X), r"\[batch, latent\]"),
    "integer latents": (initialise(DenseGenerator((4,), (2,)), Z.astype(int)), "z to be a floating-point"),
    "widths of zero": (initialise(DenseGenerator((4, 0), (2,)), Z), "widths.*4, 0"),
    "integer points": (initialise(DenseCritic((4,)), Z.astype(int)), "x to be a floating-point"),
    "no iterations": (lambda: spectral_normalize({"kernel": Z}, iterations=0), "iterations >= 1.*0"),
    "no kernels": (lambda: spectral_normalize({"weights": Z}, iterations=1), 'named "kernel".*weights'),
    "no parameters": (lambda: spectral_normalize({}, iterations=1), "got no leaves"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, untyped):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=f"Expected.*{message}"):
        call()
