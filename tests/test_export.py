"""Samplers as bytes: exported here, run anywhere that has JAX, at one batch size or at any."""

import subprocess
import sys
import textwrap

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import BATCH, CASES, TS, VP, arguments, denoiser

from dgm_jax import latents
from dgm_jax.networks import UNet
from dgm_jax.parameterizations import as_denoiser
from dgm_jax.processes import uniform, variance_preserving
from dgm_jax.samplers import resample, sample_sde, smc
from dgm_jax.training import pack

OTHERS = ("loss", "likelihood", "bound", "error", "kl", "quanti", "precondition", "sizes")
SAMPLERS = [name for name in CASES if not any(word in name for word in OTHERS)]


def from_bytes(function, *args):
    """The function, exported for these arguments' shapes, as one that received its bytes has it."""
    exported = jax.export.export(jax.jit(function))(*args)
    return jax.export.deserialize(exported.serialize()).call


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("name", SAMPLERS)
def test_an_exported_sampler_draws_the_same_samples(name):
    """To the bit at the batch it was exported for; at any other, each row up to rounding."""
    params, x, keys = arguments()
    whole = jax.jit(CASES[name])(params, x, keys)
    np.testing.assert_array_equal(from_bytes(CASES[name], *shapes((params, x, keys)))(params, x, keys), whole)

    (batch,) = jax.export.symbolic_shape("batch")
    any_x, any_keys = jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype), jax.ShapeDtypeStruct((batch,), keys.dtype)
    of_any_size = from_bytes(CASES[name], shapes(params), any_x, any_keys)
    for size in (BATCH, 7):
        rows = of_any_size(params, x[:size], keys[:size])
        np.testing.assert_allclose(rows, whole[:size], rtol=2e-5, atol=2e-6)


def particles(params, x, keys):
    def near(x):
        return -jnp.sum((x - 0.3) ** 2, axis=1)

    return smc(denoiser(params), VP, near, lambda estimate, t: near(estimate), keys[0], x.shape, ts=TS)


OF_WHOLE_BATCHES = {  # a result for all examples together, or a batch of another size
    "smc": particles,
    "resample": lambda params, x, keys: resample(particles(params, x, keys), keys[1], 5),
    "pack": lambda params, x, keys: pack(x, degree=2),
    "edit": lambda params, x, keys: latents.edit(x, x[0], x[:, 0]),
    "mean_direction": lambda params, x, keys: latents.mean_direction(x, labels_of(x)),
    "logistic_direction": lambda params, x, keys: latents.logistic_direction(x, labels_of(x), penalty=1.0),
    "linear_separability": lambda params, x, keys: latents.linear_separability(x, labels_of(x), penalty=1.0),
    "reconstruction_error": lambda params, x, keys: latents.reconstruction_error(
        latents.LatentSpace(jnp.tanh, jnp.tanh), x
    ),
    "perceptual_path_length": lambda params, x, keys: latents.perceptual_path_length(
        jnp.tanh, x, x[:, ::-1], jnp.sin, keys, epsilon=0.5, rule=latents.spherical
    ),
    "direction_effects": lambda params, x, keys: latents.direction_effects(
        jnp.tanh, x, jnp.eye(3), jnp.sin, strength=0.5
    ),
}


def labels_of(x):
    return (x[:, 0] > 0.3).astype(jnp.int32)


@pytest.mark.parametrize("name", OF_WHOLE_BATCHES)
def test_an_export_takes_batches_of_any_even_size(name):
    params, x, keys = arguments()

    def function(*args):
        return jax.tree.leaves(OF_WHOLE_BATCHES[name](*args))  # as named tuples are not written

    (half,) = jax.export.symbolic_shape("half")
    any_x = jax.ShapeDtypeStruct((2 * half, *x.shape[1:]), x.dtype)
    of_any_size = from_bytes(function, shapes(params), any_x, jax.ShapeDtypeStruct((2 * half,), keys.dtype))
    for size in (BATCH, 6):
        args = params, x[:size], keys[:size]
        for one, other in zip(of_any_size(*args), jax.jit(function)(*args), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


NET = UNet(4, (1, 2), 1, (4,), groups=2, num_classes=3)


def draw(params, keys, labels):
    process = variance_preserving()
    denoise = as_denoiser(lambda x_t, t: NET.apply(params, x_t, t, labels), process, prediction="noise")
    return sample_sde(denoise, process, keys, (keys.shape[0], 8, 8, 1), ts=uniform(4, t_min=1e-3)).x


def test_an_exported_u_net_runs_without_this_library(tmp_path):
    """A class-conditional sampler of any batch size, its parameters an argument, in a process that has JAX alone."""
    keys, labels = jax.random.split(jax.random.key(1), 5), np.array([0, 1, 2, 1, 0], np.int32)
    params = jax.jit(NET.init)(
        jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32), np.zeros(1, np.float32), labels[:1]
    )
    params = jax.tree.map(lambda leaf: leaf + 0.01, params)  # the last convolution starts at zero
    (batch,) = jax.export.symbolic_shape("batch")
    of_any_size = jax.ShapeDtypeStruct((batch,), keys.dtype), jax.ShapeDtypeStruct((batch,), labels.dtype)
    exported = jax.export.export(jax.jit(draw), platforms=["cpu", "tpu", "cuda"])(shapes(params), *of_any_size)
    (tmp_path / "sampler").write_bytes(exported.serialize())
    np.savez(tmp_path / "params.npz", *jax.tree.leaves(params))
    program = textwrap.dedent("""
        import sys
        import jax
        import jax.export
        import numpy as np
        exported = jax.export.deserialize(open("sampler", "rb").read())
        with np.load("params.npz") as file:
            leaves = [file[name] for name in file.files]
        (tree, *_), _ = jax.tree.unflatten(exported.in_tree, [0] * exported.in_tree.num_leaves)
        keys, labels = jax.random.split(jax.random.key(1), 5), np.array([0, 1, 2, 1, 0], np.int32)
        params = jax.tree.unflatten(jax.tree.structure(tree), leaves)
        np.save("samples.npy", exported.call(params, keys, labels))
        assert not {"dgm_jax", "diffrax", "flax", "equinox"} & sys.modules.keys()
    """)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=300)
    samples = np.load(tmp_path / "samples.npy")
    np.testing.assert_allclose(samples, jax.jit(draw)(params, keys, labels), rtol=1e-4, atol=1e-4)
    assert samples.std() > 0.1
