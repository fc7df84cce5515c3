"""Bad input gets one clear error, of the form rule, reason, value, before any compute is spent."""

import diffrax
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from oracles import GAUSSIAN, PROCESSES

from dgm_jax.likelihood import bits_per_dim, dequantize, log_likelihood
from dgm_jax.losses import denoising_error, diffusion_loss, weights
from dgm_jax.parameterizations import as_denoiser, precondition, score_of
from dgm_jax.processes import log_normal, log_snr_grid, uniform, variance_exploding, variance_preserving
from dgm_jax.samplers import sample_ode, sample_sde, simulate_forward, solve_ode, solve_sde

VP, COSINE, RECTIFIED = PROCESSES["vp"], PROCESSES["cosine"], PROCESSES["rectified"]


@pytest.fixture(autouse=True)
def _as_a_user_runs_it():
    """Without the type checks of the test run, which would speak first."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


X, KEY = jnp.zeros((3, 2)), jax.random.key(0)
TS = uniform(5, t_min=1e-3)
T = jnp.full(3, 0.5)


def never(x, t):
    raise AssertionError("the network was called before the input was checked")


def ones(t):
    return jnp.ones_like(t)


CASES = {
    "grid not monotone": (lambda: solve_ode(never, VP, X, ts=np.array([1.0, 0.5, 0.6])), "strictly rising or falling"),
    "grid with a repeat": (lambda: solve_sde(never, VP, X, KEY, ts=np.array([1.0, 0.5, 0.5])), "strictly"),
    "grid beyond one": (lambda: solve_ode(never, VP, X, ts=np.array([1.5, 0.5])), r"ts in \[0, 1\].* 1.5"),
    "grid of one point": (lambda: sample_ode(never, VP, KEY, (3, 2), ts=np.array([1.0])), "at least 2 points"),
    "grid of rank two": (lambda: solve_ode(never, VP, X, ts=TS[None]), "at least 2 points"),
    "rising grid for the reverse SDE": (
        lambda: sample_sde(never, VP, KEY, (3, 2), ts=TS[::-1]),
        "falling.*simulate_forward",
    ),
    "falling grid for the forward SDE": (lambda: simulate_forward(VP, X, KEY, ts=TS), "rising.*solve_sde"),
    "encoding from zero": (lambda: solve_ode(never, VP, X, ts=np.array([0.0, 0.5])), "sigma > 0.*1e-3"),
    "straight to zero": (lambda: solve_ode(never, VP, X, ts=np.array([0.5, 0.0])), "at least 3 points"),
    "reverse SDE without signal": (lambda: sample_sde(never, RECTIFIED, KEY, (3, 2), ts=TS), "alpha > 0.*coordinates"),
    "noise clock without signal": (
        lambda: sample_ode(never, COSINE, KEY, (3, 2), ts=TS, coordinates="noise"),
        'alpha > 0.*"time" or "data"',
    ),
    "forward SDE to no signal": (lambda: simulate_forward(COSINE, X, KEY, ts=np.array([0.1, 1.0])), "alpha > 0"),
    "log-SNR without signal": (lambda: RECTIFIED.log_snr(1.0), "alpha"),
    "noise ratio without signal": (lambda: COSINE.noise_ratio(jnp.array([0.5, 1.0])), "alpha"),
    "drift without signal": (lambda: RECTIFIED.drift(X, jnp.ones(3)), "alpha"),
    "log-SNR grid from zero": (lambda: log_snr_grid(VP, 5, t_min=0.0, t_max=1.0), "sigma"),
    "unknown coordinates": (lambda: solve_ode(never, VP, X, ts=TS, coordinates="space"), "coordinates.*space"),
    "unknown prediction": (lambda: as_denoiser(never, VP, prediction="eps"), "prediction.*eps"),
    "negative stochasticity": (lambda: solve_sde(never, VP, X, KEY, ts=TS, stochasticity=-1.0), "stochasticity >= 0"),
    "integer state": (lambda: solve_ode(never, VP, jnp.zeros((3, 2), jnp.int32), ts=TS), "floating-point.*int32"),
    "integer images": (
        lambda: diffusion_loss(never, VP, jnp.zeros((3, 2, 2, 1), jnp.uint8), KEY, weight=ones),
        "floating-point.*to_unit.*uint8",
    ),
    "NaN in data": (lambda: diffusion_loss(never, VP, X.at[1, 1].set(jnp.nan), KEY, weight=ones), "finite.*1 such"),
    "inf in the state": (lambda: solve_ode(never, VP, X.at[0, 0].set(jnp.inf), ts=TS), "finite"),
    "times beyond one": (lambda: denoising_error(never, VP, X, jnp.array([0.1, 0.5, 1.2]), X), r"\[0, 1\].*1.2"),
    "times below zero": (lambda: VP.perturb(X, jnp.array([0.1, -0.5, 0.2]), X), r"\[0, 1\].*-0.5"),
    "wrong number of times": (lambda: VP.perturb(X, jnp.array([0.1, 0.5]), X), r"shape \(3,\)"),
    "noise of another shape": (lambda: VP.perturb(X, T, X[:, :1]), "noise of the shape"),
    "wrong number of keys": (
        lambda: diffusion_loss(never, VP, X, jax.random.split(KEY, 4), weight=ones),
        r"one key per example \(3,\)",
    ),
    "falling grid for the likelihood": (lambda: log_likelihood(never, VP, X, ts=TS), "rising"),
    "probes without a key": (lambda: log_likelihood(never, VP, X, ts=TS[::-1], probes=1), "key and probes"),
    "no probes": (lambda: log_likelihood(never, VP, X, KEY, ts=TS[::-1], probes=0), "probes >= 1"),
    "NaN under the likelihood": (lambda: log_likelihood(never, VP, X.at[0, 0].set(jnp.nan), ts=TS[::-1]), "finite"),
    "dequantising floats": (lambda: dequantize(X, KEY, levels=256), "integers.*float32"),
    "levels out of range": (lambda: dequantize(jnp.full((3, 2), 20, jnp.uint8), KEY, levels=17), r"\[0, 17\).*20"),
    "one level": (lambda: bits_per_dim(jnp.zeros(3), 4, levels=1), "levels > 1"),
    "sigma_data of zero": (lambda: precondition(never, VP, sigma_data=0.0), "sigma_data > 0"),
    "negative gamma": (lambda: weights.min_snr(VP, T, gamma=-1.0), "gamma > 0"),
    "grid of no steps": (lambda: uniform(0, t_min=0.0), "n >= 1"),
    "grid ends crossed": (lambda: uniform(5, t_min=0.7, t_max=0.3), "t_min < t_max"),
    "adaptive Euler": (
        lambda: solve_ode(
            GAUSSIAN.denoise(VP), VP, X, ts=TS, solver=diffrax.Euler(), controller=diffrax.PIDController(1e-3, 1e-3)
        ),
        "error estimate.*Euler",
    ),
    "adaptive Euler behind a clip": (
        lambda: solve_ode(
            GAUSSIAN.denoise(VP),
            VP,
            X,
            ts=TS,
            solver=diffrax.Euler(),
            controller=diffrax.ClipStepSizeController(diffrax.PIDController(1e-3, 1e-3), step_ts=[0.5]),
        ),
        "error estimate.*Euler",
    ),
    "a network of another shape": (
        lambda: as_denoiser(lambda x, t: x[:, :1], VP, prediction="v")(X, T),
        r"network to return the shape of its input, \(3, 2\); got \(3, 1\)",
    ),
    "a denoiser of another shape": (lambda: denoising_error(lambda x, t: x[0], VP, X, T, X), "denoiser to return"),
    "a denoiser of another shape in a solve": (
        lambda: solve_ode(lambda x, t: x[:, :1], VP, X, ts=TS),
        "denoiser to return",
    ),
    "a weight with an axis too many": (
        lambda: diffusion_loss(lambda x, t: x, VP, X, KEY, weight=lambda t: t[:, None]),
        "one per example",
    ),
    "a list of times": (lambda: sample_ode(never, VP, KEY, (3, 2), ts=[1.0, 0.5]), "ts to be a floating-point array"),
    "integer times": (lambda: sample_ode(never, VP, KEY, (3, 2), ts=np.array([1, 0])), "floating-point"),
    "times with a NaN": (lambda: sample_sde(never, VP, KEY, (3, 2), ts=np.array([np.nan, 0.5])), "strictly"),
    "a list as the state": (lambda: solve_ode(never, VP, [[0.0]], ts=TS), "to be an array"),
    "an empty batch": (lambda: solve_ode(never, VP, X[:0], ts=TS), "at least one value"),
    "an empty event": (lambda: diffusion_loss(never, VP, X[:, :0], KEY, weight=ones), "at least one value"),
    "a negative shape": (lambda: sample_ode(never, VP, KEY, (-2, 3), ts=TS), "positive sizes"),
    "endless noise": (lambda: variance_exploding(0.01, np.inf), "sigma_max"),
    "endless rates": (lambda: variance_preserving(0.1, np.inf), "beta_max"),
    "the score without noise": (lambda: score_of(never, VP)(X, jnp.zeros(3)), "sigma\\(t\\) > 0.*score"),
    "sigma_data of zero in a weight": (lambda: weights.edm(VP, T, sigma_data=0.0), "sigma_data > 0"),
    "an endless law of times": (lambda: log_normal(VP, 0.0, np.inf), "std"),
    "shape without events or batch": (lambda: sample_ode(never, VP, KEY, (), ts=TS), "shape"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_rule_reason_and_value(case):
    call, message = CASES[case]
    with pytest.raises(ValueError, match=f"(?s)Expected.*(?:{message})"):
        call()
