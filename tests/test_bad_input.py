"""Bad input gets one clear error, of the form rule, reason, value, before any compute is spent."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, PROCESSES

from dgm_jax.likelihood import (
    bits_per_dim,
    continuous_bound,
    dequantize,
    discrete_bits_per_dim,
    log_likelihood,
    log_likelihood_with_error,
    variational_bound,
    variational_dequantize,
)
from dgm_jax.losses import (
    Elbo,
    denoising_error,
    diffusion_loss,
    sliced_score_matching,
    transition_kl,
    weights,
)
from dgm_jax.parameterizations import as_denoiser, precondition, score_of
from dgm_jax.processes import log_normal, log_snr_grid, trailing, uniform, variance_exploding, variance_preserving
from dgm_jax.samplers import (
    AdamsBashforth,
    Ancestral,
    ChurnedHeun,
    DPMSolverPP2M,
    Langevin,
    NormalizedLangevin,
    PredictorCorrector,
    ReverseDiffusion,
    UnderdampedLangevin,
    annealed_langevin,
    ddim,
    ddpm,
    deis,
    dpm_solver_pp_2m,
    edm_heun,
    predictor_corrector,
    sample_ode,
    sample_sde,
    simulate_forward,
    solve_ode,
    solve_sde,
)

VP, COSINE, RECTIFIED = PROCESSES["vp"], PROCESSES["cosine"], PROCESSES["rectified"]


X, KEY = jnp.zeros((3, 2)), jax.random.key(0)
TS = uniform(5, t_min=1e-3)
T = jnp.full(3, 0.5)
TERMS = Elbo(-T, T)


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
    "one probe has no spread": (
        lambda: log_likelihood_with_error(never, VP, X, KEY, ts=TS[::-1], probes=1),
        "probes >= 2.*probes=1",
    ),
    "rising grid for the bound": (
        lambda: variational_bound(never, VP, X, KEY, ts=TS[::-1], variance="beta", levels=None),
        "falling",
    ),
    "unknown variance": (
        lambda: variational_bound(never, VP, X, KEY, ts=TS, variance="small", levels=None),
        "variance.*small",
    ),
    "unknown variance of a weight": (
        lambda: weights.variational(VP, T, steps=10, event_size=2, variance="small"),
        "variance.*small",
    ),
    "data beside their levels": (
        lambda: variational_bound(never, VP, X + 0.03, KEY, ts=TS, variance="beta", levels=17),
        "centres of 17 levels.*to_unit",
    ),
    "data beyond their levels": (
        lambda: continuous_bound(never, VP, X + 2.0, KEY, t_min=0.1, levels=17),
        "centres of 17 levels",
    ),
    "one level of a bound": (lambda: continuous_bound(never, VP, X, KEY, t_min=0.1, levels=1), "levels > 1"),
    "continuous bound from no noise": (
        lambda: continuous_bound(never, VP, X, KEY, t_min=0.0, levels=None),
        "sigma\\(t\\) > 0",
    ),
    "continuous bound with crossed ends": (
        lambda: continuous_bound(never, VP, X, KEY, t_min=0.5, t_max=0.2, levels=None),
        "t_min < t_max",
    ),
    "continuous bound without times": (
        lambda: continuous_bound(never, VP, X, KEY, t_min=0.1, levels=None, draws=0),
        "draws >= 1",
    ),
    "a term from noise to more noise": (
        lambda: transition_kl(never, VP, X, T, T + 0.1, X, variance="posterior"),
        "s < t",
    ),
    "a term to data without noise": (
        lambda: transition_kl(never, VP, X, T, 0 * T, X, variance="beta"),
        "sigma\\(t\\) > 0",
    ),
    "dequantising floats by a network": (
        lambda: variational_dequantize(never, X, KEY, levels=256),
        "integers.*float32",
    ),
    "an encoder of another shape": (
        lambda: variational_dequantize(lambda x: (x, x[:, :1]), jnp.zeros((3, 2), jnp.uint8), KEY, levels=256),
        "encoder to return the shape",
    ),
    "an event without dimensions": (lambda: discrete_bits_per_dim(jnp.zeros(3), 0), "event_size >= 1"),
    "sigma_data of zero": (lambda: precondition(never, VP, sigma_data=0.0), "sigma_data > 0"),
    "negative gamma": (lambda: weights.min_snr(VP, T, gamma=-1.0), "gamma > 0"),
    "grid of no steps": (lambda: uniform(0, t_min=0.0), "n >= 1"),
    "more steps than the chain has": (lambda: trailing(11, chain=10), "1 <= n <= chain.*n=11"),
    "grid ends crossed": (lambda: uniform(5, t_min=0.7, t_max=0.3), "t_min < t_max"),
    "Langevin steps of no size": (
        lambda: annealed_langevin(never, VP, KEY, (3, 2), ts=TS, epsilon=0.0, steps=2),
        "epsilon < inf.*epsilon=0.0",
    ),
    "no Langevin steps": (
        lambda: annealed_langevin(never, VP, KEY, (3, 2), ts=TS, epsilon=1e-3, steps=0),
        "steps >= 1.*steps=0",
    ),
    "rising noise levels": (
        lambda: annealed_langevin(never, VP, KEY, (3, 2), ts=TS[::-1], epsilon=1e-3, steps=1),
        "falling ts, as the noise is annealed",
    ),
    "no slices": (lambda: sliced_score_matching(lambda x: x, X, KEY, slices=0), "slices >= 1"),
    "eta above one": (lambda: ddim(never, VP, KEY, (3, 2), ts=TS, eta=1.5), r"eta in \[0, 1\].*1.5"),
    "eta below zero": (lambda: Ancestral(-0.1), r"eta in \[0, 1\].*-0.1"),
    "eta NaN": (lambda: ddim(never, VP, KEY, (3, 2), ts=TS, eta=float("nan")), r"eta in \[0, 1\].*nan"),
    "an unknown variance": (lambda: ddpm(never, VP, KEY, (3, 2), ts=TS, variance="alpha"), "variance.*'alpha'"),
    "a variance between with eta": (lambda: Ancestral(0.5, 1.0), "eta = 1.*0.5"),
    "negative churn": (lambda: edm_heun(never, VP, KEY, (3, 2), ts=TS, churn=-1.0), "churn >= 0.*churn=-1.0"),
    "churn levels crossed": (
        lambda: edm_heun(never, VP, KEY, (3, 2), ts=TS, churn=1.0, churn_min=2.0, churn_max=1.0),
        "churn_min <= churn_max.*churn_min=2.0",
    ),
    "a corrector without noise": (lambda: Langevin(0.0), "snr > 0.*0.0"),
    "a corrector with negative snr": (lambda: NormalizedLangevin(-0.1), "snr > 0.*-0.1"),
    "a corrector of no steps": (lambda: Langevin(0.1, 0), "steps >= 1.*0"),
    "momentum without time": (lambda: UnderdampedLangevin(0.0, 3), "time > 0.*0.0"),
    "momentum by Euler": (
        lambda: UnderdampedLangevin(1.0, 3, solver=diffrax.Euler()),
        "ALIGN, ShOULD or QUICSORT.*Euler",
    ),
    "a predictor with memory": (
        lambda: predictor_corrector(never, VP, KEY, (3, 2), ts=TS, predictor=DPMSolverPP2M(), corrector=Langevin(0.1)),
        "predictor of one step.*DPMSolverPP2M",
    ),
    "a predictor that leaps": (
        lambda: PredictorCorrector(diffrax.ReversibleHeun(), Langevin(0.1)),
        "predictor of one step.*ReversibleHeun",
    ),
    "a class for a predictor": (lambda: PredictorCorrector(ReverseDiffusion, Langevin(0.1)), "predictor of one step"),
    "a number for a corrector": (lambda: PredictorCorrector(ReverseDiffusion(), 3), "a corrector, such as.*got 3"),
    "one Brownian path for all": (
        lambda: solve_sde(
            never,
            VP,
            X,
            KEY,
            ts=TS,
            brownian=diffrax.VirtualBrownianTree(0.0, 1.0, tol=1e-2, shape=(2,), key=jax.random.key(0)),
        ),
        r"brownian of the shape of x, \(3, 2\).*\(2,\)",
    ),
    "samples along a rising grid": (lambda: ddim(never, VP, KEY, (3, 2), ts=TS[::-1]), "falling ts.*solve_ode"),
    "churn beyond EDM's": (lambda: ChurnedHeun(5.0), "gamma <= sqrt.*gamma=5.0"),
    "an interpolation above one": (lambda: Ancestral(1.0, 7.0), r"interpolation in \[0, 1\].*7.0"),
    "a kernel for a likelihood": (
        lambda: log_likelihood(never, VP, X, ts=TS[::-1], solver=Ancestral()),
        "solver of ODEs.*Ancestral",
    ),
    "a kernel forwards": (lambda: simulate_forward(VP, X, KEY, ts=TS[::-1], solver=Ancestral()), "solver of SDEs"),
    "an error estimate without a key": (
        lambda: log_likelihood_with_error(never, VP, X, None, ts=TS[::-1], probes=4),
        "a key and probes >= 2",
    ),
    "a corrected predictor": (
        lambda: PredictorCorrector(PredictorCorrector(ReverseDiffusion(), Langevin(0.1)), Langevin(0.1)),
        "predictor of one step",
    ),
    "fewer steps than the order": (lambda: deis(never, VP, KEY, (3, 2), ts=TS[:3]), "at least 3 steps.*got 2"),
    "two steps for 2M, one of them to zero": (
        lambda: dpm_solver_pp_2m(never, VP, KEY, (3, 2), ts=np.array([1.0, 0.5, 0.0])),
        "at least 2 steps.*got 1",
    ),
    "an order that is not there": (lambda: AdamsBashforth(4), "order of 1, 2 or 3.*4"),
    "a kernel for an ODE": (lambda: solve_ode(never, VP, X, ts=TS, solver=Ancestral()), "solver of ODEs.*solve_sde"),
    "a multistep solver for an SDE": (
        lambda: solve_sde(never, VP, X, KEY, ts=TS, solver=DPMSolverPP2M()),
        "solver of SDEs.*DPMSolverPP2M",
    ),
    "stochasticity beside a kernel's own": (
        lambda: solve_sde(never, VP, X, KEY, ts=TS, solver=Ancestral(), stochasticity=0.5),
        "stochasticity = 1 with Ancestral.*0.5",
    ),
    "reverse diffusion without signal": (
        lambda: sample_sde(never, RECTIFIED, KEY, (3, 2), ts=TS, solver=ReverseDiffusion()),
        "alpha > 0",
    ),
    "tolerances of zero": (
        lambda: solve_ode(never, VP, X, ts=TS, solver=diffrax.Tsit5(), controller=diffrax.PIDController(0.0, 0.0)),
        "rtol >= 0 and atol >= 0, not both 0.*rtol=0.0",
    ),
    "a negative tolerance": (
        lambda: sample_sde(
            never, VP, KEY, (3, 2), ts=TS, solver=diffrax.Heun(), controller=diffrax.PIDController(1e-3, -1e-3)
        ),
        "rtol >= 0 and atol >= 0.*atol=-0.001",
    ),
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
    "a churn under a trace": (
        lambda: jax.jit(lambda churn: edm_heun(never, VP, KEY, (3, 2), ts=TS, churn=churn))(1.0),
        "churn that is not traced.*ChurnedHeun",
    ),
    "no churn at all": (lambda: edm_heun(never, VP, KEY, (3, 2), ts=TS, churn=None), "churn >= 0.*churn=None"),
    "no eta at all": (lambda: ddim(never, VP, KEY, (3, 2), ts=TS, eta=None), r"eta in \[0, 1\].*None"),
    "an eta for each example": (lambda: ddim(never, VP, KEY, (3, 2), ts=TS, eta=T), r"eta in \[0, 1\].*0.5"),
    "an eta for each example under a trace": (
        lambda: jax.jit(lambda eta: ddim(never, VP, KEY, (3, 2), ts=TS, eta=eta))(T),
        r"eta in \[0, 1\]",
    ),
    "a variance by name in a kernel": (lambda: Ancestral(1.0, "beta"), r"interpolation in \[0, 1\].*beta"),
    "a stochasticity for each example": (
        lambda: solve_sde(never, VP, X, KEY, ts=TS, stochasticity=T),
        "stochasticity >= 0.*0.5",
    ),
    "stochasticity beside an eta of 0": (
        lambda: ddim(never, VP, KEY, (3, 2), ts=TS, stochasticity=1.0),
        "no option stochasticity.*stochasticity=1.0",
    ),
    "coordinates beside DEIS's": (
        lambda: deis(never, VP, KEY, (3, 2), ts=TS, coordinates="time"),
        "no option coordinates.*coordinates='time'",
    ),
    "a solver beside DDPM's": (
        lambda: ddpm(never, VP, KEY, (3, 2), ts=TS, solver=diffrax.Euler()),
        "no option solver.*Euler",
    ),
    "a real order": (lambda: deis(never, VP, KEY, (3, 2), ts=TS, order=2.0), "order of 1, 2 or 3.*2.0"),
    "real steps of a corrector": (lambda: Langevin(0.1, 2.0), "integer steps >= 1.*2.0"),
    "real steps of Langevin dynamics": (
        lambda: annealed_langevin(never, VP, KEY, (3, 2), ts=TS, epsilon=1e-3, steps=2.0),
        "integer steps >= 1.*steps=2.0",
    ),
    "real slices": (lambda: sliced_score_matching(lambda x: x, X, KEY, slices=1.5), "integer slices >= 1.*slices=1.5"),
    "half a probe": (lambda: log_likelihood(never, VP, X, KEY, ts=TS[::-1], probes=0.5), "probes >= 1, a whole number"),
    "a continuous bound from nowhere": (
        lambda: continuous_bound(never, VP, X, KEY, t_min=None, levels=None),
        "t_min < t_max.*t_min=None",
    ),
    "fixed steps for a controller": (
        lambda: solve_ode(never, VP, X, ts=TS, controller=diffrax.StepTo(TS)),
        "controller that adapts.*StepTo",
    ),
    "steps of one size for a controller": (
        lambda: solve_sde(never, VP, X, KEY, ts=TS, controller=diffrax.ConstantStepSize()),
        "controller that adapts.*ConstantStepSize",
    ),
    "shape without events or batch": (lambda: sample_ode(never, VP, KEY, (), ts=TS), "shape"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_rule_reason_and_value(case, untyped):
    call, message = CASES[case]
    with pytest.raises(ValueError, match=f"(?s)Expected.*(?:{message})"):
        call()
