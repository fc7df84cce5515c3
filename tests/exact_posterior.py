"""The exact posterior p(x_0 | y) of mixture data for y = A x_0 + noise_std n, by NumPy and apart from the library.

A mixture again: component k's posterior is Kalman's, with gain K = C A' (A C A' + s^2 I)^-1, and its weight is its own
times its evidence N(y; A m, A C A' + s^2 I). As x_t depends on y through x_0 alone, the law of x_t given y is that
posterior diffused, and E[x_0 | x_t, y] is its denoiser, under every process.
"""

from dataclasses import dataclass
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from tests.oracles import Mixture

MASKED = np.array([[1.0, 0.0]])  # the first of two coordinates is measured
MIXED = np.array([[0.8, -0.6]])  # one direction is
BOTH = np.array([[0.9, 0.4], [-0.3, 0.7]])


@dataclass(frozen=True)
class Exact:
    """The posterior, as a mixture, and log p(y) in nats."""

    posterior: Mixture
    log_evidence: float

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """n points of the posterior, whose covariances may be singular."""
        component = rng.choice(len(self.posterior.weights), size=n, p=self.posterior.weights)
        values, vectors = np.linalg.eigh(self.posterior.covariances)
        roots = vectors * np.sqrt(np.clip(values, 0, None))[:, None, :]
        noise = rng.standard_normal((n, roots.shape[1]))
        return self.posterior.means[component] + np.einsum("nij,nj->ni", roots[component], noise)


def condition(mixture: Mixture, matrix: np.ndarray, y: np.ndarray, noise_std: float) -> Exact:
    """The mixture given y = matrix x_0 + noise_std n, for one y [m]."""
    means, covariances, logs = [], [], []
    for weight, mean, covariance in zip(mixture.weights, mixture.means, mixture.covariances, strict=True):
        predicted = matrix @ covariance @ matrix.T + noise_std**2 * np.eye(len(y))
        gain = np.linalg.solve(predicted, matrix @ covariance).T
        means.append(mean + gain @ (y - matrix @ mean))
        # Joseph's form, which stays symmetric and positive
        rest = np.eye(len(mean)) - gain @ matrix
        covariances.append(rest @ covariance @ rest.T + noise_std**2 * gain @ gain.T)
        logs.append(np.log(weight) + scipy.stats.multivariate_normal.logpdf(y, matrix @ mean, predicted))
    evidence = np.logaddexp.reduce(logs)
    return Exact(Mixture(np.exp(logs - evidence), np.array(means), np.array(covariances)), float(evidence))


def isotropic(dim: int, std: float) -> Mixture:
    """Gaussian data whose coordinates are independent and equally wide, off the origin."""
    return Mixture(np.ones(1), np.linspace(-0.8, 1.3, dim)[None], std**2 * np.eye(dim)[None])


def affine_denoiser(mixture: Mixture, alpha: float, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """(gain, offset) of E[x_0 | x_t] = gain x_t + offset for data of one Gaussian."""
    mean, covariance = mixture.means[0], mixture.covariances[0]
    gain = alpha * np.linalg.solve(alpha**2 * covariance + sigma**2 * np.eye(len(mean)), covariance).T
    return gain, mean - alpha * gain @ mean


def levels_of(process, ts) -> list[tuple[float, float]]:
    """(alpha, sigma) of every point of a grid, in float64."""
    with jax.enable_x64(True):
        t = jnp.asarray(np.asarray(ts, np.float64))
        return [(float(a), float(s)) for a, s in zip(process.alpha(t), process.sigma(t), strict=True)]


def chain_posterior(process, ts, mixture: Mixture, matrix: np.ndarray, y: np.ndarray, noise_std: float) -> Exact:
    """The posterior of the last state of ancestral sampling itself, which particles have without its discretisation.

    Args:
        mixture: of one Gaussian, whose denoiser the chain is run with.
    """
    mean, covariance = ancestral_moments(
        levels_of(process, ts), lambda alpha, sigma: affine_denoiser(mixture, alpha, sigma), len(mixture.means[0])
    )
    return condition(Mixture(np.ones(1), mean[None], covariance[None]), matrix, y, noise_std)


def ancestral_moments(levels, denoiser, dim, *, known=None, y=None, resamples=1):
    """Exact mean and covariance at the last level of ancestral sampling with an affine denoiser, from the prior.

    Args:
        levels: (alpha, sigma) of every point, falling from noise.
        denoiser: (alpha, sigma) -> (gain, offset).
        known, y: coordinates that are replaced after each step by alpha y + sigma noise, and what by.
        resamples: times each step is made, with a step of the forward process before each but the first.
    """
    (_, first), *_ = levels
    mean, covariance, eye = np.zeros(dim), first**2 * np.eye(dim), np.eye(dim)
    for (alpha_t, sigma_t), (alpha_s, sigma_s) in pairwise(levels):
        gain, offset = denoiser(alpha_t, sigma_t)
        forward = alpha_t / alpha_s  # q(x_t | x_s) = N(forward x_s, spread I)
        spread = sigma_t**2 - forward**2 * sigma_s**2
        of_state, of_data = forward * sigma_s**2 / sigma_t**2, alpha_s * spread / sigma_t**2
        step = of_state * eye + of_data * gain
        for i in range(resamples):
            if i:
                mean, covariance = forward * mean, forward**2 * covariance + spread * eye
            mean = step @ mean + of_data * offset
            covariance = step @ covariance @ step.T + spread * sigma_s**2 / sigma_t**2 * eye
            if known is not None:
                mean = np.where(known, alpha_s * y, mean)
                covariance = np.where(known[:, None] | known[None], 0.0, covariance) + sigma_s**2 * np.diag(known)
    return mean, covariance
