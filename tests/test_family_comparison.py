"""The comparison of families: parameters and compute are equal, its formulas are right, it runs and resumes."""

import csv
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from dgm_jax.parameterizations import precondition
from experiments import family_comparison
from experiments._families import model
from experiments._family_cells import Trainer
from experiments._family_data import DATA, GRID, to_levels
from experiments._family_networks import NETWORKS, PROCESSES, Networks, Sizes
from experiments._family_samplers import (
    SAMPLERS,
    Effort,
    annealed_log_density,
    autoencoder_log_density,
    sampled_log_density,
)
from experiments._family_table import REAL, into_page, summaries
from tests.test_experiments import check_pictures, experiment

SIZES = Sizes(parameters=3000, layers=2, latent=2, batch=16, gan_batch=8, critic_steps=2, samples=3)


@pytest.fixture
def default_jax():
    """Experiments run in JAX's own settings."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def nets():
    return Networks(SIZES, np.array([0.5, -1.0]), np.array([2.0, 0.7]))


# equal terms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["grid", "digits"])
def test_parameters_are_equal_within_two_percent(name):
    sizes = getattr(family_comparison.Config(), name)
    dim = {"grid": 2, "digits": 784}[name]
    nets = Networks(sizes, np.zeros(dim), np.ones(dim))
    counts = [model(network, nets).generating for network in NETWORKS]
    assert all(abs(count / sizes.parameters - 1) < 0.02 for count in counts), counts


@pytest.mark.parametrize("name", ["GAN, R1", "WGAN-GP", "IWAE", "rectified flow"])
def test_every_network_takes_a_step_that_moves_all_its_parameters(default_jax, nets, name):
    found = model(name, nets)
    state = found.init(jax.random.key(0), 10)
    assert sum(leaf.size for leaf in jax.tree.leaves(state.params)) == found.trained
    x = jax.random.normal(jax.random.key(1), (found.batch, 2))
    after, metrics = jax.jit(found.step)(state, x)
    assert all(np.isfinite(value) for value in metrics.values())
    same = [
        bool((a == b).all()) for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True)
    ]
    assert sum(same) <= (name == "WGAN-GP"), same  # the critic's last bias cancels in Wasserstein's loss


def test_flops_are_those_of_matrix_products(default_jax, nets):
    """Forward, and backward in weights and inputs: 6 times weights times examples, but for the first layer's inputs."""
    data = DATA["grid"](16)
    trainer = Trainer("VP", nets, data, 1e9)
    assert trainer.flops == pytest.approx(6 * trainer.model.generating * SIZES.batch, rel=0.2)
    assert trainer.steps == round(1e9 / trainer.flops)


# formulas -------------------------------------------------------------------------------------------------------


def test_denoiser_of_no_network_is_that_of_independent_gaussians(default_jax, nets):
    """With F = 0 the estimate is the posterior mean of N(m, s^2), by the product of two normal densities."""
    process, params = PROCESSES["rectified flow"], jax.tree.map(jnp.zeros_like, nets.init_denoiser(jax.random.key(0)))
    t, x_t = jnp.array([0.02, 0.5, 0.9]), jax.random.normal(jax.random.key(1), (3, 2))
    found = nets.denoiser(params, process)(x_t, t)
    alpha, sigma = np.asarray(process.alpha(t))[:, None], np.asarray(process.sigma(t))[:, None]
    mean, std = np.array([0.5, -1.0]), np.minimum([2.0, 0.7], SIZES.residual)
    precision = 1 / std**2 + alpha**2 / sigma**2
    np.testing.assert_allclose(found, (mean / std**2 + alpha * x_t / sigma**2) / precision, rtol=1e-5, atol=1e-5)


def test_denoiser_is_preconditioning(default_jax):
    """About mean 0 and with one std, it is the library's, but for the network's inputs."""
    nets = Networks(SIZES, np.zeros(2), np.full(2, 0.7))
    params, process = nets.init_denoiser(jax.random.key(0)), PROCESSES["VP"]
    t, x_t = jnp.array([0.02, 0.5, 1.0]), jax.random.normal(jax.random.key(1), (3, 2))
    output = nets.field.apply(params["generator"], x_t, t)
    expected = precondition(lambda *_: output, process, sigma_data=0.7)(x_t, t)
    np.testing.assert_allclose(nets.denoiser(params, process)(x_t, t), expected, rtol=1e-5, atol=1e-6)


