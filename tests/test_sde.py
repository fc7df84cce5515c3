"""The reverse SDE and the forward SDE against exact moments, exact discretisation, and strong orders."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import (
    GAUSSIAN,
    MIXTURE,
    PROCESSES,
    euler_maruyama_moments,
    gaussian_flow,
    last_time,
    mixture_weights,
)

from dgm_jax.processes import log_snr_grid, uniform
from dgm_jax.samplers import sample_ode, sample_sde, simulate_forward, solve_ode, solve_sde

X = np.array([[0.3, -1.1], [1.9, 0.4], [-0.6, -0.2]])
N = 4000


def check_moments(x, mean, covariance, *, bias=0.0):
    """Sample mean and covariance within four standard errors of Gaussian theory, plus a stated relative bias."""
    x = np.asarray(x, np.float64)
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), spread * (4 / np.sqrt(len(x)) + bias))
    error = np.sqrt((np.outer(spread, spread) ** 2 + covariance**2) / len(x))
    np.testing.assert_array_less(np.abs(np.cov(x.T) - covariance), 4 * error + bias * np.outer(spread, spread))


@pytest.mark.parametrize("stochasticity", [1.0, 0.5])
@pytest.mark.parametrize("name", PROCESSES)
def test_samples_have_euler_maruyamas_exact_moments(name, stochasticity):
    """For Gaussian data the discretised moments are a closed recursion: no discretisation error is left to allow."""
    process = PROCESSES[name]
    ts = log_snr_grid(process, 60, t_min=1e-2, t_max=last_time(name))
    draw = jax.jit(
        lambda key: sample_sde(GAUSSIAN.denoise(process), process, key, (N, 2), ts=ts, stochasticity=stochasticity).x
    )
    check_moments(draw(jax.random.key(2)), *euler_maruyama_moments(process, ts, stochasticity))


@pytest.mark.parametrize("name", PROCESSES)
def test_the_discretised_moments_converge_to_the_data(name):
    """The recursion above tends to the exact marginal with order one at least: it is the right SDE."""
    process = PROCESSES[name]
    with jax.enable_x64(True):
        low = 1e-2
        alpha, sigma = float(process.alpha(jnp.asarray(low))), float(process.sigma(low))
        exact = alpha**2 * GAUSSIAN.covariances[0] + sigma**2 * np.eye(2)
        errors = []
        for n in (500, 1000, 2000):
            ts = log_snr_grid(process, n, t_min=low, t_max=last_time(name))
            _, covariance = euler_maruyama_moments(process, ts, 1.0)
            errors.append(np.abs(covariance - exact).max())
    order = -np.polyfit(np.log([500, 1000, 2000]), np.log(errors), 1)[0]
    assert order > 0.9, (order, errors)  # VE on this grid does better, with order two


@pytest.mark.parametrize("coordinates", ["time", "noise", "data"])
@pytest.mark.parametrize("name", ["vp", "ve", "rectified"])
def test_samples_have_the_mixtures_mean_covariance_and_weights(name, coordinates):
    process, steps = PROCESSES[name], 300
    ts = log_snr_grid(process, steps, t_min=1e-3, t_max=last_time(name))
    draw = jax.jit(
        lambda key: sample_sde(MIXTURE.denoise(process), process, key, (N, 2), ts=ts, coordinates=coordinates).x
    )
    x = np.asarray(draw(jax.random.key(4)))
    # stated bias: half a step in log-SNR, the relative error of an explicit step of order one
    high, low = (float(process.log_snr(t)) for t in (ts[-1], ts[0]))
    bias = (high - low) / steps / 2
    check_moments(x, MIXTURE.mean, MIXTURE.covariance, bias=bias)
    weights = MIXTURE.weights
    error = np.abs(mixture_weights(MIXTURE, x) - weights)
    np.testing.assert_array_less(error, 4 * np.sqrt(weights * (1 - weights) / N) + bias * weights)


@pytest.mark.parametrize("coordinates", ["time", "noise", "data"])
def test_no_stochasticity_is_the_probability_flow(coordinates):
    with jax.enable_x64(True):
        process, ts = PROCESSES["sub_vp"], uniform(20, t_min=0.1, t_max=0.9)
        options = {"ts": ts, "coordinates": coordinates, "solver": diffrax.Euler()}
        x, denoise = jnp.asarray(X), MIXTURE.denoise(process)
        ode = jax.jit(lambda x: solve_ode(denoise, process, x, **options).x)(x)
        sde = jax.jit(lambda x: solve_sde(denoise, process, x, jax.random.key(0), stochasticity=0.0, **options).x)(x)
        np.testing.assert_allclose(sde, ode, rtol=1e-9)


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_strong_order_on_a_shared_brownian_path(name):
    """Against a fine solve on the same path: additive noise gives Euler order 1; ShARK has 1.5, and 2 as the drift here
    is linear."""
    with jax.enable_x64(True):
        process, span = PROCESSES[name], 0.4
        denoise, n = GAUSSIAN.denoise(process), 60
        x = jnp.asarray(np.tile(X, (n // 2, 1))[:n])
        path = diffrax.VirtualBrownianTree(
            0.0,
            span,
            tol=span * 2.0**-11,
            shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
            key=jax.random.key(5),
            levy_area=diffrax.SpaceTimeLevyArea,
        )

        def end(steps, solver):
            ts = 0.7 - span * np.arange(steps + 1) / steps
            solve = jax.jit(
                lambda x: solve_sde(denoise, process, x, jax.random.key(0), ts=ts, solver=solver, brownian=path).x
            )
            return np.asarray(solve(x))

        reference, steps = end(512, diffrax.ShARK()), np.array([16, 32, 64])
        for solver, order in ((diffrax.Euler(), 1.0), (diffrax.ShARK(), 2.0)):
            errors = [np.sqrt(np.mean((end(int(k), solver) - reference) ** 2)) for k in steps]
            fitted = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
            assert abs(fitted - order) < 0.25, (solver, fitted, errors)


@pytest.mark.parametrize("solver", [diffrax.Heun(), diffrax.SPaRK()], ids=["Heun", "SPaRK"])
def test_adaptive_steps_on_a_brownian_tree(solver):
    process = PROCESSES["vp"]
    draw = jax.jit(
        lambda key: sample_sde(
            GAUSSIAN.denoise(process),
            process,
            key,
            (2000, 2),
            ts=np.array([1.0, 0.02]),
            solver=solver,
            controller=diffrax.PIDController(rtol=1e-2, atol=1e-2),
        )
    )
    result = draw(jax.random.key(6))
    assert result.result == diffrax.RESULTS.successful
    alpha, sigma = float(process.alpha(jnp.asarray(0.02))), float(process.sigma(0.02))
    exact = alpha**2 * GAUSSIAN.covariances[0] + sigma**2 * np.eye(2)
    check_moments(result.x, alpha * GAUSSIAN.means[0], exact, bias=1e-2)


@pytest.mark.parametrize("solver", [diffrax.Euler(), diffrax.ShARK(), diffrax.SEA()], ids=lambda s: type(s).__name__)
def test_reverse_solvers_are_right_on_the_increasing_clock(solver):
    """The Lévy-area solvers are silently wrong on a falling clock; here they recover the flow's moments."""
    process = PROCESSES["vp"]
    ts = uniform(100, t_min=0.05)
    result = jax.jit(lambda key: sample_sde(GAUSSIAN.denoise(process), process, key, (N, 2), ts=ts, solver=solver))(
        jax.random.key(7)
    )
    alpha, sigma = float(process.alpha(jnp.asarray(0.05))), float(process.sigma(0.05))
    exact = alpha**2 * GAUSSIAN.covariances[0] + sigma**2 * np.eye(2)
    # stated bias: Euler's exact discretised covariance; the others are of higher order
    discretised = euler_maruyama_moments(process, ts, 1.0)[1]
    check_moments(result.x, alpha * GAUSSIAN.means[0], exact, bias=float(np.abs(discretised / exact - 1).max()))


