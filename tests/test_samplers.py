"""Every named sampler against its paper's formula, whose exact moments on Gaussian data `chains` computes.

All processes run through one compiled program per sampler: the process is chosen by a traced index.
"""

from functools import partial

import chains
import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chains import X, check_moments, gaussian_denoiser
from oracles import GAUSSIAN, MIXTURE, PROCESSES, last_time, mixture_weights

from dgm_jax import samplers
from dgm_jax.processes import GaussianProcess, from_betas, log_snr_grid, uniform
from dgm_jax.samplers import (
    Ancestral,
    ChurnedHeun,
    DPMSolverPP2MSDE,
    Hold,
    Langevin,
    ReverseDiffusion,
    UnderdampedLangevin,
    solve_sde,
)
from dgm_jax.samplers import sde as sde_module

NAMES = list(PROCESSES)
N, STEPS = 4000, 40
SNR = 0.2


def half(x_t, t):
    """A learned interpolation of the two variances."""
    return jnp.full_like(x_t, 0.5)


def pc(predictor, corrector=None, **options):
    return partial(samplers.predictor_corrector, predictor=predictor, corrector=corrector or Langevin(SNR), **options)


# name: (recipe, its formula)
RECIPES = {
    "ddpm, posterior": (samplers.ddpm, chains.ddpm(0.0)),
    "ddpm, beta": (partial(samplers.ddpm, variance="beta"), chains.ddpm(1.0)),
    "ddpm, learned": (partial(samplers.ddpm, variance=half), chains.ddpm(0.5)),
    "ddim, 0": (samplers.ddim, chains.ddim(0.0)),
    "ddim, 0.6": (partial(samplers.ddim, eta=0.6), chains.ddim(0.6)),
    "ddim, 1": (partial(samplers.ddim, eta=1.0), chains.ddim(1.0)),
    "edm_heun": (samplers.edm_heun, chains.edm(0.0)),
    "edm_heun, churn": (
        partial(samplers.edm_heun, churn=0.1 * STEPS, churn_min=0.1, churn_max=4.0, churn_noise=1.1),
        chains.edm(0.1, 0.1, 4.0, 1.1),
    ),
    "dpm_solver_pp_2m": (samplers.dpm_solver_pp_2m, chains.dpm_solver_pp_2m),
    "dpm_solver_pp_2m_sde": (samplers.dpm_solver_pp_2m_sde, chains.dpm_solver_pp_2m_sde),
    "deis, 1": (partial(samplers.deis, order=1), chains.adams_bashforth(1)),
    "deis, 2": (partial(samplers.deis, order=2), chains.adams_bashforth(2)),
    "deis, 3": (samplers.deis, chains.adams_bashforth(3)),
    "pc, Euler-Maruyama": (pc(diffrax.Euler()), chains.predictor_corrector(chains.euler_maruyama(1), SNR)),
    "pc, ODE": (
        pc(diffrax.Euler(), stochasticity=0.0),
        chains.predictor_corrector(chains.euler_maruyama(0), SNR),
    ),
    "pc, reverse diffusion": (pc(ReverseDiffusion()), chains.predictor_corrector(chains.reverse_diffusion, SNR)),
    "pc, ancestral, twice": (
        pc(Ancestral(), Langevin(SNR, 2)),
        chains.predictor_corrector(chains.ancestral, SNR, 2),
    ),
    "c": (pc(Hold()), chains.predictor_corrector(chains.hold, SNR)),
}
DETERMINISTIC = ["ddim, 0", "edm_heun", "dpm_solver_pp_2m", "deis, 1", "deis, 2", "deis, 3"]
NEEDED = {"dpm_solver_pp_2m": 2, "dpm_solver_pp_2m_sde": 2, "deis, 2": 2, "deis, 3": 3}
CALLS = {"edm_heun": 2, "edm_heun, churn": 2, "pc, ancestral, twice": 3, "c": 1} | {
    name: 2 for name in RECIPES if name.startswith("pc,") and "twice" not in name
}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def chosen(index):
    """The process of this index, where the index is traced."""
    every = [PROCESSES[name] for name in NAMES]
    choose = partial(jax.lax.switch, index)
    return GaussianProcess(
        alpha=lambda t: choose([p.alpha for p in every], t),
        variance=lambda t: choose([p.variance for p in every], t),
        inverse=lambda ratio: choose([p.inverse for p in every], ratio),
    )


