import gc
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dgm_jax.training import Checkpoints, TrainState, init_state, load_params, make_step, saved_steps


def make_state(seed=0, width=200):
    rng = np.random.default_rng(seed)
    params = {
        "dense": {"kernel": rng.normal(size=(width, 64)).astype(np.float32), "bias": np.zeros(64, np.float32)},
        "scale": jnp.asarray(rng.normal(size=3), jnp.bfloat16),
        "empty": np.zeros((0, 3), np.float32),
    }
    return init_state(params, optax.adam(1e-3), jax.random.key(seed + 1, impl="rbg"))


def leaves_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(3, make_state(0), {"next_index": 24})
        checkpoints.save(5, make_state(1), b"\x00\xff position")
    return directory


@pytest.fixture
def run(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "checkpoints")


def files_of(directory):
    return {path: path.read_bytes() for path in sorted(directory.rglob("*")) if path.is_file()}


def test_round_trip_is_bitwise_for_every_kind_of_leaf(run):
    with Checkpoints(run) as checkpoints:
        assert checkpoints.latest() == 5
        state, data_state = checkpoints.restore(like=make_state(9))
        leaves_equal(state, make_state(1))
        assert data_state == b"\x00\xff position"
        assert str(jax.random.key_impl(state.key)) == "rbg"
        state, data_state = checkpoints.restore(3, like=make_state(9))
        leaves_equal(state, make_state(0))
        assert data_state == {"next_index": 24}


def test_load_params_reads_one_part(run):
    state = make_state(1)
    state = TrainState(state.step, state.params, jax.tree.map(lambda p: p * 2, state.ema), state.opt_state, state.key)
    with Checkpoints(run) as checkpoints:
        checkpoints.save(7, state)
    leaves_equal(load_params(run), state.ema)
    leaves_equal(load_params(run, part="params"), state.params)
    leaves_equal(load_params(run, step=3, like=state.params), make_state(0).ema)
    with pytest.raises(ValueError, match="Expected leaves under 'weights'"):
        load_params(run, part="weights")


def test_load_params_with_like_keeps_lists_and_tuples(tmp_path):
    params = [(np.ones(2, np.float32), np.zeros(3, np.float32)), {"a": np.full(4, 2.0, np.float32)}]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, init_state(params, optax.sgd(0.1), jax.random.key(0)))
    leaves_equal(load_params(tmp_path, like=params), jax.tree.map(jnp.asarray, params))


def test_only_the_newest_are_kept(tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (1, 2, 5, 9):
            checkpoints.save(step, make_state(step))
    assert saved_steps(tmp_path) == [5, 9]


def test_saving_is_asynchronous_yet_survives_donation(tmp_path):
    """The next step reuses the donated buffers while the writer is still at work."""
    step = jax.jit(make_step(lambda p, batch, key: jnp.mean(p**2), optax.adam(0.1), ema_decay=0.5), donate_argnums=0)
    start = np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32)
    state, _ = step(init_state(start, optax.adam(0.1), jax.random.key(0)), None)
    expected = jax.tree.map(np.array, (state.params, state.ema, state.opt_state))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        for _ in range(5):
            state, _ = step(state, None)
        got, _ = checkpoints.restore(1, like=state)
    leaves_equal((got.params, got.ema, got.opt_state), expected)


@pytest.mark.parametrize("step", [5, 4])
def test_nothing_is_written_over(run, step):
    before = files_of(run)
    with Checkpoints(run) as checkpoints, pytest.raises(ValueError, match="Expected a step after 5"):
        checkpoints.save(step, make_state(2))
    assert files_of(run) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # orbax abandons its other reads
def test_every_file_damaged_in_turn_gives_an_error_or_the_exact_state(run):
    """Truncated or removed, a file must never lead to wrong numbers: zeros for a missing chunk, say."""
    like, refused = make_state(9), 0
    for path, content in files_of(run / "5").items():
        for damage in (content[: len(content) // 2], None):
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage)
            try:
                with Checkpoints(run) as checkpoints:
                    state, _ = checkpoints.restore(like=like)
                leaves_equal(state, make_state(1))
            except ValueError as error:
                assert str(run / "5") in str(error)  # noqa: PT017
                refused += 1
            path.write_bytes(content)
    assert refused >= 6  # the header, the manifest and the data, each both ways
    with Checkpoints(run) as checkpoints:
        leaves_equal(checkpoints.restore(like=like)[0], make_state(1))
    gc.collect()  # the abandoned reads are reported here, not in a later test


def test_missing_checkpoints(tmp_path, run):
    for directory in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"Expected a checkpoint in .*got steps \[\]"):
            load_params(directory)
    assert not (tmp_path / "nowhere").exists()
    with Checkpoints(run) as checkpoints, pytest.raises(FileNotFoundError, match=r"step 4.*got steps \[3, 5\]"):
        checkpoints.restore(4, like=make_state())


