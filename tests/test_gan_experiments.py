"""The GAN experiments on points in the plane run, finish and resume; their scores are right on cases done by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from dgm_jax.data import isotropic, ring
from dgm_jax.losses import non_saturating
from experiments import gan_learning_rates, gan_mode_collapse
from experiments._plane_gans import Game, Trainer, both, losses_of
from tests.test_experiments import check_pictures, experiment
from tests.test_paper_experiments import default_jax, smoke  # noqa: F401

# whole experiments ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collapse(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "gan_mode_collapse"
    return directory, smoke("gan_mode_collapse", directory)


def test_mode_collapse_smoke(collapse):
    directory, rows = collapse
    check_pictures(directory, {"gan_mode_collapse.png"})
    names = {"PacGAN-2", gan_mode_collapse.EXACT}
    assert {(row["data"], row["method"]) for row in rows} == {
        (data, name) for data in ("ring", "grid") for name in names
    }
    exact = {row["data"]: row["scores"] for row in rows if row["method"] == gan_mode_collapse.EXACT}
    for data, modes in (("ring", 8), ("grid", 25)):
        for score in exact[data]:
            assert modes - 5 <= score["modes"] <= modes  # 100 points: a mode of 25 is missed with probability 0.017
            # within 3 standard deviations lies 1 - exp(-9/2) of a Gaussian in the plane
            share = -np.expm1(-4.5)
            assert abs(score["high_quality"] - share) <= 4 * np.sqrt(share * (1 - share) / 100)


@pytest.mark.slow
def test_mode_collapse_resumes(collapse):
    """As if it had been killed before the last cell."""
    directory, rows = collapse
    (directory / "scores.json").unlink()
    (directory / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    again = smoke("gan_mode_collapse", directory)
    assert again == rows
    done = experiment("experiments.gan_mode_collapse", "--smoke", "--run-dir", str(directory))
    assert "is done" in done.stdout


def test_an_unknown_method_is_named():
    with pytest.raises(SystemExit, match=r"Expected methods among .*got \['GAN'\]"):
        gan_mode_collapse.chosen(gan_mode_collapse.Config(methods=("GAN",)))


@pytest.mark.slow
def test_learning_rates_smoke(tmp_path):
    rows = smoke("gan_learning_rates", tmp_path)
    check_pictures(tmp_path, {"gan_learning_rates.png"})
    assert [row["loss"] for row in rows] == ["non-saturating", "non-saturating, R1", "WGAN-GP"]
    assert all(np.shape(row[score]) == (2, 2, 1) for row in rows for score in ("modes", "high_quality"))


# training -------------------------------------------------------------------------------------------------------


def test_lanes_are_runs_of_their_own(default_jax):  # noqa: F811
    """A lane with its seed and its rate trains as it would alone, and its rate matters."""

    def game(rate):
        return Game(losses_of(non_saturating, degree=2), both(optax.sgd(rate)), degree=2)

    trainer = Trainer(game, ring(8), batch=8)
    keys, rates = jax.random.split(jax.random.key(0), 2), jnp.array([0.1, 0.3])
    together = trainer.advance(trainer.init(keys, rates), keys, 3, rates)
    for lane in range(2):
        own = slice(lane, lane + 1)
        alone = trainer.advance(trainer.init(keys[own], rates[own]), keys[own], 3, rates[own])
        jax.tree.map(
            lambda x, y, own=own: np.testing.assert_allclose(x[own], y, rtol=1e-4, atol=1e-5),
            jax.tree.map(np.asarray, together.params),
            jax.tree.map(np.asarray, alone.params),
        )
    assert int(together.step[0]) == 3
    same = trainer.advance(trainer.init(keys[:1], rates[1:]), keys[:1], 3, rates[1:])
    kernel = same.params.generator["params"]["out"]["kernel"][0]
    assert np.abs(kernel - together.params.generator["params"]["out"]["kernel"][0]).max() > 1e-3


def test_rates_are_laid_out_discriminator_first():
    config = gan_learning_rates.Config(rates=(0.1, 0.2), seeds=2)
    discriminator, generator, seeds = gan_learning_rates.lanes(config)
    np.testing.assert_allclose(discriminator, [0.1] * 4 + [0.2] * 4)
    np.testing.assert_allclose(generator, [0.1, 0.1, 0.2, 0.2] * 2)
    np.testing.assert_array_equal(seeds, [0, 1] * 4)


# scores ---------------------------------------------------------------------------------------------------------

CENTERS = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])


def test_the_support_of_data_is_known():
    """Two points of one mode differ by N(0, 2 std^2): closer than std with chance 1 - exp(-1/4)."""
    modes, std, n = 8, 0.02, 2500
    x = np.asarray(ring(modes, std=std).sample(jax.random.key(0), n))
    found = gan_mode_collapse.scores(x, ring(modes, std=std), std)
    chance = -np.expm1(-0.25) / modes
    # a point's own chance varies with its place in the mode: at most 1 - exp(-1/2) at the centre, which bounds the
    # variance of its mean over n points; the counts of the modes are multinomial
    spread = np.sqrt(4 * (chance * -np.expm1(-0.5) / modes) / n + 2 * chance / n**2)
    assert abs(1 / found["support"] - chance) <= 4 * spread
    assert found["modes"] == modes
    assert found["reverse_kl"] <= (modes - 1 + 4 * np.sqrt(2 * (modes - 1))) / (2 * n)  # chi^2/(2n)


def test_a_collapsed_generator_scores_as_one():
    data = isotropic(np.full(3, 1 / 3), CENTERS, 0.1)
    x = np.random.default_rng(2).normal(CENTERS[1], 0.01, (200, 2)).astype(np.float32)
    found = gan_mode_collapse.scores(x, data, 0.1)
    assert (found["modes"], found["high_quality"]) == (1, 1.0)
    assert found["reverse_kl"] == pytest.approx(np.log(3), rel=1e-6)
    assert found["support"] == 1.0  # all within a tenth of the radius of each other
