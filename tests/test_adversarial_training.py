"""Alternating, simultaneous, extragradient and unrolled steps on games whose iterates are known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dgm_jax.training import (
    Checkpoints,
    Players,
    clip_weights,
    init_adversarial_state,
    make_adversarial_step,
    make_extragradient_step,
    make_simultaneous_step,
    pack,
    train,
    unrolled,
    with_example_keys,
)
from dgm_jax.training.parallel import (
    AXIS,
    data_mesh,
    mean_gradients,
    mean_over_devices,
    mesh_adversarial_step,
    mesh_fetch,
    mesh_place,
    mesh_shard,
    pmap_adversarial_step,
    replicate,
    shard,
    unreplicate,
)

RATE = 0.1
SGD = Players(optax.sgd(RATE), optax.sgd(RATE))
BATCH = jnp.ones((4, 1))


def bilinear(players, batch, key):
    """min over the generator y, max over the discriminator x, of x y: the circle on which plain descent diverges."""
    return players.discriminator * players.generator


GAME = Players(lambda *args: -bilinear(*args), bilinear)


def start(x=1.0, y=0.5, optimizers=SGD):
    return init_adversarial_state(Players(jnp.float32(x), jnp.float32(y)), optimizers, jax.random.key(0))


def test_the_step_is_equations_3_and_4_by_hand():
    """x <- x + rate y, twice, then y <- y - rate x of the new x."""
    step = make_adversarial_step(GAME, SGD, critic_steps=2, ema_decay=0.9)
    state, metrics = step(start(), BATCH)
    x = 1.0 + 2 * RATE * 0.5
    y = 0.5 - RATE * x
    np.testing.assert_allclose(state.params, (x, y), rtol=1e-6)
    np.testing.assert_allclose(state.ema, 0.9 * 0.5 + 0.1 * y, rtol=1e-6)
    assert state.step == 1
    expected = {"loss": x * 0.5, "gradient_norm": x}
    expected |= {"discriminator_loss": -(1.0 + RATE * 0.5) * 0.5, "discriminator_gradient_norm": 0.5}
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "matrix"),
    [
        (make_simultaneous_step, np.array([[1, RATE], [-RATE, 1]])),
        (make_extragradient_step, np.array([[1 - RATE**2, RATE], [-RATE, 1 - RATE**2]])),
    ],
)
def test_simultaneous_and_extragradient_steps_are_their_matrices(make, matrix):
    """Eigenvalues 1 +- i rate leave the circle outwards; Korpelevich's 1 - rate^2 +- i rate lie within."""
    step = jax.jit(make(GAME, SGD, ema_decay=0.0))
    state = start()
    for _ in range(20):
        state, _ = step(state, BATCH)
    expected = np.linalg.matrix_power(matrix, 20) @ np.array([1.0, 0.5])
    np.testing.assert_allclose(state.params, expected, rtol=2e-5)  # 20 steps of float32 rounding
    np.testing.assert_array_equal(state.ema, state.params.generator)
    radius = abs(np.linalg.eigvals(matrix)).max()
    assert (np.linalg.norm(state.params) > np.linalg.norm([1.0, 0.5])) == (radius > 1)


def test_k_updates_of_the_discriminator_each_on_its_part():
    """The discriminator sums what it saw; the generator sees the last part, once."""

    def sums(players, batch, key):
        return -players.discriminator * batch.sum()

    def last(players, batch, key):
        return -players.generator * batch.sum()

    unit = Players(optax.sgd(1.0), optax.sgd(1.0))
    batch = jnp.array([1.0, 10.0, 100.0, 2.0, 20.0, 200.0])
    state, metrics = make_adversarial_step(Players(sums, last), unit, critic_steps=3, ema_decay=0.0)(
        start(0.0, 0.0, unit), batch
    )
    np.testing.assert_array_equal(state.params, (333.0, 300.0))
    np.testing.assert_array_equal(metrics["discriminator_gradient_norm"], 300.0)

    adam = Players(optax.adam(1.0), optax.adam(1.0))
    step = make_adversarial_step(GAME, adam, critic_steps=3, ema_decay=0.0)
    state, _ = step(start(optimizers=adam), jnp.ones(3))
    assert (state.opt_state.discriminator[0].count, state.opt_state.generator[0].count) == (3, 1)


def test_every_update_has_a_key_of_its_own_from_the_run_key_and_the_step():
    seen = []

    def loss(players, batch, key):
        seen.append(jax.random.key_data(key).tolist())
        return players.discriminator * players.generator

    step = make_adversarial_step(Players(loss, loss), SGD, critic_steps=3, ema_decay=0.0)
    state, _ = step(start(), jnp.ones(3))
    step(state, jnp.ones(3))
    assert len(seen) == len({tuple(key) for key in seen}) == 8
    again = list(seen)
    seen.clear()
    step(start(), jnp.ones(3))
    assert seen == again[:4]


