import os
import re
import signal
import threading
from contextlib import nullcontext

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dgm_jax.training import Checkpoints, Preempted, ema_warmup, init_state, make_step, train, with_example_keys

PARAMS = {"w": np.array([1.0, -2.0], np.float32), "b": np.array(0.5, np.float32)}


def line_loss(params, batch, key):
    """Least squares with noise on the targets, so that the key matters."""
    x, y = batch
    noise = 0.1 * jax.random.normal(key, y.shape, y.dtype)
    return jnp.mean((x @ params["w"] + params["b"] - y - noise) ** 2)


def batches(start=0):
    while True:
        rng = np.random.default_rng(start)
        x = rng.normal(size=(8, 2)).astype(np.float32)
        yield x, (x @ np.array([0.3, 0.7], np.float32) + 2).astype(np.float32)
        start += 1


def leaves_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        np.testing.assert_array_equal(x, y)


def test_state_shares_no_buffer_with_params_and_can_be_donated():
    params = jax.tree.map(jnp.asarray, PARAMS)
    # sgd with an averaging wrapper keeps a copy of the parameters in its state: the aliasing that donation refuses.
    optimizer = optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5)
    state = init_state(optax.LookaheadParams.init_synced(params), optimizer, jax.random.key(0))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state.params, state.ema, state.opt_state))]
    assert len(pointers) == len(set(pointers))

    state = init_state(params, optax.adam(0.1), jax.random.key(0))
    chex.clear_trace_counter()
    once = chex.assert_max_traces(make_step(line_loss, optax.adam(0.1), ema_decay=0.9), n=1)
    step = jax.jit(once, donate_argnums=0)
    after, _ = step(state, next(batches()))
    assert state.params["w"].is_deleted()
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))
    step(after, next(batches()))


def test_step_is_gradient_descent_on_paper():
    """For mean((x w - y)^2) / 2 the gradient is x'(x w - y)/n, and SGD subtracts it."""
    x, y = next(batches())
    w = np.array([1.0, -2.0], np.float32)

    def loss(w, batch, key):
        return jnp.mean((batch[0] @ w - batch[1]) ** 2) / 2, {"examples": 8, "error": jnp.float32(3)}

    optimizer = optax.chain(optax.clip_by_global_norm(0.5), optax.sgd(0.1))
    step = make_step(loss, optimizer, ema_decay=0.0)
    state, metrics = step(init_state(w, optimizer, jax.random.key(0)), (x, y))
    gradient = x.astype(np.float64).T @ (x.astype(np.float64) @ w - y) / 8
    norm = np.linalg.norm(gradient)
    assert norm > 0.5
    np.testing.assert_allclose(state.params, w - 0.1 * gradient * 0.5 / norm, rtol=1e-5)
    np.testing.assert_array_equal(state.ema, state.params)
    np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], np.mean((x @ w - y) ** 2) / 2, rtol=1e-5)
    assert (metrics["examples"], metrics["error"], state.step) == (8, 3, 1)


def test_ema_is_the_weighted_sum_of_all_parameters():
    """Params fall by one each step; the average has the weights decay^k (1 - decay), with decay^n on the start."""

    def loss(params, batch, key):
        return params

    optimizer = optax.sgd(1.0)
    step = jax.jit(make_step(loss, optimizer, ema_decay=0.9))
    state = init_state(jnp.float32(4.0), optimizer, jax.random.key(0))
    for _ in range(6):
        state, _ = step(state, None)
    values = 4.0 - np.arange(7)
    expected = 0.9**6 * values[0] + sum(0.1 * 0.9 ** (6 - k) * values[k] for k in range(1, 7))
    np.testing.assert_allclose(state.ema, expected, rtol=1e-6)


def test_ema_warmup_weights():
    decay = ema_warmup(0.99)
    got = [float(decay(jnp.int32(n))) for n in (0, 8, 10_000)]
    np.testing.assert_allclose(got, [1 / 10, 9 / 18, 0.99], rtol=1e-6)

    step = make_step(lambda params, batch, key: params, optax.sgd(1.0), ema_decay=decay)
    state, _ = step(init_state(jnp.float32(4.0), optax.sgd(1.0), jax.random.key(0)), None)
    np.testing.assert_allclose(state.ema, 0.1 * 4.0 + 0.9 * 3.0, rtol=1e-6)


def test_step_key_is_folded_from_the_run_key_and_the_step():
    def loss(params, batch, key):
        return params**2, {"draw": jax.random.normal(key)}

    def loss_per_example(params, batch, keys):
        return params**2, {"draws": jax.vmap(jax.random.normal)(keys)}

    key = jax.random.key(7)
    state = init_state(jnp.float32(1), optax.sgd(0.1), key)
    other = state
    for n in range(3):
        state, metrics = make_step(loss, optax.sgd(0.1), ema_decay=0.9)(state, np.zeros((4, 1)))
        step_key = jax.random.fold_in(key, n)
        assert metrics["draw"] == jax.random.normal(step_key)
        step = make_step(with_example_keys(loss_per_example), optax.sgd(0.1), ema_decay=0.9)
        other, metrics = step(other, np.zeros((4, 1)))
        np.testing.assert_array_equal(metrics["draws"], jax.vmap(jax.random.normal)(jax.random.split(step_key, 4)))


