"""GANs of digits, single and stacked, run, finish and resume; their own formulas are right."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgm_jax.training import Players, init_adversarial_state, make_adversarial_step
from experiments import gan_digits, gan_stacked_digits
from tests.test_experiments import check_pictures, experiment


@pytest.fixture
def default_jax():
    """Experiments run in JAX's own settings."""
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield


# whole experiments ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_gan_digits_smoke_and_resumption(tmp_path):
    args = ("experiments.gan_digits", "--smoke", "--run-dir", str(tmp_path))
    first = experiment(*args)
    assert first.returncode == 0, first.stderr
    check_pictures(tmp_path, {"samples.png", "critic.png"})
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["real"]["sure"] > 0.5
    assert scores["drawn"]["energy_distance"] > scores["real"]["energy_distance_95"]  # it has learnt nothing yet
    assert "is done" in experiment(*args).stdout
    # as if it had been killed between the last checkpoint and the scores
    (tmp_path / "scores.json").unlink()
    resumed = experiment(*args)
    assert resumed.returncode == 0, resumed.stderr
    assert "Resumed at step" in resumed.stdout
    again = json.loads((tmp_path / "scores.json").read_text())
    for name, row in scores.items():
        assert again[name] == pytest.approx(row, rel=1e-4)


@pytest.fixture(scope="module")
def stacked(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs") / "stacked"
    return directory, experiment("experiments.gan_stacked_digits", "--smoke", "--run-dir", str(directory))


def test_gan_stacked_digits_smoke(stacked):
    directory, first = stacked
    assert first.returncode == 0, first.stderr
    check_pictures(directory, {"samples.png"})
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["method"] for row in rows] == list(gan_stacked_digits.SMOKE.methods)
    scores = json.loads((directory / "scores.json").read_text())
    # 1,000 draws of 1,000 equal modes meet 632 of them; the classifier errs now and then
    assert abs(scores["real"]["modes"] - 632) < 50
    assert scores["accuracy"] > 0.9


@pytest.mark.slow
def test_gan_stacked_digits_resumes(stacked):
    """As if it had been killed before the last cell: only that one is computed again."""
    directory, first = stacked
    assert first.returncode == 0, first.stderr
    kept = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    (directory / "metrics.jsonl").write_text(kept[0])
    (directory / "scores.json").unlink()
    resumed = experiment("experiments.gan_stacked_digits", "--smoke", "--run-dir", str(directory))
    assert resumed.returncode == 0, resumed.stderr
    assert "WGAN-GP" in resumed.stdout
    assert "PacGAN-2         seed" not in resumed.stdout
    assert (directory / "metrics.jsonl").read_text() == "".join(kept)


# single digits --------------------------------------------------------------------------------------------------


def test_great_circles_go_from_one_latent_to_another(default_jax):
    columns = gan_digits.COLUMNS
    rows = np.asarray(gan_digits.great_circles(gan_digits.SMOKE, jax.random.key(0))).reshape(-1, columns, 8)
    first, last = rows[:, :1], rows[:, -1:]
    angle = np.linspace(0, np.pi / 2, columns)[:, None]
    np.testing.assert_allclose(rows, np.cos(angle) * first + np.sin(angle) * last, atol=1e-5)
    # cos^2 + sin^2 = 1 keeps N(0, I): second moments over 8 ways of 8 numbers, chi-square of 64 degrees of freedom
    moments = (rows**2).mean((0, 2))
    assert (abs(moments - 1) < 4 * np.sqrt(2 / 64)).all()


def test_the_critic_scores_held_out_digits_as_it_scores_those_of_the_batch(default_jax):
    """Where the held-out digits are the batch's, both estimates agree, and the loss is -W + 10 penalty."""
    config = replace(gan_digits.SMOKE, generator_channels=(2, 2), critic_channels=(2, 2), latent=2)
    nets, digit = gan_digits.networks(config), np.arange(784, dtype=np.uint8).reshape(1, 28, 28, 1)
    params = Players(
        nets.discriminator.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1))),
        nets.generator.init(jax.random.key(1), jnp.zeros((1, 2))),
    )
    losses, keys = gan_digits.wgan_gp(config, digit), jax.random.split(jax.random.key(2), 4)
    batch = {"image": jnp.asarray(np.repeat(digit, 4, axis=0))}
    loss, metrics = losses.discriminator(params, batch, keys)
    np.testing.assert_allclose(metrics["wasserstein"], metrics["wasserstein_held_out"], atol=1e-6)
    np.testing.assert_allclose(loss, -metrics["wasserstein"] + 10 * metrics["penalty"], rtol=1e-5)