def test_log_densities_of_a_constant_generator_are_its_gaussian(default_jax, nets):
    """Weights of 0 leave the mean at 0, whatever the latent, so that every estimate is exact but for rounding."""
    effort = Effort(samples=4, latents=100, chains=2, temperatures=4, leapfrog_steps=1, pilots=1)
    x, std = jax.random.normal(jax.random.key(1), (3, 2)), 0.6
    expected = scipy.stats.norm.logpdf(x, scale=std).sum(1)
    zeros = jax.tree.map(jnp.zeros_like, nets.init_autoencoder(jax.random.key(0)))
    log_std = jnp.log(jnp.float32(std))
    annealed = jax.jit(partial(annealed_log_density, nets, effort))
    found = annealed(zeros["generator"], x, jax.random.key(2), log_std)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    sampled = jax.jit(partial(sampled_log_density, nets, effort))
    np.testing.assert_allclose(sampled(zeros["generator"], x, jax.random.key(2), log_std), expected, rtol=1e-4)
    params = {**zeros, "log_std": log_std}
    # an encoder of weights 0 gives the prior
    found = jax.jit(partial(autoencoder_log_density, nets, effort))(params, x, jax.random.key(3))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_levels_are_the_inverse_of_dequantisation():
    levels = np.arange(256)
    for noise in (0.0, 0.5, 0.99):
        np.testing.assert_array_equal(to_levels((levels + noise)[None] * (2 / 256) - 1), levels[None])
    np.testing.assert_array_equal(to_levels(np.array([[-3.0, 1.0, 3.0]])), [[0, 255, 255]])


def test_data_are_in_their_own_units(default_jax):
    grid = DATA["grid"](400)
    nats = GRID.log_prob(grid.held_out(400))
    np.testing.assert_allclose(grid.loss(nats), -nats)
    x = grid.batch(jax.random.key(0), 4000)
    np.testing.assert_allclose(np.asarray(x).std(0), grid.std, rtol=4 / np.sqrt(2 * 4000))
    digits = DATA["digits"](20)
    x = digits.batch(jax.random.key(0), 2000)
    assert digits.reference.shape == (20, 28, 28, 1)
    np.testing.assert_array_equal(digits.finish(digits.held_out(20)), digits.reference)
    assert float(jnp.abs(x.mean(0) - digits.mean).max()) < 5 * float(np.max(digits.std)) / np.sqrt(2000)
    assert not (digits.real(50, 0)[:, None] == digits.real(50, 1)[None]).all((2, 3, 4)).any()


def test_summaries_are_over_seeds():
    rows = [{"sampler": "VP, ODE", "loss": loss, "scores": {"mmd_p": p}} for loss, p in ((1.0, 0.2), (3.0, 0.4))]
    found = summaries([*rows, {"sampler": REAL, "scores": {"mmd_p": 0.5}}])
    assert list(found) == ["VP, ODE", REAL]
    assert found["VP, ODE"]["loss"] == pytest.approx((2.0, 2.0**0.5, 1.0, 3.0))
    assert found[REAL]["mmd_p"] == pytest.approx((0.5, 0.0, 0.5, 0.5))


def test_a_table_goes_between_its_marks(tmp_path):
    page, other = tmp_path / "page.md", "<!-- table of b -->\n<!-- end of b -->\nlast"
    page.write_text(f"first\n<!-- table of a -->\nold\n<!-- end of a -->\nmiddle\n{other}")
    for _ in range(2):
        into_page(page, "a", "| new |\n")
        expected = "first\n<!-- table of a -->\n\n| new |\n\n<!-- end of a -->\nmiddle\n"
        assert page.read_text() == expected + other
    with pytest.raises(ValueError, match="goes between them"):
        into_page(page, "c", "| new |\n")


# the run --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "families"
    return directory, partial(experiment, "experiments.family_comparison", "--smoke", "--run-dir", str(directory))


def test_smoke_on_the_grid(run):
    directory, call = run
    first = call("--data", "grid")
    assert first.returncode == 0, first.stderr
    check_pictures(directory, {"families.png", "families_samples.png"})
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    names = [name for network in family_comparison.SMOKE.networks for name in SAMPLERS[network]]
    assert sorted((r["sampler"], r["seed"]) for r in map(json.loads, lines)) == sorted(
        (name, seed) for name in [*names, REAL] for seed in (0, 1)
    )
    rows = list(csv.DictReader((directory / "families_grid.csv").read_text().splitlines()))
    assert len(rows) == len(lines)
    flops = [float(row["flops"]) for row in rows if row["sampler"] != REAL]
    assert max(flops) / min(flops) < 1.1


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_was(run):
    directory, call = run
    assert call("--data", "grid").returncode == 0
    lines = (directory / "metrics.jsonl").read_text().splitlines()
    # killed before its last two cells were scored: they are drawn again, from the networks that were kept
    (directory / "metrics.jsonl").write_text("\n".join(lines[:-2]) + "\n")
    again = call("--data", "grid")
    assert again.returncode == 0, again.stderr
    assert f"{len(lines) - 2} of {len(lines)} cells are there" in again.stdout
    after = (directory / "metrics.jsonl").read_text().splitlines()
    for before, now in zip(map(json.loads, lines), map(json.loads, after), strict=True):
        assert now["scores"] == pytest.approx(before["scores"], rel=1e-4, nan_ok=True)
        assert now.get("train_seconds") == before.get("train_seconds")


@pytest.mark.slow
def test_smoke_on_digits(run):
    directory, call = run
    found = call()
    assert found.returncode == 0, found.stderr
    table = (directory / "families_digits.md").read_text()
    assert all(name in table for name in ("C2ST", "Frechet", "classes of 10", "NLL, bits/dim"))