@pytest.mark.parametrize("decay", [1.0, -0.1, 2.0])
def test_bad_decay(decay):
    with pytest.raises(ValueError, match="Expected 0 <= ema_decay < 1"):
        make_step(line_loss, optax.sgd(0.1), ema_decay=decay)


def test_bad_losses_and_batches():
    state = init_state(PARAMS, optax.sgd(0.1), jax.random.key(0))

    def run(loss, batch=(np.zeros((8, 2), np.float32), np.zeros(8, np.float32))):
        return make_step(loss, optax.sgd(0.1), ema_decay=0.9)(state, batch)

    with pytest.raises(ValueError, match="take the mean"):
        run(lambda params, batch, key: batch[0] @ params["w"])
    with pytest.raises(ValueError, match="other names"):
        run(lambda params, batch, key: (params["b"], {"loss": 1.0}))
    with pytest.raises(ValueError, match="one leading axis"):
        run(with_example_keys(line_loss), (np.zeros((8, 2)), np.zeros(7)))
    with pytest.raises(ValueError, match="one leading axis"):
        run(with_example_keys(line_loss), (np.zeros((8, 2)), np.zeros(())))


def test_loop_logs_where_asked_and_learns():
    seen = []
    optimizer = optax.sgd(0.1)
    step = jax.jit(make_step(line_loss, optimizer, ema_decay=0.9), donate_argnums=0)
    state = init_state(PARAMS, optimizer, jax.random.key(0))
    state = train(step, state, batches(), steps=205, log_every=100, on_metrics=lambda n, m: seen.append((n, m)))
    assert [n for n, _ in seen] == [100, 200, 205]
    assert state.step == 205
    # Noise of variance 0.01 on the targets: the least loss, and parameters within a few SGD fluctuations of truth.
    assert seen[-1][1]["loss"] < 0.05
    np.testing.assert_allclose(state.ema["w"], [0.3, 0.7], atol=0.1)
    np.testing.assert_allclose(state.ema["b"], 2, atol=0.1)


def test_loop_with_too_few_batches():
    step = make_step(line_loss, optax.sgd(0.1), ema_decay=0.9)
    state = init_state(PARAMS, optax.sgd(0.1), jax.random.key(0))
    with pytest.raises(ValueError, match="one batch per step"):
        train(step, state, iter([next(batches())]), steps=3)


def test_loop_stops_at_nan_and_keeps_the_last_good_checkpoint(tmp_path):
    def loss(params, batch, key):
        return jnp.mean(params["w"] ** 2) * batch

    def poisoned():
        for n in range(1, 100):
            yield np.float32(np.nan if n == 7 else 1)

    step = jax.jit(make_step(loss, optax.sgd(0.01), ema_decay=0.9), donate_argnums=0)
    state = init_state(PARAMS, optax.sgd(0.01), jax.random.key(0))
    with Checkpoints(tmp_path) as checkpoints:
        key = re.escape(str(jax.random.key_data(jax.random.fold_in(jax.random.key(0), 8)).tolist()))
        first = r"loss=nan and 1 leaves with NaN or inf, the first params\['w'\], after step 9"
        with pytest.raises(
            FloatingPointError, match=rf"{first}, whose key is {key} \(the checkpoint of step 6 is kept"
        ):
            train(step, state, poisoned(), steps=50, checkpoints=checkpoints, save_every=3, log_every=50)
        good, _ = checkpoints.restore(like=init_state(PARAMS, optax.sgd(0.01), jax.random.key(0)))
    assert good.step == 6
    assert np.isfinite(good.params["w"]).all()


def test_loop_does_not_save_parameters_that_just_became_nan(tmp_path):
    """sqrt at 0 has an infinite gradient: the loss of the step is finite, the parameters after it are not."""

    def loss(params, batch, key):
        return jnp.sqrt(params * 0) + params

    state = init_state(jnp.float32(0), optax.sgd(0.1), jax.random.key(0))
    step = make_step(loss, optax.sgd(0.1), ema_decay=0.9)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(
            FloatingPointError,
            match=r"loss=0.0 and 1 leaves with NaN or inf, the first params, after step 1, .*no checkpoint was saved",
        ):
            train(step, state, batches(), steps=5, checkpoints=checkpoints, save_every=1)
        assert checkpoints.latest() is None


