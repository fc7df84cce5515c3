"""Processes against formulas typed from the papers, SciPy's quadrature and ODE solver, and the beta chain."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import NO_SIGNAL_AT_ONE, PROCESSES, last_time
from scipy.integrate import quad, solve_ivp

from dgm_jax import processes
from dgm_jax.processes import GaussianProcess

ALL = pytest.mark.parametrize("name", PROCESSES)
BETAS = np.linspace(1e-4, 0.02, 1000)
# inside the chain's steps, as its rates jump at i/1000
TIMES = np.array([1e-4, 1.35e-2, 0.1004, 0.2505, 0.5003, 0.7506, 0.9982])


def papers(name, t):
    """(alpha, sigma, f = drift/x, g^2) at one t in float64, from the papers' formulas."""

    def beta(s):
        return 0.1 + s * (20.0 - 0.1)

    if name in ("vp", "sub_vp"):
        decay = np.exp(-quad(beta, 0, t, epsabs=0, epsrel=1e-13)[0])
        if name == "vp":  # Song et al. 2021, eq. 11 and 29
            return np.sqrt(decay), np.sqrt(1 - decay), -beta(t) / 2, beta(t)
        return np.sqrt(decay), 1 - decay, -beta(t) / 2, beta(t) * (1 - decay**2)  # eq. 12 and 29
    if name == "ve":  # eq. 30
        sigma = 0.01 * (50 / 0.01) ** t
        return 1.0, sigma, 0.0, sigma**2 * 2 * np.log(50 / 0.01)
    if name == "karras":  # d sigma^2/dt with Karras et al. 2022, eq. 5
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
        sigma = (low + t * (high - low)) ** 7
        return 1.0, sigma, 0.0, 2 * sigma * 7 * (low + t * (high - low)) ** 6 * (high - low)
    if name == "cosine":  # Nichol & Dhariwal 2021, eq. 17; beta = -d log alpha^2/dt
        angle, start = ((s + 0.008) / 1.008 * np.pi / 2 for s in (t, 0.0))
        alpha_bar = np.cos(angle) ** 2 / np.cos(start) ** 2
        rate = np.pi / 1.008 * np.tan(angle)
        return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), -rate / 2, rate
    if name == "rectified":
        return 1 - t, t, -1 / (1 - t), 2 * t / (1 - t)
    done, within = divmod(t * 1000, 1)  # Ho et al. 2020, eq. 4, and each step's product taken a fraction of the way
    alpha_bar = np.prod(1 - BETAS[: int(done)]) * (1 - BETAS[int(done)]) ** within
    rate = -1000 * np.log1p(-BETAS[int(done)])
    return np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar), -rate / 2, rate


def derived(process):
    """Everything that a process says at times t, compiled once."""

    def everything(t):
        alpha_rate, sigma_rate = process.rates(t)
        ratio = process.noise_ratio(t)
        return {
            "alpha": process.alpha(t),
            "sigma": process.sigma(t),
            "f": process.drift(jnp.ones((len(t), 1), t.dtype), t)[:, 0],
            "g": process.diffusion(t),
            "alpha_rate": alpha_rate,
            "sigma_rate": sigma_rate,
            "noise_ratio": ratio,
            "log_snr": process.log_snr(t),
            "time_at": process.time_at(ratio),
            "time_at_rate": jax.vmap(jax.grad(process.time_at))(ratio),
            "bisection": (by_bisection := GaussianProcess(process.alpha, process.variance)).time_at(ratio),
            "bisection_rate": jax.vmap(jax.grad(by_bisection.time_at))(ratio),
        }

    return jax.jit(everything)


@ALL
@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
def test_everything_against_the_papers(name, x64):
    with jax.enable_x64(x64):
        t = jnp.asarray(TIMES, jnp.result_type(float))
        actual = {key: np.asarray(value) for key, value in derived(PROCESSES[name])(t).items()}
    assert {value.dtype for value in actual.values()} == {t.dtype}
    exact_t = np.asarray(t, np.float64)  # the float32 numbers, not the decimals that they round
    alpha, sigma, f, g2 = np.array([papers(name, s) for s in exact_t]).T
    alpha_rate, sigma_rate = f * alpha, (g2 + 2 * f * sigma**2) / (2 * sigma)
    rise = (sigma_rate * alpha - sigma * alpha_rate) / alpha**2
    expected = {
        "alpha": alpha,
        "sigma": sigma,
        "f": f,
        "g": np.sqrt(g2),
        "alpha_rate": alpha_rate,
        "sigma_rate": sigma_rate,
        "noise_ratio": sigma / alpha,
        "log_snr": 2 * np.log(alpha / sigma),
        "time_at": exact_t,
        "time_at_rate": 1 / rise,
        "bisection": exact_t,
        "bisection_rate": 1 / rise,
    }
    eps = np.finfo(t.dtype).eps
    # float64: the papers' 1 - alpha^2 itself cancels at t = 1e-4
    relative = dict.fromkeys(expected, 1e-9 if x64 else 2e-5)
    # 1/r' changes by its own size over distances of min(t, 1 - t), and t is known to eps at best
    wide = relative["alpha"] + eps / np.minimum(exact_t, 1 - exact_t)
    relative |= dict.fromkeys(("time_at_rate", "bisection_rate"), wide)
    absolute = dict.fromkeys(expected, 1e-30)
    absolute |= dict.fromkeys(("time_at", "bisection"), 4 * eps * sigma / alpha / rise)  # r is known to eps at best
    absolute["sigma_rate"] = 2 * eps * np.abs(f) * sigma  # sigma' = g^2/(2 sigma) + f sigma, which cancel at t = 1
    for key, value in expected.items():
        bound = absolute[key] + relative[key] * np.abs(value)
        assert (np.abs(actual[key] - value) <= bound).all(), (key, actual[key] - value, bound)


