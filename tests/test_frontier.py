"""The frontier's distances against SciPy and closed forms, its exact denoiser, front, resumption, and whole run."""

import csv
import json
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats

from dgm_jax.metrics import wasserstein
from experiments import _distances, sampler_frontier
from experiments._frontier_exact import Diffused, exact_mode, mixture_64d
from experiments._frontier_page import best_at, pareto_front
from experiments._frontier_samplers import GRIDS, SAMPLERS, VP, Sampler
from tests import oracles
from tests.test_experiments import check_pictures, experiment

RNG = np.random.default_rng(0)


@pytest.fixture
def default_jax():
    """Experiments run in JAX's own settings."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def in_float64():
    with jax.enable_x64(True):
        yield


# distances ------------------------------------------------------------------------------------------------------


def test_sliced_distance_along_an_axis_is_the_one_dimensional_one(in_float64):
    """Pairing by rank is optimal for every convex cost: compared with the best of all pairings."""
    x, y = RNG.normal(size=(2, 60, 3))
    costs = (x[:, None, 1] - y[None, :, 1]) ** 2
    best = costs[scipy.optimize.linear_sum_assignment(costs)].mean()
    found = _distances.sliced_wasserstein_2(x, y, np.array([[0.0, 1.0, 0.0]]))
    assert found == pytest.approx(np.sqrt(best), rel=1e-12)
    # a translation moves every point as far, so that Wasserstein-1 and -2 agree
    moved = _distances.sliced_wasserstein_2(x, x + np.array([0.0, 0.7, 0.0]), np.array([[0.0, 1.0, 0.0]]))
    assert moved == pytest.approx(scipy.stats.wasserstein_distance(x[:, 1], x[:, 1] + 0.7), rel=1e-12)


@pytest.mark.parametrize("dim", [2, 5, 64])
def test_directions_are_even(dim):
    """Unit vectors whose second moments are those of the uniform law on the sphere, I/dim."""
    directions = _distances.fixed_directions(dim, 2 * dim)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(directions.T @ directions / len(directions), np.eye(dim) / dim, atol=1e-12)


def test_wasserstein_2_of_a_translation_is_its_length(in_float64):
    """And of a permutation 0; sliced, the length over sqrt(dim)."""
    x, by = RNG.normal(size=(200, 2)), np.array([0.3, -0.4])
    y = RNG.permutation(x + by)
    assert wasserstein(x, y) == pytest.approx(0.5, rel=1e-12)
    sliced = _distances.sliced_wasserstein_2(x, y, _distances.fixed_directions(2, 16))
    assert sliced == pytest.approx(0.5 / np.sqrt(2), rel=1e-12)


def test_wasserstein_2_of_a_dilation(in_float64):
    """x -> a x for a > 0 is the gradient of a convex function, so it is the best pairing."""
    x = RNG.normal(size=(150, 2))
    expected = 0.5 * np.sqrt((x**2).sum(1).mean())
    assert wasserstein(x, 1.5 * x) == pytest.approx(expected, rel=1e-12)


def test_sliced_distance_of_gaussians(in_float64):
    """N(m, s^2 I) and N(0, I) are (m . u)^2 + (s - 1)^2 apart along u, on average |m|^2/dim + (s - 1)^2."""
    n, dim, std, mean = 20_000, 8, 1.5, np.linspace(-1, 1, 8)
    rng = np.random.default_rng(1)
    x, y = mean + std * rng.normal(size=(n, dim)), rng.normal(size=(n, dim))
    expected = np.sqrt((mean**2).sum() / dim + (std - 1) ** 2)
    found = _distances.sliced_wasserstein_2(x, y, _distances.fixed_directions(dim, 64))
    # delta method: along each direction mean and std are known to std/sqrt(n), from either set, and the squared
    # distance between sets of one law, log(n)/n at most, comes on top
    error = 4 * np.sqrt((std**2 + 1) / n) + np.log(n) / n / expected
    assert abs(found - expected) < error


def test_energy_distance_of_two_points_each():
    x, y = np.array([[0.0], [1.0]]), np.array([[3.0], [5.0]])
    assert _distances.energy_distance(x, y) == pytest.approx(2 * (3 + 5 + 2 + 4) / 4 - 2 * 1 / 4 - 2 * 2 / 4)
    assert _distances.energy_distance(x, x) == 0.0


# exact data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [1e-3, 0.2, 0.9])
def test_the_denoiser_is_the_oracles(default_jax, t):
    mixture = mixture_64d()
    oracle = oracles.Mixture(mixture.weights, mixture.means, mixture.covariances)
    with jax.enable_x64(True):
        x = jnp.asarray(RNG.normal(size=(5, 64)))
        times = jnp.full(5, t)
        expected = oracle.denoise(VP)(x, times)
        np.testing.assert_allclose(Diffused(mixture).denoiser(VP)(x, times), expected, atol=1e-9)


def test_shares_of_exact_points_are_the_weights(default_jax):
    mode = exact_mode("mixture_2d", points=4_000, sets=1, assigned=0, directions=4)
    points = mode._exact(0, 0)
    shares, weights = np.asarray(mode.data.shares(jnp.asarray(points))), mode.data.mixture.weights
    assert np.all(np.abs(shares.mean(0) - weights) < 4 * np.sqrt(weights * (1 - weights) / len(points)))


def test_an_exact_solve_is_at_the_floor(default_jax):
    """100 steps of Heun from the noise: within the largest of 20 distances between exact sets, twice."""
    mode = exact_mode("mixture_2d", points=1_000, sets=1, assigned=0, directions=16)
    heun = next(sampler for sampler in SAMPLERS if sampler.name == "ODE, Heun in time")
    sets, evaluations, succeeded = mode.draw(heun, "quadratic", 25)
    assert (evaluations, succeeded) == (50, True)
    floor = mode.floor(20)[mode.measure]
    assert mode.errors(sets[0], 0)[mode.measure] < 2 * floor["high"]


# table and front ------------------------------------------------------------------------------------------------


def test_pareto_front():
    points = [(10, 2.0), (5, 3.0), (5, 4.0), (20, 2.0), (20, 2.5), (50, 0.5), (100, 0.6)]
    assert pareto_front(points) == [(5, 3.0), (10, 2.0), (50, 0.5)]
    assert pareto_front([]) == []


def test_best_within_a_budget_has_not_failed():
    records = [
        {"evaluations": 5, "error": 1.0, "succeeded": True},
        {"evaluations": 10, "error": None, "succeeded": False},
        {"evaluations": 11, "error": 0.5, "succeeded": True},
    ]
    assert best_at(records, 10)["error"] == 1.0
    assert best_at(records, 11)["error"] == 0.5


def test_steps_fit_in_the_budget():
    for sampler in SAMPLERS:
        for budget in (5, 10, 20, 50, 100):
            steps = sampler.steps(budget)
            if steps is not None:
                taken = sampler.first + sampler.each * steps
                assert taken <= budget < taken + sampler.each, sampler.name
    assert Sampler("three a step", lambda: None, each=3).steps(2) is None
    for name, (_, grid_of) in GRIDS.items():
        assert len(grid_of(5)) == (2 if name == "adaptive" else 6)


# the run --------------------------------------------------------------------------------------------------------


@dataclass
class FakeMode:
    """Two samplers on two grids; the error is the number of steps over 10."""

    drawn: list = field(default_factory=list)
    title: str = "fake"
    samplers: tuple = (Sampler("DDIM", lambda: None), Sampler("EDM Heun", lambda: None, each=2))
    grids: tuple = ("uniform", "Karras")
    budgets: tuple = (5, 10)
    measure: str = "distance"

    def floor(self, repeats):
        return {"distance": {"mean": 0.1, "high": 0.2}}

    def draw(self, sampler, grid, size):
        self.drawn.append((sampler.name, grid, size))
        return [np.full(3, size)], sampler.each * size, size != 10

    def errors(self, x, i):
        return {"distance": float(x[0]) / 10}


def test_a_killed_run_goes_on_where_it_was(monkeypatch, tmp_path, capsys):
    fake = FakeMode()
    monkeypatch.setattr(sampler_frontier, "mode_of", lambda name, config: fake)
    config = replace(sampler_frontier.Config(), modes=("mixture_2d",), run_dir=str(tmp_path / "run"))
    sampler_frontier.main(config)
    assert len(fake.drawn) == 2 * 2 * 2
    path = tmp_path / "run" / "metrics.jsonl"
    lines = path.read_text().splitlines()
    # killed within its third line
    path.write_text("\n".join([*lines[:2], lines[2][:10]]))
    before, fake.drawn = list(fake.drawn), []
    sampler_frontier.main(config)
    assert fake.drawn == before[2:]
    fake.drawn = []
    sampler_frontier.main(config)
    assert fake.drawn == []
    rows = list(csv.DictReader((tmp_path / "run" / "frontier.csv").read_text().splitlines()))
    assert len(rows) == 8
    # DDIM of 10 steps "failed"; of 5 steps it has 5 floors, as has Heun's 2 steps 2
    assert {row["error / floor"] for row in rows} == {"2", "5", "failed"}
    page = (tmp_path / "run" / "frontier.md").read_text()
    assert "| DDIM | uniform | 5.00 | failed |" in page
    assert "| EDM Heun | Karras | **2.00** | 5.00 |" in page


@pytest.mark.slow
def test_smoke(tmp_path):
    first = experiment("experiments.sampler_frontier", "--smoke", "--run-dir", str(tmp_path / "run"))
    assert first.returncode == 0, first.stderr
    check_pictures(tmp_path / "run", {"frontier.png"})
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {record["sampler"] for record in records} == {sampler.name for sampler in SAMPLERS}
    assert all(record["succeeded"] for record in records)
