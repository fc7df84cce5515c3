"""Annealed importance sampling: the marginal likelihood of a latent-variable model, bracketed from both sides.

Between a start q(z | x), the prior or an approximate posterior, and the joint lie the geometric averages

    f_b(z) = q(z | x)^(1 - b) p(x, z)^b,   0 = b_0 < b_1 < ... < b_T = 1.

A forward chain starts at z ~ q, and one move of Hamiltonian Monte Carlo leaves each f_b in turn invariant. Its weight

    log w = sum over i of (b_i - b_{i-1}) (log p(x, z_{i-1}) - log q(z_{i-1} | x))

has E[w] = p(x), so that the log mean weight over chains lies below log p(x) in expectation. A reverse chain starts
from an exact sample of the posterior and passes the same densities backwards; the same sum over its states has
E[1/w] = 1/p(x), so that minus the log mean of 1/w lies above. Exact posterior samples are at hand for data simulated
from the model itself: z from the prior, x from p(x | z), and z is a sample of p(z | x). T = 1 is importance sampling.

The weights are valid for step sizes that do not depend on the chains' own states: given ones, or those of
`annealed_step_sizes`, a pilot run with a key of its own.

References: Neal 2001, "Annealed importance sampling", Statistics and Computing 11 (arXiv:physics/9803008); Grosse et
al. 2015, arXiv:1511.02543 (bidirectional Monte Carlo); Wu et al. 2017, arXiv:1611.04273 (decoder-based models).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dgm_jax.likelihood.importance import add_weights, check_count, no_weights, numbered_keys, summarize
from dgm_jax.losses.draws import Draw, LogDensity, Observed, check_observed, check_per_example
from dgm_jax.numerics import check_data, example_keys, known, split
from dgm_jax.samplers.hmc import Move, check_steps, hmc_step
from dgm_jax.typing import Keys, PerExample, Size

Latents = Float[Array, " batch *latent"]
Betas = np.ndarray | Float[Array, " points"]
StepSizes = float | np.ndarray | Float[Array, ""] | Float[Array, "moves batch"]  # one, or one per move and example


class AnnealedEstimate(NamedTuple):
    """An estimate of log p(x) from the weights of chains, and what they tell of it. Each is [batch].

    log_likelihood: nats. effective_sample_size: of the chains' weights, between 1 and their number.
    standard_error: nats, by the delta method, from the spread over chains; infinite for one chain.
    acceptance: mean probability over moves and chains; 1 where there are no moves.
    """

    log_likelihood: PerExample
    effective_sample_size: PerExample
    standard_error: PerExample
    acceptance: PerExample


def annealed_log_likelihood(
    draw: Draw,
    log_q: LogDensity,
    log_joint: LogDensity,
    x: Observed,
    key: Keys,
    *,
    betas: Betas,
    chains: int,
    step_size: StepSizes,
    leapfrog_steps: int,
) -> AnnealedEstimate:
    """log p(x) of each example by forward chains: below log p(x) in expectation.

    Args:
        draw: the start (x, key) -> (z, log_q), z [batch, *latent].
        log_q: (x, z) -> its log-density, nats, summed over the latents and normalised.
        log_joint: (x, z) -> log p(x, z), nats, summed over the event and the latents.
        key: one key, or one per example; chains and moves have keys of their own folded in.
        betas: rising from 0 to 1, such as `sigmoid_betas(1000)`; T + 1 points make T - 1 moves.
        chains: for each example, all held at once; the mean weight is theirs.
        step_size: one, or [T - 1, batch], one for each move and example, in the order of `betas`.
        leapfrog_steps: of each move.
    """
    points = _check(betas, chains, step_size, leapfrog_steps, x)

    def start(key: Keys) -> Latents:
        z, of_draw = draw(x, key)
        check_per_example(of_draw, x, "start's log-density")
        return z

    sizes = _sizes(step_size, points, x.shape[0])
    log_w, acceptance = _chains(start, log_q, log_joint, x, key, chains, points, sizes, leapfrog_steps)
    sums = add_weights(no_weights(x.shape[0], log_w.dtype), log_w)
    return AnnealedEstimate(*summarize(sums, chains), _overall(acceptance))


def reverse_annealed_log_likelihood(
    log_q: LogDensity,
    log_joint: LogDensity,
    x: Observed,
    z: Latents,
    key: Keys,
    *,
    betas: Betas,
    chains: int,
    step_size: StepSizes,
    leapfrog_steps: int,
) -> AnnealedEstimate:
    """log p(x) of each example by reverse chains from exact posterior samples: above log p(x) in expectation.

    The variance of 1/w is finite only where the steps of beta are small enough for its powers below 0 to be
    integrable: for a Gaussian posterior whose precision is 1 + c times the start's, c beta_1 < 1 at the least.

    The chains of an example share their start z: `standard_error` covers their moves, not the choice of z. Over
    examples simulated from the model the spread of the estimates covers both.

    Args:
        z: [batch, *latent], one exact sample of p(z | x) for each example: the z that x was simulated from. From any
            other law the bound is void.
        betas: as for the forward chains, rising; `step_size` in the same order.
    """
    points = _check(betas, chains, step_size, leapfrog_steps, x)
    check_data(z, "the latents z")
    if z.shape[0] != x.shape[0]:
        raise ValueError(f"Expected one z per example {(x.shape[0],)}, as each has a posterior; got {z.shape}.")
    sizes = _sizes(step_size, points, x.shape[0])[::-1]
    log_w, acceptance = _chains(lambda _: z, log_q, log_joint, x, key, chains, points[::-1], sizes, leapfrog_steps)
    log_mean, size, error = summarize(add_weights(no_weights(x.shape[0], log_w.dtype), -log_w), chains)
    return AnnealedEstimate(-log_mean, size, error, _overall(acceptance))


def annealed_step_sizes(
    draw: Draw,
    log_q: LogDensity,
    log_joint: LogDensity,
    x: Observed,
    key: Keys,
    *,
    betas: Betas,
    chains: int,
    initial: float,
    leapfrog_steps: int,
    passes: int,
    acceptance: float = 0.65,
    rate: float = 1.0,
) -> Float[Array, "moves batch"]:
    """Step sizes of each move and example by pilot runs of the forward chains: [T - 1, batch].

    Each pass is a run with fresh chains; after it log h of each move rises by `rate` times the excess of the
    acceptance, its mean over the example's chains, over `acceptance`. So the acceptance is that of a run, whose chains
    lag behind where there are few betas.

    The weights of later runs are valid given these sizes where their key is another one than the pilot's.
    """
    points = _check(betas, chains, initial, leapfrog_steps, x)
    check_count(passes, "passes", "the step size is adapted after each")
    if not 0 < acceptance < 1 or not 0 < rate < np.inf:
        raise ValueError(
            f"Expected 0 < acceptance < 1 and 0 < rate < inf, as h is led to the first by the second; "
            f"got {acceptance=}, {rate=}."
        )
    keys = example_keys(key, x.shape[0])

    def one_pass(i: Array, log_h: Float[Array, "moves batch"]) -> Float[Array, "moves batch"]:
        def start(key: Keys) -> Latents:
            return draw(x, key)[0]

        of_pass = numbered_keys(keys, i)
        _, accepted = _chains(start, log_q, log_joint, x, of_pass, chains, points, jnp.exp(log_h), leapfrog_steps)
        return log_h + rate * (accepted.mean(0) - acceptance)

    log_h = jnp.full((len(points) - 2, x.shape[0]), np.log(initial), jax.eval_shape(draw, x, keys)[0].dtype)
    return jnp.exp(jax.lax.fori_loop(0, passes, one_pass, log_h))


def linear_betas(temperatures: int) -> np.ndarray:
    """T + 1 equally spaced points from 0 to 1."""
    check_count(temperatures, "temperatures", "a path has steps")
    return np.linspace(0.0, 1.0, temperatures + 1)


def sigmoid_betas(temperatures: int, *, steepness: float = 4.0) -> np.ndarray:
    """T + 1 points from 0 to 1 on a logistic curve cut at +- steepness, dense at both ends.

    Reference: Grosse et al. 2015, arXiv:1511.02543; they, and Wu et al. 2017 (arXiv:1611.04273), use 4.
    """
    check_count(temperatures, "temperatures", "a path has steps")
    if not 0 < steepness < np.inf:
        raise ValueError(f"Expected 0 < steepness < inf, as 0 is the linear path; got {steepness=}.")
    # tanh(a/2) is the logistic function of a, shifted and scaled to be odd
    return 0.5 + 0.5 * np.tanh(steepness * (np.arange(temperatures + 1) / temperatures - 0.5)) / np.tanh(steepness / 2)


def _moves(log_q: LogDensity, log_joint: LogDensity, x: Observed, leapfrog_steps: int) -> Callable[..., Move]:
    """One move on f_beta from z, with a step size per example."""

    def move(z: Latents, key: Keys, beta: Array, step_size: PerExample) -> Move:
        def log_density(z: Latents) -> PerExample:
            return (1 - beta) * log_q(x, z) + beta * log_joint(x, z)

        return hmc_step(log_density, z, key, step_size=step_size, steps=leapfrog_steps)

    return move


def _chains(
    start: Callable[[Keys], Latents],
    log_q: LogDensity,
    log_joint: LogDensity,
    x: Observed,
    key: Keys,
    chains: int,
    betas: np.ndarray | Array,
    sizes: Float[Array, "moves batch"],
    leapfrog_steps: int,
) -> tuple[Float[Array, "chains batch"], Float[Array, "chains moves batch"]]:
    """Log-weights of every chain and acceptances of its moves along `betas`, rising (forward) or falling (reverse)."""
    keys, path = example_keys(key, x.shape[0]), _moves(log_q, log_joint, x, leapfrog_steps)

    def log_ratio(z: Latents) -> PerExample:
        start = check_per_example(log_q(x, z), x, "start's log-density")
        return check_per_example(log_joint(x, z), x, "joint log-density") - start

    def chain(number: Array) -> tuple[PerExample, Array]:
        key_start, key_moves = split(numbered_keys(keys, number))
        z = start(key_start)
        # the weights of both directions are of the rising path
        rises = jnp.abs(jnp.diff(jnp.asarray(betas, z.dtype)))
        log_w = rises[0] * log_ratio(z)

        def step(
            carry: tuple[Latents, PerExample], each: tuple[Array, ...]
        ) -> tuple[tuple[Latents, PerExample], Array]:
            (z, log_w), (beta, rise, size, i) = carry, each
            move = path(z, numbered_keys(key_moves, i), beta, size)
            return (move.x, log_w + rise * log_ratio(move.x)), move.acceptance

        each = (jnp.asarray(betas[1:-1], z.dtype), rises[1:], sizes.astype(z.dtype), jnp.arange(len(betas) - 2))
        (_, log_w), acceptances = jax.lax.scan(step, (z, log_w), each)
        return log_w, acceptances

    return jax.vmap(chain)(jnp.arange(chains))


def _overall(acceptance: Float[Array, "chains moves batch"]) -> PerExample:
    """The mean over chains and moves, 1 where there are none."""
    return acceptance.mean((0, 1)) if acceptance.shape[1] else jnp.ones(acceptance.shape[2], acceptance.dtype)


def _sizes(step_size: StepSizes, betas: np.ndarray | Array, batch: Size) -> Float[Array, "moves batch"]:
    moves = len(betas) - 2
    return jnp.full((moves, batch), step_size) if jnp.ndim(step_size) == 0 else jnp.asarray(step_size)


def _check(betas: Betas, chains: int, step_size: StepSizes, leapfrog_steps: int, x: Observed) -> Betas:
    check_observed(x)
    check_count(chains, "chains", "weights are averaged over them")
    check_steps(1.0, leapfrog_steps, x.shape[0])
    values = known(betas)
    if np.ndim(betas) != 1 or len(betas) < 2:
        raise ValueError(f"Expected betas of 2 points or more, as a path has ends; got shape {np.shape(betas)}.")
    if values is not None and not (values[0] == 0 and values[-1] == 1 and (np.diff(values) > 0).all()):
        raise ValueError(f"Expected betas rising from 0 to 1, as the start is led to the joint; got {values}.")
    shape = (len(betas) - 2, x.shape[0])
    if np.shape(step_size) not in {(), shape}:
        raise ValueError(
            f"Expected one step_size, or one per move and example {shape}; got shape {np.shape(step_size)}."
        )
    size = known(step_size)
    if size is not None and not ((size > 0) & (size < np.inf)).all():
        raise ValueError(f"Expected 0 < step_size < inf, as a path goes forward; got {step_size=}.")
    return betas
