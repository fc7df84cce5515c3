"""The evidence lower bound of a variational autoencoder, and tighter ones, per example in nats, to be maximised.

    log p(x) >= E_q[log p(x, z) - log q(z | x)]                         survey eq. 7: `elbo`, any posterior and prior
              = E_q[log p(x | z)] - KL(q(z | x) || N(0, I))             survey eq. 8: `gaussian_elbo`
    log p(x) >= E[log mean_i p(x, z_i)/q(z_i | x)]                      `iwae_bound`, with several draws z_i

The expectations are estimated by the draws of one call, with gradients through them (reparametrised). The losses that
bend the bound, `beta_loss`, `capacity_loss` and `free_bits`, are to be minimised.

References: Kingma & Welling 2014, arXiv:1312.6114; Burda et al. 2016, arXiv:1509.00519.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from dgm_jax.losses.divergences import gaussian_kl
from dgm_jax.losses.draws import (
    Draw,
    Latents,
    LogDensity,
    Observed,
    check_observed,
    check_pair,
    check_per_example,
    draw_samples,
)
from dgm_jax.numerics import expand_to, known, normal_like
from dgm_jax.typing import Keys, PerExample


class Elbo(NamedTuple):
    """The two terms of the bound, [batch] each, nats: log p(x | z) at one draw, and KL(q(z | x) || p(z))."""

    log_likelihood: PerExample
    kl: PerExample

    @property
    def value(self) -> PerExample:
        """The bound: log_likelihood - kl."""
        return self.log_likelihood - self.kl


def gaussian_elbo(
    encode: Callable[[Observed], tuple[Latents, Latents]], log_likelihood: LogDensity, x: Observed, key: Keys
) -> Elbo:
    """The bound with q(z | x) = N(mean, diag std^2) and p(z) = N(0, I), whose KL is exact.

    Args:
        encode: x -> (mean, log_std), [batch, latent] each.
        log_likelihood: (x, z) -> log p(x | z) in nats, summed over the event, one per example (`decoders`).

    Reference: Kingma & Welling 2014, arXiv:1312.6114, eq. 7 with one draw; survey eq. 8.
    """
    check_observed(x)
    mean, log_std = check_pair(encode(x), x)
    z = mean + jnp.exp(log_std) * normal_like(key, mean)
    return Elbo(check_per_example(log_likelihood(x, z), x, "log-likelihood"), gaussian_kl(mean, log_std))


def elbo(draw: Draw, log_joint: LogDensity, x: Observed, key: Keys) -> PerExample:
    """log p(x, z) - log q(z | x) at one draw z: the bound of any posterior and prior (survey eq. 7).

    Where q is the exact posterior, it is log p(x) for every draw.
    """
    return _log_weights(draw, log_joint, x, key, samples=1)[0]


def iwae_bound(draw: Draw, log_joint: LogDensity, x: Observed, key: Keys, *, samples: int) -> PerExample:
    """log mean_i p(x, z_i)/q(z_i | x) over `samples` draws: rises with their number to log p(x); 1 is `elbo`.

    Reference: Burda et al. 2016, arXiv:1509.00519, eq. 8.
    """
    return log_mean_exp(_log_weights(draw, log_joint, x, key, samples=samples))


def dreg_bound(
    draw: Draw, log_q: LogDensity, log_joint: LogDensity, x: Observed, key: Keys, *, samples: int
) -> PerExample:
    """`iwae_bound` with doubly reparametrised gradients in the encoder, of the same expectation and less variance.

    The encoder gets sum_i w_i^2 d log(p(x, z_i)/q(z_i | x))/dz_i dz_i/d parameters, with w the normalised weights; at
    the exact posterior this is 0 for every draw. The decoder's gradient is that of `iwae_bound`. Under `jit` the two
    evaluations of the weights are one program's common parts, and cost little more than one.

    Args:
        log_q: (x, z) -> log q(z | x), with `jax.lax.stop_gradient` around the encoder's parameters, but not around z:
            what reaches the encoder otherwise is added to the gradient, and biases it.

    Reference: Tucker et al. 2019, arXiv:1810.04152, eq. 6 and 8.
    """
    z, _ = draw_samples(draw, x, key, samples=samples)

    def log_weights(z: Float[Array, "samples batch *latent"]) -> Float[Array, "samples batch"]:
        return jax.vmap(lambda z: _joint(log_joint, x, z) - check_per_example(log_q(x, z), x, "log_q"))(z)

    share = jax.lax.stop_gradient(jax.nn.softmax(log_weights(z), axis=0))
    return log_mean_exp(log_weights(_scale_gradient(z, expand_to(share, z))))


def log_mean_exp(log_weights: Float[Array, " samples *batch"]) -> Float[Array, " *batch"]:
    """log of the mean of exp over the first axis, without overflow."""
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(len(log_weights))


def beta_loss(elbo: Elbo, *, beta: ArrayLike) -> PerExample:
    """-log p(x | z) + beta KL: 1 is the negative bound (Higgins et al. 2017; Burgess et al. 2018, eq. 3)."""
    _check_weight(beta, "beta")
    return -elbo.log_likelihood + beta * elbo.kl


def capacity_loss(elbo: Elbo, *, capacity: ArrayLike, gamma: ArrayLike) -> PerExample:
    """-log p(x | z) + gamma |KL - capacity|: the KL, in nats per example, is held at a target that may rise.

    Reference: Burgess et al. 2018, arXiv:1804.03599, eq. 8.
    """
    _check_weight(capacity, "capacity")
    _check_weight(gamma, "gamma")
    return -elbo.log_likelihood + gamma * jnp.abs(elbo.kl - capacity)


def free_bits(kl_per_latent: Latents, *, nats: ArrayLike) -> PerExample:
    """The KL to minimise where each latent has `nats` for free: its mean is sum_j max(nats, mean KL_j).

    A latent whose mean KL over these examples is below `nats` counts `nats`, and has no gradient. Examples are so
    coupled by the mean, which under `pmap` is that of a device's share.

    Args:
        kl_per_latent: [batch, latent], of one latent or of one group of them in each column.

    Reference: Kingma et al. 2016, arXiv:1606.04934, eq. 15, without its minus sign.
    """
    _check_weight(nats, "nats")
    floor = jnp.asarray(nats, kl_per_latent.dtype)
    above = jnp.mean(kl_per_latent, axis=0, keepdims=True) > floor
    return jnp.sum(jnp.where(above, kl_per_latent, floor), axis=1)


def _log_weights(
    draw: Draw, log_joint: LogDensity, x: Observed, key: Keys, *, samples: int
) -> Float[Array, "samples batch"]:
    """log p(x, z_i) - log q(z_i | x) of each draw."""
    z, log_q = draw_samples(draw, x, key, samples=samples)
    return jax.vmap(lambda z: _joint(log_joint, x, z))(z) - log_q


def _joint(log_joint: LogDensity, x: Observed, z: Float[Array, " batch *latent"]) -> PerExample:
    return check_per_example(log_joint(x, z), x, "log_joint")


@jax.custom_jvp
def _scale_gradient(z: Array, share: Array) -> Array:
    """The z that is given, bit for bit, with derivatives times share."""
    return z


@_scale_gradient.defjvp
def _scaled(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    return primals[0], primals[1] * tangents[0]


def _check_weight(value: ArrayLike, name: str) -> None:
    values = known(value)
    if values is not None and not (np.isfinite(values) & (values >= 0)).all():
        raise ValueError(f"Expected a finite {name} >= 0, as it weighs or measures a KL; got {value}.")
