"""The experiments run, finish, resume and refuse as they say; their own formulas agree with independent ones."""

import json
import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from experiments import _digits, ncsn_toy, sde_trajectories
from experiments._budget import warmup_cosine
from experiments._figures import figure, save, tiled
from experiments._run import open_run, parse, progress, read_config, virtual_devices
from tests import oracles

ROOT = Path(__file__).parents[1]
# Whatever reaches for the network fails at once, and says what it reached for.
WITHOUT_NETWORK = """
import runpy, socket, sys
def refuse(*address, **_):
    raise AssertionError(f"reached for the network: {address}")
socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def experiment(module: str, *args: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_NETWORK, module, *args], cwd=ROOT, capture_output=True, text=True, timeout=600
    )


def check_pictures(directory: Path, names: set[str]) -> None:
    found = {path.name: path.stat().st_size for path in directory.glob("*.png")}
    assert set(found) == names
    assert all(1_000 < size < 200_000 for size in found.values()), found


# whole experiments ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "trajectories"
    return directory, experiment("experiments.sde_trajectories", "--smoke", "--run-dir", str(directory))


def test_trajectories_smoke(trajectories):
    directory, first = trajectories
    assert first.returncode == 0, first.stderr
    check_pictures(directory, {"trajectories.png"})
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert {(row["process"], row["points"]) for row in rows} == {
        (process, points) for process in ("VP", "sub-VP", "VE") for points in ("SDE", "ODE", "exact draws")
    }
    # 100 points and 50 steps: within 4 standard errors and a bias of 0.1
    assert all(abs(row["weight"] - 0.7) < 4 * row["standard_error"] + 0.1 for row in rows), rows


def test_trajectories_run_again(trajectories):
    directory, _ = trajectories
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    again = experiment("experiments.sde_trajectories", "--smoke", "--run-dir", str(directory))
    assert again.returncode == 0
    assert "is done" in again.stdout
    changed = experiment("experiments.sde_trajectories", "--smoke", "--run-dir", str(directory), "--points", "7")
    assert changed.returncode != 0
    assert "points: 100 in the run, 7 now" in changed.stderr
    assert "--fresh" in changed.stderr
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "quickstart"
    return directory, experiment("experiments.quickstart", "--smoke", "--run-dir", str(directory))


@pytest.mark.slow
def test_quickstart_smoke(quickstart):
    directory, first = quickstart
    assert first.returncode == 0, first.stderr
    check_pictures(directory, {"digits.png", "path.png", "loss.png"})
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    steps = json.loads((directory / "config.json").read_text())["measured"]["steps"]
    assert records[-1]["step"] == steps
    assert all(math.isfinite(record["loss"]) for record in records)
    scores = json.loads((directory / "scores.json").read_text())
    assert scores["real"]["sure"] > 0.5
    # an untrained network codes no better than the uniform law's 8 bits, and no worse by a bit
    assert 7 < scores["bits_per_dim"] < 9
    assert f"Look at {directory}" in first.stdout.splitlines()[-1]


@pytest.mark.slow
def test_quickstart_resumes_and_refuses(quickstart):
    directory, _ = quickstart
    done = experiment("experiments.quickstart", "--smoke", "--run-dir", str(directory))
    assert done.returncode == 0
    assert "is done" in done.stdout
    changed = experiment("experiments.quickstart", "--smoke", "--run-dir", str(directory), "--batch", "8")
    assert changed.returncode != 0
    assert "batch: 16 in the run, 8 now" in changed.stderr
    # as if it had been killed between the last checkpoint and the scores
    scores = json.loads((directory / "scores.json").read_text())
    (directory / "scores.json").unlink()
    resumed = experiment("experiments.quickstart", "--smoke", "--run-dir", str(directory))
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed at step" in resumed.stdout
    again = json.loads((directory / "scores.json").read_text())
    for name, row in scores.items():
        assert again[name] == pytest.approx(row, rel=1e-4)


@pytest.mark.slow
def test_quickstart_loads_in_three_lines(quickstart):
    from dgm_jax.training import load_params
    from experiments.quickstart import PROCESS, Config, load_denoiser, network

    directory, _ = quickstart
    labels, t = jnp.arange(4), jnp.array([0.1, 0.4, 0.7, 1.0])
    x_t = jax.random.normal(jax.random.key(0), (4, 28, 28, 1))
    estimate = load_denoiser(directory)(labels)(x_t, t)
    v = network(read_config(directory, Config)).apply(load_params(directory / "checkpoints"), x_t, t, labels)
    alpha, sigma = (scale(t)[:, None, None, None] for scale in (PROCESS.alpha, PROCESS.sigma))
    # Salimans and Ho 2022, arXiv:2202.00512, appendix D: the estimate is alpha x_t - sigma v
    np.testing.assert_allclose(estimate, alpha * x_t - sigma * v, atol=1e-4)
    assert float(jnp.abs(v).max()) > 0


@pytest.fixture(scope="module")
def ncsn(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "ncsn_toy"
    return directory, experiment("experiments.ncsn_toy", "--smoke", "--run-dir", str(directory))


def test_ncsn_toy_smoke(ncsn):
    directory, first = ncsn
    assert first.returncode == 0, first.stderr
    check_pictures(directory, {"ncsn_toy.png"})
    scores = json.loads((directory / "scores.json").read_text())
    assert scores["score_error"]["inside"] < scores["score_error"]["outside"]
    found = scores["fraction"]
    error = 4 * np.sqrt(0.8 * 0.2 / 400)
    assert abs(found["exact draws"] - 0.8) < error
    assert abs(found["Langevin"] - 0.5) < 4 * 0.5 / np.sqrt(400)
    assert found["annealed Langevin"] > found["Langevin"] + error  # ten steps a level are too few for more


def test_ncsn_toy_runs_again(ncsn):
    directory, _ = ncsn
    again = experiment("experiments.ncsn_toy", "--smoke", "--run-dir", str(directory))
    assert again.returncode == 0
    assert "is done" in again.stdout
    changed = experiment("experiments.ncsn_toy", "--smoke", "--run-dir", str(directory), "--epsilon", "0.2")
    assert changed.returncode != 0
    assert "epsilon: 0.1 in the run, 0.2 now" in changed.stderr


# runs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Settings:
    rate: float = 0.5
    widths: tuple[int, ...] = (1, 2)
    run_dir: str = "runs/none"
    fresh: bool = False
    smoke: bool = False


def test_parse_puts_arguments_on_top_of_the_smoke_settings():
    smoke = Settings(rate=0.1, smoke=True)
    assert parse(Settings(), smoke, args=[]) == Settings()
    assert parse(Settings(), smoke, args=["--smoke"]) == smoke
    assert parse(Settings(), smoke, args=["--smoke", "--widths", "3", "4"]) == replace(smoke, widths=(3, 4))


def test_a_run_is_continued_refused_or_moved_aside(tmp_path):
    settings = Settings(run_dir=str(tmp_path / "run"))
    run = open_run(settings)
    run.log(step=1, loss=2.0)
    assert open_run(settings).records() == [{"step": 1, "loss": 2.0}]
    with pytest.raises(SystemExit, match=r"(?s)rate: 0.5 in the run, 0.7 now.*--run-dir.*--fresh"):
        open_run(replace(settings, rate=0.7))
    assert read_config(tmp_path / "run", Settings) == settings
    anew = open_run(replace(settings, rate=0.7, fresh=True))
    assert anew.records() == []
    assert (tmp_path / "run.1" / "metrics.jsonl").exists()
    open_run(replace(settings, fresh=True))
    assert (tmp_path / "run.2" / "config.json").exists()


def test_an_unreadable_run_is_not_written_over(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(SystemExit, match=r"config\.json"):
        open_run(Settings(run_dir=str(tmp_path)))
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SystemExit, match="is a file"):
        open_run(Settings(run_dir=str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "kept"
    assert (tmp_path / "config.json").read_text() == "{"


def test_what_was_measured_stays(tmp_path):
    run = open_run(Settings(run_dir=str(tmp_path / "run")))
    assert run.measured("steps", lambda: 7) == 7
    assert open_run(Settings(run_dir=str(tmp_path / "run"))).measured("steps", lambda: 8) == 7


def test_records_survive_a_kill_in_the_midst_of_a_line(tmp_path):
    run = open_run(Settings(run_dir=str(tmp_path / "run")))
    for step in (1, 2, 3):
        run.log(step=step, loss=1.0 / step)
    with (run.directory / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    assert [record["step"] for record in run.records()] == [1, 2, 3]
    open_run(Settings(run_dir=str(tmp_path / "run"))).log(step=5, loss=0.2)
    assert [record["step"] for record in run.records()] == [1, 2, 3, 5]
    run.forget_after(2)
    run.log(step=3, loss=0.3)
    assert [record["loss"] for record in run.records()] == [1.0, 0.5, 0.3]


def test_progress_prints_plain_lines_outside_a_terminal(capsys):
    with progress(4, every=0.0) as report:
        for step in range(1, 5):
            report(step, 0.25)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "step 1/4: loss 0.2500"
    assert lines[-1].startswith("step 4/4: ")
    assert "steps/s, 0:00 left, loss 0.2500" in lines[-1]


def test_the_users_number_of_devices_is_kept():
    virtual_devices()
    assert jax.config.jax_num_cpu_devices == 8


# schedule, scores, figures --------------------------------------------------------------------------------------


def test_warmup_cosine_is_optax_schedule():
    steps, peak = 40, 0.3
    expected = optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps=2, decay_steps=steps)
    rule = warmup_cosine(steps, peak=peak)
    with jax.numpy_dtype_promotion("standard"):
        state = rule.init({"w": jnp.ones(())})
        for made in range(steps):
            updates, state = rule.update({"w": jnp.ones(())}, state)
            np.testing.assert_allclose(-updates["w"], expected(made + 1), atol=1e-7)


def test_energy_distance_of_two_normals():
    """E|N(m, 2)| is a folded normal's mean, and E|X - X'| = 2/sqrt(pi)."""
    shift, n, repeats = 0.5, 400, 30
    rng = np.random.default_rng(0)

    def images(mean):
        return 255 * rng.normal(mean, 1.0, (n, 1, 1, 1))

    across = scipy.stats.foldnorm.mean(shift / np.sqrt(2), scale=np.sqrt(2))
    for mean, exact in ((0.0, 0.0), (shift, 2 * across - 4 / np.sqrt(np.pi))):
        found = [_digits.energy_distance(images(0.0), images(mean)) for _ in range(repeats)]
        assert abs(np.mean(found) - exact) < 4 * np.std(found) / np.sqrt(repeats)


def test_the_classifier_is_sure_of_nothing_far_from_all_data():
    rng = np.random.default_rng(0)
    labels = np.arange(400) % 4
    centers = rng.integers(0, 255, (4, 4, 4, 1))
    images = np.clip(centers[labels] + rng.normal(0, 8, (400, 4, 4, 1)), 0, 255)
    classify = _digits.fit_classifier(images[:300], labels[:300])
    assert _digits.certainty(classify(images[300:]), labels[300:])["sure_and_right"] > 0.9
    far = _digits.certainty(classify(images[300:] + 10_000), labels[300:])
    assert far["sure"] == 0.0


def test_certainty_counts():
    probabilities = np.array([[0.99, 0.01], [0.97, 0.03], [0.6, 0.4], [0.04, 0.96]])
    found = _digits.certainty(probabilities, np.array([0, 1, 0, 1]))
    assert (found["sure"], found["sure_and_right"]) == (0.75, 0.5)
    assert found["standard_error"] == pytest.approx(0.25)


def test_tiles_lie_row_by_row():
    images = np.arange(7)[:, None, None, None] * np.ones((1, 2, 3, 1))
    np.testing.assert_array_equal(tiled(images, 3)[::2, ::3], [[0, 1, 2], [3, 4, 5]])


def test_a_picture_of_noise_is_small(tmp_path):
    fig = figure(9.0, 3.0)
    fig.subplots().imshow(np.random.default_rng(0).normal(size=(280, 840)), cmap="gray")
    save(fig, tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size < 200_000


# the exact answers of the trajectories --------------------------------------------------------------------------

MIXTURE = oracles.Mixture(
    sde_trajectories.WEIGHTS, sde_trajectories.MEANS[:, None], (sde_trajectories.STDS**2)[:, None, None]
)


@pytest.fixture
def default_jax():
    """Experiments run in JAX's own settings."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.mark.parametrize("name", ["VP", "sub-VP", "VE"])
