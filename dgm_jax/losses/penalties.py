"""Penalties on the gradient of a critic in its input, one value per example, to be added to the discriminator's loss.

`critic(x [batch, *event]) -> [batch]`, with its parameters closed over, so that a loss may be differentiated in them.
The norm of the gradient is over all event axes of an example; values are in squared logits per squared data unit.
The papers' factors, lambda = 10 or gamma/2, are the caller's.

Each example's gradient is meant to be that of its own logit, and is found as the gradient of the sum of all. Batch
statistics make a logit depend on every example of the batch, and the sum's gradient then mixes them: such a critic has
no penalty of its own for an example. Use layer norm, instance norm or none.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from dgm_jax.numerics import check_data, example_keys, expand_to, known_number, sum_events
from dgm_jax.typing import Data, Keys, PerExample

Critic = Callable[[Data], PerExample]


def gradient_penalty(critic: Critic, real: Data, fake: Data, key: Keys, *, target: float = 1.0) -> PerExample:
    """(|grad V| - target)^2 at a point drawn uniformly between each real and its fake example.

    With target 0 it is the zero-centred penalty between the pairs (Thanh-Tung et al. 2019, arXiv:1902.03984).

    Reference: Gulrajani et al. 2017, arXiv:1704.00028, eq. 3 and algorithm 1.
    """
    _check_target(target)
    return (_norm(critic, _between(real, fake, key)) - target) ** 2


def one_sided_penalty(critic: Critic, real: Data, fake: Data, key: Keys, *, target: float = 1.0) -> PerExample:
    """max(0, |grad V| - target)^2 at a point drawn uniformly between each real and its fake example.

    Reference: Gulrajani et al. 2017, arXiv:1704.00028, section 4; Petzka et al. 2018, arXiv:1709.08894, eq. 8.
    """
    _check_target(target)
    return jax.nn.relu(_norm(critic, _between(real, fake, key)) - target) ** 2


def r1_penalty(critic: Critic, real: Data) -> PerExample:
    """|grad V|^2 on data, R1 without its gamma/2 (Mescheder et al. 2018, arXiv:1801.04406, eq. 9)."""
    return _squared_norm(critic, real)


def r2_penalty(critic: Critic, fake: Data) -> PerExample:
    """|grad V|^2 on generated points, R2 without its gamma/2 (Mescheder et al. 2018, arXiv:1801.04406, eq. 10)."""
    return _squared_norm(critic, fake)


def zero_centred_penalty(critic: Critic, real: Data, fake: Data) -> PerExample:
    """R1 + R2 of each pair, without gamma/2 (Mescheder et al. 2018, arXiv:1801.04406, eq. 9 and 10)."""
    _check_pairs(real, fake)
    return r1_penalty(critic, real) + r2_penalty(critic, fake)


def _squared_norm(critic: Critic, x: Data) -> PerExample:
    check_data(x, "input of the critic")

    def total(x: Data) -> jax.Array:
        logits = critic(x)
        if logits.shape != x.shape[:1] or not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ValueError(
                f"Expected a critic that returns one real number per example, {x.shape[:1]}, as the gradient is of "
                f"that number; got {logits.shape}, {logits.dtype}."
            )
        return logits.sum()

    return sum_events(jax.grad(total)(x) ** 2)


def _norm(critic: Critic, x: Data) -> PerExample:
    """|grad V|, whose own derivative at 0 is taken to be 0 rather than NaN: a constant critic is where many begin."""
    squared = _squared_norm(critic, x)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1.0)), 0.0)


def _between(real: Data, fake: Data, key: Keys) -> Data:
    _check_pairs(real, fake)
    share = jax.vmap(lambda k: jax.random.uniform(k, (), real.dtype))(example_keys(key, real.shape[0]))
    share = expand_to(share, real)
    return share * real + (1 - share) * fake


def _check_pairs(real: Data, fake: Data) -> None:
    check_data(real, "real")
    check_data(fake, "fake")
    if real.shape != fake.shape or real.dtype != fake.dtype:
        raise ValueError(
            f"Expected real and fake of one shape and dtype, as examples are paired; got {real.shape} {real.dtype} and "
            f"{fake.shape} {fake.dtype}."
        )


def _check_target(target: float) -> None:
    value = known_number(target)
    if value is not None and not 0 <= value < float("inf"):
        raise ValueError(f"Expected a finite target >= 0, as a norm is; got {target=}.")
