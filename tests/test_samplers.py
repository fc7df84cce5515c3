"""Every named sampler against its paper's formula, whose exact moments on Gaussian data `chains` computes.

All processes run through one compiled program per sampler: the process is chosen by a traced index.
"""

from functools import partial

import chains
import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, MIXTURE, PROCESSES, gaussian_flow, last_time, mixture_weights

from dgm_jax import samplers
from dgm_jax.processes import GaussianProcess, from_betas, log_snr_grid, uniform
from dgm_jax.samplers import (
    AdamsBashforth,
    Ancestral,
    ChurnedHeun,
    DPMSolverPP2M,
    DPMSolverPP2MSDE,
    Hold,
    Langevin,
    NormalizedLangevin,
    PredictorCorrector,
    ReverseDiffusion,
    UnderdampedLangevin,
    solve_ode,
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


def gaussian_denoiser(process):
    """E[x_0 | x_t] of GAUSSIAN in the eigenbasis of its covariance: compiles faster than the mixture's."""

    values, means = jnp.asarray(chains.VALUES)[None], jnp.asarray(chains.MEANS)[None]

    def denoise(x_t, t):
        alpha, variance = process.alpha(t)[:, None], process.variance(t)[:, None]
        gain = alpha * values / (alpha**2 * values + variance)
        return (means + (x_t @ chains.VECTORS - alpha * means) * gain) @ chains.VECTORS.T

    return denoise


def check_moments(x, mean, covariance):
    """Within four standard errors of the exact law of the discretised chain: no bias is left to allow."""
    x = np.asarray(x)
    spread = np.sqrt(np.diag(covariance))
    np.testing.assert_array_less(np.abs(x.mean(0) - mean), 4 * spread / np.sqrt(len(x)))
    error = np.sqrt((np.outer(spread, spread) ** 2 + covariance**2) / len(x))
    np.testing.assert_array_less(np.abs(np.cov(x.T) - covariance), 4 * error)


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


# orders -----------------------------------------------------------------------------------------------------------

X = np.array([[0.3, -1.1], [1.9, 0.4], [-0.6, -0.2]])
COUNTS = np.array([16, 32, 64])


def kind(solver):
    return type(solver).__name__


def fitted(errors):
    return -np.polyfit(np.log(COUNTS), np.log(errors), 1)[0]


@pytest.mark.parametrize("coordinates", ["time", "noise", "data"])
@pytest.mark.parametrize(
    ("solver", "order"),
    [(AdamsBashforth(1), 1), (AdamsBashforth(2), 2), (AdamsBashforth(3), 3), (DPMSolverPP2M(), 2)],
    ids=["AB1", "AB2", "AB3", "2M"],
)
def test_order_of_deterministic_solvers(solver, order, coordinates):
    """The error at the end of the exact flow, on grids whose steps grow, falling and rising."""
    process = PROCESSES["vp"]
    denoise = gaussian_denoiser(process)
    for ends in ((0.8, 0.3), (0.3, 0.8)):
        if ends[0] < ends[1] and coordinates != "noise":
            continue
        errors = []
        for n in 2 * COUNTS:
            ts = ends[0] + (ends[1] - ends[0]) * np.linspace(0, 1, n + 1) ** 1.3
            run = jax.jit(
                lambda x, ts=ts: solve_ode(denoise, process, x, ts=ts, solver=solver, coordinates=coordinates).x
            )
            errors.append(np.abs(run(jnp.asarray(X)) - gaussian_flow(process, X, *ends)).max())
        assert abs(fitted(errors) - order) < 0.3, (ends, errors)


@pytest.mark.parametrize(
    ("chain", "order"),
    [
        (chains.ddpm(0.0), 1),
        (chains.ddpm(1.0), 1),
        (chains.ddim(0.6), 1),
        (chains.dpm_solver_pp_2m_sde, 2),
        (chains.predictor_corrector(chains.reverse_diffusion), 1),
        (chains.edm(0.0), 2),
        (lambda d: chains.edm(4 / d.steps)(d), 2),
    ],
    ids=["ddpm", "ddpm beta", "ddim 0.6", "2M SDE", "reverse diffusion", "edm", "edm churn"],
)
@pytest.mark.parametrize("process_name", ["vp", "ve", "rectified"])
def test_weak_order_of_the_formulas(chain, order, process_name):
    """The end's mean and covariance, started from one state, against the exact reverse transition's."""
    process = PROCESSES[process_name]
    counts = 4 * COUNTS
    # p_{s} is reached from p_t: a Gaussian start of the exact law is the state plus the marginal's own spread
    errors = []
    for n in counts:
        ts = log_snr_grid(process, int(n), t_min=0.2, t_max=0.8)
        t = np.array([0.8, 0.2])
        alpha, sigma = np.asarray(process.alpha(jnp.asarray(t))), np.asarray(process.sigma(t))

        def from_the_law(d, chain=chain, alpha=alpha, sigma=sigma):
            d.x = alpha[0] * d.m * d.one + np.sqrt(alpha[0] ** 2 * d.v + sigma[0] ** 2) * d.noise()
            return chain(d)

        mean, covariance = chains.moments(process, ts, from_the_law)
        exact = alpha[1] ** 2 * GAUSSIAN.covariances[0] + sigma[1] ** 2 * np.eye(2)
        errors.append(max(np.abs(mean - alpha[1] * GAUSSIAN.means[0]).max(), np.abs(covariance - exact).max()))
    found = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert abs(found - order) < 0.25, errors


SLOW = [pytest.param(solver, marks=pytest.mark.slow) for solver in (ReverseDiffusion(), DPMSolverPP2MSDE())]


@pytest.mark.parametrize("solver", [Ancestral(), *SLOW], ids=kind)
def test_strong_order_on_a_shared_brownian_path(solver):
    """Order 1, against 512 steps of the same solver on the same path; the noise is additive."""
    process, n = PROCESSES["vp"], 24
    denoise = gaussian_denoiser(process)
    x = jnp.asarray(np.tile(X, (n // 3, 1)))
    ratio = 1 / np.asarray(process.noise_ratio(np.array([0.8, 0.3])))
    ends = (0.0, 0.5) if solver.coordinates == "time" else tuple(ratio)
    path = diffrax.VirtualBrownianTree(
        *ends, tol=2.0**-13, shape=jax.ShapeDtypeStruct(x.shape, x.dtype), key=jax.random.key(5)
    )

    def end(steps):
        points = np.linspace(*ends, steps + 1)
        ts = np.array(0.8 - points if solver.coordinates == "time" else process.time_at(1 / points))
        ts[0], ts[-1] = 0.8, 0.3
        options = {"ts": ts, "solver": solver, "brownian": path}
        return np.asarray(jax.jit(lambda x: solve_sde(denoise, process, x, jax.random.key(0), **options).x)(x))

    reference = end(512)
    errors = [np.sqrt(np.mean((end(int(k)) - reference) ** 2)) for k in COUNTS]
    assert abs(fitted(errors) - 1) < 0.25, errors


# equalities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "ode", "coordinates"),
    [
        (Ancestral(0.0), diffrax.Euler(), "noise"),
        (ChurnedHeun(0.0), diffrax.Heun(), "noise"),
        (DPMSolverPP2MSDE(0.0), DPMSolverPP2M(), "data"),
    ],
    ids=["eta = 0", "churn = 0", "2M"],
)
@pytest.mark.parametrize("process_name", ["vp", "ve"])
def test_without_noise_kernels_are_ode_solvers(kernel, ode, coordinates, process_name):
    process = PROCESSES[process_name]
    denoise, ts = MIXTURE.denoise(process), log_snr_grid(process, 8, t_min=0.05, t_max=0.9)
    x = float(process.sigma(0.9)) * jnp.asarray(X)

    @jax.jit
    def both(x):
        options = {"ts": ts, "coordinates": coordinates, "save_path": True}
        by_kernel = solve_sde(denoise, process, x, jax.random.key(0), solver=kernel, **options).path
        return by_kernel, solve_ode(denoise, process, x, solver=ode, **options).path

    np.testing.assert_allclose(*both(x), rtol=1e-9, atol=1e-9)


def test_the_recipes_without_noise_take_the_key_as_sample_ode_does():
    process, ts = PROCESSES["vp"], uniform(4, t_min=1e-2)
    denoise, shape = gaussian_denoiser(process), (5, 2)

    @jax.jit
    def every(key):
        options = {"ts": ts, "coordinates": "noise"}
        euler = samplers.sample_ode(denoise, process, key, shape, solver=diffrax.Euler(), **options).x
        heun = samplers.sample_ode(denoise, process, key, shape, solver=diffrax.Heun(), **options).x
        ddim = samplers.ddim(denoise, process, key, shape, ts=ts).x
        return (euler, heun), (ddim, samplers.edm_heun(denoise, process, key, shape, ts=ts).x)

    solvers, recipes = every(jax.random.key(4))
    np.testing.assert_allclose(np.stack(recipes), np.stack(solvers), rtol=1e-9)


@pytest.mark.parametrize("solver", [Ancestral, DPMSolverPP2MSDE, ChurnedHeun], ids=lambda cls: cls.__name__)
def test_gradients_at_no_noise_are_finite(solver):
    """d/d eta and d/d gamma at 0, where a root would have an infinite one: against a difference."""
    process, ts = PROCESSES["vp"], uniform(4, t_min=0.1, t_max=0.9)

    @jax.jit
    def total(amount):
        kernel = solver(amount) if solver is not ChurnedHeun else eqx.tree_at(lambda s: s.gamma, solver(0.1), amount)
        return solve_sde(gaussian_denoiser(process), process, jnp.asarray(X), jax.random.key(0), ts=ts, solver=kernel).x

    value, gradient = jax.jvp(total, (jnp.asarray(0.0),), (jnp.asarray(1.0),))
    assert np.isfinite(gradient).all()
    if solver is not ChurnedHeun:  # churn adds noise with the root of gamma, from the right
        np.testing.assert_allclose(gradient, (total(jnp.asarray(1e-6)) - value) / 1e-6, rtol=1e-3, atol=1e-4)


# correctors -------------------------------------------------------------------------------------------------------


def at_time(process, t, rng, n):
    """Exact draws from p_t of GAUSSIAN, its covariance, and its score."""
    alpha, variance = float(process.alpha(jnp.asarray(t))), float(process.variance(jnp.asarray(t)))
    mean, covariance = alpha * GAUSSIAN.means[0], alpha**2 * GAUSSIAN.covariances[0] + variance * np.eye(2)
    x = jnp.asarray(rng.multivariate_normal(mean, covariance, n))
    precision = np.linalg.inv(covariance)
    return x, mean, covariance, lambda x: -(x - jnp.asarray(mean)[None]) @ precision


def test_one_langevin_step_changes_the_law_by_the_square_of_its_size():
    """From N(m, C) a step e gives N(m, (1 - e/C)^2 C + 2 e) = N(m, C + e^2/C), exactly."""
    process, sigma = PROCESSES["vp"], float(PROCESSES["vp"].sigma(0.4))
    x, mean, covariance, score = at_time(process, 0.4, np.random.default_rng(0), 100_000)
    for snr in (0.1, 0.4):
        size = 2 * (snr * sigma) ** 2
        keys = jax.random.split(jax.random.key(1), len(x))
        moved = jax.jit(Langevin(snr), static_argnums=0)(score, x, jnp.asarray(sigma), keys)
        check_moments(moved, mean, covariance + size**2 * np.linalg.inv(covariance))


@pytest.mark.parametrize("solver", [diffrax.ALIGN(), diffrax.ShOULD(), diffrax.QUICSORT()], ids=kind)
def test_underdamped_langevin_leaves_the_law(solver):
    """Steps of 1/8 in units of sigma: an error of order two is below 1/64 of the variance."""
    process, sigma = PROCESSES["vp"], float(PROCESSES["vp"].sigma(0.4))
    x, mean, covariance, score = at_time(process, 0.4, np.random.default_rng(1), 20_000)
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return score(x)

    corrector = UnderdampedLangevin(1.0, 8, solver=solver)
    keys = jax.random.split(jax.random.key(2), len(x))
    moved = np.asarray(jax.jit(corrector, static_argnums=0)(counted, x, jnp.asarray(sigma), keys))
    jax.effects_barrier()
    assert len(calls) == corrector.evaluations
    spread = np.sqrt(np.diag(covariance))
    assert (np.abs(moved.mean(0) - mean) < 4 * spread / np.sqrt(len(x)) + spread / 64).all()
    error = np.sqrt((np.outer(spread, spread) ** 2 + covariance**2) / len(x))
    assert (np.abs(np.cov(moved.T) - covariance) < 4 * error + np.outer(spread, spread) / 64).all()
    moves = np.abs(np.asarray(moved - x)).mean(0)
    assert (moves > spread / 4).all()  # it did not merely stay


def test_normalized_langevin_is_algorithm_4_to_the_letter():
    """e = 2 (r |z|/|g|)^2 gives |x' - x - e g| = sqrt(2 e) |z|, hence |x' - x - e g| |g| = 2 r |z|^2, for some z."""
    rng, r = np.random.default_rng(3), 0.16
    gradient = jnp.asarray(rng.normal(size=(5, 3, 2)))
    x = jnp.asarray(rng.normal(size=(5, 3, 2)))
    keys = jax.random.split(jax.random.key(7), 5)
    z = np.stack([np.asarray(jax.random.normal(key, (1, 3, 2), x.dtype))[0] for key in keys])
    moved = NormalizedLangevin(r)(lambda x: gradient, x, jnp.asarray(0.7), keys)
    size = 2 * (r * np.sqrt((z**2).sum((1, 2))) / np.sqrt((np.asarray(gradient) ** 2).sum((1, 2)))) ** 2
    size = size[:, None, None]
    np.testing.assert_allclose(moved, x + size * gradient + np.sqrt(2 * size) * z, rtol=1e-12)


def test_the_corrector_moves_after_the_predictor_and_at_its_time():
    """With a denoiser that records its times: predictor at t, corrector at s, in the order of algorithm 1."""
    process, seen = PROCESSES["vp"], []
    exact = gaussian_denoiser(process)

    def recording(x, t):
        jax.debug.callback(lambda t: seen.append(float(t[0])), t, ordered=True)
        return exact(x, t)

    ts = np.array([0.9, 0.6, 0.2])
    solver = PredictorCorrector(ReverseDiffusion(), Langevin(SNR, 2))
    x = jax.jit(lambda x: solve_sde(recording, process, x, jax.random.key(0), ts=ts, solver=solver).x)(jnp.asarray(X))
    jax.block_until_ready(x)
    jax.effects_barrier()
    np.testing.assert_allclose(seen, [0.9, 0.6, 0.6, 0.6, 0.2, 0.2])


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