def parts(mixture):
    """Weights, means and the eigensystems of the covariances; a single Gaussian is three equal components."""
    copies = 3 // len(mixture.weights)
    systems = [np.linalg.eigh(covariance) for covariance in mixture.covariances] * copies
    values, vectors = (np.stack(part) for part in zip(*systems, strict=True))
    weights = np.repeat(mixture.weights / copies, copies)
    return jax.tree.map(jnp.asarray, (weights, np.concatenate([mixture.means] * copies), values, vectors))


def mixture_denoiser(process, weights, means, values, vectors):
    """E[x_0 | x_t] of a mixture whose parameters are traced, so that one program serves both oracles."""

    def denoise(x_t, t):
        alpha, variance = process.alpha(t)[:, None, None], process.variance(t)[:, None, None]
        spread = alpha**2 * values[None] + variance
        along = jnp.einsum("bkj,kjd->bkd", x_t[:, None] - alpha * means[None], vectors)
        log_joint = jnp.log(weights)[None] - jnp.sum(along**2 / spread + jnp.log(spread), -1) / 2
        estimates = means[None] + jnp.einsum("bkd,kjd->bkj", alpha * values[None] / spread * along, vectors)
        return jnp.sum(jax.nn.softmax(log_joint, axis=1)[:, :, None] * estimates, axis=1)

    return denoise


@pytest.mark.parametrize("name", [*RECIPES, "pc, underdamped"])
def test_gaussian_moments_and_mixture_weights_under_every_process(name):
    """Moments are the formula's, from the prior at a t below 1, whose variance is that of this t."""
    momentum = (pc(ReverseDiffusion(), UnderdampedLangevin(0.5, 2)), None)
    recipe, formula = RECIPES.get(name, momentum)

    @jax.jit
    def run(index, ts, key, mixture):
        process = chosen(index)
        return recipe(mixture_denoiser(process, *mixture), process, key, (N, 2), ts=ts)

    for index, process_name in enumerate(NAMES):
        process, high = PROCESSES[process_name], last_time(process_name)
        if formula is not None:
            ts = log_snr_grid(process, STEPS, t_min=0.05, t_max=0.7 * high)
            result = run(index, ts, jax.random.key(index), parts(GAUSSIAN))
            check_moments(result.x, *chains.moments(process, ts, formula))
            assert result.result == diffrax.RESULTS.successful
            assert result.path is None
        if name == "c":  # one Langevin step a level does not mix
            continue
        ts = log_snr_grid(process, STEPS, t_min=1e-3, t_max=high)
        x = run(index, ts, jax.random.key(index), parts(MIXTURE)).x
        # half a step in log-SNR: the relative error of an explicit step of order one; and the prior's mismatch
        bias = float(process.log_snr(1e-3) - process.log_snr(high)) / STEPS / 2 * MIXTURE.weights
        mismatch = (np.abs(MIXTURE.means).max() + 1) / float(process.noise_ratio(high))
        error = np.sqrt(MIXTURE.weights * (1 - MIXTURE.weights) / N)
        np.testing.assert_array_less(np.abs(mixture_weights(MIXTURE, x) - MIXTURE.weights), 4 * error + bias + mismatch)


def test_the_oracles_denoise_alike():
    process, t = PROCESSES["cosine"], jnp.array([0.1, 0.5, 0.9])
    x = jnp.asarray(X)
    for mixture in (GAUSSIAN, MIXTURE):
        found = mixture_denoiser(process, *parts(mixture))(x, t)
        np.testing.assert_allclose(found, mixture.denoise(process)(x, t), rtol=1e-9)
    np.testing.assert_allclose(gaussian_denoiser(process)(x, t), GAUSSIAN.denoise(process)(x, t), rtol=1e-9)


