"""Rows of the oracle table that solve: ODE and SDE samplers, forward simulation, likelihood.

Gaussian data make every oracle exact: the flow is a ratio of standard deviations, and the moments of Euler-Maruyama
follow a recursion with the discretisation error included, so that only Monte Carlo error is left to allow.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from dgm_jax.likelihood import log_likelihood
from dgm_jax.processes import GaussianProcess, log_snr_grid, uniform
from dgm_jax.samplers import sample_ode, sample_sde, simulate_forward, solve_ode, solve_sde
from experiments._oracle_rows import DOUBLE, EYE, SONG, Row, forward_sde, paper, relative, standard_errors, worst
from tests.oracles import (
    GAUSSIAN,
    MIXTURE,
    PROCESSES,
    Mixture,
    euler_maruyama_moments,
    gaussian_flow,
    last_time,
    mixture_weights,
)

KARRAS = "2206.00364"
COORDINATES: dict[Any, str] = {
    "time": paper(SONG, "eq. 13"),
    "noise": paper(KARRAS, "eq. 4"),
    "data": paper("2211.01095", "prop. 4.1"),
}
SOLVERS = {"Euler": (diffrax.Euler(), 1), "Heun": (diffrax.Heun(), 2), "Tsit5": (diffrax.Tsit5(), 5)}
STRONG = {"Euler": (diffrax.Euler(), 1), "ShARK": (diffrax.ShARK(), 2)}
# VE's sigma changes by a factor of 70 between t = 0.3 and 0.8: below 64 steps Tsit5's error still changes its sign
STEPS = {"vp": np.array([16, 32, 64]), "ve": np.array([64, 128, 256])}
X = np.array([[0.3, -1.1], [1.9, 0.4], [-0.6, -0.2]])
LOW = 1e-3
ADAPTIVE: Any = {"solver": diffrax.Tsit5(), "controller": diffrax.PIDController(rtol=1e-7, atol=1e-8)}


def scales(process: GaussianProcess, *times: float) -> np.ndarray:
    """Rows (alpha, sigma) at the times."""
    t = np.asarray(times)
    return np.stack([process.alpha(jnp.asarray(t)), process.sigma(t)], 1).astype(np.float64)


def state_at(process: GaussianProcess, t: float) -> Any:
    """States of a typical size at time t."""
    alpha, sigma = scales(process, t)[0]
    return jnp.asarray(alpha * GAUSSIAN.means[0] + np.sqrt(alpha**2 * 0.3 + sigma**2) * X)


def moments(x: Any, mean: np.ndarray, covariance: np.ndarray, *, bias: float = 0.0) -> tuple[float, float]:
    """Sample mean and covariance in standard errors of Gaussian theory: four, and a stated relative `bias`."""
    x = np.asarray(x, np.float64)
    spread = np.sqrt(np.diag(covariance))
    of_mean, of_covariance = spread / np.sqrt(len(x)), np.sqrt((np.outer(spread, spread) ** 2 + covariance**2) / len(x))
    deviations = [np.abs(x.mean(0) - mean) / of_mean, (np.abs(np.cov(x.T) - covariance) / of_covariance).ravel()]
    allowed = [4 + bias * spread / of_mean, (4 + bias * np.outer(spread, spread) / of_covariance).ravel()]
    return worst(np.concatenate(deviations), np.concatenate(allowed))


def shares(x: Any, *, bias: Any) -> tuple[float, float]:
    """The weights of the mixture's components among points, in standard errors: four, and a stated `bias`."""
    weights = MIXTURE.weights
    error = np.sqrt(weights * (1 - weights) / len(x))
    return worst((mixture_weights(MIXTURE, np.asarray(x)) - weights) / error, 4 + bias / error)


def prior_mismatch(process: GaussianProcess, mixture: Mixture, t: float) -> float:
    """alpha/sigma (max |m| + 1): how far N(0, sigma^2) is from the marginal at t, in standard deviations."""
    alpha, sigma = scales(process, t)[0]
    return float(alpha / sigma * (np.abs(mixture.means).max() + 1))


