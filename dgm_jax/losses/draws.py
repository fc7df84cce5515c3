"""Draws from a posterior q(z | x), several for each example.

    draw(x, key) -> (z, log_q),        z ~ q(z | x), log_q = log q(z | x) in nats, one per example

is all that a bound asks of a posterior. `draw_samples` calls it under `vmap` over keys, with x held fixed: what depends
on x alone, the encoder, is then computed once for all samples, while everything downstream of z sees one batch of
samples times examples. Repeating x instead would pay for the encoder once a sample, and a loop would give up the large
matrix products.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from dgm_jax.numerics import check_data, example_keys, is_count
from dgm_jax.typing import Data, Keys, PerExample

Observed = Shaped[Array, " batch *event"]  # data of any kind: real, integer (classes), binary
Latents = Float[Array, " batch latent"]
Draw = Callable[[Observed, Keys], tuple[Data, PerExample]]  # (x, key) -> (z [batch, *latent], log q(z | x))
LogDensity = Callable[[Observed, Data], PerExample]  # (x, z) -> log p(x, z), log p(x | z) or log q(z | x)


def draw_samples(
    draw: Draw, x: Observed, key: Keys, *, samples: int
) -> tuple[Float[Array, "samples batch *latent"], Float[Array, "samples batch"]]:
    """`samples` draws for each example and their log-densities; an example's draws depend on its own key alone."""
    if not is_count(samples):
        raise ValueError(f"Expected an integer samples >= 1, as a mean is taken over them; got {samples=}.")
    check_observed(x)
    keys = jax.vmap(lambda k: jax.random.split(k, samples))(example_keys(key, x.shape[0]))

    def one(keys: Keys) -> tuple[Data, PerExample]:
        z, log_q = draw(x, keys)
        return z, check_per_example(log_q, x, "posterior's log-density")

    return jax.vmap(one, in_axes=1)(keys)


def check_observed(x: Observed) -> None:
    """Raise `ValueError` unless x is a batch, and finite where it is real and known."""
    if not hasattr(x, "dtype") or x.ndim < 1 or x.size == 0:
        raise ValueError(f"Expected x to be an array [batch, *event] with values, as a bound is on them; got {x!r}.")
    if jnp.issubdtype(x.dtype, jnp.floating):
        check_data(x, "x")


def check_per_example(values: PerExample, x: Observed, name: str) -> PerExample:
    """The values, or `ValueError` unless there is one for each example: broadcasting would hide it."""
    if values.shape != (x.shape[0],):
        raise ValueError(f"Expected the {name} of shape {(x.shape[0],)}, one value per example; got {values.shape}.")
    return values


def check_pair(pair: tuple[Latents, Latents], x: Observed) -> tuple[Latents, Latents]:
    """An encoder's (mean, log_std), or `ValueError` unless both are [batch, latent]."""
    mean, log_std = pair
    if mean.ndim != 2 or mean.shape[0] != x.shape[0] or mean.shape != log_std.shape:
        raise ValueError(
            f"Expected the encoder's mean and log_std of one shape ({x.shape[0]}, latent), as each latent of each "
            f"example has both; got {mean.shape} and {log_std.shape}."
        )
    return mean, log_std
