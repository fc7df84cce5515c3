"""Variational bounds in closed form, computed apart from the library: kernels, DDPM's terms, VDM's terms.

The discrete data have independent coordinates, each of 17 levels with the masses that N(MEAN, STD^2) gives to their
bins. The denoiser is the exact one of that Gaussian: affine, and a good one for the levels.
"""

from itertools import pairwise

import jax.numpy as jnp
import numpy as np
import scipy.stats

MEAN, STD, LEVELS = 0.15, 0.35, 17
CENTRES = (2 * np.arange(LEVELS) - (LEVELS - 1)) / (LEVELS - 1)
EDGES = np.concatenate([[-np.inf], (CENTRES[1:] + CENTRES[:-1]) / 2, [np.inf]])
MASS = np.diff(scipy.stats.norm.cdf(EDGES, MEAN, STD))


def scales(process, *times):
    """(alpha, sigma) at each time, as float64."""
    return [(float(process.alpha(jnp.asarray(t))), float(process.sigma(t))) for t in times]


def conditioned(process, t, s):
    """The kernel by conditioning the joint law of (x_s, x_t) given x_0, in NumPy: (of x_t, of x_0, variance, beta)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = scales(process, t, s)
    a = alpha_t / alpha_s
    gain = a * sigma_s**2 / sigma_t**2
    return gain, alpha_s - gain * alpha_t, sigma_s**2 - gain * a * sigma_s**2, sigma_t**2 - a**2 * sigma_s**2


def affine(process):
    """The exact denoiser of N(MEAN, STD^2): x_t -> slope x_t + offset; a good one for data on the levels."""

    def slope(t):
        return process.alpha(t) * STD**2 / (process.alpha(t) ** 2 * STD**2 + process.variance(t))

    def denoise(x_t, t):
        a = slope(t)[:, None]
        return a * x_t + (1 - a * process.alpha(t)[:, None]) * MEAN

    return denoise, lambda t: float(slope(jnp.asarray(t)))


def analytic_terms(process, ts, variance):
    """Each term's expectation per coordinate for data on the levels: sums over them, quadrature over the noise.

    Returns (prior, transitions, reconstruction).
    """
    _, slope = affine(process)
    first, second = MASS @ CENTRES, MASS @ CENTRES**2
    (alpha, sigma), *_ = scales(process, ts[0])
    prior = alpha**2 * second / (2 * sigma**2)
    transitions = []
    for t, s in pairwise(ts):
        (alpha, sigma), a = scales(process, t)[0], slope(t)
        # x_0 - D = (1 - a alpha)(x_0 - MEAN) - a sigma noise
        error = (1 - a * alpha) ** 2 * (second - 2 * MEAN * first + MEAN**2) + (a * sigma) ** 2
        _, of_data, posterior, beta = conditioned(process, t, s)
        of_p = posterior if variance == "posterior" else beta
        transitions.append((np.log(of_p / posterior) + (posterior + of_data**2 * error) / of_p - 1) / 2)
    (alpha, sigma), a = scales(process, ts[-1])[0], slope(ts[-1])
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(200)
    estimate = a * (alpha * CENTRES[:, None] + sigma * nodes) + (1 - a * alpha) * MEAN
    low, high = (np.stack([EDGES[:-1], EDGES[1:]])[:, :, None] - estimate) / sigma
    flip = low + high > 0
    low, high = np.where(flip, -high, low), np.where(flip, -low, high)
    log_mass = scipy.stats.norm.logcdf(high) + np.log1p(
        -np.exp(scipy.stats.norm.logcdf(low) - scipy.stats.norm.logcdf(high))
    )
    return prior, np.array(transitions), -MASS @ log_mass @ node_weights / np.sqrt(2 * np.pi)


def continuous_terms(process, gaussian, low, high):
    """Expectations of (prior, integral, reconstruction) of densities, for a Gaussian and its exact denoiser.

    The integral of the posterior variance over the SNR is half the logarithm of the ratio of posterior precisions.
    """
    (alpha, sigma), (alpha_1, sigma_1) = scales(process, low, high)
    values = np.linalg.eigvalsh(gaussian.covariance)
    prior = alpha_1**2 / sigma_1**2 * (gaussian.mean @ gaussian.mean + values.sum()) / 2
    integral = np.sum(np.log((1 + (alpha / sigma) ** 2 * values) / (1 + (alpha_1 / sigma_1) ** 2 * values))) / 2
    return prior, integral, 1 + np.log(2 * np.pi) + 2 * np.log(sigma / alpha)