# stacked digits -------------------------------------------------------------------------------------------------


def test_halved_digits_are_means_of_four_pixels():
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28, 1), dtype=np.uint8)
    x = images[..., 0].astype(float)
    means = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    halved = gan_stacked_digits.halved(images)
    np.testing.assert_allclose(halved, 2 * means / 255 - 1, atol=1e-6)
    levels = gan_stacked_digits.Counter.levels(halved)
    assert levels.shape == images.shape
    np.testing.assert_allclose(levels[:, 1::2, ::2, 0], means, atol=1e-4)


def test_a_stack_holds_three_independent_digits(default_jax):
    digits = jnp.broadcast_to(jnp.arange(10.0)[:, None, None], (10, 14, 14))
    x = np.asarray(gan_stacked_digits.stacks(digits, jax.random.key(0), 4000))
    assert x.shape == (4000, 14, 14, 3)
    assert (x == x[:, :1, :1]).all()  # every channel is one digit
    labels = x[:, 0, 0]
    assert (abs(labels.mean(0) - 4.5) < 4 * np.sqrt(8.25 / 4000)).all()
    correlations = np.corrcoef(labels.T)[np.triu_indices(3, 1)]
    assert (abs(correlations) < 4 / np.sqrt(4000)).all()


def test_modes_are_triples_of_digits():
    """Channels of constant brightness, which a stand-in for the classifier reads as their digit."""
    count = object.__new__(gan_stacked_digits.Counter)

    def classify(images):
        assert images.shape[1:] == (28, 28, 1)
        return np.eye(10)[np.round(images[:, 0, 0, 0] / 25).astype(int)] * 0.97 + 0.003

    count.classify = classify
    triples = np.array([[0, 1, 2], [0, 1, 2], [2, 1, 0], [9, 9, 9]])
    images = np.broadcast_to((triples * 25 / 127.5 - 1)[:, None, None, :], (4, 14, 14, 3)).astype(np.float32)
    found = count(images)
    assert (found["modes"], found["sure"]) == (3, 1.0)
    expected = 0.5 * np.log(0.5 * 1000) + 2 * 0.25 * np.log(0.25 * 1000)
    assert found["reverse_kl"] == pytest.approx(expected)


@pytest.mark.parametrize("name", gan_stacked_digits.METHODS)
def test_every_method_moves_both_players_as_it_says(default_jax, name):
    config, method = gan_stacked_digits.SMOKE, gan_stacked_digits.METHODS[name]
    digits = jax.random.uniform(jax.random.key(0), (5, 14, 14), minval=-1.0)
    optimizers = method.optimizers(config.learning_rate)
    critic = gan_stacked_digits.DenseCritic(config.critic_widths)
    params = Players(
        critic.init(jax.random.key(1), jnp.zeros((1, 14, 14, 3 * method.degree))),
        gan_stacked_digits.generator_of(config).init(jax.random.key(2), jnp.zeros((1, config.latent))),
    )
    state = init_adversarial_state(params, optimizers, jax.random.key(3))
    game = gan_stacked_digits.game(config, method, digits)
    step = jax.jit(make_adversarial_step(game, optimizers, critic_steps=method.critic_steps, ema_decay=0.0))
    state, metrics = step(state, jnp.zeros(method.critic_steps))
    assert all(np.isfinite(value) for value in metrics.values())
    for before, after in zip(params, state.params, strict=True):
        assert any((a != b).any() for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True))
    if name == "WGAN-clip":
        assert max(float(abs(leaf).max()) for leaf in jax.tree.leaves(state.params.discriminator)) <= 0.01 + 1e-8
