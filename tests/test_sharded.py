"""Steps on meshes of two axes, and what compiled steps communicate, alias and hold."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dgm_jax.training import Checkpoints, Players, init_state, make_step, train, with_example_keys
from dgm_jax.training.parallel import (
    data_mesh,
    mesh_adversarial_step,
    mesh_fetch,
    mesh_place,
    mesh_sampler,
    mesh_shard,
    mesh_step,
    pmap_step,
    replicate,
    shard,
    unreplicate,
)

BATCH, WIDTH = 16, 64
OPTIMIZER = optax.chain(optax.clip_by_global_norm(0.5), optax.adam(1e-2))
BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1}


def params():
    """Two leaves that eight devices split evenly, along different axes, and two that they do not."""
    rng = np.random.default_rng(0)
    shapes = {"in": (3, WIDTH * 8), "middle": (WIDTH * 8, WIDTH), "bias": (WIDTH,), "out": (WIDTH, 3)}
    return {name: (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32) for name, shape in shapes.items()}


def network(params, x):
    h = jnp.tanh(jnp.tanh(x @ params["in"]) @ params["middle"] + params["bias"][None])
    return h @ params["out"]


def loss_fn(params, batch, keys):
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    return jnp.mean((network(params, batch + noise) - batch) ** 2), {"noise": jnp.mean(noise**2)}


def batch(n):
    return np.random.default_rng(n).normal(size=(BATCH, 3)).astype(np.float32) * 2 + 1


def fresh():
    return init_state(params(), OPTIMIZER, jax.random.key(4))


def assert_close(a, b, **tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_allclose(x, y, **tolerance)


@pytest.fixture(scope="module")
def one_device():
    step = jax.jit(make_step(with_example_keys(loss_fn), OPTIMIZER, ema_decay=0.9))
    state = fresh()
    for n in range(20):
        state, metrics = step(state, batch(n))
    return state, metrics


@pytest.fixture(params=[1, 2, 4, 8], ids=lambda shards: f"{8 // shards}x{shards}")
def mesh(request):
    return data_mesh(parameter_shards=request.param)


def test_split_parameters_train_as_one_device_does(one_device, mesh):
    state, step = mesh_place(fresh(), mesh), mesh_step(loss_fn, OPTIMIZER, ema_decay=0.9, mesh=mesh)
    before = jax.tree.map(lambda leaf: leaf.sharding, state)
    for n in range(20):
        state, metrics = step(state, mesh_shard(batch(n), mesh))
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == before
    assert_close(mesh_fetch(state), one_device[0], rtol=1e-5, atol=1e-5)
    assert_close(mesh_fetch(metrics), one_device[1], rtol=1e-5)
    assert float(jnp.abs(mesh_fetch(state).params["middle"] - params()["middle"]).max()) > 0.05  # it did train


def test_an_optimiser_that_is_not_elementwise_is_right_too():
    """Adafactor factors second moments over rows and columns, which are split."""
    optimizer, mesh = optax.adafactor(1e-2, min_dim_size_to_factor=8), data_mesh(parameter_shards=4)
    alone = init_state(params(), optimizer, jax.random.key(4))
    state, step = mesh_place(alone, mesh), mesh_step(loss_fn, optimizer, ema_decay=0.9, mesh=mesh)
    one_step = jax.jit(make_step(with_example_keys(loss_fn), optimizer, ema_decay=0.9))
    for n in range(3):
        state, _ = step(state, mesh_shard(batch(n), mesh))
        alone, _ = one_step(alone, batch(n))
    assert_close(mesh_fetch(state).params, alone.params, rtol=1e-5, atol=1e-5)


def test_placing_and_fetching_numbers_and_numpy():
    mesh = data_mesh(parameter_shards=2)
    found = mesh_fetch(mesh_place({"a": 1.5, "b": np.arange(3), "c": np.zeros((0, 2), np.float32)}, mesh))
    assert float(found["a"]) == 1.5
    np.testing.assert_array_equal(found["b"], np.arange(3))
    assert found["c"].shape == (0, 2)
    np.testing.assert_array_equal(mesh_fetch(np.arange(3)), np.arange(3))


def test_each_device_holds_its_shard_alone(mesh):
    """Parameters, average and both moments; what does not divide, and small leaves, are copies."""
    shards = mesh.shape.get("parameters", 1)
    state = mesh_place(fresh(), mesh)
    for tree in (state.params, state.ema, state.opt_state[1][0].mu, state.opt_state[1][0].nu):
        held = {name: leaf.addressable_shards[0].data.size for name, leaf in tree.items()}
        assert held == {"in": 1536 // shards, "middle": 32768 // shards, "bias": 64, "out": 192}
    assert_close(mesh_fetch(state), fresh(), rtol=0)


def step_of(mesh):
    state, step = mesh_place(fresh(), mesh), mesh_step(loss_fn, OPTIMIZER, ema_decay=0.9, mesh=mesh)
    return step.lower(state, mesh_shard(batch(0), mesh)).compile()


def state_bytes(shards):
    """Of one device: parameters, average and two moments, each split or copied; two counts and the key's two words."""
    each = [math.prod(leaf.shape) * 4 for leaf in params().values()]
    split = sum(size for size in each if size // 4 >= 1024)
    return 4 * (split // shards + sum(each) - split) + 2 * 4 + 8


def test_memory_falls_with_the_mesh_as_computed(mesh):
    shards = mesh.shape.get("parameters", 1)
    memory = step_of(mesh).memory_analysis()
    assert memory.argument_size_in_bytes == state_bytes(shards) + BATCH // 8 * 3 * 4
    # Every buffer of the state is donated and used again in place.
    assert memory.alias_size_in_bytes == state_bytes(shards)


def results(compiled, name):
    """The bytes of each result of a collective, and how many of it there are."""
    found = []
    for line in compiled.as_text().splitlines():
        match = re.search(rf"= (.*?) {name}(?:-start)?\(", line)
        if match:
            arrays = re.findall(r"(\w+)\[([\d,]*)\]", match.group(1))
            found.append([BYTES[kind] * math.prod(int(n) for n in dims.split(",") if n) for kind, dims in arrays])
    return found


PARAMETER_BYTES = sum(leaf.nbytes for leaf in params().values())
SPLIT_BYTES = sum(leaf.nbytes for leaf in params().values() if leaf.size >= 1024)
OTHERS = ("all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def test_a_data_parallel_step_sums_the_gradients_once_and_nothing_else():
    """One all-reduce, of the parameters' bytes and the two metrics'."""
    by_pmap = pmap_step(loss_fn, OPTIMIZER, ema_decay=0.9).lower(replicate(fresh()), shard(batch(0))).compile()
    for compiled in (by_pmap, step_of(data_mesh())):
        (only,) = results(compiled, "all-reduce")
        assert sum(only) == PARAMETER_BYTES + 2 * 4
        assert [results(compiled, name) for name in OTHERS] == [[]] * 4


@pytest.mark.parametrize("shards", [2, 4])
def test_split_parameters_are_gathered_once_and_their_gradients_scattered_once(shards):
    compiled = step_of(data_mesh(parameter_shards=shards))
    gathered, scattered = results(compiled, "all-gather"), results(compiled, "reduce-scatter")
    assert sum(map(sum, gathered)) == SPLIT_BYTES
    assert sum(map(sum, scattered)) == SPLIT_BYTES // shards
    # What is left to sum are the shards over the groups, the copied leaves, two metrics and the norms of gradients.
    summed = sum(map(sum, results(compiled, "all-reduce")))
    copied = PARAMETER_BYTES - SPLIT_BYTES
    assert summed <= SPLIT_BYTES // shards + 2 * copied + 16 * 4
    assert results(compiled, "all-to-all") == results(compiled, "collective-permute") == []


@pytest.mark.parametrize("back_end", ["pmap", "mesh", "split parameters"])
def test_a_step_moves_nothing_to_the_host_and_donates_all_of_its_state(back_end):
    if back_end == "pmap":
        compiled = pmap_step(loss_fn, OPTIMIZER, ema_decay=0.9).lower(replicate(fresh()), shard(batch(0))).compile()
    else:
        compiled = step_of(data_mesh(parameter_shards=1 if back_end == "mesh" else 4))
    text = compiled.as_text()
    assert not re.search(r"\b(?:infeed|outfeed|send|recv)(?:-done)?\(|callback", text)
    leaves = len(jax.tree.leaves(fresh()))
    (aliases,) = re.findall(r"input_output_alias=\{(.*?)\}, entry", text)
    assert len(re.findall(r"may-alias|must-alias", aliases)) == leaves


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


def test_a_run_goes_on_with_other_shards(one_device, tmp_path):
    """Saved from pmap and from one mesh and restored onto others: the last state is that of one device."""
    by_pmap = pmap_step(loss_fn, OPTIMIZER, ema_decay=0.9)
    with Checkpoints(tmp_path) as checkpoints:
        train(
            lambda state, batch: by_pmap(state, shard(batch)),
            fresh(),
            Batches(),
            steps=3,
            checkpoints=checkpoints,
            place=replicate,
            fetch=unreplicate,
        )
    for steps, mesh in ((7, data_mesh(parameter_shards=4)), (13, data_mesh()), (20, data_mesh(parameter_shards=8))):
        compiled = mesh_step(loss_fn, OPTIMIZER, ema_decay=0.9, mesh=mesh)

        def step(state, batch, compiled=compiled, mesh=mesh):
            return compiled(state, mesh_shard(batch, mesh))

        def place(state, mesh=mesh):
            return mesh_place(state, mesh)

        with Checkpoints(tmp_path) as checkpoints:
            state = train(step, fresh(), Batches(), steps=steps, checkpoints=checkpoints, place=place, fetch=mesh_fetch)
    assert state.step == 20
    assert_close(state, one_device[0], rtol=1e-5, atol=1e-5)


def draw(params, keys):
    return network(params, jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys))


def test_a_sampler_takes_split_parameters(mesh):
    keys = jax.random.split(jax.random.key(1), 24)
    drawn = mesh_sampler(draw, mesh)(mesh_place(params(), mesh), mesh_shard(keys, mesh))
    np.testing.assert_allclose(drawn, jax.jit(draw)(params(), keys), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shards", [3, 0, -1, 16])
def test_shards_that_do_not_divide_the_devices(shards):
    with pytest.raises(
        ValueError, match=rf"Expected parameter_shards that divide the 8 devices.*parameter_shards={shards}"
    ):
        data_mesh(parameter_shards=shards)


def test_two_players_need_whole_parameters():
    nobody, mesh = Players(None, None), data_mesh(parameter_shards=2)
    with pytest.raises(ValueError, match=r"Expected a mesh of data alone.*'parameters': 2"):
        mesh_adversarial_step(nobody, nobody, critic_steps=1, ema_decay=0.9, mesh=mesh)
