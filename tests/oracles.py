"""Exact answers: a lopsided Gaussian mixture under every process, computed apart from the library.

For data sum_k w_k N(m_k, C_k), x_t has density sum_k w_k N(alpha m_k, alpha^2 C_k + sigma^2 I), and E[x_0 | x_t] is
the responsibility-weighted mean of each component's Gaussian posterior mean. A single component is the Gaussian
oracle. Means are not zero, stds not one, weights unequal: symmetric oracles hide bugs.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax import processes

PROCESSES = {
    "vp": processes.variance_preserving(),
    "sub_vp": processes.sub_variance_preserving(),
    "ve": processes.variance_exploding(),
    "karras": processes.karras(),
    "cosine": processes.cosine(),
    "rectified": processes.rectified(),
    "from_betas": processes.from_betas(np.linspace(1e-4, 0.02, 1000)),
}
NO_SIGNAL_AT_ONE = {"cosine", "rectified"}


def last_time(name: str) -> float:
    """The largest time at which the process's SDE is regular."""
    return 0.999 if name in NO_SIGNAL_AT_ONE else 1.0


@dataclass(frozen=True)
class Mixture:
    """Weights [k], means [k, d], covariances [k, d, d]."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def at(self, process, t):
        """Per-example means and covariances of the components of x_t, t [batch]."""
        alpha = process.alpha(t)[:, None, None]
        variance = process.variance(t)[:, None, None, None]
        means = alpha * jnp.asarray(self.means, t.dtype)[None]
        eye = jnp.eye(self.means.shape[1], dtype=t.dtype)[None, None]
        covariances = (alpha**2)[..., None] * jnp.asarray(self.covariances, t.dtype)[None] + variance * eye
        return means, covariances

    def _parts(self, process, x, t):
        means, covariances = self.at(process, t)
        centred = x[:, None, :] - means
        solved = jnp.linalg.solve(covariances, centred[..., None])[..., 0]
        dim = x.shape[1]
        log_joint = (
            jnp.log(jnp.asarray(self.weights, x.dtype))[None]
            - jnp.sum(centred * solved, -1) / 2
            - jnp.linalg.slogdet(covariances)[1] / 2
            - dim / 2 * float(np.log(2 * np.pi))
        )
        return log_joint, solved

    def log_prob(self, process, x, t):
        """log p_t(x), nats, [batch]."""
        return jax.nn.logsumexp(self._parts(process, x, t)[0], axis=1)

    def denoise(self, process):
        """The exact denoiser."""

        def exact(x_t, t):
            log_joint, solved = self._parts(process, x_t, t)
            share = jax.nn.softmax(log_joint, axis=1)
            means = jnp.asarray(self.means, x_t.dtype)[None]
            covariances = jnp.asarray(self.covariances, x_t.dtype)[None]
            alpha = process.alpha(t)[:, None, None]
            posterior = means + alpha * jnp.einsum(
                "bkij,bkj->bki", jnp.broadcast_to(covariances, (len(x_t), *covariances.shape[1:])), solved
            )
            return jnp.sum(share[..., None] * posterior, axis=1)

        return exact

    def sample(self, rng: np.random.Generator, n: int, dtype=np.float32):
        """n points from the data distribution, by NumPy."""
        component = rng.choice(len(self.weights), size=n, p=self.weights)
        roots = np.linalg.cholesky(self.covariances)
        noise = rng.standard_normal((n, self.means.shape[1]))
        return (self.means[component] + np.einsum("nij,nj->ni", roots[component], noise)).astype(dtype)

    @property
    def mean(self):
        return self.weights @ self.means

    @property
    def covariance(self):
        centred = self.means - self.mean
        return np.einsum("k,kij->ij", self.weights, self.covariances) + np.einsum(
            "k,ki,kj->ij", self.weights, centred, centred
        )


GAUSSIAN = Mixture(
    weights=np.array([1.0]),
    means=np.array([[1.5, -0.7]]),
    covariances=np.array([[[0.16, 0.05], [0.05, 0.36]]]),
)
MIXTURE = Mixture(
    weights=np.array([0.2, 0.5, 0.3]),
    means=np.array([[-1.5, 0.4], [1.2, 0.9], [0.3, -1.6]]),
    covariances=np.array(
        [[[0.04, 0.01], [0.01, 0.09]], [[0.09, -0.02], [-0.02, 0.04]], [[0.0625, 0.0], [0.0, 0.0225]]]
    ),
)


def mixture_weights(mixture: Mixture, x: np.ndarray) -> np.ndarray:
    """The share of points nearest each component, in that component's Mahalanobis distance and volume."""
    x = np.asarray(x, np.float64)
    logits = []
    for weight, mean, covariance in zip(mixture.weights, mixture.means, mixture.covariances, strict=True):
        centred = x - mean
        solved = np.linalg.solve(covariance, centred.T).T
        logits.append(np.log(weight) - np.sum(centred * solved, 1) / 2 - np.linalg.slogdet(covariance)[1] / 2)
    nearest = np.argmax(np.stack(logits), 0)
    return np.bincount(nearest, minlength=len(mixture.weights)) / len(x)


