"""Variational bounds on -log p(x_0), term by term: DDPM's over a chain of times, and VDM's in continuous time.

    -log p(x_0)  <=  prior + sum of transitions + reconstruction        (nats per example; lower is better)

For data on discrete levels p is a probability, and `discrete_bits_per_dim(-bound.total, event_size)` is the bound in
bits per dimension; with levels=None it is a density of data in [-1, 1] or anywhere else. Each term is an unbiased
estimate by one draw of noise. Under the exact denoiser the mean bound falls to -log p as steps are added, and lies
above it for any denoiser.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.losses import decoder_log_likelihood, diffusion_loss, prior_kl, transition_kl
from dgm_jax.losses.bound import check_levels
from dgm_jax.losses.weights import likelihood as likelihood_weight
from dgm_jax.numerics import (
    example_keys,
    expand_to,
    in_order,
    is_count,
    known,
    known_number,
    normal_like,
    split,
    sum_events,
)
from dgm_jax.parameterizations.posterior import ReverseVariance, check_variance, posterior_of, reverse_variance
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.processes.times import stratified
from dgm_jax.samplers.grid import Grid, check_points
from dgm_jax.typing import Data, Denoiser, Keys, PerExample, Scalar, Size


class Bound(NamedTuple):
    """The terms of a bound on -log p(x_0), in nats per example, each summed over the event.

    prior: KL of the state at the first time from the prior. transitions: [steps, batch], in the order of the times.
    reconstruction: -log p(x_0 | x_t) at the last time.
    """

    prior: PerExample
    transitions: Float[Array, "steps batch"]
    reconstruction: PerExample

    @property
    def total(self) -> PerExample:
        """The bound: at or above -log p(x_0) on average over the noise."""
        return self.prior + self.transitions.sum(0) + self.reconstruction


def variational_bound(
    denoise: Denoiser,
    process: GaussianProcess,
    x_0: Data,
    key: Keys,
    *,
    ts: Grid,
    variance: ReverseVariance,
    levels: int | None,
) -> Bound:
    """DDPM's bound over a falling grid: L_T, every L_{t-1} and L_0, with fresh noise for each.

    Args:
        ts: the sampler's grid, from noise to data. The last step is the decoder's, so a last point where sigma = 0
            stands for the data itself, and the decoder acts at the point before it; a grid that ends at sigma > 0
            has its decoder at that end. T + 1 points from 1 to 0 are DDPM's T terms besides L_T. Traced grids (made
            under `jit`) are not looked at, and must end where sigma > 0.
        variance: of the reverse steps, as in `transition_kl`. The decoder's is sigma(t)^2, DDPM's beta_1; for a
            callable v it is exp(v log sigma(t)^2 + (1 - v) log posterior), with the posterior variance of the step
            before, as its own is 0 (where there is no step before, sigma(t)^2).
        levels: how many levels x_0 has in [-1, 1], as `dgm_jax.data.to_unit` places them; None takes densities.

    Reference: Ho et al. 2020, arXiv:2006.11239, eq. 5 and 13.
    """
    check_levels(x_0, levels)
    check_variance(variance)
    x_0 = jnp.asarray(x_0)
    times = _chain(process, ts, x_0.dtype)
    key_chain, key_decoder = split(example_keys(key, x_0.shape[0]))

    def transition(step: tuple[Array, Array, Array]) -> PerExample:
        t, s = (jnp.full(x_0.shape[0], time) for time in step[:2])
        noise = normal_like(_key_of(key_chain, step[2]), x_0)
        return transition_kl(denoise, process, x_0, t, s, noise, variance=variance)

    transitions = jax.lax.map(transition, (times[:-1], times[1:], jnp.arange(len(times) - 1)))
    t, noise = jnp.full(x_0.shape[0], times[-1]), normal_like(key_decoder, x_0)
    of_decoder = jnp.broadcast_to(expand_to(process.variance(t), x_0), x_0.shape)
    if callable(variance) and len(times) > 1:
        before = posterior_of(process, jnp.full(x_0.shape[0], times[-2]), t)._replace(beta=process.variance(t))
        of_decoder = reverse_variance(before, variance, process.perturb(x_0, t, noise), t)
    log_decoder = decoder_log_likelihood(denoise, process, x_0, t, noise, levels=levels, variance=of_decoder)
    return Bound(prior_kl(process, x_0, t=times[0]), transitions, -log_decoder)


def continuous_bound(
    denoise: Denoiser,
    process: GaussianProcess,
    x_0: Data,
    key: Keys,
    *,
    t_min: float | Scalar,
    t_max: float | Scalar = 1.0,
    levels: int | None,
    draws: int = 1,
) -> Bound:
    """VDM's bound, the limit of infinitely many steps: the integral of -SNR'(t)/2 |x_0 - D|^2 from t_min to t_max.

    It depends on the process through SNR(t_min) and SNR(t_max) alone; its variance depends on the whole schedule.

    Args:
        key: one key stratifies the times over the batch; one key per example draws them independently.
        t_min: where x_0 is read off: with sigma > 0, and small against the levels.
        levels: reconstruction by p(x_0 | x_t) proportional to q(x_t | x_0) over the levels of each coordinate;
            None is the density N(x_t/alpha, sigma^2/alpha^2).
        draws: how many equal parts (t_min, t_max) is cut into, each with a time of its own for every example.

    Returns:
        transitions [draws, batch] are the integrals over those parts, from data to noise.

    Reference: Kingma et al. 2021, arXiv:2107.00630, eq. 11 and 17; the reconstruction is their section 3.3's.
    """
    check_levels(x_0, levels)
    low, high = known_number(t_min), known_number(t_max)
    if not in_order(0, t_min, t_max, 1) or (low is not None and low == high):
        raise ValueError(f"Expected 0 <= t_min < t_max <= 1, as 0 is data and 1 is noise; got {t_min=}, {t_max=}.")
    if not is_count(draws):
        raise ValueError(f"Expected an integer draws >= 1, as an integral needs times; got {draws=}.")
    process.refuse_no_noise(t_min, "the SNR")
    x_0 = jnp.asarray(x_0)
    width = (t_max - t_min) / draws
    key_noise, key_times = split(key)
    weight = partial(likelihood_weight, process, event_size=int(np.prod(x_0.shape[1:])))

    def part(i: Array) -> PerExample:
        def times(key: Keys, batch: Size) -> PerExample:
            position = stratified(0.0)(key, batch)
            return jnp.minimum(t_min + width * (i.astype(position.dtype) + position), t_max)

        return width * diffusion_loss(denoise, process, x_0, _key_of(key_times, i), weight=weight, times=times)

    transitions = jax.lax.map(part, jnp.arange(draws))
    noise = normal_like(key_noise, x_0)
    return Bound(prior_kl(process, x_0, t=t_max), transitions, _read_off(process, x_0, t_min, noise, levels))


def _key_of(key: Keys, step: Array) -> Keys:
    """The key, or keys, for the step of this number."""
    if key.ndim == 0:
        return jax.random.fold_in(key, step)
    return jax.vmap(lambda k: jax.random.fold_in(k, step))(key)


def _read_off(process: GaussianProcess, x_0: Data, t: float | Scalar, noise: Data, levels: int | None) -> PerExample:
    """-log p(x_0 | x_t) of the denoiser-free reconstruction, in closed form of the noise that made x_t."""
    precision = process.alpha(jnp.asarray(t, x_0.dtype)) / process.sigma(jnp.asarray(t, x_0.dtype))
    if levels is None:
        log_density = jax.scipy.stats.norm.logpdf(noise) + jnp.log(precision)
        return -sum_events(log_density)
    centres = 2 * jnp.arange(levels, dtype=x_0.dtype) / (levels - 1) - 1

    def example(pair: tuple[Array, Array]) -> Array:
        x, eps = (jnp.ravel(part)[:, None] for part in pair)
        away = precision * (centres[None] - x)
        # log q(x_t | level) - log q(x_t | x_0): no difference of large squares is left
        return jnp.sum(jax.nn.logsumexp(away * eps - away**2 / 2, axis=1))

    return jax.lax.map(example, (x_0, noise))  # [event, levels] for one example at a time


def _chain(process: GaussianProcess, ts: Grid, dtype: jnp.dtype) -> Float[Array, " times"]:
    """The grid without a last point at sigma = 0: falling times, of which the last is the decoder's."""
    values = check_points(ts)
    if values is not None and values[-1] > values[0]:
        raise ValueError(
            f"Expected falling ts, as the bound's chain runs from noise to data; got {values[0]} to {values[-1]}."
        )
    with jax.ensure_compile_time_eval():
        times = jnp.asarray(ts, dtype)
        last = known(process.variance(times[-1])) if values is not None else None
        return times if last is None or last > 0 else times[:-1]
