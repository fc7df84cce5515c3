"""Rows of the oracle table for NCSN: annealed Langevin dynamics, and score matching without noise.

On Gaussian data every step of Langevin dynamics is affine, so that the moments follow exactly; the loss of an affine
field is quadratic, so that its expectation is the mean over four points.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.losses import hyvarinen, sliced_score_matching, sliced_score_matching_vr
from dgm_jax.processes import log_snr_grid
from dgm_jax.samplers import annealed_langevin, final_denoising, solve_langevin
from experiments._oracle_rows import EYE, Row, paper, relative, standard_errors, worst
from experiments._oracle_solves import moments, scales
from tests.oracles import GAUSSIAN, PROCESSES, langevin_moments, last_time

NCSN, SLICED = "1907.05600", "1905.07088"
STEPS, POINTS = 5, 20_000
FIELD, OFFSET = np.array([[-2.0, 0.7], [-0.4, 0.3]]), np.array([0.3, -1.1])


def field(x):
    """An affine field that is no density's score."""
    return x @ FIELD.T + OFFSET[None]


SLICES = {  # compiled once for all processes
    jax.jit(lambda x, key, loss=loss: loss(field, x, key, slices=1)): (f"`{loss.__name__}`", paper(SLICED, equation))
    for loss, equation in ((sliced_score_matching, "eq. 8"), (sliced_score_matching_vr, "eq. 9"))
}


def langevin_rows(names: Sequence[str]) -> Iterator[Row]:
    """Annealed and plain Langevin dynamics, the last denoising, and the matching losses, on each process's x_t."""
    for name in names:
        yield from chain_rows(name)
    for name in names:
        yield from matching_rows(name)


def chain_rows(name: str) -> Iterator[Row]:
    """Moments after algorithm 1 at eight levels, at one, and after the denoiser's estimate."""
    process = PROCESSES[name]
    denoise, low = GAUSSIAN.denoise(process), float(process.time_at(0.3))
    ts = np.asarray(log_snr_grid(process, 7, t_min=low, t_max=last_time(name)))
    (_, first), (alpha, last) = scales(process, ts[0], ts[-1])
    epsilon = 0.3 * last**2

    @jax.jit
    def annealed(key):
        samples = annealed_langevin(denoise, process, key, (POINTS, 2), ts=ts, epsilon=epsilon, steps=STEPS)
        return samples.x, final_denoising(denoise, samples, ts[-1]).x

    @jax.jit
    def plain(key):
        x = jnp.zeros((POINTS, 2))
        return solve_langevin(denoise, process, x, key, ts=ts[-1:], epsilon=epsilon, steps=STEPS).x

    exact = langevin_moments(process, ts, epsilon, STEPS, np.zeros(2), first**2 * EYE)
    x, denoised = annealed(jax.random.key(0))
    yield Row("`annealed_langevin`", paper(NCSN, "alg. 1"), name, "exact moments of its steps", moments(x, *exact))
    if name in ("vp", "sub_vp", "ve"):
        at_once = langevin_moments(process, ts[-1:], epsilon, STEPS, np.zeros(2), 0 * EYE)
        measured = moments(plain(jax.random.key(1)), *at_once)
        yield Row("`solve_langevin`, one level", paper(NCSN, "eq. 4"), name, "exact moments of its steps", measured)
    data = GAUSSIAN.covariances[0]
    gain = alpha * data @ np.linalg.inv(alpha**2 * data + last**2 * EYE)
    mean = GAUSSIAN.means[0] + gain @ (exact[0] - alpha * GAUSSIAN.means[0])
    measured = moments(denoised, mean, gain @ exact[1] @ gain.T)
    yield Row("`final_denoising`", paper("2006.09011", "section 2"), name, "posterior mean of these", measured)


def matching_rows(name: str) -> Iterator[Row]:
    """Losses of an affine field on x_t at t = 0.3: E|s - s*|^2/2 - E|s*|^2/2 by traces."""
    process = PROCESSES[name]
    alpha, sigma = scales(process, 0.3)[0]
    mean, covariance = alpha * GAUSSIAN.means[0], alpha**2 * GAUSSIAN.covariances[0] + sigma**2 * EYE
    precision = np.linalg.inv(covariance)
    slope, offset = FIELD + precision, OFFSET + FIELD @ mean
    error = np.trace(slope @ covariance @ slope.T) + offset @ offset
    expected = (error - np.trace(precision)) / 2

    directions = np.sqrt(2) * np.concatenate([EYE, -EYE])
    points = jnp.asarray(mean + directions @ np.linalg.cholesky(covariance).T)
    measured = worst(relative(hyvarinen(field, points).mean(), expected), 1e-9)
    yield Row("`hyvarinen`", "JMLR 6:695, theorem 1", name, "Fisher divergence and information", measured)
    x = jnp.tile(points, (POINTS // 4, 1))
    for loss, (method, source) in SLICES.items():
        values = np.asarray(loss(x, jax.random.key(2)))
        # each of the four points has a quarter: only the slices are random
        slices = values - values.reshape(-1, 4).mean(0)[np.arange(len(values)) % 4] + values.mean()
        oracle = "the same, in standard errors"
        yield Row(method, source, name, oracle, standard_errors(slices, expected))