def test_updates_that_are_not_finite_can_be_skipped(tmp_path):
    """One poisoned batch of ten: as if it had not been there, but for the number of steps."""

    def loss(params, batch, key):
        return jnp.mean((params - batch) ** 2)

    clean = [np.full(4, n, np.float32) for n in range(9)]
    optimizer = optax.apply_if_finite(optax.sgd(0.1, momentum=0.9), max_consecutive_errors=3)
    step, plain = (jax.jit(make_step(loss, o, ema_decay=0.5)) for o in (optimizer, optax.sgd(0.1, momentum=0.9)))
    whole = train(
        plain, init_state(jnp.float32(0), optax.sgd(0.1, momentum=0.9), jax.random.key(0)), iter(clean), steps=9
    )
    poisoned, logged = [*clean[:4], np.full(4, np.nan, np.float32), *clean[4:]], []
    with Checkpoints(tmp_path) as checkpoints:
        state = train(
            step,
            init_state(jnp.float32(0), optimizer, jax.random.key(0)),
            iter(poisoned),
            steps=10,
            checkpoints=checkpoints,
            save_every=5,
            log_every=1,
            on_metrics=lambda made, metrics: logged.append(float(metrics["loss"])),
        )
        assert checkpoints.latest() == 10
    np.testing.assert_allclose(state.params, whole.params, rtol=1e-6)  # another program may round otherwise
    assert np.isnan(logged).tolist() == [n == 4 for n in range(10)]


def test_sigterm_between_two_steps_saves_and_stops(tmp_path):
    """The exception is an exit of status 75; the handler that was there before is back."""

    def at_seven(state, batch):
        if int(state.step) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(state, batch)

    step = jax.jit(make_step(line_loss, optax.sgd(0.1), ema_decay=0.9))
    state, before = init_state(PARAMS, optax.sgd(0.1), jax.random.key(0)), signal.getsignal(signal.SIGTERM)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(Preempted, match="step 7 is saved") as stopped:
            train(at_seven, state, grain_batches(), steps=20, checkpoints=checkpoints)
        assert (stopped.value.code, stopped.value.step, checkpoints.latest()) == (75, 7, 7)
        assert signal.getsignal(signal.SIGTERM) is before
        resumed = train(step, state, grain_batches(), steps=20, checkpoints=checkpoints)
    leaves_equal(resumed, train(step, state, grain_batches(), steps=20))


@pytest.mark.parametrize("moment", ["in the last step", "after the last step"])
def test_sigterm_at_the_end_is_not_lost(tmp_path, moment):
    """In the last step it is as at any other; after it, the handler that was there before receives the signal."""

    def at_the_end(state, batch):
        if int(state.step) == 4 and moment == "in the last step":
            os.kill(os.getpid(), signal.SIGTERM)
        return step(state, batch)

    def fetch(state):  # before the last save
        if moment == "after the last step" and int(getattr(state, "step", 0)) == 5 and not received:
            os.kill(os.getpid(), signal.SIGTERM)
        return state

    step, received = jax.jit(make_step(line_loss, optax.sgd(0.1), ema_decay=0.9)), []
    state, before = init_state(PARAMS, optax.sgd(0.1), jax.random.key(0)), signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: received.append(True))
    try:
        with Checkpoints(tmp_path) as checkpoints:
            expected = pytest.raises(Preempted) if moment == "in the last step" else nullcontext()
            with expected:
                train(at_the_end, state, grain_batches(), steps=5, checkpoints=checkpoints, fetch=fetch)
            assert checkpoints.latest() == 5
    finally:
        signal.signal(signal.SIGTERM, before)
    assert received == ([] if moment == "in the last step" else [True])


def test_a_thread_trains_too(tmp_path):
    """Python lets the main thread alone handle signals."""
    step, done = make_step(line_loss, optax.sgd(0.1), ema_decay=0.9), []

    def run():
        with Checkpoints(tmp_path) as checkpoints:
            state = init_state(PARAMS, optax.sgd(0.1), jax.random.key(0))
            done.append(train(step, state, grain_batches(), steps=2, checkpoints=checkpoints))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done[0].step == 2


def grain_batches():
    import grain

    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 2)).astype(np.float32)
    data = [(row, row @ np.array([0.3, 0.7], np.float32)) for row in x]
    data = grain.MapDataset.source(data).seed(3).shuffle().repeat().batch(8)
    return iter(data.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)))


def test_resumed_run_equals_the_uninterrupted_one_bitwise(tmp_path):
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 20))
    step = jax.jit(make_step(line_loss, optimizer, ema_decay=ema_warmup(0.99)), donate_argnums=0)

    def state():
        return init_state(PARAMS, optimizer, jax.random.key(5))

    whole = train(step, state(), grain_batches(), steps=17)
    with Checkpoints(tmp_path) as checkpoints:
        train(step, state(), grain_batches(), steps=11, checkpoints=checkpoints, save_every=4)
    with Checkpoints(tmp_path) as checkpoints:  # a new process would open the directory in this way
        assert checkpoints.latest() == 11
        resumed = train(step, state(), grain_batches(), steps=17, checkpoints=checkpoints, save_every=4)
        again = train(step, state(), grain_batches(), steps=17, checkpoints=checkpoints)
    leaves_equal(resumed, whole)
    leaves_equal(again, whole)


def test_resuming_needs_an_iterator_that_can_be_moved(tmp_path):
    step = make_step(line_loss, optax.sgd(0.1), ema_decay=0.9)
    state = init_state(PARAMS, optax.sgd(0.1), jax.random.key(0))
    with Checkpoints(tmp_path) as checkpoints:
        train(step, state, grain_batches(), steps=2, checkpoints=checkpoints)
        with pytest.raises(ValueError, match="Expected batches with set_state"):
            train(step, state, batches(), steps=4, checkpoints=checkpoints)