@pytest.mark.parametrize("name", PROCESSES)
def test_forward_simulation_has_the_kernel_from_its_first_state(name):
    """Mean alpha(t)/alpha(a) x and variance sigma(t)^2 - (alpha(t)/alpha(a))^2 sigma(a)^2; sigma(a) > 0 counts."""
    process = PROCESSES[name]
    ts = np.linspace(0.1, 0.8, 601, dtype=np.float32)
    x = np.tile(np.array([[1.3, -0.4]], np.float32), (N, 1))
    run = jax.jit(lambda key: simulate_forward(process, jnp.asarray(x), key, ts=ts, save_path=True))
    result = run(jax.random.key(8))
    alpha = [float(process.alpha(jnp.asarray(t))) for t in (0.1, 0.8)]
    variance = [float(process.variance(jnp.asarray(t))) for t in (0.1, 0.8)]
    ratio = alpha[1] / alpha[0]
    spread = variance[1] - ratio**2 * variance[0]
    # stated bias: Euler's local error, half a step times the growth rate of the variance along the interval
    growth = np.log(variance[1] / variance[0]) + 2 * abs(np.log(ratio))
    check_moments(result.x, ratio * x[0], spread * np.eye(2), bias=growth / 600)
    assert result.path.shape == (601, N, 2)
    np.testing.assert_array_equal(result.path[0], x)
    assert int(result.evaluations) == 0