@ALL
def test_forward_sde_moments_by_scipy(name):
    """dm/dt = f m and dv/dt = 2 f v + g^2 from (1, 0), the SDE's own moments, give alpha and sigma back."""
    process, breaks = PROCESSES[name], [0.0, 0.3, 0.95]
    if name == "from_betas":  # its rates jump at i/T, where a solver must stop
        process, breaks = processes.from_betas(np.linspace(0.02, 0.4, 20)), np.arange(20) / 20
    with jax.enable_x64(True):
        coefficients = jax.jit(lambda t: (process.log_alpha_rate(t), process.diffusion(t) ** 2))
        state = [1.0, 0.0]
        for start, end in pairwise(breaks):

            def moments(t, y, start=start, end=end):
                f, g2 = (float(c) for c in coefficients(np.clip(t, start + 1e-12 * (start > 0), end - 1e-12)))
                return [f * y[0], 2 * f * y[1] + g2]

            state = solve_ivp(moments, (start, end), state, rtol=1e-9, atol=1e-13).y[:, -1]
            alpha, variance = float(process.alpha(jnp.asarray(end))), float(process.variance(jnp.asarray(end)))
            kept = alpha**2 * float(process.variance(jnp.asarray(0.0)))
            np.testing.assert_allclose(state, [alpha, variance - kept], rtol=1e-7)


RATES_AT_ZERO = {
    "vp": (-0.05, np.inf),
    "sub_vp": (-0.05, 0.1),
    "ve": (0.0, 0.01 * np.log(5000)),
    "karras": (0.0, 7 * 0.002 ** (6 / 7) * (80 ** (1 / 7) - 0.002 ** (1 / 7))),
    "cosine": (-np.pi / 2 / 1.008 * np.tan(np.pi / 2 * 0.008 / 1.008), np.inf),
    "rectified": (-1.0, 1.0),
    "from_betas": (500 * np.log1p(-1e-4), np.inf),
}


@ALL
@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
def test_time_zero(name, x64):
    process = PROCESSES[name]
    with jax.enable_x64(x64):
        t = jnp.zeros(1)
        for wrap in (jax.jit, lambda f: f):
            f, g, rates = wrap(lambda t: (process.log_alpha_rate(t), process.diffusion(t), process.rates(t)))(t)
            _, _, expected_f, expected_g2 = papers(name, 0.0)
            np.testing.assert_allclose(f, [expected_f], rtol=1e-5)
            np.testing.assert_allclose(g, [np.sqrt(expected_g2)], rtol=1e-5)
            np.testing.assert_allclose(np.ravel(rates), RATES_AT_ZERO[name], rtol=2e-5)
        slope = jax.jit(jax.grad(lambda s: process.diffusion(s)))(jnp.asarray(0.1))
        assert np.isfinite(slope)
    assert float(process.diffusion(0)) == pytest.approx(np.sqrt(papers(name, 0.0)[3]), rel=1e-5)  # an integer t


def test_cosine_without_offset_starts_at_finite_speed():
    np.testing.assert_allclose(processes.cosine(offset=0.0).rates(0.0), [0.0, np.pi / 2], rtol=1e-5, atol=1e-7)


@ALL
def test_time_at_clips_to_the_range_and_refuses_negative_ratios(name):
    for process in (PROCESSES[name], GaussianProcess(PROCESSES[name].alpha, PROCESSES[name].variance)):
        t = process.time_at(jnp.array([0.0, 1e12]))
        np.testing.assert_allclose(t, [0.0, 1.0], atol=1e-6)
        with pytest.raises(ValueError, match="noise_ratio >= 0"):
            process.time_at(-0.5)


