import re
from functools import partial
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dgm_jax.training import Checkpoints, init_state, make_step, train, with_example_keys
from dgm_jax.training.parallel import (
    data_mesh,
    mesh_fetch,
    mesh_place,
    mesh_sampler,
    mesh_shard,
    mesh_step,
    pmap_sampler,
    pmap_step,
    replicate,
    shard,
    unreplicate,
)

DECAY = 0.9
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
BATCH = 16


class Drawn(NamedTuple):
    x: jax.Array
    path: jax.Array | None
    evaluations: jax.Array


def params():
    rng = np.random.default_rng(0)
    return {
        "in": rng.normal(size=(3, 8)).astype(np.float32),
        "bias": np.zeros(8, np.float32),
        "out": rng.normal(size=(8, 3)).astype(np.float32) / 3,
    }


def network(params, x):
    return jnp.tanh(x @ params["in"] + params["bias"][None]) @ params["out"]


def loss_fn(params, batch, keys):
    """Denoising with a key per example; the metric is a mean over the examples, as the loss is."""
    assert keys.shape == (len(batch),)
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    return jnp.mean((network(params, batch + noise) - batch) ** 2), {"size": jnp.mean(noise**2)}


def batch(n):
    return np.random.default_rng(n).normal(size=(BATCH, 3)).astype(np.float32) * 2 + 1


def fresh():
    return init_state(params(), OPTIMIZER, jax.random.key(4))


def assert_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, **tolerance)


def all_reduces(compiled):
    return len(re.findall(r"= .*\ball-reduce(?:-start)?\(", compiled.as_text()))


def other_collectives(compiled):
    return re.findall(r"\b(?:all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(", compiled.as_text())


@pytest.fixture(scope="module")
def one_device():
    step = jax.jit(make_step(with_example_keys(loss_fn), OPTIMIZER, ema_decay=DECAY))
    state = fresh()
    for n in range(10):
        state, metrics = step(state, batch(n))
    return state, metrics


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_pmap_mesh_and_one_device_train_alike(one_device, n):
    devices = jax.devices()[:n]
    mesh = data_mesh(devices)
    start = fresh()
    stacked, spread = replicate(start, devices), mesh_place(start, mesh)
    traces = []

    def counted(params, batch, keys):
        traces.append(len(batch))
        return loss_fn(params, batch, keys)

    by_pmap = pmap_step(counted, OPTIMIZER, ema_decay=DECAY, devices=devices)
    by_mesh = mesh_step(counted, OPTIMIZER, ema_decay=DECAY, mesh=mesh)
    for k in range(10):
        stacked, stacked_metrics = by_pmap(stacked, shard(batch(k), devices))
        spread, spread_metrics = by_mesh(spread, mesh_shard(batch(k), mesh))
    assert stacked.step.shape == (n,)
    state, metrics = one_device
    tolerance = {"rtol": 1e-6, "atol": 1e-6}
    assert_close(unreplicate(stacked), state, **tolerance)
    assert_close(mesh_fetch(spread), state, **tolerance)
    assert_close(unreplicate(stacked_metrics), metrics, **tolerance)
    assert_close(mesh_fetch(spread_metrics), metrics, **tolerance)
    assert float(jnp.abs(state.params["in"] - fresh().params["in"]).max()) > 0.1  # it did train
    assert traces == [BATCH // n, BATCH]

    # All replicas are the same, bit for bit.
    for leaf in jax.tree.leaves(stacked.params):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))


class Batches:
    """An iterator whose position can be read and set."""

    position = 0

    def __iter__(self):
        return self

    def __next__(self):
        self.position += 1
        return batch(self.position - 1)

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


@pytest.mark.parametrize("back_end", ["pmap", "mesh"])
def test_the_loop_trains_and_resumes_in_both_back_ends(one_device, tmp_path, back_end):
    if back_end == "pmap":
        split, place, fetch = shard, replicate, unreplicate
        compiled = pmap_step(loss_fn, OPTIMIZER, ema_decay=DECAY)
    else:
        mesh = data_mesh()
        split, place, fetch = partial(mesh_shard, mesh=mesh), partial(mesh_place, mesh=mesh), mesh_fetch
        compiled = mesh_step(loss_fn, OPTIMIZER, ema_decay=DECAY, mesh=mesh)

    def run(steps, checkpoints=None):
        def step(state, batch):
            return compiled(state, split(batch))

        return train(step, fresh(), Batches(), steps=steps, checkpoints=checkpoints, place=place, fetch=fetch)

    whole = run(10)
    with Checkpoints(tmp_path) as checkpoints:
        assert run(4, checkpoints).step == 4
        resumed = run(10, checkpoints)
    assert_close(resumed, whole, rtol=0)
    assert_close(whole, one_device[0], rtol=1e-6, atol=1e-6)


