"""Log-likelihood by the probability-flow ODE.

Along dx/dt = v(x, t) the density changes as d log p/dt = -div v (instantaneous change of variables), so that

    log p(x at ts[0]) = log N(x at ts[-1]; 0, sigma(ts[-1])^2 I) + integral of div v from ts[0] to ts[-1]

(Song et al. 2021, arXiv:2011.13456, eq. 39; Chen et al. 2018, arXiv:1806.07366, eq. 8). All values are natural
logarithms of a density in data units, in nats, one per example.
"""

from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dgm_jax.numerics import divergence, is_count, probe_traces, rademacher_like, sum_events
from dgm_jax.parameterizations import velocity_of
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.samplers.grid import Grid, check_grid, ode_grid
from dgm_jax.samplers.multistep import DPMSolverPP2M
from dgm_jax.samplers.predictor_corrector import PredictorCorrector
from dgm_jax.samplers.reverse import Kernel
from dgm_jax.samplers.stepping import integrate
from dgm_jax.typing import Data, Denoiser, Keys, PerExample


class LogLikelihood(NamedTuple):
    """A log-likelihood and what is known of it.

    nats: [batch]. standard_error: [batch], nats, of the mean over probes; the solver's own error is not in it.
    evaluations: batched calls of the network. result: `diffrax.RESULTS.successful` unless the solve failed.
    """

    nats: PerExample
    standard_error: PerExample
    evaluations: Int[Array, ""]
    result: diffrax.RESULTS


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
    if probes is not None and (key is None or not is_count(probes)):
        raise ValueError(
            f"Expected a key and probes >= 1, a whole number, as Hutchinson's probes are random; got {key=}, {probes=}."
        )
    nats, _, _ = _solve(denoise, process, x_0, key, ts=ts, probes=probes, solver=solver, controller=controller)
    return nats.mean(1)


def log_likelihood_with_error(
    denoise: Denoiser,
    process: GaussianProcess,
    x_0: Data,
    key: Keys,
    *,
    ts: Grid,
    probes: int,
    solver: diffrax.AbstractSolver = diffrax.Heun(),
    controller: diffrax.AbstractStepSizeController | None = None,
) -> LogLikelihood:
    """`log_likelihood` by Hutchinson's estimate, with each example's standard error from the spread over its probes.

    Each probe's divergence is integrated by itself along the one path that all share, so that the probes give
    independent and unbiased values whose mean is `nats`. Their standard error is that of Student's law with
    probes - 1 degrees of freedom; it covers the choice of probes alone. The solver's error is a bias that no probe
    shows: double the steps for it. The exact trace has no such error (`log_likelihood` with probes=None).
    """
    if key is None or not is_count(probes, 2):
        raise ValueError(
            f"Expected a key and probes >= 2, a whole number, as one value has no spread; got {key=}, {probes=}."
        )
    each, evaluations, result = _solve(
        denoise, process, x_0, key, ts=ts, probes=probes, solver=solver, controller=controller
    )
    return LogLikelihood(each.mean(1), jnp.std(each, axis=1, ddof=1) / probes**0.5, evaluations, result)


def _solve(
    denoise: Denoiser,
    process: GaussianProcess,
    x_0: Data,
    key: Keys | None,
    *,
    ts: Grid,
    probes: int | None,
    solver: diffrax.AbstractSolver,
    controller: diffrax.AbstractStepSizeController | None,
) -> tuple[Float[Array, "batch probes"], Int[Array, ""], diffrax.RESULTS]:
    """Nats by each probe (one column for the exact trace), evaluations of the network, and the result."""
    values = check_grid(x_0, ts)
    if values is not None and values[-1] < values[0]:
        raise ValueError(
            f"Expected rising ts, as the density is integrated from data to noise; got {values[0]} to {values[-1]}."
        )
    if isinstance(solver, Kernel | PredictorCorrector | DPMSolverPP2M):
        raise ValueError(f'Expected a solver of ODEs in "time", such as diffrax.Heun(), as density is; got {solver}.')
    clock = ode_grid(process, x_0, ts, "time").ts
    directions = None if key is None or probes is None else rademacher_like(key, x_0, probes)
    velocity = velocity_of(denoise, process)

    def field(t, state: tuple[Data, Array], _) -> tuple[Data, Array]:
        def at_t(x: Data) -> Data:
            return velocity(x, jnp.full(x.shape[0], t))

        if directions is None:
            value, trace = divergence(at_t, state[0])
            return value, trace[:, None]
        value, traces = probe_traces(at_t, state[0], directions)
        return value, traces.T

    (x_1, gains), evaluations, result = integrate(
        diffrax.ODETerm(field),
        (x_0, jnp.zeros((x_0.shape[0], 1 if directions is None else len(directions)), x_0.dtype)),
        clock,
        solver=solver,
        controller=controller,
        adjoint=None,
        max_steps=None,
        save_path=False,
    )
    prior = jax.scipy.stats.norm.logpdf(x_1[-1], scale=process.sigma(clock[-1]))
    nats = sum_events(prior)[:, None] + gains[-1]
    return jnp.where(result == diffrax.RESULTS.successful, nats, jnp.nan), evaluations, result
