"""Annealed Langevin dynamics (Song & Ermon 2019, arXiv:1907.05600, algorithm 1), stepped by diffrax.

At falling noise levels sigma_i = sigma(t_i), i = 1 .. L, `steps` times at each level,

    x <- x + alpha_i/2 score(x, t_i) + sqrt(alpha_i) z,        alpha_i = epsilon sigma_i^2/sigma_L^2

which is Euler-Maruyama on the Langevin SDE dX = score/2 dtau + dW with steps alpha_i. Here the clock counts the steps,
so that it is exact where the sum of the alpha_i is not. One level is plain Langevin dynamics.

The score is that of x_t, and the state is carried from level to level unchanged. Where alpha(t) is not 1 (VP), the
density at a level has the mean alpha(t_i) E[x_0], and the steps at a level must move the state there: the levels must
be close enough in alpha too, where under VE they need only be close in sigma. The last state has the law at ts[-1],
noise of sigma(ts[-1]) included, which `final_denoising` takes away.
"""

import diffrax
import jax
import jax.numpy as jnp
import lineax
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.numerics import check_data, check_like, example_keys, is_count, known, known_number, normal, rounded, split
from dgm_jax.processes.gaussian import GaussianProcess
from dgm_jax.samplers.brownian import independent_increments
from dgm_jax.samplers.coordinates import traced_once
from dgm_jax.samplers.grid import Grid, check_points
from dgm_jax.samplers.stepping import Samples, integrate
from dgm_jax.typing import Data, Denoiser, Keys, Shape

Number = float | np.floating | Float[Array, ""]


def solve_langevin(
    denoise: Denoiser,
    process: GaussianProcess,
    x: Data,
    key: Keys,
    *,
    ts: Grid,
    epsilon: Number,
    steps: int,
    adjoint: diffrax.AbstractAdjoint | None = None,
    save_path: bool = False,
) -> Samples:
    """Annealed Langevin dynamics from the state `x`.

    Args:
        x: [batch, *event], in data units.
        key: one key, or one key per example [batch]; an example's path depends on its own key alone.
        ts: the levels' times [L], falling, with sigma(ts[-1]) > 0; one time is plain Langevin dynamics. Geometric
            levels sigma_i are `log_snr_grid(process, L - 1, ...)` under VE.
        epsilon: the step size alpha_L at the last level, in squared data units. NCSNv2 (arXiv:2006.09011) writes the
            same step as x + alpha s + sqrt(2 alpha) z: its epsilon is half of this one.
        steps: T, at each level. The network is called L T times.
        adjoint: None allows forward-mode gradients only; `diffrax.DirectAdjoint()` allows reverse mode.
        save_path: keep the states after every step, [L T + 1, batch, *event].
    """
    check_data(x, "the state x")
    ts = _levels(process, ts, x.dtype)
    size = known_number(epsilon)
    if size is not None and not 0 < size < np.inf:
        raise ValueError(f"Expected 0 < epsilon < inf, as it is a step size; got {epsilon=}.")
    if not is_count(steps):
        raise ValueError(
            f"Expected integer steps >= 1 at each level, as Langevin dynamics moves by steps; got {steps=}."
        )
    total = len(ts) * steps
    most = 2 ** (int(jnp.finfo(x.dtype).nmant) + 1)
    if total > most:
        raise ValueError(f"Expected at most {most} steps in all, as {x.dtype} counts no further; got {total}.")
    if isinstance(adjoint, diffrax.BacksolveAdjoint):
        raise ValueError(
            f"Expected an adjoint such as diffrax.DirectAdjoint(), as fresh noise cannot be run back; got {adjoint}."
        )
    last, denoise = process.variance(ts[-1]), traced_once(denoise)

    def level(clock: Float[Array, ""]) -> Float[Array, ""]:
        here = jnp.round(clock).astype(jnp.int32) // steps == jnp.arange(len(ts), dtype=jnp.int32)
        # a sum, as XLA repeats a scalar's look-up, and what follows from it, for every element that it multiplies
        return jnp.sum(jnp.where(here, ts, 0.0))

    def drift(clock, state: Data, _) -> Data:
        t = level(clock)
        # alpha_i/2 times the score (alpha D - x)/sigma_i^2, where sigma_i^2 cancels
        t, alpha, gain = rounded((t, process.alpha(t), jnp.asarray(epsilon, state.dtype) / (2 * last)))
        estimate = check_like(denoise(state, jnp.full(state.shape[0], t)), state, "denoiser")
        return gain * (alpha * estimate - state)

    def diffusion(clock, state: Data, _) -> lineax.AbstractLinearOperator:
        alpha_i = jnp.asarray(epsilon, state.dtype) * process.variance(level(clock)) / last
        return rounded(jnp.sqrt(alpha_i)) * lineax.IdentityLinearOperator(jax.eval_shape(lambda: state))

    solver = diffrax.Euler()
    event = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    path = independent_increments(example_keys(key, x.shape[0]), event, solver)
    states, evaluations, result = integrate(
        diffrax.MultiTerm(diffrax.ODETerm(drift), diffrax.ControlTerm(diffusion, path)),
        x,
        jnp.arange(total + 1, dtype=x.dtype),
        solver=solver,
        controller=None,
        adjoint=adjoint,
        max_steps=None,
        save_path=save_path,
    )
    finite = jnp.isfinite(states[-1]).all()
    result = diffrax.RESULTS.where(finite, result, diffrax.RESULTS.nonfinite)  # type: ignore[arg-type]
    return Samples(states[-1], states if save_path else None, evaluations, result)