@pytest.mark.parametrize("x64", [False, True], ids=["float32", "float64"])
def test_from_betas_is_the_chain(x64):
    betas = np.random.default_rng(0).uniform(1e-3, 0.3, 37)
    process = processes.from_betas(betas)
    with jax.enable_x64(x64):
        t = jnp.asarray(np.arange(38) / 37, jnp.result_type(float))
        alpha, variance = (np.asarray(c, np.float64) for c in (process.alpha(t), process.variance(t)))
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    tolerance = 1e-12 if x64 else 1e-5
    np.testing.assert_allclose(alpha, np.sqrt(alpha_bar), rtol=tolerance)
    np.testing.assert_allclose(variance, 1 - alpha_bar, rtol=tolerance, atol=1e-7 if not x64 else 0)
    step = alpha[1:] / alpha[:-1]  # q(x_i | x_{i-1}) = N(sqrt(1 - beta_i) x_{i-1}, beta_i)
    np.testing.assert_allclose(step, np.sqrt(1 - betas), rtol=tolerance)
    np.testing.assert_allclose(variance[1:] - step**2 * variance[:-1], betas, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize("name", sorted(NO_SIGNAL_AT_ONE))
def test_no_signal_at_one_is_refused_with_a_way_out(name):
    process = PROCESSES[name]
    t, x = jnp.array([0.5, 1.0]), jnp.ones((2, 3))
    for refused in (lambda: process.drift(x, t), *(lambda f=f: f(t) for f in (process.diffusion, process.noise_ratio))):
        with pytest.raises(ValueError, match=r'alpha\(t\) > 0.*up to 1 .*t = 1 - 1e-3.*coordinates "time" or "data"'):
            refused()
    with pytest.raises(ValueError, match=r"log signal-to-noise.*t = 1 - 1e-3"):
        process.log_snr(1.0)
    assert float(process.alpha(jnp.asarray(1.0))) == 0.0 < float(process.diffusion(last_time(name))) < np.inf
    assert np.isfinite(jax.jit(process.rates)(jnp.ones(1))).all()


def test_a_process_of_ones_own_needs_two_functions():
    """alpha = 1 - t^2, sigma = t: rates (-2t, 1), g^2 = 2t + 4t^3/(1 - t^2), and a quadratic equation for time_at."""
    process = GaussianProcess(lambda t: 1 - t**2, lambda t: t**2)
    t = jnp.array([0.0, 0.2, 0.7, 0.95])
    s = np.asarray(t, np.float64)
    np.testing.assert_allclose(process.rates(t), [-2 * s, np.ones(4)], rtol=1e-5)
    np.testing.assert_allclose(process.diffusion(t), np.sqrt(2 * s + 4 * s**3 / (1 - s**2)), rtol=1e-5)
    ratio = np.array([0.1, 0.6, 3.0, 40.0])
    expected = (np.sqrt(1 + 4 * ratio**2) - 1) / (2 * ratio)
    np.testing.assert_allclose(process.time_at(jnp.asarray(ratio, jnp.float32)), expected, rtol=1e-6)


@ALL
def test_perturbed_moments(name):
    n, process = 20_000, PROCESSES[name]
    t = jnp.full(n, 0.4003)
    noise = jnp.asarray(np.random.default_rng(0).standard_normal((n, 2, 1)), jnp.float32)
    x_0 = jnp.broadcast_to(jnp.array([1.5, -0.7])[None, :, None], (n, 2, 1))
    x_t = np.asarray(jax.jit(process.perturb)(x_0, t, noise), np.float64)[..., 0]
    alpha, sigma, _, _ = papers(name, 0.4003)
    assert (np.abs(x_t.mean(0) - alpha * np.array([1.5, -0.7])) < 4 * sigma / np.sqrt(n)).all()
    assert (np.abs(x_t.var(0) - sigma**2) < 4 * sigma**2 * np.sqrt(2 / n)).all()


BAD_INPUTS = {
    "integer images": ({"x_0": np.zeros((2, 3), np.uint8)}, "floating-point.*uint8"),
    "NaN in data": ({"x_0": np.array([[np.nan, 0, 0], [0, 0, 0]], np.float32)}, "finite x_0.*1 such"),
    "t above 1": ({"t": np.array([0.5, 1.25], np.float32)}, r"\[0, 1\].*1\.25"),
    "t below 0": ({"t": np.array([-0.25, 0.5], np.float32)}, r"\[0, 1\].*-0\.25"),
    "one t for all": ({"t": np.array([0.5], np.float32)}, r"shape \(2,\).*\(1,\)"),
    "noise of another shape": ({"noise": np.zeros((1, 3), np.float32)}, r"noise.*\(2, 3\).*\(1, 3\)"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_perturb_refuses(case, untyped):
    good = {
        "x_0": np.zeros((2, 3), np.float32),
        "t": np.full(2, 0.5, np.float32),
        "noise": np.zeros((2, 3), np.float32),
    }
    change, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        PROCESSES["vp"].perturb(**{key: jnp.asarray(value) for key, value in (good | change).items()})
