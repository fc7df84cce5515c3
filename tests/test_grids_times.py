"""Sampling grids against the formulas that they are named for, and training-time laws by Kolmogorov-Smirnov tests.

The last tests are of what the makers of processes, grids and laws refuse.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PROCESSES, last_time
from scipy import stats

from dgm_jax import processes
from dgm_jax.processes import (
    GaussianProcess,
    karras_grid,
    levels,
    log_normal,
    log_snr_grid,
    log_snr_uniform,
    quadratic,
    stratified,
    trailing,
    uniform,
    variance_preserving,
)

ALL = pytest.mark.parametrize("name", PROCESSES)


def make_grids(name, n, t_min=1e-3):
    process, t_max = PROCESSES[name], last_time(name)
    yield "uniform", t_max, uniform(n, t_min=t_min, t_max=t_max)
    yield "quadratic", t_max, quadratic(n, t_min=t_min, t_max=t_max)
    yield "karras", t_max, karras_grid(process, n, t_min=t_min, t_max=t_max)
    yield "log_snr", t_max, log_snr_grid(process, n, t_min=t_min, t_max=t_max)


@ALL
@pytest.mark.parametrize("n", [1, 1000])
def test_grids_fall_between_exact_ends(name, n):
    for _, t_max, ts in make_grids(name, n):
        assert isinstance(ts, np.ndarray)
        assert ts.shape == (n + 1,)
        assert ts.dtype == np.float32
        assert ts[0] == np.float32(t_max)
        assert ts[-1] == np.float32(1e-3)
        assert (np.diff(ts) < 0).all()


@ALL
def test_spacing(name):
    process, n = PROCESSES[name], 12
    with jax.enable_x64(True):
        for kind, t_max, ts in make_grids(name, n):
            i = np.arange(n + 1)
            if kind == "uniform":
                np.testing.assert_allclose(ts, t_max + i / n * (1e-3 - t_max), rtol=1e-12)
                continue
            if kind == "quadratic":  # Song, Meng & Ermon 2021, appendix D.2: t = c i^2, from sqrt(t_min) on
                roots = np.sqrt([1e-3, t_max])
                np.testing.assert_allclose(ts, (roots[0] + (n - i) / n * (roots[1] - roots[0])) ** 2, rtol=1e-12)
                continue
            ratio = np.asarray(process.noise_ratio(jnp.asarray(ts)))
            if kind == "karras":  # Karras et al. 2022, eq. 5, whose N is n + 1
                high, low = ratio[0] ** (1 / 7), ratio[-1] ** (1 / 7)
                np.testing.assert_allclose(ratio, (high + i / n * (low - high)) ** 7, rtol=1e-9)
            else:
                np.testing.assert_allclose(np.diff(np.log(ratio)), np.log(ratio[-1] / ratio[0]) / n, rtol=1e-8)


@pytest.mark.parametrize(("n", "chain"), [(1, 1000), (3, 1000), (10, 1000), (80, 1000), (7, 10), (10, 10), (999, 1000)])
def test_trailing_is_lins_table(n, chain):
    """Lin et al. 2023, table 2: np.round(np.arange(T, 0, -T/S)), whose times are those of a chain from 1 to T."""
    table = np.round(np.arange(chain, 0, -chain / n))[:n]  # arange may run one too far
    with jax.enable_x64(True):
        ts = trailing(n, chain=chain)
    np.testing.assert_allclose(ts * chain, [*table, 0], rtol=1e-12)
    assert isinstance(ts, np.ndarray)
    assert trailing(n, chain=chain).dtype == np.float32


def test_trailing_falls_from_one_to_zero_whatever_its_number():
    for chain in (1, 10, 37, 1000):
        for n in range(1, chain + 1, 1 + chain // 50):
            ts = trailing(n, chain=chain)
            assert ts[0] == 1
            assert ts[-1] == 0
            assert (np.diff(ts) < 0).all()
    np.testing.assert_allclose(trailing(50, chain=1000), uniform(50, t_min=0.0), atol=1e-7)


def test_quadratic_from_zero_is_the_papers():
    """c i^2 of a chain of 1,000 in 10 steps: c = 10."""
    np.testing.assert_allclose(1000 * quadratic(10, t_min=0.0)[::-1], 10 * np.arange(11) ** 2, rtol=1e-5)


def test_karras_grid_from_noiseless_data_and_another_rho():
    with jax.enable_x64(True):
        ts = karras_grid(PROCESSES["vp"], 4, t_min=0.0, rho=3.0)
        ratio = np.asarray(PROCESSES["vp"].noise_ratio(jnp.asarray(ts)))
    assert ts[-1] == 0.0
    np.testing.assert_allclose(ratio, ratio[0] * (1 - np.arange(5) / 4) ** 3, rtol=1e-9)


def test_grids_are_known_under_jit_and_traced_only_with_the_process():
    seen = []

    @jax.jit
    def inside(x, rate):
        for _, _, ts in make_grids("cosine", 5):
            assert isinstance(ts, np.ndarray)
            seen.append(ts)
        learned = GaussianProcess(lambda t: jnp.exp(-rate * t), lambda t: -jnp.expm1(-2 * rate * t))
        return x + seen[0][0], karras_grid(learned, 5, t_min=1e-3)

    _, traced = inside(jnp.zeros(()), jnp.float32(3.0))
    for (_, _, outside), ts in zip(make_grids("cosine", 5), seen, strict=True):
        np.testing.assert_array_equal(ts, outside)
    constant = variance_preserving(6.0, 6.0)  # the same process: alpha = exp(-3 t)
    np.testing.assert_allclose(traced, karras_grid(constant, 5, t_min=1e-3), rtol=1e-4)


def laws(name):
    """Each law with the distribution function of a statistic of t, and that statistic."""
    process, t_max = PROCESSES[name], last_time(name)

    def log_ratio(t):
        return -np.asarray(process.log_snr(jnp.asarray(t))) / 2

    low, high = log_ratio(np.array([0.01, t_max]))
    yield "stratified", stratified(0.1, 0.7), np.asarray, stats.uniform(0.1, 0.6)
    yield "log_normal", log_normal(process, -1.0, 0.9), log_ratio, stats.norm(-1.0, 0.9)
    yield "log_snr_uniform", log_snr_uniform(process, 0.01, t_max), log_ratio, stats.uniform(low, high - low)


@ALL
def test_independent_times_follow_their_law(name):
    n = 2000
    keys = jax.random.split(jax.random.key(11), n)
    for kind, law, statistic, expected in laws(name):
        t = jax.jit(law, static_argnums=1)(keys, n)
        assert t.shape == (n,)
        values = statistic(np.asarray(t))
        assert stats.kstest(values, expected.cdf).pvalue > 1e-3, kind
        neighbours = stats.norm.ppf(np.clip(expected.cdf(values), 1e-6, 1 - 1e-6))
        assert abs(np.mean(neighbours[1:] * neighbours[:-1])) < 4 / np.sqrt(n), kind


@ALL
def test_one_key_per_example_is_slice_invariant(name):
    keys = jax.random.split(jax.random.key(12), 8)
    for kind, law, _, _ in laws(name):
        jitted = jax.jit(law, static_argnums=1)
        np.testing.assert_array_equal(jitted(keys, 8)[3:6], jitted(keys[3:6], 3), err_msg=kind)


@ALL
def test_one_key_gives_one_point_per_stratum(name):
    n = 64
    for kind, law, statistic, expected in laws(name):
        t = jax.jit(law, static_argnums=1)(jax.random.key(13), n)
        place = expected.cdf(statistic(np.asarray(t))) * n
        if kind == "log_normal":  # independent draws
            continue
        strata = np.floor(place)
        np.testing.assert_array_equal(np.sort(strata), np.arange(n), err_msg=kind)
        assert (np.diff(strata) < 0).any(), kind  # in random order: the batch itself may be ordered
        assert stats.kstest(place - strata, "uniform").pvalue > 1e-3, kind


def test_levels_are_visited_evenly():
    """One key gives each of 8 levels 8 times of 64; keys of their own give multinomial counts."""
    ts, n = log_snr_grid(PROCESSES["ve"], 7, t_min=0.01, t_max=1.0), 4000
    law = jax.jit(levels(ts), static_argnums=1)
    found, counts = np.unique(law(jax.random.key(0), 64), return_counts=True)
    np.testing.assert_array_equal(found, ts[::-1])
    np.testing.assert_array_equal(counts, 8)
    keys = jax.random.split(jax.random.key(1), n)
    _, counts = np.unique(law(keys, n), return_counts=True)
    assert stats.chisquare(counts).pvalue > 1e-3
    np.testing.assert_array_equal(law(keys, n)[7:40], law(keys[7:40], 33))
    assert law(jax.random.PRNGKey(1), 4).dtype == np.float32


def test_another_key_gives_other_times():
    law = stratified(0.0)
    draws = np.stack([law(jax.random.key(seed), 16) for seed in range(200)])
    assert stats.kstest((draws[:, 0] * 16) % 1, "uniform").pvalue > 1e-3  # the offset
    assert stats.kstest(draws[:, 0], "uniform").pvalue > 1e-3  # each place in the batch sees every t


def test_laws_take_the_default_dtype_and_legacy_keys():
    for kind, law, _, _ in laws("vp"):
        np.testing.assert_array_equal(law(jax.random.PRNGKey(1), 4), law(jax.random.key(1), 4), err_msg=kind)
    with jax.enable_x64(True):
        for kind, law, _, _ in laws("vp"):
            assert law(jax.random.key(1), 4).dtype == jnp.float64, kind


CONSTRUCTORS = {
    processes.variance_preserving: [(0.0, 1.0), (-0.1, 1.0), (20.0, 0.1), (np.nan, 1.0), (0.1, np.nan)],
    processes.sub_variance_preserving: [(0.0, 1.0), (20.0, 0.1)],
    processes.variance_exploding: [(0.0, 1.0), (1.0, 1.0), (50.0, 0.01), (-1.0, 1.0), (0.01, np.nan)],
    processes.karras: [(0.0, 1.0), (80.0, 0.002), (0.002, 80.0, 0.0), (0.002, 80.0, -7.0)],
    processes.cosine: [(-0.008,), (np.nan,)],
    processes.from_betas: [(np.array(b),) for b in ([0.1, 1.0], [0.0, 0.1], [-0.1], [np.nan], [])],
}


@pytest.mark.parametrize(("make", "arguments"), [(make, a) for make, rows in CONSTRUCTORS.items() for a in rows])
def test_constructors_refuse(make, arguments):
    with pytest.raises(ValueError, match=r"^Expected .*, as .*; got .*\.$"):
        make(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n >= 1.*n=0"),
        ({"t_min": -0.1}, "t_min < t_max <= 1.*-0.1"),
        ({"t_min": 0.5, "t_max": 0.5}, "t_min < t_max"),
        ({"t_max": 1.5}, "t_max <= 1.*1.5"),
        ({"t_min": float("nan")}, "0 <= t_min.*nan"),
    ],
)
def test_grids_and_laws_refuse(change, message):
    arguments = {"n": 4, "t_min": 0.1, "t_max": 0.9} | change
    n, process = arguments.pop("n"), PROCESSES["vp"]
    makers = [lambda: uniform(n, **arguments), lambda: karras_grid(process, n, **arguments)]
    makers += [lambda: log_snr_grid(process, n, **arguments), lambda: quadratic(n, **arguments)]
    if n:
        makers += [lambda: stratified(**arguments), lambda: log_snr_uniform(process, **arguments)]
    for make in makers:
        with pytest.raises(ValueError, match=message):
            make()


@pytest.mark.parametrize(("n", "chain"), [(0, 10), (11, 10), (-1, 10)])
def test_trailing_refuses(n, chain):
    with pytest.raises(ValueError, match=rf"1 <= n <= chain.*{n=}, {chain=}"):
        trailing(n, chain=chain)


@pytest.mark.parametrize("ts", [np.zeros((0,), np.float32), np.array([0.5, 1.5]), np.array([np.nan]), np.ones((2, 2))])
def test_levels_refuse(ts, untyped):
    with pytest.raises(ValueError, match=r"Expected times \[levels\] in \[0, 1\].*got"):
        levels(ts)


def test_infinite_ends_are_refused():
    with pytest.raises(ValueError, match=r"sigma\(t\) > 0"):
        log_snr_grid(PROCESSES["vp"], 4, t_min=0.0, t_max=1.0)
    with pytest.raises(ValueError, match=r"sigma\(t\) > 0"):
        log_snr_uniform(PROCESSES["rectified"], 0.0, 0.9)
    for make in (
        lambda p: log_snr_grid(p, 4, t_min=0.1, t_max=1.0),
        lambda p: karras_grid(p, 4, t_min=0.1),
        lambda p: log_snr_uniform(p, 0.1, 1.0),
    ):
        with pytest.raises(ValueError, match=r"t = 1 - 1e-3"):
            make(PROCESSES["cosine"])
    with pytest.raises(ValueError, match="rho > 0"):
        karras_grid(PROCESSES["vp"], 4, t_min=0.1, rho=0.0)
    with pytest.raises(ValueError, match="std > 0"):
        log_normal(PROCESSES["vp"], -1.2, 0.0)


def test_stratified_times_stay_below_one():
    """The last stratum of a large batch rounds up to 1 in float32, where noise predictions hold no signal."""
    keys = jax.random.split(jax.random.key(0), 300)
    times = jax.jit(jax.vmap(lambda key: stratified(1e-3)(key, 8192)))(keys)
    assert float(times.max()) < 1