def test_foreign_checkpoints_are_refused_and_left_alone(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(tmp_path / "orbax") as manager:
        manager.save(1, args=ocp.args.StandardSave({"w": np.ones(3)}))
    (tmp_path / "numbers" / "2024").mkdir(parents=True)
    (tmp_path / "numbers" / "2024" / "photo.png").write_bytes(b"not a checkpoint")
    (tmp_path / "future" / "1" / "meta").mkdir(parents=True)
    header = {"format": "dgm_jax checkpoint 99", "leaves": {}, "data_state": {"json": None}}
    (tmp_path / "future" / "1" / "meta" / "metadata").write_text(json.dumps(header))
    before = files_of(tmp_path)
    for name in ("orbax", "numbers"):
        with pytest.raises(ValueError, match=rf"Expected a dgm_jax checkpoint, as .*{name}"):
            Checkpoints(tmp_path / name)
        with pytest.raises(ValueError, match=rf"Expected a dgm_jax checkpoint, as .*{name}"):
            load_params(tmp_path / name)
    with pytest.raises(ValueError, match="got 'dgm_jax checkpoint 99'"):
        Checkpoints(tmp_path / "future")
    assert files_of(tmp_path) == before


def test_other_shapes_dtypes_and_leaves(run):
    def changed(**leaves):
        state = make_state()
        params = {**state.params, **leaves}
        return TrainState(state.step, params, state.ema, state.opt_state, state.key)

    other_key = make_state()
    other_key = TrainState(
        other_key.step, other_key.params, other_key.ema, other_key.opt_state, jax.random.key(0, impl="threefry2x32")
    )
    table = [
        (make_state(width=100), r"float32\[200, 64\] at 'params/dense/kernel', the tree has float32\[100, 64\]"),
        (changed(scale=jnp.zeros(3)), r"bfloat16\[3\] at 'params/scale', the tree has float32\[3\]"),
        (changed(more=jnp.zeros(3)), r"nothing at 'params/more', the tree has float32\[3\]"),
        (changed(dense={}), r"at 'params/dense/bias', the tree has nothing"),
        (other_key, r"rbg key\[4\] at 'key', the tree has threefry2x32 key\[2\]"),
    ]
    with Checkpoints(run) as checkpoints:
        for like, message in table:
            with pytest.raises(ValueError, match=message) as error:
                checkpoints.restore(like=like)
            assert str(run / "5") in str(error.value)


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="Expected keep >= 1"):
        Checkpoints(tmp_path, keep=0)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="distinct paths"):
        checkpoints.save(1, {"a/b": np.ones(1), "a": {"b": np.ones(2)}})


def test_a_killed_run_leaves_its_last_whole_checkpoint(tmp_path):
    """kill -9 in the midst of saving step 2; step 1 restores, and saving goes on from there."""
    program = textwrap.dedent("""
        import sys
        import numpy as np
        from dgm_jax.training import Checkpoints
        checkpoints = Checkpoints(sys.argv[1])
        state = {f"w{i}": np.full((256, 256), i, np.float32) for i in range(20)}
        checkpoints.save(1, state)
        checkpoints.wait()
        big = {f"w{i}": np.random.default_rng(i).normal(size=(256, 256)).astype(np.float32) for i in range(400)}
        checkpoints.save(2, big)
        print("saving", flush=True)
        checkpoints.wait()
        print("saved", flush=True)
    """)
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    child = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=env)
    assert child.stdout is not None
    assert child.stdout.readline() == "saving\n"
    child.send_signal(signal.SIGKILL)
    rest = child.communicate()[0]
    assert rest == ""
    assert saved_steps(tmp_path) == [1]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("2")]  # it had begun to write
    state = {f"w{i}": np.full((256, 256), i, np.float32) for i in range(20)}
    with Checkpoints(tmp_path) as checkpoints:
        leaves_equal(checkpoints.restore(like=state)[0], state)
        checkpoints.save(2, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_full_disk(tmp_path):
    """No file may grow beyond 100 kB, as a stand-in: the save fails by our error, and the last whole one is kept."""
    state = {"w": np.random.default_rng(0).normal(size=300_000).astype(np.float32)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        checkpoints.wait()
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
            checkpoints.save(2, state)
            with pytest.raises(
                OSError, match=r"Expected to write a checkpoint to .*too large.*whole checkpoints: \[1\]"
            ):
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Checkpoints(tmp_path) as checkpoints:  # what was begun is cleared away, and the next save succeeds
        np.testing.assert_array_equal(checkpoints.restore(like=state)[0]["w"], state["w"])
        checkpoints.save(2, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_an_error_of_the_body_is_not_replaced_by_one_of_the_writer(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)

    def fail():
        raise RuntimeError("no room")

    close = checkpoints._manager.close
    monkeypatch.setattr(checkpoints._manager, "close", fail)
    with pytest.raises(FloatingPointError, match="the body") as raised, checkpoints:
        raise FloatingPointError("the body")
    assert "no room" in raised.value.__notes__[0]
    with pytest.raises(OSError, match=r"Expected to write a checkpoint to .*no room"), checkpoints:
        pass
    close()


def test_a_position_that_json_cannot_hold(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match="Expected data_state of bytes or JSON"):
        checkpoints.save(1, {"w": np.zeros(2)}, data_state=object())


def test_a_kill_while_old_checkpoints_are_deleted(tmp_path, monkeypatch):
    """They are moved away first, whole: what a killed process leaves of them is deleted by the next, not refused."""
    state = {"w": np.zeros(2)}

    def killed(directory, **_):
        for path in directory.rglob("metadata"):
            path.unlink()

    monkeypatch.setattr(shutil, "rmtree", killed)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state)
    assert saved_steps(tmp_path) == [3]
    assert list((tmp_path / "deleted").iterdir())
    monkeypatch.undo()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest() == 3
    assert [path.name for path in tmp_path.iterdir()] == ["3"]
