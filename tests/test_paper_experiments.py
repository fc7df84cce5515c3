"""The experiments that repeat a paper's figure or table run, finish and resume; their own formulas are right."""

import csv
import json
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgm_jax.data import unequal_mixture
from dgm_jax.parameterizations.posterior import posterior_of
from dgm_jax.samplers import Samples, solve_sde
from experiments import _comparison, _digits, _network, ddpm_figures, ddpm_table2, score_sde_table1
from experiments.quickstart import PROCESS
from tests import oracles
from tests.test_experiments import check_pictures, experiment


@pytest.fixture
def default_jax():
    """Experiments run in JAX's own settings."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


def smoke(name: str, directory: Path, *args: str) -> list[dict]:
    """The records of a run that succeeds, and that is not made again."""
    first = experiment(f"experiments.{name}", "--smoke", "--run-dir", str(directory), *args)
    assert first.returncode == 0, first.stderr
    assert (directory / "scores.json").exists()
    path = directory / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


# whole experiments ----------------------------------------------------------------------------------------------


def test_ddpm_figures_smoke(tmp_path):
    smoke("ddpm_figures", tmp_path)
    check_pictures(tmp_path, {"rate_distortion.png", "progressive.png"})
    with (tmp_path / "rate_distortion.csv").open() as file:
        rows = list(csv.reader(file))[1:]
    rate, distortion = np.array(rows, float)[:, 1:].T
    assert (np.diff(rate) > 0).all()
    # the stand-in is the exact denoiser of pixels N(0, 1/4): from noise it knows nothing, at the end it knows x_0
    assert distortion[0] > 100
    assert distortion[-1] < 20
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["lossless code (bits/dim)"][0] > rate[-1]


@pytest.fixture(scope="module")
def ddim_table(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "ddim_table1"
    return directory, smoke("ddim_table1", directory)


def test_ddim_table1_smoke(ddim_table):
    directory, rows = ddim_table
    check_pictures(directory, {"ddim_table1.png"})
    etas = {"0 (DDIM)", "0.2", "0.5", "1 (DDPM)", "beta (DDPM)"}
    assert {(row["data"], row["eta"]) for row in rows} == {(d, eta) for d in ("mixture", "digits") for eta in etas}
    assert all(row["evaluations"] == row["steps"] for row in rows)


@pytest.mark.slow
def test_ddim_table1_resumes(ddim_table):
    """As if it had been killed before the last cell."""
    directory, rows = ddim_table
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    assert smoke("ddim_table1", directory) == rows


def test_score_sde_table1_smoke(tmp_path):
    rows = smoke("score_sde_table1", tmp_path)
    check_pictures(tmp_path, {"score_sde_table1.png"})
    # C has no predictor; C and PC cost two evaluations for each of 3 levels
    assert {(row["predictor"], row["column"]) for row in rows} == {
        ("correctors alone", "C"),
        ("probability flow", "PC"),
    }
    assert {row["evaluations"] for row in rows} == {6}


@pytest.mark.slow
def test_tolerance_smoke(tmp_path):
    rows = smoke("tolerance", tmp_path)
    check_pictures(tmp_path, {"tolerance.png"})
    for data in ("mixture", "digits"):
        heun = [row for row in rows if (row["data"], row["method"]) == (data, "Heun in noise")]
        assert [row["size"] for row in heun] == [0.1, 0.03, 0.01]
        assert np.diff([row["evaluations"] for row in heun]).min() > 0
        assert heun[-1]["error"] < heun[0]["error"] / 2


@pytest.mark.slow
def test_ddpm_table2_smoke(tmp_path):
    rows = smoke("ddpm_table2", tmp_path)
    check_pictures(tmp_path, {"table2.png"})
    trained, drawn = rows
    assert (trained["kind"], drawn["kind"]) == ("training", "beta")
    # a network that has learnt nothing codes worse than the uniform law of 17 levels
    assert drawn["bits"] > np.log2(17)


def test_a_missing_network_is_named_at_once(no_network, tmp_path):
    with pytest.raises(SystemExit, match="make demo"):
        _network.denoisers(str(tmp_path / "none"))


# their own formulas ---------------------------------------------------------------------------------------------

MIXTURE = oracles.Mixture(
    np.array([0.3, 0.7]),
    np.array([[-1.0, 0.5], [1.5, 0.0]]),
    np.array([[[0.2, 0.1], [0.1, 0.3]], [[0.1, 0.0], [0.0, 0.4]]]),
)


@pytest.mark.parametrize("name", ["ve", "from_betas", "sub_vp"])
def test_a_network_seen_through_another_process_is_that_process_s_denoiser(default_jax, name):
    process = oracles.PROCESSES[name]
    x, t = jnp.array([[0.3, -0.2], [1.0, 0.4], [-2.0, 3.0]]), jnp.array([0.2, 0.5, 0.8])
    x = x * jnp.maximum(process.sigma(t), 1.0)[:, None]
    through = _network.seen_through(MIXTURE.denoise(PROCESS), PROCESS, process)
    # float32: sigma/alpha there and back loses a few digits, which a state of size sigma carries to the estimate
    np.testing.assert_allclose(through(x, t), MIXTURE.denoise(process)(x, t), atol=1e-3)


def test_the_stand_in_is_exact_for_normal_pixels(default_jax):
    gaussian = oracles.Mixture(np.ones(1), np.zeros((1, 1)), np.full((1, 1, 1), 0.25))
    x, t = jnp.array([[0.3], [-1.2], [2.0]]), jnp.array([0.05, 0.4, 0.9])
    found = _network.denoisers(_network.STAND_IN)(jnp.zeros(3, int))(x, t)
    np.testing.assert_allclose(found, gaussian.denoise(PROCESS)(x, t), atol=1e-5)


def test_predicting_mu_is_the_posteriors_mean(default_jax):
    """The estimate solved from Ho et al.'s mu (eq. 7) of betas and their products is the x_0 that went in."""
    betas = 10 * np.linspace(1e-4, 0.02, ddpm_table2.STEPS)
    kept = np.cumprod(1 - betas)
    rng = np.random.default_rng(0)
    x_0, x_t = rng.normal(size=(2, 4, 8, 8, 1))
    for i in (1, 2, 40, 100):
        before = kept[i - 2] if i > 1 else 1.0
        of_data = np.sqrt(before) * betas[i - 1] / (1 - kept[i - 1])
        of_state = np.sqrt(1 - betas[i - 1]) * (1 - before) / (1 - kept[i - 1])
        mu = jnp.asarray(of_data * x_0 + of_state * x_t, jnp.float32)

        class Net:
            apply = staticmethod(lambda params, x_t, t, labels, mu=mu: mu)

        denoise = ddpm_table2.denoiser(Net, "mu", None, jnp.zeros(4, int))
        found = denoise(jnp.asarray(x_t, jnp.float32), jnp.full(4, i / ddpm_table2.STEPS))
        # float32 of mu and of of_state, 6e-8 each and the module's 2e-6, over of_data
        np.testing.assert_allclose(found, x_0, atol=4 * (3e-6 / of_data + 1e-6))


