"""DDPM++ and NCSN++: parameters as published, filters against scipy, recomputation that changes nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
import scipy.stats

from dgm_jax.networks import (
    ScoreUNet,
    UNet,
    blur,
    ddpmpp_cifar10,
    edm_ddpmpp_cifar10,
    edm_ncsnpp_cifar10,
    fir_downsample,
    fir_upsample,
    mean_downsample,
    ncsnpp_cifar10,
    repeat_upsample,
)
from dgm_jax.networks.score_unet import fourier_frequencies

TAPS = np.array([1.0, 3.0, 3.0, 1.0])


# sizes ----------------------------------------------------------------------------------------------------------


def parameters(net, side=32):
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, side, side, 3)), jnp.zeros(1))
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_ddpmpp_has_its_published_size():
    """61,804,419: Liu et al.'s rectified flow uses this network; counted in arXiv:2509.15591, appendix."""
    assert parameters(ddpmpp_cifar10()) == 61_804_419


def test_edm_ddpmpp_has_its_published_size():
    """EDM's own code counts 55,733,891, with a layer for the 9 labels of its augmentation, which is not here."""
    assert parameters(edm_ddpmpp_cifar10()) + 9 * 128 == 55_733_891


def conv(i, o):
    return 9 * i * o + o


def dense(i, o):
    return i * o + o


def norm(c):
    return 2 * c


def block(i, o, resized=False):
    shortcut = dense(i, o) if resized or i != o else 0
    return norm(i) + conv(i, o) + dense(512, o) + norm(o) + conv(o, o) + shortcut


def attention(c):
    return norm(c) + 4 * dense(c, c)


@pytest.mark.parametrize(
    ("net", "widths"), [(ncsnpp_cifar10(), (128, 256, 256, 256)), (edm_ncsnpp_cifar10(), (256, 256, 256))]
)
def test_ncsnpp_has_the_size_of_its_layers(net, widths):
    """The layers of Score SDE's appendix H counted one by one, at 4 blocks a level and attention at 16 x 16."""
    total = dense(256, 512) + dense(512, 512) + conv(3, 128)  # of the features of log sigma; the first convolution
    width, image, skips = 128, 3, [128]
    for level, features in enumerate(widths):
        if level:
            total += block(width, width, resized=True) + conv(image, width)
            image = width
            skips.append(width)
        for _ in range(4):
            total += block(width, features) + (attention(features) if level == 1 else 0)
            width = features
            skips.append(width)
    total += 2 * block(width, width) + attention(width)
    for level, features in reversed(list(enumerate(widths))):
        for _ in range(5):
            total += block(width + skips.pop(), features)
            width = features
        total += (attention(width) if level == 1 else 0) + (block(width, width, resized=True) if level else 0)
    assert parameters(net) == total + norm(width) + conv(width, 3)
    assert round(total / 1e6, 1) == {4: 62.8, 3: 56.4}[len(widths)]


# resizing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def image():
    return np.random.default_rng(0).normal(size=(2, 6, 8, 3))


def rows(function, x):
    """`function` of each column, then of each row, of each channel."""
    return np.apply_along_axis(function, 2, np.apply_along_axis(function, 1, x))


def test_filters_against_scipy(image):
    """upfirdn: zeros between values, filter, every second value; aligned so that both sides lose as much."""
    with jax.enable_x64(True):
        x = jnp.asarray(image)
        down, up, blurred = fir_downsample(x), fir_upsample(x), blur(x, pad=2)
    np.testing.assert_allclose(down, rows(lambda v: scipy.signal.upfirdn(TAPS / 8, v)[2:-1:2], image), atol=1e-14)
    np.testing.assert_allclose(up, rows(lambda v: scipy.signal.upfirdn(TAPS / 4, v, 2)[1:-1], image), atol=1e-14)
    np.testing.assert_allclose(blurred, rows(lambda v: np.convolve(np.pad(v, 2), TAPS / 8, "valid"), image), atol=1e-14)


def test_constants_stay_inside_and_means_are_means(image):
    ones = jnp.ones((1, 8, 8, 1))
    np.testing.assert_allclose(fir_downsample(ones)[0, 1:-1, 1:-1], 1.0, rtol=1e-6)
    np.testing.assert_allclose(fir_upsample(ones)[0, 1:-1, 1:-1], 1.0, rtol=1e-6)
    means = mean_downsample(jnp.asarray(image, jnp.float32))
    np.testing.assert_allclose(means[0, 1, 2], image[0, 2:4, 4:6].mean((0, 1)), rtol=1e-5)
    np.testing.assert_array_equal(repeat_upsample(ones * 3), 3 * jnp.ones((1, 16, 16, 1)))


def test_odd_sizes_are_not_halved():
    for down in (fir_downsample, mean_downsample):
        with pytest.raises(ValueError, match="divisible by 2"):
            down(jnp.ones((1, 5, 4, 1)))


def test_frequencies_are_quantiles():
    """Their law is that of |N(0, 16^2)|, by the Kolmogorov distance, which is 1/2n at best."""
    found = fourier_frequencies(128)
    distance = scipy.stats.kstest(found, scipy.stats.halfnorm(scale=16.0).cdf).statistic
    assert distance == pytest.approx(1 / 256, abs=1e-9)


# recomputation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "net", [UNet(8, (1, 2), 1, (8,), 0.3, groups=4), ScoreUNet(8, (1, 2), 1, (8,), 0.3, True)], ids=["unet", "ncsn++"]
)
def test_recomputation_changes_memory_alone(net):
    """The same parameters by name, the same gradients with dropout to rounding; fewer bytes between the passes."""
    x, t, key = jnp.ones((4, 16, 16, 3)), jnp.full(4, 0.3), jax.random.key(0)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(net.init, key, x, t)
    params = jax.tree.map(lambda s: jnp.asarray(0.2 * rng.normal(size=s.shape), s.dtype), shapes)
    gradients, kept = [], []
    for remat in (False, True):
        network = net.clone(remat=remat)
        assert jax.tree.structure(jax.eval_shape(network.init, key, x, t)) == jax.tree.structure(shapes)

        def loss(params, network=network):
            return (network.apply(params, x, t, train=True, rngs={"dropout": key}) ** 2).mean()

        gradients.append(jax.tree.leaves(jax.jit(jax.grad(loss))(params)))
        residuals = jax.tree.leaves(jax.eval_shape(lambda p, loss=loss: jax.vjp(loss, p)[1], params))
        kept.append(sum(leaf.size for leaf in residuals) - sum(leaf.size for leaf in jax.tree.leaves(shapes)))
    largest = max(float(jnp.abs(leaf).max()) for leaf in gradients[0])  # that of a key's bias is nothing but rounding
    for one, other in zip(*gradients, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6 * largest)
    assert kept[1] < 0.5 * kept[0]


# refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "shape", "words"),
    [
        (ScoreUNet(8, (1, 2, 2), 1), (1, 10, 8, 3), "height and width divisible by 4"),
        (ScoreUNet(8, (1, 2), 1, (3,)), (1, 8, 8, 3), "attention at heights among"),
        (ScoreUNet(10, (1, 2), 1), (1, 8, 8, 3), "multiple of 4"),
        (ScoreUNet(8, (), 1), (1, 8, 8, 3), "one or more multipliers"),
        (ScoreUNet(8, (1,), 0), (1, 8, 8, 3), "blocks >= 1"),
        (ScoreUNet(8, (1,), 1), (8, 8, 3), "images \\[batch, height"),
    ],
)
def test_refusals(net, shape, words):
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(net.init, jax.random.key(0), jnp.zeros(shape), jnp.zeros(shape[0]))
