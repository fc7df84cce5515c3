"""The papers' configurations as they are: parameters counted, and one real step of each on TFDS's mock data."""

from dataclasses import replace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow_datasets as tfds

from dgm_jax.networks import ddpm_cifar10
from dgm_jax.training import init_state, make_step, with_example_keys
from experiments import _image_data, train_images
from experiments._image_papers import PAPERS, of_paper
from experiments._throughput import Meter, forward_flops

slow = pytest.mark.slow
# Each network and each process once in the normal pass.
EACH = [name if name in ("ddpm", "ncsn++-ve") else pytest.param(name, marks=slow) for name in PAPERS]


def shapes_of(model, size=32):
    labels = (jnp.zeros(1, jnp.int32),) if model.classes else ()
    x = jnp.zeros((1, size, size, 3))
    return jax.eval_shape(model.network.init, jax.random.key(0), x, jnp.zeros(1), *labels)


def model_of(name):
    return train_images.model_of(replace(of_paper(name, train_images.Config()), dtype="float32"), (32, 32, 3))


@pytest.mark.parametrize("name", EACH)
def test_one_step_on_mock_data(monkeypatch, name):
    config = replace(of_paper(name, train_images.Config()), dtype="float32", warmup=1)
    monkeypatch.setattr(_image_data, "source", lambda name, split, *, data_dir: tfds.data_source(name, split=split))
    with tfds.testing.mock_data(num_examples=4):
        records = _image_data.image_records(config.dataset, "train", size=0, classes=config.classes)
        rows = [records[i] for i in range(2)]
        batch = {field: np.stack([row[field] for row in rows]) for field in rows[0]}
    model = model_of(name)
    rng = np.random.default_rng(0)
    # Nothing is zero at the start, so that a gradient reaches every parameter.
    params = jax.tree.map(lambda s: (rng.normal(size=s.shape) * 0.05).astype(np.float32), shapes_of(model))
    optimizer = train_images.optimizer_of(config)
    state = init_state(params, optimizer, jax.random.key(1))
    # Compiling is most of the time: the loss is compiled, the update of hundreds of leaves of few shapes is not.
    loss_fn = jax.jit(model.loss(dropped=config.dropped, flip=config.flip))
    state, metrics = make_step(with_example_keys(loss_fn), optimizer, ema_decay=config.ema_decay)(state, batch)
    assert np.isfinite(metrics["loss"])
    assert 0 < metrics["gradient_norm"] < np.inf
    moments = optax.tree.get(state.opt_state, "mu")
    for path, moment in jax.tree_util.tree_leaves_with_path(moments):
        assert jnp.isfinite(moment).all(), path
        assert jnp.any(moment != 0), path


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("name", ["ddpm", "ddpm++-vp", "ncsn++-ve", "edm-vp", "edm-ve", "edm-class"])
def test_shapes_at_every_resolution(name, size):
    """The image's shape and dtype come back, in bfloat16 and with recomputation too."""
    model = model_of(name)
    params, x, t = shapes_of(model, size), jnp.zeros((2, size, size, 3)), jnp.zeros(2)
    labels = jnp.zeros(2, jnp.int32) if model.classes else None
    for network in (model.network, model.network.clone(dtype=jnp.bfloat16, remat=True)):
        out = jax.eval_shape(network.apply, params, x, t, labels)
        assert (out.shape, out.dtype) == (x.shape, x.dtype)


# speed ----------------------------------------------------------------------------------------------------------


def test_flops_of_the_ddpm_network():
    """Against a count by hand of its products: convolutions where the kernel meets pixels, dense layers, attention."""
    net, found = ddpm_cifar10(), []

    def valid(side, stride):
        """Kernel rows that meet the image, over all places of a 3-row kernel with padding."""
        starts = range(-1 if stride == 1 else 0, side - (1 if stride == 1 else 0), stride)
        return sum(0 <= start + k < side for start in starts for k in range(3))

    def count(call, args, kwargs, context):
        out = call(*args, **kwargs)
        module, x = context.module, args[0] if args else None
        if isinstance(module, nn.Conv):
            stride = 2 if module.strides == (2, 2) else 1
            found.append(2 * x.shape[-1] * module.features * valid(x.shape[1], stride) * valid(x.shape[2], stride))
        elif isinstance(module, nn.Dense):
            found.append(2 * x.size * module.features)
        elif type(module).__name__ == "SelfAttention":
            pixels = x.shape[1] * x.shape[2]
            found.append(2 * 2 * pixels**2 * x.shape[3])
        return out

    def forward(params):
        with nn.intercept_methods(count):
            return net.apply(params, jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))

    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.zeros(1))
    jax.eval_shape(forward, shapes)
    products = sum(found)
    # XLA counts norms and activations too: some ten operations for each of 3 million values
    assert products < forward_flops(net, (32, 32, 3)) < 1.02 * products
    assert products / 2 == pytest.approx(6.06e9, rel=0.05)  # published, counting the padding's zeros: Fang et al. 2023


def test_rates(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    meter = Meter(batch=8, flops=1e6, peak=1e9)
    assert meter.read(1) == {}
    now[0] = 102.0
    assert meter.read(11) == {"examples_per_second": 40.0, "model_flops": 1.2e8, "share_of_peak": 0.12}
    meter.pause()
    assert meter.read(12) == {}