def test_the_unrolled_generator_sees_through_the_discriminators_updates():
    """On f(x, y) = x y - x^2/2 the response after k steps of rate h is x_k = r^k x + (1 - r^k) y with r = 1 - h."""

    def f(players, batch, key):
        return players.discriminator * players.generator - players.discriminator**2 / 2

    losses = Players(lambda *args: -f(*args), f)
    x, y, k = 1.0, 0.5, 3
    keep = (1 - RATE) ** k
    moved = keep * x + (1 - keep) * y
    value = moved * y - moved**2 / 2
    gradient = moved + (1 - keep) * (y - moved)
    loss = unrolled(losses, optax.sgd(RATE), steps=k)
    state, metrics = make_simultaneous_step(losses._replace(generator=loss), SGD, ema_decay=0.0)(start(x, y), BATCH)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(state.params.generator, y - RATE * gradient, rtol=1e-6)
    np.testing.assert_allclose(state.params.discriminator, x + RATE * (y - x), rtol=1e-6)  # itself, one step
    none = unrolled(losses, optax.sgd(RATE), steps=0)
    assert none(Players(jnp.float32(x), jnp.float32(y)), BATCH, jax.random.key(0)) == x * y - x**2 / 2


@pytest.mark.parametrize("event", [(3,), (4, 4, 1), (5, 5, 2)])
def test_packing_joins_neighbours_along_the_channels(event):
    x = np.random.default_rng(0).normal(size=(6, *event)).astype(np.float32)
    packed = pack(jnp.asarray(x), degree=3)
    assert packed.shape == (2, *event[:-1], 3 * event[-1])
    for group in range(2):
        expected = np.concatenate([x[3 * group + j] for j in range(3)], axis=-1)
        np.testing.assert_array_equal(packed[group], expected)
    np.testing.assert_array_equal(pack(jnp.asarray(x), degree=1), x)


def test_clipped_weights_stay_within_their_limit():
    optimizer = optax.chain(optax.sgd(1.0), clip_weights(0.01))
    params = {"w": jnp.array([0.0, 0.005, -0.01, 0.5]), "b": jnp.array(0.002)}
    gradients = {"w": jnp.array([-1.0, 0.001, 1.0, 0.0]), "b": jnp.array(0.001)}
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    np.testing.assert_allclose(after["w"], [0.01, 0.004, -0.01, 0.01], rtol=1e-6)
    np.testing.assert_allclose(after["b"], 0.001, rtol=1e-6)


# a small GAN ----------------------------------------------------------------------------------------------------


def generate(params, keys):
    z = jax.vmap(lambda key: jax.random.normal(key, (2,)))(keys)
    return jnp.tanh(z @ params["in"]) @ params["out"]


def logits(params, x):
    return (jnp.tanh(x @ params["in"]) @ params["out"])[:, 0]


def discriminator_loss(players, batch, keys):
    fake = generate(players.generator, keys)
    real_logits, fake_logits = logits(players.discriminator, batch), logits(players.discriminator, fake)
    loss = jnp.mean(jax.nn.softplus(-real_logits) + jax.nn.softplus(fake_logits))
    return loss, {"advantage": jnp.mean(real_logits - fake_logits)}


def generator_loss(players, batch, keys):
    return jnp.mean(jax.nn.softplus(-logits(players.discriminator, generate(players.generator, keys))))


GAN = Players(discriminator_loss, generator_loss)
MOMENTUM = Players(optax.sgd(0.2, momentum=0.5), optax.sgd(0.1, momentum=0.5))


def params(key):
    def pair(key, inputs, outputs):
        key_in, key_out = jax.random.split(key)
        return {"in": jax.random.normal(key_in, (inputs, 8)), "out": jax.random.normal(key_out, (8, outputs)) / 3}

    key_discriminator, key_generator = jax.random.split(key)
    return Players(pair(key_discriminator, 3, 1), pair(key_generator, 2, 3))


def fresh(seed=0):
    return init_adversarial_state(params(jax.random.key(seed)), MOMENTUM, jax.random.key(seed + 10))


def data(n):
    return np.random.default_rng(n).normal(1.0, 2.0, (48, 3)).astype(np.float32)


def assert_close(a, b, tolerance):
    a, b = (jax.tree.map(np.asarray, (s.params, s.ema, s.opt_state)) for s in (a, b))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b)


