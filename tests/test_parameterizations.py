"""Predictions, adapters and preconditioning against the exact denoiser, the exact score and EDM's table."""

from itertools import product
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import MIXTURE, NO_SIGNAL_AT_ONE, PROCESSES, last_time

from dgm_jax.parameterizations import (
    Prediction,
    as_denoiser,
    error_ratio,
    noise_of,
    precondition,
    score_of,
    target_of,
    velocity_of,
)

ALL = pytest.mark.parametrize("name", PROCESSES)
PRECISION = pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
PREDICTIONS = get_args(Prediction)


def column(values):
    return values[:, None]


def inputs(name, t_min=0.05, seed=0):
    """(x_0, t, noise, x_t) over the whole range of times."""
    process, rng, n = PROCESSES[name], np.random.default_rng(seed), 8
    dtype = jnp.result_type(float)
    x_0 = jnp.asarray(MIXTURE.sample(rng, n, dtype))
    noise = jnp.asarray(rng.standard_normal((n, 2)), dtype)
    t = jnp.linspace(t_min, last_time(name), n)
    return x_0, t, noise, process.perturb(x_0, t, noise)


def target_means(process, x_t, t):
    """E[target | x_t] of each prediction, from grad log p_t alone."""
    score = jax.grad(lambda x: MIXTURE.log_prob(process, x, t).sum())(x_t)
    alpha, sigma = column(process.alpha(t)), column(process.sigma(t))
    x_0 = (x_t + sigma**2 * score) / alpha
    velocity = process.drift(x_t, t) - column(process.diffusion(t)) ** 2 / 2 * score
    return {
        "x_0": x_0,
        "noise": -sigma * score,
        "score": score,
        "v": -alpha * sigma * score - sigma * x_0,
        "velocity": velocity,
    }


ADAPTERS = {
    "x_0": lambda denoise, process: denoise,
    "noise": noise_of,
    "score": score_of,
    "velocity": velocity_of,
}


def relative_error(actual, expected):
    actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
    return np.max(np.abs(actual - expected) / (1 + np.linalg.norm(expected, axis=-1, keepdims=True)))


@ALL
def test_five_by_five_conversions(name):
    """Exact targets of one prediction give the exact denoiser, and through it the exact targets of every other."""
    process = PROCESSES[name]

    def convert(x_t, t):
        means = target_means(process, x_t, t)
        noise_mean = (x_t - column(process.alpha(t)) * means["x_0"]) / column(process.sigma(t))
        pairs = {}
        for given, asked in product(PREDICTIONS, PREDICTIONS):
            denoise = as_denoiser(lambda x, s, given=given: means[given], process, prediction=given)
            if asked in ADAPTERS:
                answer = ADAPTERS[asked](denoise, process)(x_t, t)
            else:
                answer = target_of(process, denoise(x_t, t), t, noise_mean, asked)
            pairs[given, asked] = answer
        linear = {asked: target_of(process, means["x_0"], t, noise_mean, asked) for asked in PREDICTIONS}
        return means, pairs, linear, MIXTURE.denoise(process)(x_t, t)

    with jax.enable_x64(True):
        _, t, _, x_t = inputs(name)
        means, pairs, linear, exact = jax.device_get(jax.jit(convert)(x_t, t))
    assert relative_error(means["x_0"], exact) < 1e-8
    for (given, asked), answer in pairs.items():
        assert relative_error(answer, means[asked]) < 1e-8, (given, asked)
        assert relative_error(linear[asked], means[asked]) < 1e-8, asked  # targets are linear, so means go through


