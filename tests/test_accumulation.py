"""Steps in pieces against the step of the whole batch, on one device and on eight, in both back ends."""

import re

import jax
import numpy as np
import pytest
import test_sharded as one

from dgm_jax.training import with_example_keys
from dgm_jax.training.accumulation import accumulation
from dgm_jax.training.parallel import (
    data_mesh,
    mesh_fetch,
    mesh_place,
    mesh_shard,
    mesh_step,
    pmap_step,
    replicate,
    shard,
    unreplicate,
)

BATCH, STEPS = 32, 5


def whole(n):
    return np.concatenate([one.batch(2 * n), one.batch(2 * n + 1)])


def run(step, state, spread):
    for n in range(STEPS):
        state, metrics = step(state, spread(whole(n)))
    return state, metrics


@pytest.fixture(scope="module")
def expected():
    """The whole batch at once, on one device."""
    mesh = data_mesh(jax.devices()[:1])
    step = mesh_step(one.loss_fn, one.OPTIMIZER, ema_decay=0.9, mesh=mesh)
    return mesh_fetch(run(step, mesh_place(one.fresh(), mesh), lambda x: mesh_shard(x, mesh)))


def assert_same_run(got, expected):
    one.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
    for name, value in expected[1].items():
        np.testing.assert_allclose(got[1][name], value, rtol=1e-5)


@pytest.mark.parametrize(("devices", "pieces"), [(1, 4), (8, 2), (8, 4)])
def test_pmap_in_pieces(expected, devices, pieces):
    devices = jax.devices()[:devices]
    step = pmap_step(one.loss_fn, one.OPTIMIZER, ema_decay=0.9, devices=devices, pieces=pieces)
    state, metrics = run(step, replicate(one.fresh(), devices), lambda x: shard(x, devices))
    assert_same_run((unreplicate(state), unreplicate(metrics)), expected)


@pytest.mark.parametrize(("devices", "shards", "pieces"), [(1, 1, 4), (8, 1, 2), (8, 4, 4), (8, 8, 2)])
def test_mesh_in_pieces(expected, devices, shards, pieces):
    mesh = data_mesh(jax.devices()[:devices], parameter_shards=shards)
    step = mesh_step(one.loss_fn, one.OPTIMIZER, ema_decay=0.9, mesh=mesh, pieces=pieces)
    state = mesh_place(one.fresh(), mesh)
    placed = jax.tree.map(lambda leaf: leaf.sharding, state)
    state, metrics = run(step, state, lambda x: mesh_shard(x, mesh))
    held = jax.tree.map(lambda leaf, before: leaf.sharding.is_equivalent_to(before, leaf.ndim), state, placed)
    assert all(jax.tree.leaves(held))
    assert_same_run((mesh_fetch(state), mesh_fetch(metrics)), expected)


def test_gradients_meet_once_under_pmap():
    """The programs of the pieces hold no collective, the last one an all-reduce of the gradients and the metrics."""
    programs = {}
    pmap = jax.pmap

    def recorded(function, **options):
        compiled = pmap(function, **options)

        def call(*args):
            programs[function.__name__] = compiled.lower(*args).compile().as_text()
            return compiled(*args)

        return call

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "pmap", recorded)
        step = pmap_step(one.loss_fn, one.OPTIMIZER, ema_decay=0.9, pieces=2)
        step(replicate(one.fresh()), shard(whole(0)))
    collectives = {
        name: re.findall(r" = .* (all-reduce|all-gather)(?:-start)?\(", text) for name, text in programs.items()
    }
    assert collectives == {"begin": [], "add": [], "finish": ["all-reduce"]}


def test_memory_is_that_of_a_piece():
    """Activations, which are what a batch costs, fall with the number of pieces."""

    def temporary(pieces):
        programs = accumulation(with_example_keys(one.loss_fn), one.OPTIMIZER, ema_decay=0.9, pieces=pieces, groups=1)
        state, batch = one.fresh(), np.zeros((4096, 3), np.float32)
        sums = jax.eval_shape(programs.begin, state, batch)
        return jax.jit(programs.add).lower(state, sums, batch, 0).compile().memory_analysis().temp_size_in_bytes

    assert temporary(8) < temporary(1) / 4


@pytest.mark.parametrize(("pieces", "words"), [(0, "Expected pieces >= 1"), (3, "Expected a batch divisible")])
def test_bad_pieces(pieces, words):
    mesh = data_mesh()
    with pytest.raises(ValueError, match=words):
        mesh_step(one.loss_fn, one.OPTIMIZER, ema_decay=0.9, mesh=mesh, pieces=pieces)(
            mesh_place(one.fresh(), mesh), mesh_shard(whole(0), mesh)
        )
    with pytest.raises(ValueError, match=words):
        pmap_step(one.loss_fn, one.OPTIMIZER, ema_decay=0.9, pieces=pieces)(replicate(one.fresh()), shard(whole(0)))
