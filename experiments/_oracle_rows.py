"""Rows of the oracle table that need no solve: processes, parameterizations, losses and weights, dequantisation.

Each section is a generator of rows over the named processes, all in float64.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from scipy.integrate import solve_ivp

from dgm_jax.likelihood import bits_per_dim, dequantize
from dgm_jax.losses import denoising_error, diffusion_loss, weights
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
from dgm_jax.processes import GaussianProcess, stratified
from tests.oracles import GAUSSIAN, MIXTURE, PROCESSES, Mixture, last_time

ALL = "all, worst"
DOUBLE: Any = np.float64
# inside the chain's steps, as its rates jump at i/1000
TIMES = np.array([1e-4, 1.35e-2, 0.1004, 0.2505, 0.5003, 0.7506, 0.9982])
BETAS = np.linspace(1e-4, 0.02, 1000)
EYE = np.eye(2)


def paper(arxiv: str, where: str = "") -> str:
    """A link to the paper, and the place in it."""
    return f"[{arxiv}](https://arxiv.org/abs/{arxiv})" + (f", {where}" if where else "")


SONG = "2011.13456"
CONSTRUCTORS = {
    "vp": ("variance_preserving", paper(SONG, "eq. 11")),
    "sub_vp": ("sub_variance_preserving", paper(SONG, "eq. 12")),
    "ve": ("variance_exploding", paper(SONG, "eq. 9")),
    "karras": ("karras", paper("2206.00364", "eq. 5")),
    "cosine": ("cosine", paper("2102.09672", "eq. 17")),
    "rectified": ("rectified", paper("2209.03003", "eq. 1")),
    "from_betas": ("from_betas", paper("2006.11239", "eq. 4")),
}


@dataclass(frozen=True)
class Row:
    """One method against one oracle; `measured` is (error, tolerance) and `order` the fitted order, if any."""

    method: str
    paper: str
    process: str
    oracle: str
    measured: tuple[float, float]
    order: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the error is within its tolerance; a NaN is not."""
        return self.measured[0] <= self.measured[1]


def worst(error: Any, tolerance: Any) -> tuple[float, float]:
    """The pair (error, tolerance) with the largest quotient; a NaN counts as the largest."""
    error, tolerance = np.broadcast_arrays(np.abs(np.asarray(error, np.float64)), np.asarray(tolerance, np.float64))
    at = np.unravel_index(np.argmax(error / tolerance), error.shape)
    return float(error[at]), float(tolerance[at])


def relative(actual: Any, expected: Any) -> np.ndarray:
    """|actual - expected| / (1 + |expected|), elementwise."""
    expected = np.asarray(expected, np.float64)
    return np.abs(np.asarray(actual, np.float64) - expected) / (1 + np.abs(expected))


def standard_errors(values: Any, expected: float, *, bias: float = 0.0) -> tuple[float, float]:
    """How many standard errors the mean of `values` is from `expected`; four are allowed, and a stated `bias`."""
    values = np.asarray(values, np.float64)
    error = values.std() / np.sqrt(len(values))
    return float(abs(values.mean() - expected) / error), float(4 + bias / error)


