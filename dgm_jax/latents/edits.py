"""Stochastic edits: a guide is given noise up to a time t, and the reverse SDE makes data of it.

At t = 1 nothing of the guide is left and samples are the model's own (realism), at t = 0 they are the guide
(faithfulness). For Gaussian data N(m, C) and an exact model, samples from the guide y are Gaussian at every t, with
K = alpha C (alpha^2 C + sigma^2 I)^-1,

    mean = m + alpha K (y - m),        covariance = C - alpha K C + sigma^2 K K^T.

Reference: Meng et al. 2021, arXiv:2108.01073, algorithm 1 and section 3.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.numerics import check_data, normal_like, split, sum_events
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.samplers import Samples, solve_sde
from dgm_jax.samplers.grid import Grid
from dgm_jax.typing import Data, Denoiser, Keys

AnyGrid = Float[Array, " _"] | Float[np.ndarray, " _"]  # grids of one call need not be of one length


def sdedit(denoise: Denoiser, process: GaussianProcess, guide: Data, key: Keys, *, ts: Grid, **options: Any) -> Samples:
    """Data near the `guide`: x_t = alpha guide + sigma noise at ts[0], then the reverse SDE along ts.

    Args:
        guide: [batch, *event], strokes or an example to be varied; it need not be like the data.
        ts: falling, from the time that sets how much is kept.
        options: of `solve_sde`.
    """
    check_data(guide, "the guide")
    key_noise, key_path = split(key)
    start = jnp.full(guide.shape[0], jnp.asarray(ts)[0], guide.dtype)
    x_t = process.perturb(guide, start, normal_like(key_noise, guide))
    return solve_sde(denoise, process, x_t, key_path, ts=ts, **options)


class Tradeoff(NamedTuple):
    """times: [times]. distance: root mean squared distance from the guide [times, batch]. realism: [times]."""

    times: Float[np.ndarray, " times"]
    distance: Float[Array, "times batch"]
    realism: Float[Array, " times"]


def realism_faithfulness(
    denoise: Denoiser,
    process: GaussianProcess,
    guide: Data,
    key: Keys,
    *,
    grids: Sequence[AnyGrid],
    realism: Callable[[Data], Float[Array, ""]],
    **options: Any,
) -> Tradeoff:
    """How far edits are from the guide, and how real, for each of some starting times: SDEdit's curve.

    Args:
        grids: one for each starting time, which is its first point.
        realism: of a set of samples [batch, *event], such as a distance from real data.
    """
    if not grids:
        raise ValueError("Expected one grid or more, as each is a point of the curve; got none.")
    drawn = [sdedit(denoise, process, guide, key, ts=ts, **options).x for ts in grids]
    distance = [jnp.sqrt(sum_events((x - guide) ** 2) / (x.size // x.shape[0])) for x in drawn]
    times = np.asarray([jax.device_get(ts[0]) for ts in grids])
    return Tradeoff(times, jnp.stack(distance), jnp.stack([jnp.asarray(realism(x)) for x in drawn]))
