"""One contract for every loss, sampler and likelihood: functions of (params, x, keys) with one row per example.

Each is run with a small MLP, its parameters an argument, so that what is tested is the use that researchers make.
"""

import collections
import functools

import chex
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract_cases import BATCH, CASES, EVERY, TS, VP, arguments, denoiser

from dgm_jax.numerics import normal_like
from dgm_jax.samplers import (
    solve_ode,
    solve_sde,
)
from dgm_jax.training import parallel


@functools.cache
def compiled(name):
    """The case, compiled once for all of its tests and traced once for each size of the batch.

    It runs under JAX's checker of keys, which is part of what is compiled, but for the Brownian trees of adaptive
    steps, as they ask their keys again by design.
    """
    case, traces = EVERY[name], collections.Counter()

    @jax.jit
    def function(params, x, keys):
        traces[x.shape] += 1
        return case(params, x, keys)

    def run(params, x, keys):
        with jax.debug_key_reuse(name in CASES):
            rows = function(params, x, keys)
        assert set(traces.values()) == {1}
        return rows

    return run


@functools.cache
def of_any_precision(name):
    """The case under `jit`, whose trace in float64 two tests share."""
    return jax.jit(EVERY[name])


SLICE = 3
every = functools.partial(pytest.mark.parametrize, "name", scope="module")  # all tests of a case, then the next case's


@every(EVERY)
def test_pure_and_traced_once(name):
    """The same arguments give the same bits; new parameters, data and keys give others without a new trace."""
    function = compiled(name)
    first, again, other = function(*arguments()), function(*arguments()), function(*arguments(seed=1))
    np.testing.assert_array_equal(first, again)
    assert np.isfinite(first).all()
    assert not np.array_equal(first, other)
    assert len(first) == BATCH


@every(CASES)
def test_each_key_is_used_once(name):
    """JAX's own checker, inside the program and around it: keys that were given are used up."""
    params, x, keys = arguments()
    assert np.isfinite(compiled(name)(params, x, keys)).all()


def test_the_checker_of_keys_sees_a_key_used_twice():
    def twice(params, x, keys):
        return normal_like(keys, x) + normal_like(keys, x)

    function = jax.jit(twice)
    function(*arguments())  # compiled without it
    for _ in range(2):
        with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
            function(*arguments())


@every(CASES)
def test_rows_depend_on_their_own_example_and_key(name):
    """Permuting examples with their keys permutes the rows; a slice of both gives the slice."""

    def rows_of(chosen):
        params, x, keys = arguments()  # anew, as a call uses its keys up
        return compiled(name)(params, x[chosen], keys[chosen])

    rows, order = compiled(name)(*arguments()), np.random.default_rng(0).permutation(BATCH)
    np.testing.assert_allclose(rows_of(order), rows[order], rtol=2e-5, atol=2e-6)
    np.testing.assert_allclose(rows_of(np.arange(SLICE)), rows[:SLICE], rtol=2e-5, atol=2e-6)


@every([*CASES, "solve_ode, adaptive"])
def test_vmap_over_parameters(name):
    """Adaptive SDEs are left out: a Brownian path is so rough that rounding alone moves their steps."""
    with jax.enable_x64(True):  # in float32 rounding can flip an adaptive step's acceptance
        both = [arguments(np.float64)[0], arguments(np.float64, seed=1)[0]]
        _, x, keys = arguments(np.float64)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *both)
        mapped = jax.jit(jax.vmap(EVERY[name], in_axes=(0, None, None)))(stacked, x, keys)
        single = of_any_precision(name)
        for i, params in enumerate(both):
            np.testing.assert_allclose(mapped[i], single(params, x, keys), rtol=1e-9, atol=1e-9)


@every(CASES)
def test_precision_is_the_inputs(name):
    """float32 in, float32 out; float64 in, float64 out."""
    with jax.enable_x64(True):
        for dtype in (np.float32, np.float64):
            out = jax.eval_shape(of_any_precision(name), *arguments(dtype))
            assert out.dtype == (np.float64 if name == "dequantize" else dtype)


@pytest.mark.parametrize("name", [name for name in CASES if "loss" in name or "error" in name])
def test_losses_have_finite_gradients(name):
    params, x, keys = arguments()
    gradient = jax.jit(jax.grad(lambda params: CASES[name](params, x, keys).mean()))(params)
    chex.assert_tree_all_finite(gradient)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("kind", ["ode", "sde"])
def test_samplers_have_the_gradient_of_finite_differences(kind):
    with jax.enable_x64(True):
        params, x, keys = arguments(np.float64)

        def objective(scale):
            options = {"ts": TS, "adjoint": diffrax.DirectAdjoint()}
            scaled = denoiser(jax.tree.map(lambda leaf: leaf * scale, params))
            if kind == "ode":
                return jnp.mean(solve_ode(scaled, VP, x, **options).x ** 2)
            return jnp.mean(solve_sde(scaled, VP, x, keys, **options).x ** 2)

        value, gradient = jax.jit(objective), jax.jit(jax.grad(objective))(1.0)
        difference = (value(1 + 1e-5) - value(1 - 1e-5)) / 2e-5
        np.testing.assert_allclose(gradient, difference, rtol=1e-5)


@functools.cache
def on_one_device(name):
    return jax.jit(CASES[name])(*arguments())


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@every(["solve_ode", "sample_ode, noise", "solve_sde", "sample_sde, noise"])
def test_any_number_of_devices_draws_the_same_samples(name, devices):
    """ODE samples to the last bit; SDE samples to a rounding, as XLA contracts the noise's product and sum or not.

    From jax 0.11 on, matrix kernels too depend on the number of rows.
    """
    params, x, keys = arguments()
    whole = on_one_device(name)
    sampler = parallel.pmap_sampler(lambda params, keys, x: CASES[name](params, x, keys), jax.devices()[:devices])
    split = sampler(params, keys, x)
    np.testing.assert_allclose(split, whole, rtol=1e-6, atol=1e-6)
    if "ode" in name and jax.__version_info__ < (0, 11):
        np.testing.assert_array_equal(split, whole)


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_any_number_of_devices_has_the_same_gradient(devices):
    params, x, keys = arguments()
    gradient = jax.grad(lambda params, x, keys: CASES["diffusion_loss, simple"](params, x, keys).mean())
    whole = jax.jit(gradient)(params, x, keys)
    shards = [a.reshape(devices, -1, *a.shape[1:]) for a in (x, keys)]
    each = jax.pmap(gradient, in_axes=(None, 0, 0), devices=jax.devices()[:devices])(params, *shards)
    mean = jax.tree.map(lambda leaf: np.asarray(leaf).mean(0), each)
    chex.assert_trees_all_close(mean, whole, rtol=1e-5, atol=1e-6)