def test_density_and_denoiser_are_exact(default_jax, name):
    process = sde_trajectories.PROCESSES[name]
    x, t = jnp.array([[-1.2], [0.1], [0.4], [2.0]]), jnp.array([0.05, 0.3, 0.6, 0.9])
    found = sde_trajectories.log_density(process, x[:, 0], t)
    np.testing.assert_allclose(found, MIXTURE.log_prob(process, x, t), rtol=2e-5, atol=1e-5)
    score = sde_trajectories.exact_score(process, x, t)
    denoised = (x + process.variance(t)[:, None] * score) / process.alpha(t)[:, None]
    # float32 cancels in x + sigma^2 score where sigma is large
    np.testing.assert_allclose(denoised, MIXTURE.denoise(process)(x, t), atol=1e-4)


def test_wasserstein_and_weight_of_exact_points(default_jax):
    points = MIXTURE.sample(np.random.default_rng(0), 4000, np.float64)[:, 0]
    reference = MIXTURE.sample(np.random.default_rng(1), 400_000, np.float64)[:, 0]
    shifted = points + 0.3
    expected = scipy.stats.wasserstein_distance(shifted, reference)
    # the reference has an error of its own, of about the std over the root of its size
    assert abs(sde_trajectories.wasserstein_1(shifted) - expected) < 4 * reference.std() / np.sqrt(len(reference))
    weight, error = sde_trajectories.weight_of_right_mode(points)
    assert abs(weight - 0.7) < 4 * error