def test_replicas_share_no_buffer_with_the_original_and_are_donated():
    start, mesh = fresh(), data_mesh()
    stacked, spread = replicate(start), mesh_place(start, mesh)
    kept, kept_spread = unreplicate(stacked), mesh_fetch(spread)
    pmap_step(loss_fn, OPTIMIZER, ema_decay=DECAY)(stacked, shard(batch(0)))
    mesh_step(loss_fn, OPTIMIZER, ema_decay=DECAY, mesh=mesh)(spread, mesh_shard(batch(0), mesh))
    assert stacked.params["in"].is_deleted()
    assert spread.params["in"].is_deleted()
    for state in (start, kept, kept_spread):
        assert_close(state, fresh(), rtol=0)


def test_a_step_holds_one_all_reduce_and_nothing_else():
    mesh = data_mesh()
    by_pmap = pmap_step(loss_fn, OPTIMIZER, ema_decay=DECAY).lower(replicate(fresh()), shard(batch(0))).compile()
    by_mesh = mesh_step(loss_fn, OPTIMIZER, ema_decay=DECAY, mesh=mesh)
    by_mesh = by_mesh.lower(mesh_place(fresh(), mesh), mesh_shard(batch(0), mesh)).compile()
    for compiled in (by_pmap, by_mesh):
        assert all_reduces(compiled) == 1
        assert other_collectives(compiled) == []


def test_gradients_are_averaged_not_summed():
    """The gradient of the mean over the whole batch, in closed form, whatever the number of devices."""

    def loss(w, batch, keys):
        return jnp.mean((w - batch) ** 2)

    x = np.arange(16.0, dtype=np.float32)
    step = pmap_step(loss, optax.sgd(0.25), ema_decay=0.0)
    state, metrics = step(replicate(init_state(jnp.float32(1), optax.sgd(0.25), jax.random.key(0))), shard(x))
    np.testing.assert_allclose(unreplicate(state).params, 1 - 0.25 * 2 * (1 - 7.5), rtol=1e-6)
    np.testing.assert_allclose(unreplicate(metrics)["gradient_norm"], 2 * 6.5, rtol=1e-6)


def start_of(keys):
    return jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)


def euler(params, keys, shift):
    """Six Euler steps from noise with a key per sample; the path has time first and starts with the noise."""

    def move(x, _):
        return x + (network(params, x) + shift[:, None]) / 6, x

    x, path = jax.lax.scan(move, start_of(keys), length=6)
    return Drawn(x, path, jnp.int32(6))


def heun(params, keys, shift):
    """The same through diffrax, on a fixed grid."""
    ts = jnp.linspace(0.0, 1.0, 7)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, args: network(params, x) + shift[:, None]),
        diffrax.Heun(),
        ts[0],
        ts[-1],
        None,
        start_of(keys),
        stepsize_controller=diffrax.StepTo(ts),
        saveat=diffrax.SaveAt(ts=ts),
        adjoint=diffrax.ForwardMode(),
        throw=False,
        max_steps=8,
    )
    return Drawn(solution.ys[-1], solution.ys, solution.stats["num_steps"])


OUT_AXES = Drawn(x=0, path=1, evaluations=0)


def assert_same_samples(drawn, sampler, n, params, keys, shift):
    """Bitwise what one device draws from each slice of the keys, and from all of them up to the rounding of rows.

    A matrix product may round a row differently in batches of different sizes; the noise never differs.
    """
    compiled, size = jax.jit(sampler), len(keys) // n
    slices = [compiled(params, keys[i : i + size], shift[i : i + size]) for i in range(0, len(keys), size)]
    np.testing.assert_array_equal(drawn.x, np.concatenate([part.x for part in slices]))
    np.testing.assert_array_equal(drawn.path, np.concatenate([part.path for part in slices], axis=1))
    np.testing.assert_array_equal(drawn.evaluations, np.full(n, 6))
    whole = compiled(params, keys, shift)
    np.testing.assert_array_equal(drawn.path[0], whole.path[0])
    np.testing.assert_allclose(drawn.x, whole.x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 2, 4, 8])
