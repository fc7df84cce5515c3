"""Denoising losses against analytic minima, the papers' weights, and the Kullback-Leibler divergence of Gaussians.

For Gaussian data and affine denoisers the error is quadratic in (x_0, noise), so that its expectation is the mean
over eight points of a cubature, exactly: no Monte Carlo and no tolerance for it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, MIXTURE, NO_SIGNAL_AT_ONE, PROCESSES, Mixture, last_time

from dgm_jax.losses import denoising_error, diffusion_loss, weights
from dgm_jax.parameterizations import noise_of, precondition, score_of
from dgm_jax.processes import stratified

ALL = pytest.mark.parametrize("name", PROCESSES)
COVARIANCE = GAUSSIAN.covariances[0]


def cubature(times):
    """(x_0, t, noise) of [8 times] rows whose plain mean is the expectation of any quadratic, for each time."""
    directions = 2 * np.concatenate([np.eye(4), -np.eye(4)])  # +-sqrt(n) e_i, n = 4
    x_0 = GAUSSIAN.mean + directions[:, :2] @ np.linalg.cholesky(COVARIANCE).T
    repeat = (len(times), 1)
    return (
        jnp.asarray(np.tile(x_0, repeat)),
        jnp.repeat(jnp.asarray(times), 8),
        jnp.asarray(np.tile(directions[:, 2:], repeat)),
    )


def expected_error(denoise, process, times):
    return denoising_error(denoise, process, *cubature(times)).reshape(len(times), 8).mean(1)


def posterior_covariance(process, times):
    """(C^-1 + alpha^2/sigma^2 I)^-1, the covariance of x_0 given x_t."""
    precision = np.exp(np.asarray(process.log_snr(jnp.asarray(times))))
    return np.linalg.inv(np.linalg.inv(COVARIANCE) + precision[:, None, None] * np.eye(2))


@ALL
def test_the_oracle_attains_the_analytic_minimum_and_nothing_is_better(name):
    process = PROCESSES[name]
    with jax.enable_x64(True):
        times = np.linspace(1e-2, last_time(name), 7)
        oracle = GAUSSIAN.denoise(process)
        shift, tilt = np.array([0.1, -0.2]), np.array([[1.05, 0.02], [0.0, 0.97]])
        wrong = [
            lambda x, t: oracle(x, t) + jnp.asarray(shift)[None],
            lambda x, t: oracle(x, t) @ jnp.asarray(tilt),
            lambda x, t: oracle(x, 0.9 * t),
        ]
        least, *others = jax.device_get(
            jax.jit(lambda times: [expected_error(d, process, times) for d in (oracle, *wrong)])(times)
        )
        np.testing.assert_allclose(
            least, np.trace(posterior_covariance(process, times), axis1=1, axis2=2) / 2, rtol=1e-9
        )
        np.testing.assert_allclose(others[0] - least, np.mean(shift**2), rtol=1e-8)  # orthogonality: + |D' - D|^2
        assert all((other > least).all() for other in others)


@ALL
def test_the_gradient_of_the_expected_loss_vanishes_at_the_oracle_only(name):
    process = PROCESSES[name]
    with jax.enable_x64(True):
        times = np.linspace(1e-2, last_time(name), 7)

        def loss(params):
            def denoise(x, t):
                return GAUSSIAN.denoise(process)(x, t) + x @ params["matrix"] + params["offset"][None]

            error = expected_error(denoise, process, times)
            return jnp.mean(weights.simple(process, jnp.asarray(times)) * error)

        at_oracle = {"matrix": jnp.zeros((2, 2)), "offset": jnp.zeros(2)}
        gradient = jax.jit(jax.grad(loss))
        scale = [np.abs(g).max() for g in jax.tree.leaves(gradient(jax.tree.map(lambda p: p + 0.1, at_oracle)))]
        assert min(scale) > 1e-4
        for g, s in zip(jax.tree.leaves(gradient(at_oracle)), scale, strict=True):
            assert np.abs(g).max() < 1e-10 * s


@ALL
def test_the_mixtures_oracle_is_best(name):
    process, n = PROCESSES[name], 4000
    rng = np.random.default_rng(0)
    x_0 = jnp.asarray(MIXTURE.sample(rng, n))
    noise = jnp.asarray(rng.standard_normal((n, 2)), jnp.float32)
    t = jnp.asarray(rng.uniform(0.05, last_time(name), n), jnp.float32)
    oracle, shift = MIXTURE.denoise(process), jnp.array([0.2, -0.1])
    error = jax.jit(lambda shift: denoising_error(lambda x, t: oracle(x, t) + shift[None], process, x_0, t, noise))
    excess = np.asarray(error(shift)) - np.asarray(error(jnp.zeros(2)))
    assert abs(excess.mean() - 0.025) < 4 * excess.std() / np.sqrt(n)


@ALL
def test_weights_turn_the_error_into_the_papers_losses(name):
    process, rng, n = PROCESSES[name], np.random.default_rng(1), 9
    with jax.enable_x64(True):
        x_0, noise = (jnp.asarray(rng.standard_normal((n, 3, 2))) for _ in range(2))
        t = jnp.linspace(0.02, last_time(name), n)
        alpha, sigma, g = (np.asarray(c(t)) for c in (process.alpha, process.sigma, process.diffusion))

        def guess(x, t):
            return 0.5 * x_0 + 0.2

        x_t = process.perturb(x_0, t, noise)
        noise_error = np.asarray(noise_of(guess, process)(x_t, t) - noise) ** 2
        score_error = np.asarray(score_of(guess, process)(x_t, t) + noise / sigma[:, None, None]) ** 2
        seen = []  # EDM: the squared error of the raw network F is what lambda c_out^2 = 1 leaves
        c_out = precondition(lambda x, c: seen.append(c) or jnp.ones_like(x), process, sigma_data=0.4)
        c_out = np.asarray(c_out(jnp.zeros_like(x_0), t))
        snr_rate = jax.vmap(jax.grad(lambda s: jnp.exp(process.log_snr(s))))(t)
        papers = {
            partial(weights.simple, process): noise_error.mean((1, 2)),
            partial(weights.ncsn, process): sigma**2 * score_error.mean((1, 2)),
            partial(weights.likelihood, process, event_size=6): g**2 / 2 * score_error.sum((1, 2)),
            partial(weights.edm, process, sigma_data=0.4): np.asarray((guess(x_t, t) - x_0) ** 2 / c_out**2).mean(
                (1, 2)
            ),
        }
        error = np.asarray(denoising_error(guess, process, x_0, t, noise))
        for weight, expected in papers.items():
            np.testing.assert_allclose(np.asarray(weight(t)) * error, expected, rtol=1e-7, err_msg=str(weight))
        # Kingma et al. 2021, eq. 17: -1/2 SNR'(t) |x_0 - D|^2
        np.testing.assert_allclose(weights.likelihood(process, t, event_size=6), -3 * snr_rate, rtol=1e-7)
        np.testing.assert_allclose(weights.min_snr(process, t, gamma=5.0), np.minimum((alpha / sigma) ** 2, 5.0))


@pytest.mark.parametrize("name", sorted(NO_SIGNAL_AT_ONE))
def test_weights_are_finite_without_signal(name):
    """A float32 time drawn from (t_min, 1) may round to 1: one NaN there would end a training run."""
    process, t = PROCESSES[name], jnp.ones(1)
    limits = {
        partial(weights.simple, process): 0.0,
        partial(weights.ncsn, process): 0.0,
        partial(weights.likelihood, process, event_size=6): 0.0,
        partial(weights.min_snr, process, gamma=5.0): 0.0,
        partial(weights.edm, process, sigma_data=0.5): 4.0,
    }
    for weight, limit in limits.items():
        np.testing.assert_allclose(jax.jit(weight)(t), [limit], atol=1e-6, err_msg=str(weight))


def kl(p, q, process, t):
    """KL(p_t || q_t) of two Gaussians carried to time t, in nats."""
    alpha, variance = float(process.alpha(jnp.asarray(t))), float(process.variance(jnp.asarray(t)))
    c_p, c_q = (alpha**2 * m.covariance + variance * np.eye(2) for m in (p, q))
    gap = alpha * (p.mean - q.mean)
    solved = np.linalg.solve(c_q, c_p)
    return (np.trace(solved) - 2 - np.linalg.slogdet(solved)[1] + gap @ np.linalg.solve(c_q, gap)) / 2


@ALL
def test_likelihood_weight_integrates_to_kl_in_nats(name):
    """Song, Durkan et al. 2021, theorem 1, with equality as the model's scores are those of one Gaussian:

    KL(p || q) at t_min - KL(p || q) at t_max = integral of g^2/2 E_p |grad log p_t - grad log q_t|^2.
    """
    process, t_min, t_max = PROCESSES[name], 1e-3, last_time(name)
    model = Mixture(np.array([1.0]), np.array([[1.1, -0.2]]), np.array([[[0.3, -0.1], [-0.1, 0.2]]]))
    with jax.enable_x64(True):
        edges = np.linspace(t_min, t_max, 1000)  # the chain's own steps, on which its beta is constant
        nodes, node_weights = np.polynomial.legendre.leggauss(3)
        half = np.diff(edges)[:, None] / 2
        times = (edges[:-1, None] + half * (nodes[None] + 1)).ravel()

        def integrand(times):
            excess = [expected_error(d.denoise(process), process, times) for d in (model, GAUSSIAN)]
            return weights.likelihood(process, times, event_size=2) * (excess[0] - excess[1])

        integral = np.sum(np.asarray(jax.jit(integrand)(jnp.asarray(times))) * (half * node_weights[None]).ravel())
        difference = kl(GAUSSIAN, model, process, t_min) - kl(GAUSSIAN, model, process, t_max)
    assert difference > 0.1
    np.testing.assert_allclose(integral, difference, rtol=1e-6)


PROCESS = PROCESSES["vp"]
EVENT = (3, 2)
PARAMS = {"scale": jnp.float32(0.6), "slope": jnp.float32(0.2)}


def loss(params, x_0, key):
    def denoise(x, t):
        return params["scale"] * x + params["slope"] * t[:, None, None]

    return diffusion_loss(denoise, PROCESS, x_0, key, weight=partial(weights.min_snr, PROCESS, gamma=5.0))


def test_per_example_slices_and_permutations():
    x_0 = jax.random.normal(jax.random.key(0), (6, *EVENT))
    keys = jax.random.split(jax.random.key(1), 6)
    whole = jax.jit(loss)(PARAMS, x_0, keys)
    assert whole.shape == (6,)
    assert len(np.unique(whole)) == 6
    np.testing.assert_array_equal(jax.jit(loss)(PARAMS, x_0[2:5], keys[2:5]), whole[2:5])
    order = np.array([3, 0, 5, 1, 4, 2])
    np.testing.assert_array_equal(jax.jit(loss)(PARAMS, x_0[order], keys[order]), whole[order])
    np.testing.assert_array_equal(loss(PARAMS, x_0, jax.random.PRNGKey(2)), loss(PARAMS, x_0, jax.random.key(2)))


def test_times_are_stratified_by_one_key_and_independent_of_the_noise():
    """With x_0 = 0, D = x_t/sigma gives the noise itself, and the weight t shows the times of the same key."""
    n = 4000
    x_0, key = jnp.zeros((n, *EVENT)), jax.random.key(3)

    def noise_only(x, t):
        return x / PROCESS.sigma(t)[:, None, None]

    run = jax.jit(
        lambda key: [diffusion_loss(noise_only, PROCESS, x_0, key, weight=w) for w in (jnp.ones_like, lambda t: t)]
    )
    squares, weighted = (np.asarray(v) for v in run(key))
    t = weighted / squares
    assert np.abs(np.sort(t) - (1e-3 + 0.999 * (np.arange(n) + 0.5) / n)).max() < 0.51 / n + 1e-6
    assert abs(squares.mean() - 1) < 4 * squares.std() / np.sqrt(n)
    assert abs(np.corrcoef(squares, t)[0, 1]) < 4 / np.sqrt(n)
    independent = np.sort(np.divide(*(np.asarray(v) for v in run(jax.random.split(key, n))[::-1])))
    assert np.abs(np.diff(independent)).max() > 2 / n  # gaps that strata would not leave


def test_gradients_are_finite_and_match_differences():
    x_0, key = jax.random.normal(jax.random.key(0), (6, *EVENT)), jax.random.key(5)
    with jax.enable_x64(True):
        x_0, params = x_0.astype(jnp.float64), jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
        mean = jax.jit(lambda params: loss(params, x_0, key).mean())
        gradient = jax.jit(jax.grad(mean))(params)
        for name, value in gradient.items():
            high, low = (mean(params | {name: params[name] + step}) for step in (1e-4, -1e-4))
            np.testing.assert_allclose(value, (high - low) / 2e-4, rtol=1e-6)
    assert np.isfinite(jax.jit(jax.grad(lambda x: loss(PARAMS, x, key).sum()))(x_0.astype(jnp.float32))).all()


def test_times_are_the_callers_choice_and_bad_data_is_refused(untyped):
    x_0, key = jnp.zeros((64, *EVENT)), jax.random.key(4)
    shown = diffusion_loss(
        lambda x, t: jnp.ones_like(x), PROCESS, x_0, key, weight=lambda t: t, times=stratified(0.4, 0.5)
    )
    assert (shown.min() > 0.4) & (shown.max() < 0.5)
    with pytest.raises(ValueError, match=r"floating-point.*uint8"):
        loss(PARAMS, x_0.astype(jnp.uint8), key)
    with pytest.raises(ValueError, match=r"finite x_0.*1 such"):
        loss(PARAMS, x_0.at[3, 0, 0].set(jnp.nan), key)
