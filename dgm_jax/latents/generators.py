"""The inverse of a generator, by optimisation: the latents whose image is nearest to an example.

    minimise over z    |G(z) - x|^2 / dim(x) + weight |z|^2 / (2 dim(z))

from several starts of the prior for each example, of which the best is kept. A generator need not reach x, and the
problem has local minima: the error that is left says how far off the latents are.

Reference: Zhu et al. 2016, arXiv:1609.03552, eq. 5; Creswell & Bharath 2018, arXiv:1611.05644.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from dgm_jax.numerics import check_data, example_keys, expand_to, in_order, is_count, sum_events
from dgm_jax.typing import Data, Keys, PerExample


class Inversion(NamedTuple):
    """z: [batch, *latent]. error: mean squared error of G(z) [batch], inf where no start had a finite one. spread: std
    of the finite errors over starts [batch]."""

    z: Data
    error: PerExample
    spread: PerExample


def invert_generator(
    generate: Callable[[Data], Data],
    x: Data,
    key: Keys,
    *,
    latent_shape: tuple[int, ...],
    optimizer: optax.GradientTransformation,
    steps: int,
    starts: int,
    prior_weight: float = 0.0,
) -> Inversion:
    """Latents of the examples x, by gradient descent from draws of N(0, I).

    Args:
        generate: [batch, *latent_shape] -> [batch, *event], of any batch, row by row.
        key: one, or one per example.
        optimizer: elementwise, as Adam is, or examples and starts would depend on each other.
        starts: per example; all are one batch of `starts` times as many rows.
        prior_weight: of the penalty that keeps z where the prior is; 0 is none.
    """
    check_data(x, "x")
    if not is_count(steps) or not is_count(starts):
        raise ValueError(
            f"Expected whole steps >= 1 and starts >= 1, as latents are searched; got {steps=}, {starts=}."
        )
    if not in_order(0, prior_weight):
        raise ValueError(f"Expected prior_weight >= 0, as it holds z near 0; got {prior_weight}.")
    keys = example_keys(key, x.shape[0])
    draws = jax.vmap(lambda key: jax.random.normal(key, (starts, *latent_shape), x.dtype))(keys)
    z = draws.reshape(x.shape[0] * starts, *latent_shape)
    target = jnp.repeat(x, starts, axis=0)

    def errors(z: Data) -> PerExample:
        image = generate(z)
        if image.shape != target.shape:
            raise ValueError(
                f"Expected the generator to return events of shape {x.shape[1:]}, as x is; got {image.shape[1:]}."
            )
        return sum_events((image - target) ** 2) / (x.size // x.shape[0])

    def objective(z: Data) -> tuple[jax.Array, tuple[PerExample, PerExample]]:
        error = errors(z)
        value = error + prior_weight * sum_events(z**2) / (2 * (z.size // z.shape[0]))
        return value.sum(), (value, error)

    def descend(state: tuple, _: None) -> tuple[tuple, None]:
        z, opt_state, best = state
        gradient, (value, error) = jax.grad(objective, has_aux=True)(z)
        best = _better(best, (value, error, z))
        with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
            updates, opt_state = optimizer.update(gradient, opt_state, z)
        return (optax.apply_updates(z, updates), opt_state, best), None

    # Below infinity NaN is not, so that a start that fails is out of the race.
    none = jnp.full(z.shape[0], jnp.inf, z.dtype)
    (z, _, best), _ = jax.lax.scan(descend, (z, optimizer.init(z), (none, none, z)), None, length=steps)
    _, (value, error) = objective(z)
    value, error, z = (leaf.reshape(x.shape[0], starts, *leaf.shape[1:]) for leaf in _better(best, (value, error, z)))
    at, row = value.argmin(1), jnp.arange(x.shape[0])
    spread = jnp.nanstd(jnp.where(jnp.isfinite(error), error, jnp.nan), axis=1)
    return Inversion(z[row, at], error[row, at], spread)


def _better(best: tuple, new: tuple) -> tuple:
    """Row by row what has the smaller value, the first of each tuple."""
    improved = new[0] < best[0]
    return jax.tree.map(lambda n, b: jnp.where(expand_to(improved, n), n, b), new, best)
