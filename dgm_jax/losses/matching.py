"""Score matching without noise: the score of the data itself, from points of it alone.

For a field s, with s* the score of the data's density p and sums over the event,

    E[tr(grad s) + |s|^2/2] = E|s - s*|^2/2 - E|s*|^2/2

(Hyvarinen 2005, JMLR 6:695, theorem 1), so that the least expected loss is -E|s*|^2/2, half the Fisher information,
attained at s = s*. Losses are per example, in 1/(data units)^2, and may be negative. Slices replace the trace, whose
price grows with the dimension, by Jacobian-vector products along random directions. All derivatives of s are
forward-mode; gradients of the losses in parameters are reverse-mode as ever.

Where p is small there are few points and s stays wrong. Denoising score matching, which is `diffusion_loss` with
`weights.ncsn`, fills the space with noise; it is also cheaper.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.numerics import check_data, check_like, divergence, is_count, rademacher_like, sum_events
from dgm_jax.typing import Data, Keys, PerExample

Score = Callable[[Data], Data]  # x [batch, *event] -> s(x), each row from its own row


def hyvarinen(score: Score, x: Data) -> PerExample:
    """tr(grad s) + |s|^2/2 with the exact trace: one Jacobian-vector product for each of the event's coordinates."""
    value, trace = _divergence(score, x, None)
    return trace + sum_events(value**2) / 2


def sliced_score_matching(score: Score, x: Data, key: Keys, *, slices: int) -> PerExample:
    """Mean over slices of v.(grad s) v + (v.s)^2/2, with v of independent signs: its expectation is `hyvarinen`'s.

    Reference: Song et al. 2019, arXiv:1905.07088, eq. 8.
    """
    v = _directions(key, x, slices)
    value, trace = _divergence(score, x, v)
    along = jnp.sum(v * value[None], axis=tuple(range(2, v.ndim)))
    return trace + jnp.mean(along**2, axis=0) / 2


def sliced_score_matching_vr(score: Score, x: Data, key: Keys, *, slices: int) -> PerExample:
    """Mean over slices of v.(grad s) v + |s|^2/2: less variance, as E (v.s)^2 = |s|^2 is known.

    Reference: Song et al. 2019, arXiv:1905.07088, eq. 9; NCSN's toy score network was trained by it.
    """
    value, trace = _divergence(score, x, _directions(key, x, slices))
    return trace + sum_events(value**2) / 2


def _divergence(score: Score, x: Data, v: Float[Array, "slices batch *event"] | None) -> tuple[Data, PerExample]:
    check_data(x, "x")
    return divergence(lambda x: check_like(score(x), x, "score"), x, v)


def _directions(key: Keys, x: Data, slices: int) -> Float[Array, "slices batch *event"]:
    if not is_count(slices):
        raise ValueError(f"Expected integer slices >= 1, as the trace is estimated along them; got {slices=}.")
    return rademacher_like(key, x, slices)