def test_sde_samples_follow_their_own_keys():
    """An example's path depends on its own key alone: slices of keys give slices of samples, to the last bit."""
    process, ts = PROCESSES["vp"], uniform(10, t_min=0.05)
    keys = jax.random.split(jax.random.key(9), 6)
    denoise = GAUSSIAN.denoise(process)
    whole = jax.jit(lambda k: sample_sde(denoise, process, k, (6, 2), ts=ts).x)(keys)
    part = jax.jit(lambda k: sample_sde(denoise, process, k, (3, 2), ts=ts).x)(keys[2:5])
    np.testing.assert_array_equal(whole[2:5], part)
    legacy = jax.jit(lambda k: sample_sde(denoise, process, k, (6, 2), ts=ts).x)(jax.random.key_data(keys))
    np.testing.assert_array_equal(whole, legacy)


def test_evaluations_are_the_networks_calls():
    process, calls = PROCESSES["vp"], []
    exact = GAUSSIAN.denoise(process)

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return exact(x, t)

    for solver in (diffrax.Euler(), diffrax.Heun(), diffrax.ShARK()):
        calls.clear()
        result = jax.jit(
            lambda key, solver=solver: sample_sde(
                counted, process, key, (3, 2), ts=uniform(7, t_min=0.0), solver=solver
            )
        )(jax.random.key(0))
        jax.block_until_ready(result.x)
        jax.effects_barrier()
        assert int(result.evaluations) == len(calls), type(solver).__name__


def test_the_flow_from_a_sampled_state_agrees_with_the_closed_form():
    """The prior is N(0, sigma(ts[0])^2 I) also where the solve does not start at t = 1."""
    process = PROCESSES["ve"]
    ts = log_snr_grid(process, 200, t_min=1e-3, t_max=0.6)
    keys = jax.random.split(jax.random.key(10), N)
    x = jax.jit(lambda k: sample_ode(GAUSSIAN.denoise(process), process, k, (N, 2), ts=ts).x)(keys)
    start = float(process.sigma(0.6))
    back = gaussian_flow(process, x, 1e-3, 0.6)
    check_moments(back, np.zeros(2), start**2 * np.eye(2), bias=1e-3)
