"""The linear-Gaussian VAE, which is probabilistic PCA: every quantity in closed form, in NumPy float64.

    z ~ N(0, I),        x | z ~ N(W z + b, std^2 I)

so that x ~ N(b, W W^T + std^2 I) and z | x is N(m(x), C) with C = (I + W^T W/std^2)^-1, m(x) = C W^T (x - b)/std^2
(Tipping & Bishop 1999, J. R. Statist. Soc. B 61:611, eq. 4 and 7, in this model's order of latents).
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    weight: np.ndarray  # [dim, latent]
    offset: np.ndarray  # [dim]
    std: float

    @property
    def latent(self):
        return self.weight.shape[1]

    @property
    def covariance(self):
        """C, of z given any x."""
        return np.linalg.inv(np.eye(self.latent) + self.weight.T @ self.weight / self.std**2)

    def mean(self, x):
        """m(x), [n, latent]."""
        return (np.asarray(x) - self.offset) @ self.weight @ self.covariance / self.std**2

    def sample(self, rng, n):
        z = rng.standard_normal((n, self.latent))
        return z @ self.weight.T + self.offset + self.std * rng.standard_normal((n, len(self.offset)))

    def log_prob(self, x):
        law = scipy.stats.multivariate_normal(
            self.offset, self.weight @ self.weight.T + self.std**2 * np.eye(len(self.offset))
        )
        return law.logpdf(np.asarray(x))

    def reconstruction(self, x, mean, covariance):
        """E_q log p(x | z) for q = N(mean, covariance): a Gaussian's, and the trace of what q adds."""
        error = np.asarray(x) - self.offset - mean @ self.weight.T
        spread = np.trace(self.weight @ covariance @ self.weight.T)
        dim = len(self.offset)
        return -((error**2).sum(1) + spread) / (2 * self.std**2) - dim / 2 * np.log(2 * np.pi * self.std**2)

    def elbo(self, x, mean, covariance):
        """The bound at q = N(mean, covariance): log p(x) less the KL from the exact posterior."""
        return self.log_prob(x) - np.array(
            [
                kl_of_gaussians(m, covariance, exact, self.covariance)
                for m, exact in zip(mean, self.mean(x), strict=True)
            ]
        )

    def decode(self, z):
        """The decoder's mean, in JAX."""
        return z @ jnp.asarray(self.weight.T, z.dtype) + jnp.asarray(self.offset, z.dtype)[None]

    def log_likelihood(self, x, z):
        return jax.scipy.stats.norm.logpdf(x, self.decode(z), self.std).sum(1)

    def log_joint(self, x, z):
        return self.log_likelihood(x, z) + jax.scipy.stats.norm.logpdf(z).sum(1)

    def encode_mean(self, x):
        """m(x), in JAX."""
        gain = jnp.asarray(self.weight @ self.covariance / self.std**2, x.dtype)
        return (x - jnp.asarray(self.offset, x.dtype)[None]) @ gain

    def encode_full(self, x):
        """The exact posterior for `full_covariance_posterior`."""
        mean = self.encode_mean(x)
        entries = jnp.asarray(entries_of(self.covariance), x.dtype)
        return mean, jnp.broadcast_to(entries[None], (len(x), len(entries)))

    def encode_diagonal(self, x):
        """The exact posterior where its covariance is diagonal, and else its best diagonal approximation in KL."""
        mean = self.encode_mean(x)
        log_std = jnp.asarray(-np.log(np.diag(np.linalg.inv(self.covariance))) / 2, x.dtype)
        return mean, jnp.broadcast_to(log_std[None], mean.shape)


def kl_of_gaussians(mean_1, cov_1, mean_2, cov_2):
    """KL(N_1 || N_2) of full covariances, by determinants and a solve."""
    away = np.asarray(mean_2) - np.asarray(mean_1)
    trace = np.trace(np.linalg.solve(cov_2, cov_1)) + away @ np.linalg.solve(cov_2, away)
    return (trace - len(away) + np.linalg.slogdet(cov_2)[1] - np.linalg.slogdet(cov_1)[1]) / 2


def entries_of(covariance):
    """The unconstrained entries of a covariance's Cholesky factor: log-diagonal, then what is below, row by row."""
    factor = np.linalg.cholesky(covariance)
    below = [factor[i, j] for i in range(len(factor)) for j in range(i)]
    return np.concatenate([np.log(np.diag(factor)), below])


def _pca(dim, latent, std, orthogonal):
    rng = np.random.default_rng(7)
    weight = rng.standard_normal((dim, latent))
    if orthogonal:
        weight = np.linalg.qr(weight)[0] * np.array([1.5, 0.7, 0.4])[:latent]
    return LinearGaussian(weight, rng.standard_normal(dim), std)


CORRELATED = _pca(5, 3, 0.8, orthogonal=False)  # the posterior's covariance is full
DIAGONAL = _pca(5, 3, 0.8, orthogonal=True)  # W^T W is diagonal, and so is the posterior's covariance
LINE = LinearGaussian(np.array([[1.2], [-0.5]]), np.array([0.3, -0.1]), 0.7)  # one latent, for quadrature