def gaussian_flow(process, x, t_from: float, t_to: float):
    """Where the probability-flow ODE of GAUSSIAN carries `x`: in each eigendirection a ratio of standard deviations."""
    values, vectors = np.linalg.eigh(GAUSSIAN.covariances[0])
    mean = GAUSSIAN.means[0]
    ends = np.array([t_from, t_to])
    alpha = np.asarray(process.alpha(jnp.asarray(ends)), np.float64)
    variance = np.asarray(process.variance(jnp.asarray(ends)), np.float64)
    stds = np.sqrt(alpha[:, None] ** 2 * values + variance[:, None])
    along = (np.asarray(x, np.float64) - alpha[0] * mean) @ vectors
    return alpha[1] * mean + (along * stds[1] / stds[0]) @ vectors.T


def euler_maruyama_moments(process, ts, stochasticity: float):
    """Mean and covariance that Euler-Maruyama gives the reverse SDE of GAUSSIAN in time, from the prior: a recursion.

    In an eigendirection with variance v_t = alpha^2 lambda + sigma^2 the score is -(x - alpha m)/v_t, so that each
    step is affine in x and the moments follow exactly, discretisation error included.
    """
    values, vectors = np.linalg.eigh(GAUSSIAN.covariances[0])
    mean = GAUSSIAN.means[0] @ vectors
    ts = np.asarray(ts, np.float64)
    alpha, sigma, rate, g = (
        np.asarray(jax.jit(f)(jnp.asarray(ts)), np.float64)
        for f in (process.alpha, process.sigma, process.log_alpha_rate, process.diffusion)
    )
    average, variance = np.zeros(2), np.full(2, sigma[0] ** 2)
    for i in range(len(ts) - 1):
        step = ts[i] - ts[i + 1]
        v = alpha[i] ** 2 * values + sigma[i] ** 2
        pull = (1 + stochasticity**2) / 2 * g[i] ** 2 / v
        gain = 1 - step * (rate[i] + pull)
        average = gain * average + step * pull * alpha[i] * mean
        variance = gain**2 * variance + stochasticity**2 * g[i] ** 2 * step
    return vectors @ average, vectors @ np.diag(variance) @ vectors.T


def langevin_moments(process, ts, epsilon, steps, mean, covariance):
    """Mean and covariance after Song & Ermon's algorithm 1 on GAUSSIAN, from a state of the given moments.

    x <- x + alpha_i/2 C_i^-1 (m_i - x) + sqrt(alpha_i) z with x_t ~ N(m_i, C_i) at level i, discretisation included.
    """
    sigma = np.asarray(process.sigma(jnp.asarray(ts)), np.float64)
    alpha = np.asarray(process.alpha(jnp.asarray(ts)), np.float64)
    for i in range(len(ts)):
        size = epsilon * sigma[i] ** 2 / sigma[-1] ** 2
        pull = size / 2 * np.linalg.inv(alpha[i] ** 2 * GAUSSIAN.covariances[0] + sigma[i] ** 2 * np.eye(2))
        gain = np.eye(2) - pull
        for _ in range(steps):
            mean = gain @ mean + alpha[i] * pull @ GAUSSIAN.means[0]
            covariance = gain @ covariance @ gain.T + size * np.eye(2)
    return mean, covariance
