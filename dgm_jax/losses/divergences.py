"""KL(q || p) between the Gaussians of a VAE in closed form, and from draws for any q and p.

In nats, summed over the latents, one per example. A diagonal Gaussian is (mean, log_std), both [batch, latent]; a full
one is (mean, entries), with the latent (latent + 1)/2 unconstrained entries of a Cholesky factor (`cholesky_factor`).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.losses.draws import Draw, Latents, Observed, check_per_example, draw_samples
from dgm_jax.typing import Data, Keys, PerExample

Entries = Float[Array, " batch entries"]  # entries = latent (latent + 1)/2


def gaussian_kl(mean: Latents, log_std: Latents) -> PerExample:
    """KL(N(mean, diag std^2) || N(0, I)) (Kingma & Welling 2014, arXiv:1312.6114, appendix B)."""
    return gaussian_kl_per_latent(mean, log_std).sum(1)


def gaussian_kl_per_latent(mean: Latents, log_std: Latents) -> Latents:
    """`gaussian_kl` before the sum: (mean^2 + std^2 - 1)/2 - log std of each latent, for `free_bits` or a report."""
    _check_same(mean, log_std)
    return (mean**2 + jnp.expm1(2 * log_std)) / 2 - log_std


def gaussian_kl_between(mean: Latents, log_std: Latents, mean_2: Latents, log_std_2: Latents) -> PerExample:
    """KL(N(mean, diag std^2) || N(mean_2, diag std_2^2)): the first is q, under which the expectation is taken."""
    _check_same(mean, log_std, mean_2, log_std_2)
    return gaussian_kl((mean - mean_2) * jnp.exp(-log_std_2), log_std - log_std_2)


def full_covariance_kl(mean: Latents, entries: Entries) -> PerExample:
    """KL(N(mean, L L^T) || N(0, I)) = (|L|^2 + |mean|^2 - latent)/2 - log det L, L = `cholesky_factor(entries)`."""
    latent = mean.shape[-1]
    _check_entries(entries, latent)
    return gaussian_kl(mean, entries[:, :latent]) + jnp.sum(entries[:, latent:] ** 2, axis=1) / 2


def cholesky_factor(entries: Entries, latent: int) -> Float[Array, " batch latent latent"]:
    """The lower-triangular L: its diagonal's logarithms, then what is below it, row by row.

    With nothing below the diagonal the first entries are a diagonal Gaussian's log_std. Every positive definite
    covariance L L^T has exactly one such L.
    """
    _check_entries(entries, latent)
    rows, columns = np.tril_indices(latent, -1)
    at = np.arange(latent)
    factor = jnp.zeros((len(entries), latent, latent), entries.dtype)
    factor = factor.at[:, at, at].set(jnp.exp(entries[:, :latent]))
    return factor.at[:, rows, columns].set(entries[:, latent:])


def monte_carlo_kl(
    draw: Draw, log_prior: Callable[[Data], PerExample], x: Observed, key: Keys, *, samples: int
) -> PerExample:
    """Mean over draws of log q(z | x) - log p(z): unbiased for any posterior and prior, and may be negative."""
    z, log_q = draw_samples(draw, x, key, samples=samples)
    log_p = jax.vmap(lambda z: check_per_example(log_prior(z), x, "prior's log-density"))(z)
    return jnp.mean(log_q - log_p, axis=0)


def _check_entries(entries: Entries, latent: int) -> None:
    count = latent * (latent + 1) // 2
    if entries.ndim != 2 or entries.shape[1] != count:
        raise ValueError(f"Expected entries [batch, {count}], as a factor of {latent=} has them; got {entries.shape}.")


def _check_same(first: Latents, *others: Latents) -> None:
    shapes = [part.shape for part in (first, *others)]
    if first.ndim != 2 or len(set(shapes)) > 1:
        raise ValueError(
            f"Expected means and log_stds of one shape [batch, latent], as each latent has both; got {shapes}."
        )
