"""Log-likelihood by the probability-flow ODE, and bits per dimension.

Along dx/dt = v(x, t) the density changes as d log p/dt = -div v (instantaneous change of variables), so that

    log p(x at ts[0]) = log N(x at ts[-1]; 0, sigma(ts[-1])^2 I) + integral of div v from ts[0] to ts[-1]

(Song et al. 2021, arXiv:2011.13456, eq. 39; Chen et al. 2018, arXiv:1806.07366, eq. 8). All values are natural
logarithms of a density in data units, in nats, one per example.
"""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer

from dgm_jax.numerics import divergence, example_keys, known
from dgm_jax.parameterizations import velocity_of
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.samplers.grid import Grid, check_grid, ode_grid
from dgm_jax.samplers.stepping import integrate
from dgm_jax.typing import Data, Denoiser, Keys, PerExample


def log_likelihood(
    denoise: Denoiser,
    process: GaussianProcess,
    x_0: Data,
    key: Keys | None = None,
    *,
    ts: Grid,
    probes: int | None = None,
    solver: diffrax.AbstractSolver = diffrax.Heun(),
    controller: diffrax.AbstractStepSizeController | None = None,
) -> PerExample:
    """log p(x_0) in nats, of the density at ts[0], by the probability-flow ODE along rising ts.

    Args:
        x_0: the state at ts[0], [batch, *event], in data units.
        key: for the probes; one key, or one per example.
        ts: rising from a small t (where sigma > 0) to the prior's, usually 1.
        probes: None is the exact trace, one Jacobian-vector product per event coordinate and evaluation. A number
            is Hutchinson's estimate with that many Rademacher probes per example, held fixed along the solve.
        controller: None steps exactly on `ts`; else adaptive, with the tolerance held by each example of the batch.

    Returns:
        [batch], NaN for all where the solve failed.
    """
    values = check_grid(x_0, ts)
    if values is not None and values[-1] < values[0]:
        raise ValueError(
            f"Expected rising ts, as the density is integrated from data to noise; got {values[0]} to {values[-1]}."
        )
    clock = ode_grid(process, x_0, ts, "time").ts
    directions = _rademacher(key, x_0, probes)
    velocity = velocity_of(denoise, process)

    def field(t, state: tuple[Data, PerExample], _) -> tuple[Data, PerExample]:
        return divergence(lambda x: velocity(x, jnp.full(len(x), t)), state[0], directions)

    (x_1, gain), _, result = integrate(
        diffrax.ODETerm(field),
        (x_0, jnp.zeros(len(x_0), x_0.dtype)),
        clock,
        solver=solver,
        controller=controller,
        adjoint=None,
        max_steps=None,
        save_path=False,
    )
    prior = jax.scipy.stats.norm.logpdf(x_1[-1], scale=process.sigma(clock[-1]))
    nats = jnp.sum(prior, axis=tuple(range(1, x_0.ndim))) + gain[-1]
    return jnp.where(result == diffrax.RESULTS.successful, nats, jnp.nan)


def _rademacher(key: Keys | None, x: Data, probes: int | None) -> Float[Array, "probes batch *event"] | None:
    if probes is None:
        return None
    if key is None or probes < 1:
        raise ValueError(f"Expected a key and probes >= 1, as Hutchinson's estimate is random; got {key=}, {probes=}.")
    shape = (probes, *x.shape[1:])
    draws = jax.vmap(lambda k: jax.random.rademacher(k, shape, x.dtype))(example_keys(key, len(x)))
    return jnp.moveaxis(draws, 1, 0)


def bits_per_dim(nats: PerExample, event_size: int, *, levels: int | float) -> PerExample:
    """Bits per dimension of data with `levels` integer values, from log-density in nats of data scaled to [-1, 1].

    A dequantised integer in [0, levels) maps to [-1, 1] with slope 2/levels, whose logarithm is added back per
    dimension. Lower is better; uniform noise over the levels has log2(levels).
    """
    if event_size < 1 or not levels > 1:
        raise ValueError(
            f"Expected event_size >= 1 and levels > 1, as something must be coded; got {event_size=}, {levels=}."
        )
    return -(nats / event_size + float(np.log(2 / levels))) / float(np.log(2))


def dequantize(x_uint: Integer[Array, " batch *event"], key: Keys, *, levels: int) -> Data:
    """Integers in [0, levels) plus uniform noise on [0, 1), scaled to [-1, 1): uniform dequantisation.

    The mean log-density of the result bounds the discrete log-likelihood from below, once `bits_per_dim` has undone
    the scaling. Reference: Theis et al. 2016, arXiv:1511.01844, section 3.1.
    """
    if not jnp.issubdtype(x_uint.dtype, jnp.integer):
        raise ValueError(f"Expected integers in [0, {levels}), as levels are counted; got dtype {x_uint.dtype}.")
    values = known(x_uint)
    if values is not None and values.size and not 0 <= values.min() <= values.max() < levels:
        raise ValueError(
            f"Expected integers in [0, {levels}), as levels are counted; got {values.min()} to {values.max()}."
        )
    keys = example_keys(key, len(x_uint))
    dtype = jnp.result_type(float)
    noise = jax.vmap(lambda k: jax.random.uniform(k, x_uint.shape[1:], dtype))(keys)
    return (x_uint.astype(dtype) + noise) * (2 / levels) - 1