def forward_sde(name: str, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(f, g^2) of the forward SDE dX = f X dt + g dW, from the papers."""
    beta, integral = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2
    if name == "vp":  # Song et al. 2021, eq. 29
        return -beta / 2, beta
    if name == "sub_vp":
        return -beta / 2, -beta * np.expm1(-2 * integral)
    if name == "ve":  # eq. 30
        return 0 * t, 0.01**2 * 5000 ** (2 * t) * 2 * np.log(5000)
    if name == "karras":  # d sigma^2/dt with Karras et al. 2022, eq. 5
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
        return 0 * t, 14 * (low + t * (high - low)) ** 13 * (high - low)
    if name == "cosine":  # -d log alpha^2/dt with Nichol & Dhariwal 2021, eq. 17
        rate = np.pi / 1.008 * np.tan((t + 0.008) / 1.008 * np.pi / 2)
        return -rate / 2, rate
    if name == "rectified":
        return -1 / (1 - t), 2 * t / (1 - t)
    rate = -1000 * np.log1p(-BETAS[np.minimum(np.asarray(t * 1000, int), 999)])
    return -rate / 2, rate


def moments_of_forward_sde(name: str, times: np.ndarray) -> np.ndarray:
    """(alpha, sigma) at the times by SciPy: dm/dt = f m and dv/dt = 2 f v + g^2 from the process's start."""

    def rates(t: float, y: np.ndarray) -> list[float]:
        f, g2 = forward_sde(name, np.asarray(t))
        return [float(f * y[0]), float(2 * f * y[1] + g2)]

    state, found = [1.0, {"ve": 0.01, "karras": 0.002}.get(name, 0.0) ** 2], []
    for start, end in pairwise([0.0, *times]):
        state = solve_ivp(rates, (start, end), state, method="DOP853", rtol=1e-9, atol=1e-13).y[:, -1]
        found.append([state[0], np.sqrt(state[1])])
    return np.array(found).T


def process_rows(names: Sequence[str]) -> Iterator[Row]:
    """Coefficients of every process against its paper, and the inverse of its noise ratio."""
    for name in names:
        process, (constructor, source) = PROCESSES[name], CONSTRUCTORS[name]
        if name == "from_betas":
            times, oracle, tolerance = np.arange(1, 1001) / 1000, "alpha, sigma: product of the chain", 1e-12
            alpha_bar = np.cumprod(1 - BETAS)
            expected = np.sqrt([alpha_bar, 1 - alpha_bar])
        else:  # below 1, where the rates of two processes are infinite
            times, oracle, tolerance = (
                np.array([*TIMES[:-1], 0.95]),
                "alpha, sigma: SciPy's solution of the SDE's",
                1e-7,
            )
            oracle += " moments"
            expected = moments_of_forward_sde(name, times)
        actual = np.asarray([process.alpha(jnp.asarray(times)), process.sigma(times)])
        yield Row(f"`{constructor}`", source, name, oracle, worst(actual / expected - 1, tolerance))
        f, g2 = forward_sde(name, TIMES)
        t = jnp.asarray(TIMES)
        errors = [process.drift(jnp.ones((len(t), 1)), t)[:, 0] - f, process.diffusion(t) - np.sqrt(g2)]
        scales = 1e-9 * np.array([np.abs(f), np.sqrt(g2)]) + 1e-30
        error, scale = worst(errors, scales)
        label = f"`{constructor}`: `.drift`, `.diffusion`"
        yield Row(label, source, name, "the paper's f and g", (1e-9 * error / scale, 1e-9))
        ratio, (alpha_rate, sigma_rate) = process.noise_ratio(t), process.rates(t)
        rise = (sigma_rate - ratio * alpha_rate) / process.alpha(t)
        for kind, other in (("", process), (" by bisection", GaussianProcess(process.alpha, process.variance))):
            error = other.time_at(ratio) - t
            tolerance = 1e-9 * t + 4 * np.finfo(np.float64).eps * ratio / rise
            yield Row(f"`{constructor}`: `.time_at`{kind}", source, name, "t itself", worst(error, tolerance))


def target_means(process: GaussianProcess, x_t: Any, t: Any) -> dict[str, Any]:
    """E[target | x_t] of each prediction for the mixture, from grad log p_t alone."""
    score = jax.grad(lambda x: MIXTURE.log_prob(process, x, t).sum())(x_t)
    alpha, sigma = process.alpha(t)[:, None], process.sigma(t)[:, None]
    x_0 = (x_t + sigma**2 * score) / alpha
    velocity = process.drift(x_t, t) - process.diffusion_squared(t)[:, None] / 2 * score
    v = -alpha * sigma * score - sigma * x_0
    return {"x_0": x_0, "noise": -sigma * score, "score": score, "v": v, "velocity": velocity}


def edm_residual(process: GaussianProcess, sigma_data: float) -> Any:
    """EDM's network F: (E[x_0 | y] - c_skip y)/c_out, from its scaled input and c_noise alone."""

    def network(scaled: Any, c_noise: Any) -> Any:
        ratio = jnp.exp(4 * c_noise)[:, None]
        t = process.time_at(ratio[:, 0])
        total = jnp.sqrt(ratio**2 + sigma_data**2)
        y = scaled * total
        estimate = MIXTURE.denoise(process)(y * process.alpha(t)[:, None], t)
        return (estimate - sigma_data**2 / total**2 * y) / (ratio * sigma_data / total)

    return network


PREDICTION_PAPERS = {
    "x_0": "",
    "noise": paper("2006.11239", "eq. 11"),
    "score": paper("1907.05600", "eq. 5"),
    "v": paper("2202.00512", "sec. 4"),
    "velocity": paper("2210.02747", "eq. 14"),
}


def parameterization_rows(names: Sequence[str]) -> Iterator[Row]:
    """Predictions and adapters against grad log p_t of the mixture, error ratios, EDM's preconditioning."""
    predictions, adapters = get_args(Prediction), {"noise": noise_of, "score": score_of, "velocity": velocity_of}
    rng, n = np.random.default_rng(0), 8
    x_0, noise = jnp.asarray(MIXTURE.sample(rng, n, DOUBLE)), jnp.asarray(rng.standard_normal((n, 2)))
    errors, preconditioned = {}, {}
    for name in names:
        process = PROCESSES[name]

        def pairs(t: Any, process: GaussianProcess = process) -> Any:
            """(actual, expected) of each method."""
            x_t, exact = process.perturb(x_0, t, noise), MIXTURE.denoise(process)
            means, estimate = target_means(process, x_t, t), exact(x_t, t)
            guess = 0.7 * x_0 + 0.3
            guessed_noise = (x_t - process.alpha(t)[:, None] * guess) / process.sigma(t)[:, None]
            found = {("adapter", kind): (adapters[kind](exact, process)(x_t, t), means[kind]) for kind in adapters}
            for kind in predictions:
                denoise = as_denoiser(lambda x, s, mean=means[kind]: mean, process, prediction=kind)
                found["prediction", kind] = denoise(x_t, t), estimate
                given = target_of(process, x_0, t, noise, kind)
                back = as_denoiser(lambda x, s, given=given: given, process, prediction=kind)
                found["target", kind] = back(x_t, t), x_0
                gap = target_of(process, guess, t, guessed_noise, kind) - given
                measured = jnp.sum(gap**2, 1) / jnp.sum((guess - x_0) ** 2, 1)
                found["ratio", kind] = error_ratio(process, t, kind) / measured, jnp.ones(n)
            denoise = precondition(edm_residual(process, 0.5), process, sigma_data=0.5)
            return found, (denoise(x_t, t), estimate)

        found, pair = jax.jit(pairs)(jnp.linspace(0.05, last_time(name), n))
        preconditioned[name] = relative(*pair).max()
        for key, value in found.items():
            errors[key] = max(errors.get(key, 0.0), relative(*value).max())
    for kind in predictions:
        oracle = "exact mean of the target in, exact denoiser out"
        error = errors["prediction", kind]
        yield Row(f'`as_denoiser`, "{kind}"', PREDICTION_PAPERS[kind], ALL, oracle, (error, 1e-8))
    for kind in predictions:
        error = errors["target", kind]
        yield Row(f'`target_of`, "{kind}"', PREDICTION_PAPERS[kind], ALL, "one target in, its x_0 out", (error, 1e-8))
    for kind, adapter in adapters.items():
        oracle, error = "grad log p_t", errors["adapter", kind]
        yield Row(f"`{adapter.__name__}`", PREDICTION_PAPERS[kind], ALL, oracle, (error, 1e-8))
    for kind in predictions:
        oracle, error = "measured errors of the target and of x_0", errors["ratio", kind]
        yield Row(f'`error_ratio`, "{kind}"', PREDICTION_PAPERS[kind], ALL, oracle, (error, 1e-8))
    for name, error in preconditioned.items():
        oracle = "EDM's exact network in, exact denoiser out"
        yield Row("`precondition`", paper("2206.00364", "table 1"), name, oracle, (error, 1e-7))


def posterior_variance(process: GaussianProcess, t: Any) -> np.ndarray:
    """tr (C^-1 + alpha^2/sigma^2 I)^-1 / dim of the Gaussian: the least error that any denoiser has."""
    snr = np.asarray(process.alpha(t), np.float64) ** 2 / np.asarray(process.variance(t), np.float64)
    return (1 / (1 / np.linalg.eigvalsh(GAUSSIAN.covariances[0]) + snr[:, None])).mean(1)


def gauss_legendre(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of an integral over [low, high], three in each of 1,000 intervals, cut at every i/1000."""
    cuts = np.arange(1, 1000) / 1000  # the chain's own steps, on which its beta is constant
    edges = np.concatenate([[low], cuts[(cuts > low) & (cuts < high)], [high]])
    nodes, node_weights = np.polynomial.legendre.leggauss(3)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (nodes + 1)).ravel(), (half * node_weights).ravel()


def expected_error(denoise: Any, process: GaussianProcess, t: Any) -> Any:
    """The expectation of `denoising_error` for affine `denoise`: the mean over eight points is exact for quadratics."""
    directions = 2 * np.concatenate([np.eye(4), -np.eye(4)])
    x_0 = GAUSSIAN.mean + directions[:, :2] @ np.linalg.cholesky(GAUSSIAN.covariances[0]).T
    points, noise = (jnp.asarray(np.tile(part, (len(t), 1))) for part in (x_0, directions[:, 2:]))
    return denoising_error(denoise, process, points, jnp.repeat(t, 8), noise).reshape(len(t), 8).mean(1)


def kl(p: Mixture, q: Mixture, process: GaussianProcess, t: float) -> float:
    """KL(p_t || q_t) of two Gaussians carried to time t, in nats."""
    alpha, variance = float(process.alpha(jnp.asarray(t))), float(process.variance(jnp.asarray(t)))
    c_p, c_q = (alpha**2 * m.covariance + variance * EYE for m in (p, q))
    gap, solved = alpha * (p.mean - q.mean), np.linalg.solve(c_q, c_p)
    return float(np.trace(solved) - 2 - np.linalg.slogdet(solved)[1] + gap @ np.linalg.solve(c_q, gap)) / 2


# name: (paper, options, the weight of the squared x_0 error in r = sigma/alpha and -d(SNR)/dt)
WEIGHTS = {
    "simple": (paper("2006.11239", "eq. 14"), {}, lambda r, fall: r**-2),
    "ncsn": (paper("1907.05600", "eq. 5"), {}, lambda r, fall: r**-2),
    "likelihood": (paper("2101.09258", "thm. 1"), {"event_size": 2}, lambda r, fall: fall),  # dim/2 = 1
    "edm": (paper("2206.00364", "table 1"), {"sigma_data": 0.5}, lambda r, fall: (r**2 + 0.25) / (0.5 * r) ** 2),
    "min_snr": (paper("2303.09556", "sec. 3.4"), {"gamma": 5.0}, lambda r, fall: np.minimum(r**-2, 5.0)),
}


def loss_rows(names: Sequence[str]) -> Iterator[Row]:
    """The oracle's error and weighted losses against their analytic minima; the likelihood weight against a KL."""
    model = Mixture(np.array([1.0]), np.array([[1.1, -0.2]]), np.array([[[0.3, -0.1], [-0.1, 0.2]]]))
    n = 20_000
    x_0 = jnp.asarray(GAUSSIAN.sample(np.random.default_rng(0), n, DOUBLE))
    low = 1e-2
    for name in names:
        process, high = PROCESSES[name], last_time(name)
        denoise, law = GAUSSIAN.denoise(process), stratified(low, high)
        bound = {key: partial(getattr(weights, key), process, **WEIGHTS[key][1]) for key in WEIGHTS}
        t, node_weights = gauss_legendre(low, high)

        @jax.jit
        def run(t: Any, process=process, denoise=denoise, law=law, bound=bound) -> Any:
            fall = -jax.vmap(jax.grad(lambda s: jnp.exp(process.log_snr(s))))(t)
            errors = [expected_error(d, process, t) for d in (denoise, model.denoise(process))]
            key = jax.random.key(0)
            losses = {k: diffusion_loss(denoise, process, x_0, key, weight=w, times=law) for k, w in bound.items()}
            return errors, {k: w(t) for k, w in bound.items()}, fall, losses

        (least, of_model), values, fall, losses = jax.device_get(run(jnp.asarray(t)))
        minimum = posterior_variance(process, jnp.asarray(t))
        oracle = "analytic minimum, at 3,000 times"
        yield Row("`denoising_error`", paper(SONG, "eq. 7"), name, oracle, worst(least / minimum - 1, 1e-9))
        ratio = np.asarray(process.sigma(t) / process.alpha(jnp.asarray(t)))
        for key, (source, _, formula) in WEIGHTS.items():
            expected = formula(ratio, fall)
            measured = worst(values[key] / expected - 1, 1e-7)
            yield Row(f"`weights.{key}`", source, name, "the paper's formula in sigma/alpha", measured)
            mean = float(np.sum(node_weights * expected * minimum) / (high - low))
            measured = standard_errors(losses[key], mean)
            label, oracle = f"`diffusion_loss` with `weights.{key}`", "analytic minimum; standard errors"
            yield Row(label, source, name, oracle, measured)
        integral = np.sum(values["likelihood"] * (of_model - least) * node_weights)
        difference = kl(GAUSSIAN, model, process, low) - kl(GAUSSIAN, model, process, high)
        oracle, label = "its integral is KL(p, q), nats", "`denoising_error` with `weights.likelihood`"
        yield Row(label, WEIGHTS["likelihood"][0], name, oracle, worst(integral / difference - 1, 1e-6))


def dequantisation_rows(names: Sequence[str]) -> Iterator[Row]:
    """Dequantised integers and the bits of a code, none of which depends on a process."""
    source, levels = paper("1511.01844", "sec. 3.1"), 32
    code = bits_per_dim(jnp.full(3, 10 * np.log(1 / 2)), 10, levels=256)
    oracle = "uniform density: log2 of 256 levels"
    yield Row("`bits_per_dim`", source, "none", oracle, worst(code - 8.0, 1e-12))
    rng, n = np.random.default_rng(5), 20_000
    edges = np.concatenate([[-np.inf], np.arange(1, levels), [np.inf]])
    mass = np.diff(scipy.stats.norm.cdf(edges, 16, 4))
    integers = jnp.asarray(rng.choice(levels, (n, 1), p=mass), jnp.uint8)
    x = np.asarray(dequantize(integers, jax.random.key(5), levels=levels))
    moved = np.mean(np.floor((x + 1) * levels / 2) != np.asarray(integers))
    yield Row("`dequantize`", source, "none", "share of integers that leave their bin", (float(moved), 0.0))
    offsets = ((x + 1) * levels / 2 - np.asarray(integers, np.float64))[:, 0]
    yield Row(
        "`dequantize`", source, "none", "mean 1/2 of uniform noise; standard errors", standard_errors(offsets, 0.5)
    )
    variance = standard_errors((offsets - 0.5) ** 2, 1 / 12)
    yield Row("`dequantize`", source, "none", "variance 1/12 of uniform noise; standard errors", variance)
    log_density = scipy.stats.norm.logpdf(x[:, 0], 16 * 2 / levels - 1, 4 * 2 / levels)
    bits = bits_per_dim(jnp.asarray(log_density), 1, levels=levels)
    # -log2 of a Gaussian density at uniform offsets u in bin i: E (i + u - 16)^2 = (i - 15.5)^2 + 1/12
    second = np.sum(mass * ((np.arange(levels) - 15.5) ** 2 + 1 / 12))
    expected = (np.log(4 * np.sqrt(2 * np.pi)) + second / 32) / np.log(2)
    oracle = "cross-entropy of a discretised Gaussian; standard errors"
    yield Row("`dequantize`, then `bits_per_dim`", source, "none", oracle, standard_errors(bits, float(expected)))