def annealed_langevin(
    denoise: Denoiser,
    process: GaussianProcess,
    key: Keys,
    shape: Shape,
    *,
    ts: Grid,
    epsilon: Number,
    steps: int,
    adjoint: diffrax.AbstractAdjoint | None = None,
    save_path: bool = False,
) -> Samples:
    """`solve_langevin` from the prior N(0, sigma(ts[0])^2 I); `shape` is (batch, *event).

    The paper starts from a uniform law over the range of the data; both are forgotten where the first level's noise
    is wider than the data.
    """
    key_prior, key_path = split(key)
    start = _levels(process, ts, None)[0]
    x = process.sigma(start) * normal(key_prior, shape, start.dtype)
    options = {"ts": ts, "epsilon": epsilon, "steps": steps, "adjoint": adjoint, "save_path": save_path}
    return solve_langevin(denoise, process, x, key_path, **options)


def final_denoising(denoise: Denoiser, samples: Samples, t: Number) -> Samples:
    """The denoiser's estimate of x_0 from the samples' last state at time t: one evaluation more.

    Reference: Song & Ermon 2020, arXiv:2006.09011, algorithm 1; Jolicoeur-Martineau et al. 2020, arXiv:2009.05475.
    """
    x = check_like(denoise(samples.x, jnp.full(samples.x.shape[0], t, samples.x.dtype)), samples.x, "denoiser")
    path = None if samples.path is None else jnp.concatenate([samples.path, x[None]])
    result = diffrax.RESULTS.where(jnp.isfinite(x).all(), samples.result, diffrax.RESULTS.nonfinite)  # type: ignore[arg-type]
    return Samples(x, path, samples.evaluations + 1, result)


def _levels(process: GaussianProcess, ts: Grid, dtype: jnp.dtype | None) -> Float[Array, " levels"]:
    """The levels' times as an array, checked where their values are known; a single one is no grid but a level."""
    one = isinstance(ts, jax.Array | np.ndarray) and ts.shape == (1,)
    values = known(ts) if one else check_points(ts)
    if values is not None:
        if values[-1] > values[0]:
            raise ValueError(f"Expected falling ts, as the noise is annealed away; got {values[0]} to {values[-1]}.")
        if not 0 <= values[-1] <= values[0] <= 1:
            raise ValueError(f"Expected ts in [0, 1], as 0 is data and 1 is noise; got {values}.")
        process.refuse_no_noise(values[-1], "the last step size epsilon sigma^2/sigma_L^2")
    with jax.ensure_compile_time_eval():
        return jnp.asarray(ts, dtype)