# the exact answers of NCSN's mixture ----------------------------------------------------------------------------


def test_two_points_under_ve_are_ncsns_mixture(default_jax):
    """At its last level the process holds the mixture itself, and the denoiser's score is the mixture's."""
    process, t = ncsn_toy.PROCESS, jnp.zeros(4)
    points = oracles.Mixture(np.array([0.2, 0.8]), np.array([[-5.0, -5.0], [5.0, 5.0]]), np.zeros((2, 2, 2)))
    x = jnp.array([[5.5, 4.0], [-3.0, -6.0], [0.3, -0.1], [1.0, 7.0]])
    np.testing.assert_allclose(points.log_prob(process, x, t), ncsn_toy.DATA.log_prob(x), rtol=1e-5)
    np.testing.assert_allclose(ncsn_toy.denoise(x, t) - x, ncsn_toy.DATA.score(x), rtol=1e-4, atol=1e-5)
    t = jnp.array([0.1, 0.4, 0.8, 1.0])
    np.testing.assert_allclose(ncsn_toy.denoise(x, t), points.denoise(process)(x, t), rtol=1e-4, atol=1e-5)


def test_the_dense_region_holds_its_share_of_the_data(default_jax):
    """Counted on points of the mixture: 99 % of those in the square."""
    x = ncsn_toy.lattice(321)
    inside = ncsn_toy.dense_region(x)
    drawn = np.asarray(ncsn_toy.DATA.sample(jax.random.key(0), 20_000))
    cell = 2 * ncsn_toy.LIMIT / 320
    place = np.round((drawn + ncsn_toy.LIMIT) / cell).astype(int)
    on = ((place >= 0) & (place <= 320)).all(1)
    held = np.zeros(len(drawn), bool)
    held[on] = inside.reshape(321, 321)[place[on, 1], place[on, 0]]
    beyond = 1 - scipy.stats.norm.cdf(ncsn_toy.LIMIT - 5) ** 2  # the mass outside the square
    # stated bias: the density on the two circles, 0.01/(4 pi), times their length, 37, times half a cell
    bias = 0.01 / (4 * np.pi) * 37 * cell / 2
    assert abs(held.mean() - 0.99 * (1 - beyond)) < 4 * np.sqrt(0.01 * 0.99 / len(drawn)) + bias