@ALL
@PRECISION
def test_targets_of_one_draw_give_its_x_0_back_and_errors_scale_by_error_ratio(name, x64):
    process = PROCESSES[name]

    def convert(x_0, t, noise, x_t):
        guess = 0.7 * x_0 + 0.3
        guessed_noise = (x_t - column(process.alpha(t)) * guess) / column(process.sigma(t))
        backs, measured, ratios = [], [], []
        for prediction in PREDICTIONS:
            target = target_of(process, x_0, t, noise, prediction)
            backs.append(as_denoiser(lambda x, s, target=target: target, process, prediction=prediction)(x_t, t))
            error = target_of(process, guess, t, guessed_noise, prediction) - target
            measured.append(jnp.sum(error**2, 1) / jnp.sum((guess - x_0) ** 2, 1))
            ratios.append(error_ratio(process, t, prediction))
        return backs, measured, ratios

    with jax.enable_x64(x64):
        x_0, t, noise, x_t = inputs(name)
        backs, measured, ratios = jax.device_get(jax.jit(convert)(x_0, t, noise, x_t))
        amplified = np.max(np.asarray(process.noise_ratio(t)))
    eps = np.finfo(x_0.dtype).eps
    for prediction, back, measure, ratio in zip(PREDICTIONS, backs, measured, ratios, strict=True):
        assert back.dtype == x_0.dtype
        # x_0 = (x_t - sigma noise)/alpha at worst: rounding grows with sigma/alpha
        np.testing.assert_allclose(back, x_0, rtol=0, atol=30 * eps * (1 + amplified), err_msg=prediction)
        if x64:  # the guess's own noise cancels where sigma/alpha is small
            np.testing.assert_allclose(ratio, measure, rtol=1e-8, err_msg=prediction)


@ALL
@PRECISION
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_time_zero_is_exact_whatever_the_network_says(name, x64, prediction):
    process = PROCESSES[name]
    with jax.enable_x64(x64):
        x_t, t = jnp.array([[0.3, -1.7], [2.0, 0.1]]), jnp.zeros(2)
        denoise = as_denoiser(lambda x, s: jnp.full_like(x, 0.4), process, prediction=prediction)
        answer = jax.jit(denoise)(x_t, t)
        if prediction == "x_0":
            np.testing.assert_array_equal(answer, jnp.full_like(x_t, 0.4))
        elif process.variance(t)[0] == 0:
            np.testing.assert_allclose(answer, x_t, rtol=4 * np.finfo(x_t.dtype).eps)  # alpha(0) = 1 to rounding
        else:  # alpha = 1 and sigma_min noise: x_t = x_0 + sigma noise, and each target solved by hand
            sigma = float(process.sigma(t)[0])
            rate = float(process.rates(t)[1][0])
            noise = {"noise": 0.4, "score": -sigma * 0.4, "velocity": 0.4 / rate}.get(prediction)
            by_hand = (x_t - sigma * 0.4) / (1 + sigma**2) if prediction == "v" else x_t - sigma * (noise or 0)
            np.testing.assert_allclose(answer, by_hand, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(NO_SIGNAL_AT_ONE))
@pytest.mark.parametrize("prediction", ["x_0", "v", "velocity"])
def test_pure_noise_is_finite_where_the_target_still_holds_x_0(name, prediction):
    process = PROCESSES[name]
    x_0, noise, t = jnp.array([[1.5, -0.7]]), jnp.array([[0.2, 1.1]]), jnp.ones(1)
    target = target_of(process, x_0, t, noise, prediction)
    denoise = as_denoiser(lambda x, s: target, process, prediction=prediction)
    np.testing.assert_allclose(jax.jit(denoise)(process.perturb(x_0, t, noise), t), x_0, rtol=1e-5)
    assert np.isfinite(error_ratio(process, t, prediction)).all()


def test_rectified_velocity_is_flow_matching():
    """The target is noise - x_0, and its mean given x_t is the marginal velocity -(x + t grad log p_t)/(1 - t)."""
    process = PROCESSES["rectified"]
    with jax.enable_x64(True):
        x_0, t, noise, x_t = inputs("rectified")
        np.testing.assert_allclose(target_of(process, x_0, t, noise, "velocity"), noise - x_0, rtol=1e-12)
        score = jax.grad(lambda x: MIXTURE.log_prob(process, x, t).sum())(x_t)
        marginal = -(x_t + column(t) * score) / column(1 - t)
        network = as_denoiser(lambda x, s: marginal, process, prediction="velocity")
        assert relative_error(network(x_t, t), MIXTURE.denoise(process)(x_t, t)) < 1e-9
        assert relative_error(velocity_of(MIXTURE.denoise(process), process)(x_t, t), marginal) < 1e-9