def fitted(steps: np.ndarray, errors: Sequence[float]) -> float:
    """The order of convergence."""
    return float(-np.polyfit(np.log(steps), np.log(errors), 1)[0])


def ode_rows(names: Sequence[str]) -> Iterator[Row]:
    """The probability flow against its closed form, its orders, and what it draws."""
    for name in names:
        process, high = PROCESSES[name], last_time(name)
        denoise, start, end = GAUSSIAN.denoise(process), state_at(process, high), state_at(process, LOW)
        there, back = (gaussian_flow(process, *ends) for ends in ((start, high, LOW), (end, LOW, high)))
        for coordinates, source in COORDINATES.items():

            @jax.jit
            def flow(x, ts, process=process, denoise=denoise, coordinates=coordinates):
                return solve_ode(denoise, process, x, ts=ts, coordinates=coordinates, **ADAPTIVE).x

            drawn, encoded = flow(start, np.array([high, LOW])), flow(end, np.array([LOW, high]))
            # the chain's rates jump at its 1,000 nodes, which a solver in t resolves to 1/1000
            tolerance = 1e-3 if (name, coordinates) == ("from_betas", "time") else 1e-6
            method = f'`solve_ode`, "{coordinates}", adaptive Tsit5'
            yield Row(method, source, name, "closed-form flow", worst(relative(drawn, there), tolerance))
            error = np.abs(encoded - back) / (np.abs(back) + scales(process, high)[0, 1])
            oracle = "closed-form flow, encoding"
            yield Row(method, source, name, oracle, worst(error, 10 * tolerance))
    for name in names:
        if name in ("vp", "ve"):
            yield from ode_order_rows(name)
    for name in names:
        yield from ode_sample_rows(name)


def ode_order_rows(name: str) -> Iterator[Row]:
    """Fitted orders of Euler, Heun and Tsit5 in each coordinate system."""
    process = PROCESSES[name]
    x, denoise = state_at(process, 0.8), GAUSSIAN.denoise(process)
    exact = gaussian_flow(process, x, 0.8, 0.3)
    for coordinates, source in COORDINATES.items():
        for kind, (solver, order) in SOLVERS.items():
            options: Any = {"solver": solver, "coordinates": coordinates}
            least = int(STEPS[name][0])
            advance = jax.jit(lambda x, ts, o=options: solve_ode(denoise, process, x, ts=ts, **o).x)
            errors = []
            for n in STEPS[name]:  # a grid of n steps, in pieces that share one compiled program
                ts, end = uniform(int(n), t_min=0.3, t_max=0.8), x
                for i in range(0, n, least):
                    end = advance(end, ts[i : i + least + 1])
                errors.append(np.abs(end - exact).max())
            found = fitted(STEPS[name], errors)
            oracle = f"order {order} towards the closed-form flow"
            yield Row(
                f'`solve_ode`, "{coordinates}", {kind}', source, name, oracle, (abs(found - order), 0.35), order=found
            )


def ode_sample_rows(name: str) -> Iterator[Row]:
    """Samples by the flow: Gaussian ones carried back to the prior in closed form, and a mixture's weights."""
    process, high, n = PROCESSES[name], last_time(name), 4000
    ts = np.array([high, LOW])
    key = jax.random.key(1)
    options: Any = ADAPTIVE | {"coordinates": "noise"}
    draw = jax.jit(lambda key: sample_ode(GAUSSIAN.denoise(process), process, key, (n, 2), ts=ts, **options).x)
    prior = gaussian_flow(process, draw(key), LOW, high)
    sigma = scales(process, high)[0, 1]
    source, oracle = COORDINATES["noise"], "moments of the prior, carried back in closed form; standard errors"
    yield Row(
        '`sample_ode`, "noise", adaptive Tsit5', source, name, oracle, moments(prior, np.zeros(2), sigma**2 * EYE)
    )
    ts = log_snr_grid(process, 48, t_min=LOW, t_max=high)
    mixed = jax.jit(lambda k: sample_ode(MIXTURE.denoise(process), process, k, (n, 2), ts=ts, coordinates="noise").x)
    measured = shares(mixed(key), bias=prior_mismatch(process, MIXTURE, high))
    yield Row('`sample_ode`, "noise", Heun', source, name, "weights of a mixture; standard errors", measured)


