"""The probability-flow ODE against its closed form for Gaussian data, in every process and coordinate system."""

import itertools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, MIXTURE, NO_SIGNAL_AT_ONE, PROCESSES, gaussian_flow, last_time, mixture_weights

from dgm_jax.parameterizations import as_denoiser, precondition
from dgm_jax.processes import karras_grid, log_snr_grid, uniform
from dgm_jax.samplers import sample_ode, solve_ode

COORDINATES = ("time", "noise", "data")
X = np.array([[0.3, -1.1], [1.9, 0.4], [-0.6, -0.2]])
SOLVERS = {"Euler": (diffrax.Euler(), 1), "Heun": (diffrax.Heun(), 2), "Tsit5": (diffrax.Tsit5(), 5)}


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def solve(denoise, process, x, **options):
    """`solve_ode` under jit: op by op it takes seconds."""
    return jax.jit(lambda x: solve_ode(denoise, process, x, **options))(x)


def state_at(process, t):
    """States of a typical size at time t."""
    std = float(jnp.sqrt(process.alpha(jnp.asarray(t)) ** 2 * 0.3 + process.variance(jnp.asarray(t))))
    return jnp.asarray(float(process.alpha(jnp.asarray(t))) * GAUSSIAN.means[0] + std * X)


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("name", PROCESSES)
def test_the_flow_of_gaussian_data_is_its_closed_form(name, coordinates):
    """From the prior's end to t = 1e-3 and back, the adaptive solver holds its tolerance for every example."""
    process = PROCESSES[name]
    x = state_at(process, last_time(name))
    ts = jnp.array([last_time(name), 1e-3])
    controller = diffrax.PIDController(rtol=1e-7, atol=1e-8)

    @jax.jit
    def there_and_back(x):
        options = {"solver": diffrax.Tsit5(), "coordinates": coordinates, "controller": controller}
        data = solve_ode(GAUSSIAN.denoise(process), process, x, ts=np.asarray(ts), **options)
        noise = solve_ode(GAUSSIAN.denoise(process), process, data.x, ts=np.asarray(ts)[::-1], **options)
        return data, noise

    data, noise = there_and_back(x)
    assert data.result == diffrax.RESULTS.successful
    expected = gaussian_flow(process, x, last_time(name), 1e-3)
    # the rates of from_betas jump at its 1,000 nodes, which a solver in t resolves to 1/1000; the other clocks see no t
    tolerance = 1e-3 if (name, coordinates) == ("from_betas", "time") else 1e-6
    np.testing.assert_allclose(data.x, expected, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(noise.x, x, rtol=10 * tolerance, atol=10 * tolerance * float(process.sigma(1.0)))


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_order_of_convergence(name, solver, coordinates):
    process, (method, order) = PROCESSES[name], SOLVERS[solver]
    x, steps = state_at(process, 0.8), np.array([16, 32, 64])
    options = {"solver": method, "coordinates": coordinates}
    advance = jax.jit(lambda x, ts: solve_ode(GAUSSIAN.denoise(process), process, x, ts=ts, **options).x)
    errors = []
    for n in steps:  # a grid of n steps, in pieces of 16 that share one compiled program
        ts, end = uniform(int(n), t_min=0.3, t_max=0.8), x
        for i in range(0, n, 16):
            end = advance(end, ts[i : i + 17])
        errors.append(np.abs(end - gaussian_flow(process, x, 0.8, 0.3)).max())
    fitted = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert order - 0.35 < fitted < order + 0.5, (fitted, errors)


@pytest.mark.parametrize("name", sorted(NO_SIGNAL_AT_ONE))
@pytest.mark.parametrize("coordinates", ["time", "data"])
def test_processes_without_signal_start_at_one(name, coordinates):
    """alpha(1) = 0 is no obstacle in the coordinates that do not divide by it."""
    process = PROCESSES[name]
    ts = uniform(400, t_min=0.01)
    x = jnp.asarray(X)
    end = solve(GAUSSIAN.denoise(process), process, x, ts=ts, coordinates=coordinates).x
    np.testing.assert_allclose(end, gaussian_flow(process, x, 1.0, 0.01), rtol=2e-4, atol=2e-4)


def test_euler_in_noise_coordinates_is_ddim():
    """x_s = alpha_s D + sigma_s E, DDIM's step (Song, Meng & Ermon 2021, eq. 12 with eta = 0), in both clocks."""
    process = PROCESSES["vp"]
    denoise = MIXTURE.denoise(process)
    ts = karras_grid(process, 20, t_min=1e-3)
    x = jnp.asarray(X)
    expected = x
    for t, s in itertools.pairwise(ts):
        t, s = jnp.full(len(x), t), jnp.full(len(x), s)
        estimate = denoise(expected, t)
        noise = (expected - process.alpha(t)[:, None] * estimate) / process.sigma(t)[:, None]
        expected = process.alpha(s)[:, None] * estimate + process.sigma(s)[:, None] * noise
    for coordinates in ("noise", "data"):
        result = solve(denoise, process, x, ts=ts, solver=diffrax.Euler(), coordinates=coordinates)
        np.testing.assert_allclose(result.x, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", PROCESSES)
def test_samples_have_the_mixtures_mean_covariance_and_weights(name):
    process, n = PROCESSES[name], 4000
    ts = log_snr_grid(process, 48, t_min=1e-3, t_max=last_time(name))
    draw = jax.jit(lambda key: sample_ode(MIXTURE.denoise(process), process, key, (n, 2), ts=ts, coordinates="noise").x)
    x = np.asarray(draw(jax.random.key(1)))
    # stated bias: x at ts[0] has mean alpha m and variance alpha^2 C + sigma^2 I where the prior has 0 and sigma^2 I
    alpha, sigma = float(process.alpha(jnp.asarray(ts[0]))), float(process.sigma(ts[0]))
    prior_bias = alpha / sigma * float(np.abs(MIXTURE.means).max() + 1)
    spread = np.sqrt(np.diag(MIXTURE.covariance))
    np.testing.assert_array_less(np.abs(x.mean(0) - MIXTURE.mean), spread * (4 / np.sqrt(n) + prior_bias))
    fourth = np.abs(np.cov(x.T) - MIXTURE.covariance)
    np.testing.assert_array_less(fourth, np.outer(spread, spread) * (4 * np.sqrt(2 / n) + prior_bias))
    weights = MIXTURE.weights
    error = np.abs(mixture_weights(MIXTURE, x) - weights)
    np.testing.assert_array_less(error, 4 * np.sqrt(weights * (1 - weights) / n) + prior_bias)


@pytest.mark.parametrize(
    "solver",
    [diffrax.Euler(), diffrax.Heun(), diffrax.Ralston(), diffrax.Bosh3(), diffrax.Tsit5(), diffrax.Dopri8()],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("adaptive", [False, True])
def test_evaluations_are_the_networks_calls(solver, adaptive):
    if adaptive and isinstance(solver, diffrax.Euler):
        controller = None
    else:
        controller = diffrax.PIDController(rtol=1e-4, atol=1e-4) if adaptive else None
    process, calls = PROCESSES["vp"], []
    exact = GAUSSIAN.denoise(process)

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return exact(x, t)

    result = solve(counted, process, jnp.asarray(X), ts=uniform(10, t_min=0.0), solver=solver, controller=controller)
    jax.block_until_ready(result.x)
    jax.effects_barrier()
    assert int(result.evaluations) == len(calls)


@pytest.mark.parametrize("coordinates", COORDINATES)
def test_a_last_point_of_zero_is_the_denoisers_estimate(coordinates):
    process = PROCESSES["vp"]
    denoise = MIXTURE.denoise(process)
    ts = np.array([0.9, 0.5, 0.1, 0.0])
    result = solve(denoise, process, jnp.asarray(X), ts=ts, coordinates=coordinates, save_path=True)
    before = solve(denoise, process, jnp.asarray(X), ts=ts[:-1], coordinates=coordinates)
    np.testing.assert_allclose(result.x, denoise(before.x, jnp.full(len(X), 0.1)), rtol=1e-12)
    assert result.path.shape == (4, *X.shape)
    np.testing.assert_allclose(result.path[0], X, rtol=1e-12)
    np.testing.assert_array_equal(result.path[-1], result.x)
    assert int(result.evaluations) == int(before.evaluations) + 1


def test_each_example_keeps_its_tolerance_whatever_its_batch():
    """One stiff example among many easy ones: a mean over the batch would let it drift."""
    process = PROCESSES["vp"]
    easy = np.tile(GAUSSIAN.means[0] * float(process.alpha(jnp.asarray(0.9))), (511, 1))
    x = jnp.asarray(np.concatenate([[[40.0, -60.0]], easy]))
    ts = np.array([0.9, 0.01])
    controller = diffrax.PIDController(rtol=0.0, atol=1e-4)
    options = {"ts": ts, "solver": diffrax.Tsit5(), "controller": controller}
    together = solve(GAUSSIAN.denoise(process), process, x, **options)
    alone = solve(GAUSSIAN.denoise(process), process, x[:1], **options)
    assert int(together.evaluations) == int(alone.evaluations)
    np.testing.assert_allclose(together.x[:1], alone.x, rtol=1e-10)


def test_an_adaptive_solve_that_runs_out_of_steps_says_so():
    process = PROCESSES["vp"]
    result = solve(
        GAUSSIAN.denoise(process),
        process,
        jnp.asarray(X),
        ts=np.array([1.0, 1e-3]),
        solver=diffrax.Tsit5(),
        controller=diffrax.PIDController(rtol=1e-6, atol=1e-6),
        max_steps=3,
    )
    assert result.result == diffrax.RESULTS.max_steps_reached


@pytest.mark.parametrize("adjoint", [diffrax.DirectAdjoint(), diffrax.RecursiveCheckpointAdjoint()])
def test_gradients_through_the_solve(adjoint):
    """d x(t_1) / d x(t_0) of the flow is the ratio of standard deviations."""
    process, ts = PROCESSES["vp"], uniform(100, t_min=0.1, t_max=0.8)

    def first(x):
        return solve_ode(GAUSSIAN.denoise(process), process, x, ts=ts, adjoint=adjoint).x[0, 0]

    x = jnp.asarray(X)
    step = 1e-4
    bump = np.zeros_like(X)
    bump[0, 0] = step
    exact = gaussian_flow(process, x + bump, 0.8, 0.1) - gaussian_flow(process, x - bump, 0.8, 0.1)
    np.testing.assert_allclose(jax.jit(jax.grad(first))(x)[0, 0], exact[0, 0] / (2 * step), rtol=1e-3)


def test_a_solve_through_a_pole_says_so():
    """Noise predictions hold no x_0 where alpha = 0: the result is not a success, though every step was taken."""
    process = PROCESSES["rectified"]
    denoise = as_denoiser(lambda x, t: x, process, prediction="noise")
    result = solve(denoise, process, jnp.asarray(X), ts=uniform(4, t_min=0.1))
    assert result.result == diffrax.RESULTS.nonfinite


def test_preconditioning_starts_without_signal():
    """c_noise is bounded where alpha = 0, so that flows of rectified and cosine processes may start at t = 1."""
    process = PROCESSES["rectified"]
    denoise = precondition(lambda x, c: jnp.sin(x + c[:, None]), process, sigma_data=0.5)
    result = solve(denoise, process, jnp.asarray(X), ts=uniform(4, t_min=0.1))
    assert result.result == diffrax.RESULTS.successful