def test_the_probability_flows_step_is_the_papers(default_jax):
    """Song et al. 2021, appendix D.3, in sigma for VE and in beta for VP."""
    ts = np.array([0.6, 0.5], np.float32)
    x = jnp.array([[0.3, -0.2], [1.0, 0.4]])
    for name in ("ve", "vp"):
        process = oracles.PROCESSES[name]
        denoise = MIXTURE.denoise(process)
        alpha, variance = (np.asarray(part(jnp.asarray(ts)), np.float64) for part in (process.alpha, process.variance))
        score = (alpha[0] * np.asarray(denoise(x, jnp.full(2, ts[0]))) - np.asarray(x)) / variance[0]
        beta = 1 - (alpha[0] / alpha[1]) ** 2
        expected = (
            np.asarray(x) + (variance[0] - variance[1]) / 2 * score
            if name == "ve"
            else (2 - np.sqrt(1 - beta)) * np.asarray(x) + beta / 2 * score
        )
        found = solve_sde(denoise, process, x, jax.random.key(0), ts=ts, solver=score_sde_table1.ProbabilityFlow()).x
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-5)


def test_distortion_is_the_error_behind_the_rate(default_jax):
    """The weight that turns a term into a squared error is half the difference of signal-to-noise ratios."""
    chain = ddpm_figures.chain_of(1000)
    alphas = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    snr = alphas / (1 - alphas)
    kernel = posterior_of(chain, jnp.arange(2, 1001) / 1000, jnp.arange(1, 1000) / 1000)
    weight = np.asarray(kernel.of_data**2 / (2 * kernel.posterior))
    # the module's 2e-6 over the share c = 1 - SNR(t)/SNR(s)
    share = 1 - snr[1:] / snr[:-1]
    np.testing.assert_allclose(weight, (snr[:-1] - snr[1:]) / 2, rtol=4 * 4e-6 / share.min())


def test_digit_scores_are_those_of_digits(default_jax):
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 10
    centres = rng.integers(0, 255, (10, 4, 4, 1))
    images = np.clip(centres[labels] + rng.normal(0, 20, (200, 4, 4, 1)), 0, 255)
    known, held_out = ({"image": images[i : i + 100], "label": labels[i : i + 100]} for i in (0, 100))
    scores = _comparison.DigitScores(known, held_out)
    drawn = np.clip(centres[labels[:40]] + rng.normal(10, 30, (40, 4, 4, 1)), 0, 255)
    found = scores(drawn, labels[:40])
    assert found["energy"] == pytest.approx(_digits.energy_distance(drawn, held_out["image"]), abs=1e-9)
    assert scores.floor(40, repeats=3)["energy_95"] < found["energy"]


def test_mixture_scores_of_exact_points_are_at_the_floor(default_jax):
    """Points of another law are further than exact ones, and a sampler that draws exact points is not."""

    def exact(denoise, process, key, shape, *, shift=0.0):
        return Samples(
            unequal_mixture().sample(key, shape[0]) + shift, None, jnp.zeros((), int), diffrax.RESULTS.successful
        )

    scores = _comparison.MixtureScores(500, 4, directions=16)
    found, floor = scores.of(PROCESS, exact)(), scores.floor()
    assert abs(found["distance"] - floor["distance"]) < 4 * np.hypot(found["error"], floor["error"])
    moved = scores.of(PROCESS, exact)(shift=jnp.asarray(1.0))
    # moved by (1, 1), each direction u sees u_1 + u_2, whose mean square is 1
    assert abs(moved["distance"] - 1.0) < 4 * moved["error"] + floor["distance"]


def test_markdown_is_a_table():
    assert _comparison.markdown(["a", "b"], [[1, "x"]]) == "| a | b |\n| --- | --- |\n| 1 | x |\n"
    assert _comparison.plus_minus(1.23456, 0.1, 2) == "1.23 +- 0.10"
