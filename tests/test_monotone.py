"""The learned schedule: ends exact to the last bit, falling between, its shape without effect on the bound's mean."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import GAUSSIAN, MIXTURE, PROCESSES

from dgm_jax.likelihood import continuous_bound
from dgm_jax.networks import MonotoneSchedule
from dgm_jax.processes import from_log_snr
from dgm_jax.training import init_state, make_step

HIGH, LOW = 7.3, -6.1
NET = MonotoneSchedule(log_snr_max=HIGH, log_snr_min=LOW, curves=5)


def random_params(seed, scale, net=NET):
    params = net.init(jax.random.key(0), jnp.zeros(1))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda p: p + jnp.asarray(scale * rng.standard_normal(p.shape), p.dtype), params)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [0.0, 1.0, 10.0, 1000.0])
def test_the_ends_are_exact_and_it_falls_between(scale, dtype):
    """Bitwise, for any parameters, in any batch, compiled or not; by at least its straight part everywhere."""
    with jax.enable_x64(dtype == np.float64):
        t = np.linspace(0, 1, 257).astype(dtype)
        apply = jax.jit(NET.apply)
        for seed in range(5):
            params = random_params(seed, scale)
            values = np.asarray(apply(params, jnp.asarray(t)))
            assert values.dtype == dtype
            for found in (values[[0, -1]], NET.apply(params, jnp.asarray([0, 1], dtype))):
                np.testing.assert_array_equal(found, np.array([HIGH, LOW], dtype))
            for end, value in ((0.0, HIGH), (1.0, LOW)):
                assert apply(params, jnp.asarray(end, dtype)) == dtype(value)
            least = 0.01 * (HIGH - LOW) / 256
            assert (np.diff(values) < -least + 4 * np.finfo(dtype).eps * HIGH).all()


@pytest.mark.parametrize("high", [0.0, 1e-12, -3.0])
def test_awkward_ends_are_exact_too(high):
    net = MonotoneSchedule(log_snr_max=high, log_snr_min=-1e4)
    for seed in range(5):
        values = net.apply(random_params(seed, 3.0, net), jnp.array([0.0, 0.3, 1.0]))
        assert values[0] == np.float32(high)
        assert values[2] == np.float32(-1e4)


def test_its_derivative_is_that_of_finite_differences_at_the_ends_too():
    with jax.enable_x64(True):
        params = random_params(1, 1.0)
        log_snr = jax.jit(partial(NET.apply, params))
        t = jnp.asarray([0.0, 0.2, 0.77, 1.0])
        _, rate = jax.jvp(log_snr, (t,), (jnp.ones_like(t),))
        h = 1e-6
        inside = jnp.clip(t, h, 1 - h)  # second order inside, first order at the ends
        difference = (log_snr(inside + h) - log_snr(inside - h)) / (2 * h)
        np.testing.assert_allclose(rate, difference, rtol=1e-3)
        np.testing.assert_allclose(rate[1:3], difference[1:3], rtol=1e-6)
        assert (rate < 0).all()


def test_it_starts_nearly_straight():
    t = jnp.linspace(0, 1, 101)
    net = MonotoneSchedule(log_snr_max=HIGH, log_snr_min=LOW)
    straight = HIGH + (LOW - HIGH) * t
    values = net.apply(net.init(jax.random.key(0), t), t)
    assert jnp.abs(values - straight).max() < 0.1 * (HIGH - LOW)


def test_a_process_from_its_log_snr_is_the_process():
    """VP's own log-SNR gives VP back, rates and inverse included."""
    vp = PROCESSES["vp"]
    process = from_log_snr(lambda t: 2 * jnp.log(vp.alpha(t)) - jnp.log(vp.variance(t)))
    with jax.enable_x64(True):
        t = jnp.asarray([0.01, 0.3, 0.8, 1.0])
        np.testing.assert_allclose(process.alpha(t), vp.alpha(t), rtol=1e-12)
        np.testing.assert_allclose(process.variance(t), vp.variance(t), rtol=1e-12)
        np.testing.assert_allclose(process.diffusion(t) ** 2, 0.1 + 19.9 * t, rtol=1e-9)
        np.testing.assert_allclose(process.time_at(vp.noise_ratio(t)), t, rtol=1e-9)
    learned = from_log_snr(partial(NET.apply, random_params(2, 2.0)))
    t = jnp.linspace(0, 1, 20)
    np.testing.assert_allclose(learned.log_snr(t), NET.apply(random_params(2, 2.0), t), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(learned.alpha(t) ** 2 + learned.variance(t), 1, rtol=1e-5)


def bound_of(params, x_0, key, **options):
    process = from_log_snr(partial(NET.apply, params))
    return continuous_bound(MIXTURE.denoise(process), process, x_0, key, t_min=0.0, levels=None, **options)


def test_the_bound_depends_on_the_ends_alone():
    """Schedules of quite another shape give the mean of the first within four standard errors."""
    n = 10_000
    x_0 = jnp.asarray(MIXTURE.sample(np.random.default_rng(0), n))
    evaluate = jax.jit(lambda params, key: bound_of(params, x_0, key, draws=8).total)
    values = [np.asarray(evaluate(random_params(s, 4.0 * (s > 0)), jax.random.key(s))) for s in range(4)]
    shapes = [NET.apply(random_params(s, 4.0 * (s > 0)), jnp.linspace(0, 1, 9)) for s in range(4)]
    for other, shape in zip(values[1:], shapes[1:], strict=True):
        assert jnp.abs(shape - shapes[0]).max() > 1
        error = np.hypot(other.std(), values[0].std()) / np.sqrt(n)
        assert abs(other.mean() - values[0].mean()) < 4 * error


def test_training_moves_the_shape_and_not_the_ends():
    """VDM's use: the schedule is trained for a small variance of the bound, here by its second moment."""
    x_0 = jnp.asarray(GAUSSIAN.sample(np.random.default_rng(1), 1024))
    start = random_params(3, 1.0)

    def loss_fn(params, batch, key):
        process = from_log_snr(partial(NET.apply, params))
        bound = continuous_bound(GAUSSIAN.denoise(process), process, batch, key, t_min=0.0, levels=None)
        return jnp.mean(bound.transitions**2)

    optimizer = optax.adam(3e-2)
    state = init_state(start, optimizer, jax.random.key(4))
    step = jax.jit(make_step(loss_fn, optimizer, ema_decay=0.9))
    for _ in range(60):
        state, metrics = step(state, x_0)
        assert np.isfinite(metrics["loss"])
    evaluate = jax.jit(lambda params: loss_fn(params, jnp.tile(x_0, (8, 1)), jax.random.key(5)))
    assert evaluate(state.params) < 0.9 * evaluate(start)
    for params in (state.params, state.ema):
        np.testing.assert_array_equal(NET.apply(params, jnp.array([0.0, 1.0])), np.array([HIGH, LOW], np.float32))
    assert jnp.abs(NET.apply(state.params, jnp.array([0.5])) - NET.apply(start, jnp.array([0.5]))) > 1e-2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"log_snr_max": -6.0, "log_snr_min": -5.0}, "log_snr_max > log_snr_min"),
        ({"log_snr_max": 1.0, "log_snr_min": 0.0, "curves": 0}, "curves >= 1"),
        ({"log_snr_max": 1.0, "log_snr_min": 0.0, "least_slope": 0.0}, "0 < least_slope < 1"),
    ],
)
def test_schedules_that_cannot_fall_are_refused(options, message):
    with pytest.raises(ValueError, match=f"Expected.*{message}"):
        MonotoneSchedule(**options).init(jax.random.key(0), jnp.zeros(1))