def test_unknown_prediction_is_refused(untyped):
    with pytest.raises(ValueError, match=r"^Expected prediction to be one of .*'velocity'.*got 'epsilon'\.$"):
        as_denoiser(lambda x, t: x, PROCESSES["vp"], prediction="epsilon")


def edm_table(ratio, sigma_data):
    """(c_skip, c_out, c_in, c_noise) of Karras et al. 2022, table 1, at noise level ratio = sigma/alpha."""
    total = np.sqrt(ratio**2 + sigma_data**2)
    return sigma_data**2 / total**2, ratio * sigma_data / total, 1 / total, np.log(ratio) / 4


@ALL
def test_preconditioning_is_edms_table_on_x_t_over_alpha(name):
    process, sigma_data = PROCESSES[name], 0.5
    with jax.enable_x64(True):
        _, t, _, x_t = inputs(name, t_min=0.002)
        seen = {}

        def residual(scaled, c_noise):
            """(E[x_0 | y] - c_skip y)/c_out, from nothing but what the network is given."""
            seen["scaled"], seen["c_noise"] = scaled, c_noise
            ratio = jnp.exp(4 * c_noise)
            s = process.time_at(ratio)
            c_skip, c_out, c_in, _ = (column(jnp.asarray(c)) for c in edm_table(np.asarray(ratio), sigma_data))
            y = scaled / c_in
            return (MIXTURE.denoise(process)(y * column(process.alpha(s)), s) - c_skip * y) / c_out

        answer = precondition(residual, process, sigma_data=sigma_data)(x_t, t)
        alpha, ratio = np.asarray(process.alpha(t)), np.asarray(process.noise_ratio(t))
        _, _, c_in, c_noise = edm_table(ratio, sigma_data)
        np.testing.assert_allclose(seen["scaled"], column(c_in / alpha) * x_t, rtol=1e-10)
        np.testing.assert_allclose(seen["c_noise"], c_noise, rtol=1e-10)
        assert relative_error(answer, MIXTURE.denoise(process)(x_t, t)) < 1e-7


@ALL
def test_preconditioned_input_and_target_have_unit_variance(name):
    """Demanded of c_in, c_skip and c_out by Karras et al. 2022, appendix B.6, for data of any law."""
    process, sigma_data, n = PROCESSES[name], 0.5, 20_000
    rng = np.random.default_rng(3)
    x_0 = jnp.asarray(rng.uniform(-1, 1, (n, 1)) * sigma_data * np.sqrt(3), jnp.float32)
    noise = jnp.asarray(rng.standard_normal((n, 1)), jnp.float32)
    t = jnp.tile(jnp.asarray([0.05, 0.3, 0.7, last_time(name)], jnp.float32), n // 4)
    x_t = process.perturb(x_0, t, noise)
    seen = []

    def denoise(x_t, output):
        return precondition(lambda x, c: seen.append(x) or output, process, sigma_data=sigma_data)(x_t, t)

    skip = np.asarray(denoise(x_t, jnp.zeros_like(x_t)))
    c_out = np.asarray(denoise(jnp.zeros_like(x_t), jnp.ones_like(x_t)))
    target = (np.asarray(x_0) - skip) / c_out
    for values in (np.asarray(seen[0]), target):
        squares = values.reshape(-1, 4).astype(np.float64) ** 2
        assert (np.abs(squares.mean(0) - 1) < 4 * squares.std(0) / np.sqrt(len(squares))).all()


def test_preconditioning_is_finite_where_data_is_noiseless_and_refuses_a_bad_scale():
    def network(x, c_noise):
        return jnp.sin(column(c_noise) + x)

    for name, process in PROCESSES.items():
        x_t = jnp.array([[0.3, -1.7]])
        answer = jax.jit(precondition(network, process, sigma_data=0.5))(x_t, jnp.zeros(1))
        np.testing.assert_allclose(answer, x_t, atol=4 * float(process.sigma(0.0)) + 1e-6, err_msg=name)
    for sigma_data in (0.0, -0.5, float("nan")):
        with pytest.raises(ValueError, match="sigma_data > 0"):
            precondition(network, PROCESSES["vp"], sigma_data=sigma_data)