def clock_moments(
    process: GaussianProcess, ts: Any, eta: float, coordinates: str, x: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Euler-Maruyama's exact mean and covariance of Gaussian data on the clock r = sigma/alpha or u = alpha/sigma.

    In an eigendirection of variance v, with r falling by h and y = x/alpha: E = r (y - m)/(v + r^2), and
    dy = -(1 + eta^2) E h + eta sqrt(2 r h) N. With u rising by h and z = x/sigma: D = (v u z + m)/(v u^2 + 1),
    E = (z - u m)/(v u^2 + 1), and dz = (D - eta^2/u E) h + eta sqrt(2 h/u) N (Karras et al. 2022, eq. 6).
    From the prior at ts[0], or from the state `x`.
    """
    v, vectors = np.linalg.eigh(GAUSSIAN.covariances[0])
    m = GAUSSIAN.means[0] @ vectors
    ends = scales(process, *np.asarray(ts))
    scale = 1 / ends[:, 0 if coordinates == "noise" else 1]
    average = np.zeros(2) if x is None else x @ vectors * scale[0]
    variance = np.full(2, (ends[0, 1] * scale[0]) ** 2) if x is None else np.zeros(2)
    clock = ends[:, 1] / ends[:, 0] if coordinates == "noise" else ends[:, 0] / ends[:, 1]
    for c, h in zip(clock[:-1], np.abs(np.diff(clock)), strict=True):
        if coordinates == "noise":
            pull = (1 + eta**2) * c / (v + c**2)
            gain, shift, spread = 1 - h * pull, h * pull * m, 2 * c
        else:
            gain = 1 + h * (v * c - eta**2 / c) / (v * c**2 + 1)
            shift, spread = h * (1 + eta**2) * m / (v * c**2 + 1), 2 / c
        average, variance = gain * average + shift, gain**2 * variance + eta**2 * spread * h
    return vectors @ average / scale[-1], vectors @ np.diag(variance) @ vectors.T / scale[-1] ** 2


def sde_rows(names: Sequence[str]) -> Iterator[Row]:
    """The reverse SDE against Euler-Maruyama's exact moments, its strong orders, and a mixture's weights."""
    n, source = 4000, paper(SONG, "eq. 6")
    exact = "Euler-Maruyama's exact moments; standard errors"
    for name in names:
        process, high = PROCESSES[name], last_time(name)
        denoise, ts = GAUSSIAN.denoise(process), log_snr_grid(process, 60, t_min=1e-2, t_max=high)

        for coordinates in COORDINATES:
            options: Any = {"ts": ts, "coordinates": coordinates}

            @jax.jit
            def draw(eta, denoise=denoise, process=process, options=options):
                return sample_sde(denoise, process, jax.random.key(2), (n, 2), stochasticity=eta, **options).x

            for eta in (1.0, 0.5):
                of_time = coordinates == "time"
                expected = (
                    euler_maruyama_moments(process, ts, eta)
                    if of_time
                    else clock_moments(process, ts, eta, coordinates)
                )
                method = f'`sample_sde`, "{coordinates}", Euler, eta = {eta:g}'
                where = source if of_time else paper(KARRAS, "eq. 6")
                yield Row(method, where, name, exact, moments(draw(eta), *expected))
        start = np.asarray(state_at(process, high))[1]
        options = {"ts": ts, "stochasticity": 0.5, "coordinates": "noise"}
        x = jax.jit(lambda x, d=denoise, p=process, o=options: solve_sde(d, p, x, jax.random.key(4), **o).x)(
            jnp.tile(jnp.asarray(start), (n, 1))
        )
        measured = moments(x, *clock_moments(process, ts, 0.5, "noise", start))
        method = '`solve_sde`, "noise", Euler, eta = 0.5'
        yield Row(method, paper(KARRAS, "eq. 6"), name, f"from one state, {exact}", measured)
    for name in names:
        if name in ("vp", "ve"):
            yield from strong_order_rows(name)
            yield from flow_limit_rows(name)
    for name in names:
        process, high, steps = PROCESSES[name], last_time(name), 300
        ts = log_snr_grid(process, steps, t_min=LOW, t_max=high)
        mixed = jax.jit(lambda k, p=process, ts=ts: sample_sde(MIXTURE.denoise(p), p, k, (n, 2), ts=ts).x)
        # half a step in log-SNR: the relative error of an explicit step of order one
        bias = float(process.log_snr(LOW) - process.log_snr(high)) / steps / 2
        measured = shares(mixed(jax.random.key(4)), bias=bias * MIXTURE.weights)
        yield Row('`sample_sde`, "time", Euler', source, name, "weights of a mixture; standard errors", measured)


def strong_order_rows(name: str) -> Iterator[Row]:
    """Fitted strong orders against a fine solve on the same Brownian path; the drift is linear, the noise additive."""
    process, span, n = PROCESSES[name], 0.4, 60
    x = jnp.asarray(np.tile(X, (n // 3, 1)))
    path = diffrax.VirtualBrownianTree(
        0.0,
        span,
        tol=span * 2.0**-11,
        shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        key=jax.random.key(5),
        levy_area=diffrax.SpaceTimeLevyArea,
    )

    def end(steps: int, solver: Any) -> np.ndarray:
        options: Any = {"ts": 0.7 - span * np.arange(steps + 1) / steps, "solver": solver, "brownian": path}
        run = jax.jit(lambda x: solve_sde(GAUSSIAN.denoise(process), process, x, jax.random.key(0), **options).x)
        return np.asarray(run(x))

    reference = end(512, diffrax.ShARK())
    for kind, (solver, order) in STRONG.items():
        steps = STEPS["vp"]
        found = fitted(steps, [float(np.sqrt(np.mean((end(int(k), solver) - reference) ** 2))) for k in steps])
        source = paper(SONG, "eq. 6") if kind == "Euler" else paper("2210.17543")
        oracle = f"strong order {order} on one Brownian path"
        yield Row(f'`solve_sde`, "time", {kind}', source, name, oracle, (abs(found - order), 0.25), order=found)


def flow_limit_rows(name: str) -> Iterator[Row]:
    """Without stochasticity the reverse SDE is the probability flow."""
    process, ts, x = PROCESSES[name], uniform(20, t_min=0.1, t_max=0.9), jnp.asarray(X)
    denoise = MIXTURE.denoise(process)

    for coordinates, source in COORDINATES.items():
        options: Any = {"ts": ts, "coordinates": coordinates, "solver": diffrax.Euler()}

        @jax.jit
        def both(x, options=options):
            sde = solve_sde(denoise, process, x, jax.random.key(0), stochasticity=0.0, **options).x
            return sde, solve_ode(denoise, process, x, **options).x

        error = relative(*both(x)).max()
        yield Row(f'`solve_sde`, "{coordinates}", eta = 0', source, name, "`solve_ode`, Euler", (float(error), 1e-9))


def forward_rows(names: Sequence[str]) -> Iterator[Row]:
    """The forward SDE from the state at ts[0] against the kernel, and against Euler-Maruyama's exact moments."""
    n, first, last, steps = 4000, 0.1, 0.8, 600
    ts, start = np.linspace(first, last, steps + 1), np.array([1.3, -0.4])
    for name in names:
        process = PROCESSES[name]
        run = jax.jit(lambda x, p=process: simulate_forward(p, x, jax.random.key(8), ts=ts).x)
        x = run(jnp.tile(jnp.asarray(start), (n, 1)))
        f, g2 = forward_sde(name, ts[:-1])
        h = (last - first) / steps
        gain, variance = 1 + h * f, 0.0
        for i in range(steps):
            variance = gain[i] ** 2 * variance + g2[i] * h
        method, source = "`simulate_forward`, Euler", paper(SONG, "eq. 5")
        measured = moments(x, np.prod(gain) * start, variance * EYE)
        yield Row(method, source, name, "Euler-Maruyama's exact moments; standard errors", measured)
        (alpha_a, sigma_a), (alpha, sigma) = scales(process, first, last)
        ratio = alpha / alpha_a
        # Euler's local error: half a step times the growth rate of the variance along the interval
        bias = float(2 * np.log(sigma / sigma_a) + 2 * abs(np.log(ratio))) / steps
        measured = moments(x, ratio * start, (sigma**2 - (ratio * sigma_a) ** 2) * EYE, bias=bias)
        yield Row(method, source, name, "the kernel's moments from ts[0]; standard errors", measured)


def pushed_forward(process: GaussianProcess, x: np.ndarray, low: float, high: float) -> np.ndarray:
    """log N(flow(x); 0, sigma^2 I) + log |det d flow/dx| of Gaussian data: the ODE's own density, without its error."""
    values = np.linalg.eigvalsh(GAUSSIAN.covariances[0])
    ends = scales(process, low, high)
    stds = np.sqrt(ends[:, :1] ** 2 * values + ends[:, 1:] ** 2)
    prior = scipy.stats.norm.logpdf(gaussian_flow(process, x, low, high), scale=ends[1, 1]).sum(1)
    return prior + np.log(stds[1] / stds[0]).sum()


def likelihood_rows(names: Sequence[str]) -> Iterator[Row]:
    """Log-likelihood in nats: exact trace and Hutchinson's estimate."""
    source, steps, probes = paper(SONG, "eq. 39"), 200, 1000
    rng = np.random.default_rng(0)
    mixed, x = jnp.asarray(MIXTURE.sample(rng, 16, DOUBLE)), jnp.asarray(GAUSSIAN.sample(rng, 16, DOUBLE))
    for name in names:
        process, high = PROCESSES[name], last_time(name)
        rising = log_snr_grid(process, steps, t_min=LOW, t_max=high)[::-1]
        options: Any = {"ts": rising, "solver": diffrax.Bosh3()}

        @jax.jit
        def run(mixed, x, process=process, options=options):
            gaussian = GAUSSIAN.denoise(process)
            many = jnp.tile(x[:1], (probes, 1))
            return (
                log_likelihood(gaussian, process, x, **options),
                log_likelihood(MIXTURE.denoise(process), process, mixed, **options)
                - MIXTURE.log_prob(process, mixed, jnp.full(16, LOW)),
                log_likelihood(gaussian, process, many, jax.random.key(3), probes=1, **options),
            )

        of_gaussian, error, estimates = run(mixed, x)
        # third order in the log-SNR step
        grid = (float(process.log_snr(LOW) - process.log_snr(high)) / steps) ** 3
        expected, method = pushed_forward(process, np.asarray(x), LOW, high), "`log_likelihood`, exact trace"
        oracle = "closed-form flow and its determinant, nats"
        yield Row(method, source, name, oracle, worst(of_gaussian - expected, grid))
        reach = prior_mismatch(process, MIXTURE, high)
        oracle = "exact log p of a mixture, nats"
        yield Row(method, source, name, oracle, worst(error, 2 * (5 * reach + reach**2) + grid))
        measured = standard_errors(estimates, float(expected[0]), bias=grid)
        oracle = "the same by closed form; standard errors"
        yield Row("`log_likelihood`, Hutchinson", paper("1810.01367", "sec. 3.1"), name, oracle, measured)