def test_the_formulas_agree_where_the_papers_say_so():
    process = PROCESSES["vp"]
    ts = log_snr_grid(process, STEPS, t_min=0.05, t_max=0.8)
    for one, other in (
        (chains.ddpm(0.0), chains.ddim(1.0)),
        (chains.ddpm(0.0), chains.predictor_corrector(chains.ancestral)),
        (chains.adams_bashforth(1), chains.ddim(0.0)),
    ):
        for a, b in zip(chains.moments(process, ts, one), chains.moments(process, ts, other), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", RECIPES)
def test_the_last_step_to_zero_is_the_denoisers_estimate(name):
    """Short grids: as few steps as the order allows, then one to t = 0."""
    recipe, formula = RECIPES[name]
    process, steps = PROCESSES["vp"], NEEDED.get(name, 1)
    if "churn" in name:  # the churn is spread over the steps of the grid, the last one included
        recipe = partial(samplers.edm_heun, churn=0.1 * (steps + 1), churn_min=0.1, churn_max=4.0, churn_noise=1.1)
    ts = np.append(log_snr_grid(process, steps, t_min=0.1, t_max=0.8), 0.0)
    run = jax.jit(lambda key: recipe(gaussian_denoiser(process), process, key, (N, 2), ts=ts))
    result = run(jax.random.key(3))
    check_moments(result.x, *chains.moments(process, ts[:-1], formula, to_zero=True))
    first = 1 if name == "deis, 3" else 0
    assert int(result.evaluations) == first + steps * CALLS.get(name, 1) + 1


@pytest.mark.parametrize("name", RECIPES)
def test_evaluations_are_the_networks_calls(name):
    process, calls = PROCESSES["vp"], []
    exact = gaussian_denoiser(process)

    def counted(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return exact(x, t)

    result = jax.jit(lambda key: RECIPES[name][0](counted, process, key, (3, 2), ts=uniform(5, t_min=0.0)))(
        jax.random.key(0)
    )
    jax.block_until_ready(result.x)
    jax.effects_barrier()
    assert int(result.evaluations) == len(calls)


def test_ddpm_on_its_chain_of_1000():
    """The paper's own setting: betas from 1e-4 to 0.02, every step of the chain, the last mean without noise."""
    betas = np.linspace(1e-4, 0.02, 1000)
    process, ts = from_betas(betas), uniform(1000, t_min=0.0)
    for variance, v in (("posterior", 0.0), ("beta", 1.0)):
        x = jax.jit(
            lambda key, variance=variance: (
                samplers.ddpm(gaussian_denoiser(process), process, key, (1000, 2), ts=ts, variance=variance).x
            )
        )(jax.random.key(1))
        mean, covariance = GAUSSIAN.means[0], GAUSSIAN.covariances[0]
        check_moments(x, *chains.moments(process, ts[:-1], chains.ddpm(v), to_zero=True))
        # and so of the data: a thousand steps leave a bias below the Monte Carlo error
        check_moments(x, mean, covariance)


@pytest.mark.parametrize("name", ["ddpm, posterior", "ddim, 0.6", "dpm_solver_pp_2m_sde"])
def test_kernels_start_from_pure_noise(name):
    """At alpha = 0 the estimate is the data's mean, and the step from there is exact for Gaussian data's mean."""
    recipe, process = RECIPES[name][0], PROCESSES["rectified"]
    ts = np.append(1.0, log_snr_grid(process, 30, t_min=1e-3, t_max=0.97))
    if name == "ddim, 0.6":  # by its formula from the second point on: sqrt(s^2 - c^2) E + c z has variance s^2
        ts = ts[:4]
    result = jax.jit(lambda key: recipe(gaussian_denoiser(process), process, key, (N, 2), ts=ts))(jax.random.key(2))
    assert result.result == diffrax.RESULTS.successful
    mean = np.asarray(result.x).mean(0)
    alpha = 1 - ts[-1]
    np.testing.assert_allclose(mean, alpha * GAUSSIAN.means[0], atol=4 * np.asarray(result.x).std(0).max() / N**0.5)


# clocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process_name", NAMES)
def test_reverse_clocks_never_fall(process_name, monkeypatch):
    """Lévy-area solvers are silently wrong on a falling clock."""
    process, clocks = PROCESSES[process_name], []
    inner = sde_module.integrate

    def spy(terms, state, clock, **options):
        clocks.append(np.asarray(clock))
        return inner(terms, state, clock, **options)

    monkeypatch.setattr(sde_module, "integrate", spy)
    ts = uniform(4, t_min=0.05, t_max=last_time(process_name))
    denoise = gaussian_denoiser(process)
    for solver, coordinates in ((diffrax.Euler(), "time"), (diffrax.Euler(), "noise"), (diffrax.Euler(), "data")):
        jax.eval_shape(
            lambda x, s=solver, c=coordinates: (
                solve_sde(denoise, process, x, jax.random.key(0), ts=ts, solver=s, coordinates=c).x
            ),
            X,
        )
    for solver in (Ancestral(), ChurnedHeun(0.1), ReverseDiffusion(), DPMSolverPP2MSDE()):
        jax.eval_shape(lambda x, s=solver: solve_sde(denoise, process, x, jax.random.key(0), ts=ts, solver=s).x, X)
    assert len(clocks) == 7
    assert all((np.diff(clock) > 0).all() for clock in clocks)