@pytest.mark.parametrize("unroll", [0, 2])
def test_pmap_mesh_and_one_device_play_alike(unroll):
    """Also where the generator's gradient passes through updates of the discriminator that all devices share."""
    inner = optax.sgd(0.5)
    alone = Players(discriminator_loss, unrolled(GAN, inner, steps=unroll))
    options = {"critic_steps": 3, "ema_decay": 0.9}
    one = jax.jit(make_adversarial_step(Players(*map(with_example_keys, alone)), MOMENTUM, **options))
    shared = alone._replace(generator=unrolled(GAN, inner, steps=unroll, mean=mean_over_devices))
    by_pmap = pmap_adversarial_step(shared, MOMENTUM, **options)
    mesh = data_mesh()
    by_mesh = mesh_adversarial_step(alone, MOMENTUM, **options, mesh=mesh)
    state, stacked, spread = fresh(), replicate(fresh()), mesh_place(fresh(), mesh)
    for n in range(3):
        state, metrics = one(state, data(n))
        stacked, stacked_metrics = by_pmap(stacked, shard(data(n)))
        spread, _ = by_mesh(spread, mesh_shard(data(n), mesh))
    assert_close(unreplicate(stacked), state, 1e-5)
    assert_close(mesh_fetch(spread), state, 1e-5)
    for name, value in unreplicate(stacked_metrics).items():
        np.testing.assert_allclose(value, metrics[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert np.abs(state.params.generator["out"] - fresh().params.generator["out"]).max() > 0.01  # it did train


@pytest.mark.parametrize("make", [make_simultaneous_step, make_extragradient_step])
def test_steps_at_once_are_the_same_on_eight_devices(make):
    one = jax.jit(make(Players(*map(with_example_keys, GAN)), MOMENTUM, ema_decay=0.9))
    shared = jax.pmap(make(GAN, MOMENTUM, ema_decay=0.9, gradients_of=mean_gradients), axis_name=AXIS)
    state, stacked = fresh(), replicate(fresh())
    for n in range(2):
        state, _ = one(state, data(n))
        stacked, _ = shared(stacked, shard(data(n)))
    assert_close(unreplicate(stacked), state, 1e-5)


def test_seeds_under_vmap_are_a_python_loop_over_seeds():
    step = make_adversarial_step(Players(*map(with_example_keys, GAN)), MOMENTUM, critic_steps=2, ema_decay=0.9)
    states = [fresh(seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    together, alone = jax.jit(jax.vmap(step, in_axes=(0, None))), jax.jit(step)
    for n in range(3):
        stacked, _ = together(stacked, data(n))
        states = [alone(state, data(n))[0] for state in states]
    for seed, state in enumerate(states):
        assert_close(jax.tree.map(lambda leaf, seed=seed: leaf[seed], stacked), state, 1e-5)


def test_the_loop_trains_saves_and_resumes_both_players(tmp_path):
    step = jax.jit(
        make_adversarial_step(Players(*map(with_example_keys, GAN)), MOMENTUM, critic_steps=1, ema_decay=0.9),
        donate_argnums=0,
    )
    whole = train(step, fresh(), map(data, range(6)), steps=6)
    for steps, first in ((4, 0), (6, 4)):
        with Checkpoints(tmp_path) as checkpoints:
            state = train(step, fresh(), map(data, range(first, 6)), steps=steps, checkpoints=checkpoints)
    assert isinstance(state.params, Players)
    jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, state.ema, whole.ema)


CLASH = GAME._replace(generator=lambda *args: (bilinear(*args), {"discriminator_loss": 0.0}))


def clashing(step):
    return step(start(), BATCH)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_adversarial_step(GAME, SGD, critic_steps=0, ema_decay=0.9), "critic_steps >= 1"),
        (lambda: make_adversarial_step(GAME, SGD, critic_steps=1, ema_decay=1.0), "ema_decay < 1"),
        (lambda: make_simultaneous_step(GAME, SGD, ema_decay=-0.1), "ema_decay < 1"),
        (lambda: make_extragradient_step(GAME, SGD, ema_decay=2.0), "ema_decay < 1"),
        (lambda: make_adversarial_step(GAME, SGD, critic_steps=3, ema_decay=0.0)(start(), BATCH), "divisible by"),
        (lambda: unrolled(GAME, optax.sgd(0.1), steps=-1), "steps >= 0"),
        (lambda: clip_weights(0.0), "limit < inf"),
        (lambda: clip_weights(float("nan")), "limit < inf"),
        (lambda: clip_weights(float("inf")), "limit < inf"),
        (lambda: clip_weights(0.1).update(jnp.ones(2), optax.EmptyState()), "Expected params"),
        (lambda: clashing(make_simultaneous_step(CLASH, SGD, ema_decay=0.0)), "discriminator's are"),
        (lambda: clashing(make_adversarial_step(CLASH, SGD, critic_steps=1, ema_decay=0.0)), "discriminator's are"),
        (lambda: pack(jnp.ones((4, 2)), degree=3), "divisible by degree"),
        (lambda: pack(jnp.ones((4, 2)), degree=0), "degree >= 1"),
        (lambda: pack(jnp.ones(4), degree=2), "batch, ..., channels"),
        (
            lambda: make_simultaneous_step(Players(lambda *_: jnp.ones(3), bilinear), SGD, ema_decay=0.0)(
                start(), BATCH
            ),
            "loss_fn to return a scalar",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