def test_samples_are_bitwise_the_same_on_any_number_of_devices(n):
    devices, mesh = jax.devices()[:n], data_mesh(jax.devices()[:n])
    keys, shift = jax.random.split(jax.random.key(1), 24), np.linspace(-1, 1, 24, dtype=np.float32)
    by_pmap = pmap_sampler(euler, devices, out_axes=OUT_AXES)(params(), keys, shift)
    on_mesh = (mesh_place(params(), mesh), *mesh_shard((keys, shift), mesh))
    by_mesh = mesh_sampler(euler, mesh, out_axes=OUT_AXES)(*on_mesh)
    assert_same_samples(by_pmap, euler, n, params(), keys, shift)
    assert_same_samples(by_mesh, euler, n, params(), keys, shift)
    assert len(np.unique(by_pmap.x, axis=0)) == 24
    assert len(by_mesh.x.sharding.device_set) == n


def test_a_diffrax_solve_holds_no_collective_and_is_bitwise_the_same():
    devices, mesh = jax.devices()[:2], data_mesh(jax.devices()[:2])
    keys, shift = jax.random.split(jax.random.key(1), 8), jnp.linspace(-1.0, 1.0, 8)
    by_mesh = mesh_sampler(heun, mesh, out_axes=OUT_AXES)
    on_mesh = (mesh_place(params(), mesh), *mesh_shard((keys, shift), mesh))
    compiled = by_mesh.lower(*on_mesh).compile()
    assert all_reduces(compiled) == 0
    assert other_collectives(compiled) == []
    assert_same_samples(compiled(*on_mesh), heun, 2, params(), keys, shift)

    by_pmap = pmap_sampler(heun, devices, out_axes=OUT_AXES)
    compiled = jax.jit(by_pmap).lower(params(), keys, shift).compile()
    assert all_reduces(compiled) == 0
    assert other_collectives(compiled) == []
    assert_same_samples(compiled(params(), keys, shift), heun, 2, params(), keys, shift)


def test_samplers_take_params_from_training_and_outputs_of_any_tree():
    """Legacy keys, parameters fetched from one back end and used by the other, outputs with None and nesting."""
    start, mesh = fresh(), data_mesh()
    keys = jax.random.split(jax.random.PRNGKey(1), 24)

    def draw(params, keys):
        x = network(params, jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys))
        return {"x": (x, x[:, 0]), "path": None}

    alone = jax.jit(draw)(params(), jax.random.wrap_key_data(keys))
    by_pmap = pmap_sampler(draw)(mesh_fetch(mesh_place(start, mesh)).ema, keys)
    on_mesh = mesh_place(unreplicate(replicate(start)).ema, mesh)
    by_mesh = mesh_sampler(draw, mesh)(on_mesh, mesh_shard(keys, mesh))
    for drawn in (by_pmap, by_mesh):
        assert jax.tree.structure(drawn) == jax.tree.structure(alone)
        assert_close(drawn, alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("empty", [{}, None])
def test_params_may_hold_no_array(empty):
    """As many leaves as arguments, two, is where jax.pmap would take the axes of arguments for those of leaves."""

    def draw(params, keys, shift):
        return jax.vmap(jax.random.normal)(keys) + shift

    keys, shift = jax.random.split(jax.random.key(1), 8), jnp.arange(8.0)
    np.testing.assert_array_equal(pmap_sampler(draw)(empty, keys, shift), jax.jit(draw)(empty, keys, shift))


def test_samplers_are_traced_once():
    traces = []

    def counted(params, keys):
        traces.append(None)
        return jax.vmap(jax.random.normal)(keys)

    keys = jax.random.split(jax.random.key(1), 8)
    for sample in (pmap_sampler(counted), mesh_sampler(counted, data_mesh())):
        traces.clear()
        sample(params(), keys)
        first = len(traces)
        sample(jax.tree.map(lambda p: p + 1, params()), keys)
        assert len(traces) == first


def test_not_divisible():
    devices, mesh = jax.devices()[:4], data_mesh(jax.devices()[:4])
    keys = jax.random.split(jax.random.key(0), 6)
    table = [
        lambda: shard(np.zeros((6, 2)), devices),
        lambda: mesh_shard(np.zeros((6, 2)), mesh),
        lambda: pmap_sampler(euler, devices)(params(), keys, jnp.zeros(6)),
        lambda: mesh_sampler(euler, mesh)(params(), keys, jnp.zeros(6)),
    ]
    for call in table:
        with pytest.raises(ValueError, match=r"Expected a batch divisible by the 4 devices.*got size=6"):
            call()


def test_outputs_without_their_sample_axis():
    def draw(params, keys):
        x = jax.vmap(jax.random.normal)(keys)
        return Drawn(x, jnp.stack([x] * 5), jnp.int32(5))

    keys = jax.random.split(jax.random.key(0), 8)
    for sample in (pmap_sampler(draw), mesh_sampler(draw, data_mesh())):
        with pytest.raises(ValueError, match=r"output\.path to have 1 samples along axis 0.*got shape \(5, 1\)"):
            sample(params(), keys)
