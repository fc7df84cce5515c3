"""Rows of the oracle table for marginal likelihoods: importance sampling, annealing, Hamiltonian Monte Carlo.

The model is probabilistic PCA, whose marginal, posterior and pairs of z and x are exact. Vector quantisation is
compared with NumPy's distances and means.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.special

from dgm_jax.likelihood import (
    annealed_log_likelihood,
    annealed_step_sizes,
    importance_log_likelihood,
    linear_betas,
    reverse_annealed_log_likelihood,
    sigmoid_betas,
)
from dgm_jax.losses.quantization import (
    code_book,
    code_perplexity,
    code_sums,
    init_code_averages,
    nearest_codes,
    quantize,
    straight_through,
    update_code_averages,
)
from dgm_jax.samplers import hmc_step, leapfrog
from experiments._oracle_rows import Row, paper, relative, standard_errors, worst
from tests.exact_latent import DIAGONAL as MODEL

BURDA, GROSSE, WU, NEAL, OORD = "1509.00519", "1511.02543", "1611.04273", "1206.1901", "1711.00937"
POINTS = 2_000


def marginal_rows(names: Sequence[str]) -> Iterator[Row]:
    """Estimates of log p(x), the moves beneath them, and code books. No row depends on a process."""
    yield from estimate_rows()
    yield from move_rows()
    yield from code_rows()


def log_prior(x: Any, z: Any) -> Any:
    """Of a standard normal, as a start that does not look at x."""
    return jax.scipy.stats.norm.logpdf(z).sum(1)


def draw_prior(x: Any, key: Any) -> Any:
    """A start at the prior, one key for each example."""
    z = jax.vmap(lambda k: jax.random.normal(k, (MODEL.latent,), x.dtype))(key)
    return z, log_prior(x, z)


def estimate_rows() -> Iterator[Row]:
    """The mean of w/p(x), forward, and of p(x)/w, reverse, over pairs simulated from the model: 1 both."""
    rng = np.random.default_rng(0)
    z = rng.standard_normal((POINTS, MODEL.latent))
    x = z @ MODEL.weight.T + MODEL.offset + MODEL.std * rng.standard_normal((POINTS, len(MODEL.offset)))
    exact = MODEL.log_prob(x)
    options: Any = {"betas": sigmoid_betas(24), "chains": 2, "leapfrog_steps": 3}

    @jax.jit
    def run(x: Any, z: Any) -> Any:
        keys = [jax.random.key(i) for i in range(4)]
        single = importance_log_likelihood(draw_prior, MODEL.log_joint, x, keys[0], samples=200, chunk=64)
        start = draw_prior, log_prior, MODEL.log_joint
        sizes = annealed_step_sizes(*start, x, keys[1], initial=0.4, passes=10, **options)
        forward = annealed_log_likelihood(*start, x, keys[2], step_size=sizes, **options)
        reverse = reverse_annealed_log_likelihood(*start[1:], x, z, keys[3], step_size=sizes, **options)
        return single, forward, reverse

    single, forward, reverse = jax.device_get(run(jnp.asarray(x), jnp.asarray(z)))
    rows = [
        ("importance_log_likelihood", paper(BURDA, "eq. 8"), np.exp(single.log_likelihood - exact)),
        ("annealed_log_likelihood", paper(WU, "sec. 3.1"), np.exp(forward.log_likelihood - exact)),
        ("reverse_annealed_log_likelihood", paper(GROSSE, "sec. 4"), np.exp(exact - reverse.log_likelihood)),
    ]
    for name, source, weights in rows:
        oracle = "mean weight over p(x) of PCA; standard errors"
        if name.startswith("reverse"):
            oracle = "p(x) of PCA over the weight, mean; standard errors"
        yield Row(f"`{name}`", source, "none", oracle, standard_errors(weights, 1.0))
    # as if all moves of a chain were accepted or not by one coin
    measured = float(abs(forward.acceptance.mean() - 0.65) / (0.5 / np.sqrt(2 * POINTS))), 4.0
    oracle = "mean acceptance of a later run, 0.65; standard errors"
    yield Row("`annealed_step_sizes`", paper(WU, "sec. 3.1"), "none", oracle, measured)
    i = np.arange(51) / 50
    curve = scipy.special.expit(8 * i - 4)
    curve = (curve - curve[0]) / (curve[-1] - curve[0])
    measured = worst(sigmoid_betas(50) - curve, 1e-12)
    yield Row("`sigmoid_betas`", paper(GROSSE), "none", "SciPy's logistic function", measured)
    yield Row("`linear_betas`", paper(GROSSE), "none", "i/T", worst(linear_betas(50) - i, 1e-12))


def move_rows() -> Iterator[Row]:
    """The leapfrog's order against SciPy's path; exact Gaussian samples after three moves."""
    std = np.array([0.5, 1.7])
    log_density = lambda x: -jnp.sum((x / std[None] - 0.4) ** 2, 1) / 2 - jnp.sum(x**4, 1) / 40  # noqa: E731
    gradient = jax.jit(jax.grad(lambda x: log_density(x).sum()))
    start, duration = np.array([0.3, -0.8, 1.1, 0.6]), 1.5

    def field(_: float, state: np.ndarray) -> np.ndarray:
        return np.concatenate([state[2:], np.asarray(gradient(jnp.asarray(state[None, :2])))[0]])

    exact = scipy.integrate.solve_ivp(field, (0, duration), start, rtol=1e-11, atol=1e-11).y[:, -1]
    counts, errors = np.array([20, 40, 80]), []
    for steps in counts:
        x, p = (jnp.asarray(part[None]) for part in np.split(start, 2))
        end = leapfrog(gradient, x, p, step_size=float(duration / steps), steps=int(steps))
        errors.append(np.abs(np.concatenate(end, axis=1)[0] - exact).max())
    order = float(-np.polyfit(np.log(counts), np.log(errors), 1)[0])
    # the square of the step in units of the narrower standard deviation, times the time in the same
    measured = float(errors[-1]), float((duration / counts[-1] / std[0]) ** 2 * duration / std[0])
    yield Row("`leapfrog`", paper(NEAL, "sec. 2.3"), "none", "SciPy's path, 80 steps", measured, order)
    rng, gaussian = np.random.default_rng(1), lambda x: -jnp.sum((x / std[None]) ** 2, 1) / 2
    x = jnp.asarray(std * rng.standard_normal((10 * POINTS, 2)))
    for i in range(3):
        x = jax.jit(lambda x, key: hmc_step(gaussian, x, key, step_size=0.7, steps=3).x)(x, jax.random.key(i))
    measured = max(standard_errors(x[:, i] ** 2 / std[i] ** 2, 1.0) for i in range(2))
    yield Row("`hmc_step`", paper(NEAL, "sec. 3"), "none", "variance of exact samples after 3 moves", measured)


def code_rows() -> Iterator[Row]:
    """Distances, gradients, moving averages and perplexity, by NumPy."""
    rng = np.random.default_rng(2)
    z, codes = (jnp.asarray(rng.standard_normal(shape)) for shape in ((50, 4, 3), (9, 3)))
    distances = np.linalg.norm(np.asarray(z)[:, :, None] - np.asarray(codes), axis=-1)
    nearest = distances.argmin(-1)
    indices = nearest_codes(z, codes)
    source = paper(OORD, "eq. 1")
    yield Row("`nearest_codes`", source, "none", "NumPy's distances", worst(np.asarray(indices) - nearest, 1e-12))
    out = quantize(z, codes)
    expected = (distances.min(-1) ** 2).sum(1)
    errors = relative(np.array([out.code_book_loss, out.commitment_loss]), expected[None])
    yield Row("`quantize`", paper(OORD, "eq. 3"), "none", "NumPy's least squares", worst(errors, 1e-12))
    weights = jnp.asarray(rng.standard_normal(z.shape))
    gradient = jax.grad(lambda z: jnp.sum(weights * straight_through(z, codes[indices])))(z)
    yield Row("`straight_through`", paper(OORD, "sec. 3.2"), "none", "identity", worst(gradient - weights, 1e-12))
    sums = code_sums(z, indices, codes=9)
    groups = [np.asarray(z)[nearest == k] for k in range(9)]
    expected = np.array([group.sum(0) for group in groups])
    yield Row(
        "`code_sums`", paper(OORD, "eq. 6"), "none", "NumPy's sums", worst(np.asarray(sums.sums) - expected, 1e-9)
    )
    averages = init_code_averages(codes)
    start = np.asarray(code_book(averages, smoothing=0.0)) - np.asarray(codes)
    yield Row("`init_code_averages`", paper(OORD, "app. A.1"), "none", "its codes", worst(start, 1e-12))
    for _ in range(200):
        averages = update_code_averages(averages, sums, decay=0.8)
    used = np.array([len(group) > 0 for group in groups])
    means = np.array([group.mean(0) for group in groups if len(group)])
    errors = np.asarray(code_book(averages, smoothing=0.0))[used] - means
    yield Row("`update_code_averages`", paper(OORD, "eq. 6 and 7"), "none", "means of k-means", worst(errors, 1e-9))
    book = np.asarray(code_book(averages, smoothing=0.3))
    counts, total = np.asarray(averages.counts), float(averages.counts.sum())
    smoothed = np.asarray(averages.sums) / ((counts + 0.3) / (total + 9 * 0.3) * total)[:, None]
    yield Row("`code_book`", paper(OORD, "eq. 8"), "none", "Laplace smoothing", worst(book - smoothed, 1e-9))
    shares = np.bincount(nearest.ravel(), minlength=9) / nearest.size
    expected = np.exp(-sum(share * np.log(share) for share in shares if share))
    measured = worst(float(code_perplexity(indices, codes=9)) / expected - 1, 1e-12)
    yield Row("`code_perplexity`", paper(OORD), "none", "NumPy's entropy", measured)
