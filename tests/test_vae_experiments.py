"""The experiments with autoencoders run, finish and say so; their own formulas agree with independent ones."""

import json
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from experiments import autoencoder, iwae_table1, vae_conflict, vae_digits
from experiments._vae import Reference, Sets, binarize, dense, digits, draw_bits
from experiments.benchmarks.variational import flops
from tests.test_experiments import check_pictures


@pytest.fixture(autouse=True)
def default_jax():
    """Experiments run in JAX's own settings, and smoke runs change one for their process."""
    before = jax.config.read("jax_disable_most_optimizations")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
    jax.config.update("jax_disable_most_optimizations", before)


def smoke(module, directory, capsys):
    """The scores and the records of a smoke run, which is not made again."""
    config = replace(module.SMOKE, run_dir=str(directory))
    module.main(config)
    assert f"Look at {directory}" in capsys.readouterr().out.splitlines()[-1]
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    module.main(config)
    assert "is done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in directory.iterdir()} == before
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return json.loads((directory / "scores.json").read_text()), records


# whole experiments ----------------------------------------------------------------------------------------------

NOTHING_LEARNT = 784 * np.log(2)  # nats that a coin for each pixel costs


def test_vae_digits_smoke(tmp_path, capsys):
    scores, records = smoke(vae_digits, tmp_path, capsys)
    check_pictures(tmp_path, set(vae_digits.PICTURES))
    assert {str(record["latent"]) for record in records} == set(scores)
    for record in records:
        bounds = [row["test"] for row in record["curve"]]
        assert -NOTHING_LEARNT < bounds[0] < bounds[-1] < 0
        assert [row["seen"] for row in record["curve"]] == [100, 200, 400]


@pytest.mark.slow
def test_iwae_table1_smoke(tmp_path, capsys):
    scores, records = smoke(iwae_table1, tmp_path, capsys)
    check_pictures(tmp_path, {"iwae_table1.png"})
    assert [(record["objective"], record["k"]) for record in records] == [
        ("VAE", 1),
        ("VAE", 3),
        ("IWAE", 3),
        ("DReG", 3),
    ]
    assert all(0 < row["nll"] < NOTHING_LEARNT and 0 <= row["active"] <= 4 for row in scores.values())
    assert "VAE = IWAE, k = 1" in (tmp_path / "table.md").read_text()


def test_vae_conflict_smoke_resumes(tmp_path, capsys):
    scores, records = smoke(vae_conflict, tmp_path, capsys)
    check_pictures(tmp_path, set(vae_conflict.PICTURES))
    assert {(record["latents"], record["beta"]) for record in records} == {(2, 0.5), (2, 4.0), (3, 0.5), (3, 4.0)}
    for record in records:  # an information of an index into 100 digits
        assert (
            -4 * record["aggregate_kl_error"] < record["information"] < np.log(100) + 4 * record["aggregate_kl_error"]
        )
    # as if it had been killed before the last model was scored
    (tmp_path / "scores.json").unlink()
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records[:-1]))
    again, _ = smoke(vae_conflict, tmp_path, capsys)
    assert again == scores


@pytest.mark.slow
def test_autoencoder_smoke(tmp_path, capsys):
    scores, records = smoke(autoencoder, tmp_path, capsys)
    check_pictures(tmp_path, {"autoencoder.png"})
    assert [record["model"] for record in records] == list(scores) == list(autoencoder.MODELS)
    assert all(0 < row["distortion"] < NOTHING_LEARNT for row in scores.values())
    assert 1 <= scores["VQ-VAE"]["perplexity"] <= scores["VQ-VAE"]["used"] <= 8


# their own formulas ---------------------------------------------------------------------------------------------


def test_pixels_are_drawn_with_their_grey_levels():
    grey, n = jnp.array([0.0, 0.2, 0.7, 1.0]), 4000
    share = np.asarray(binarize(jax.random.key(0), jnp.broadcast_to(grey, (n, 4)))).mean(0)
    assert np.all(np.abs(share - grey) <= 4 * np.sqrt(grey * (1 - grey) / n))
    logits = jnp.broadcast_to(jnp.array([-1.0, 2.0]), (n, 2))
    share, expected = np.asarray(draw_bits(jax.random.key(1), logits)).mean(0), scipy.special.expit([-1.0, 2.0])
    assert np.all(np.abs(share - expected) <= 4 * np.sqrt(expected * (1 - expected) / n))


def test_watched_epochs_are_even_in_their_logarithm():
    watched = sorted(vae_digits.observed_epochs(vae_digits.Config(epochs=200, observed=16)))
    assert (watched[0], watched[-1]) == (1, 200)
    np.testing.assert_allclose(np.diff(np.log(watched[-6:])), np.log(200) / 15, rtol=0.05)


def test_the_manifold_lies_on_quantiles():
    """A decoder of one pixel shows either latent; its quantiles are the middles of equal parts."""
    for latent in (0, 1):
        model = dense((2,), 2)._replace(decoder=Shown(latent))
        z = scipy.special.logit(vae_digits.manifold({"decoder": None}, model, 4)).reshape(4, 4)
        places = scipy.stats.norm.cdf(z[0] if latent == 0 else z[::-1, 0])
        np.testing.assert_allclose(places, [0.125, 0.375, 0.625, 0.875], rtol=1e-5)


class Shown:
    """A decoder whose logit is one of the latents."""

    def __init__(self, latent):
        self.latent = latent

    def apply(self, params, z):
        return z[:, self.latent].reshape(-1, 1, 1, 1)


def test_aggregate_kl_is_that_of_quadrature():
    """Three posteriors on a line; the digit's index has at most log 3 nats of information."""
    mean, log_std = np.array([-1.5, 0.2, 2.0]), np.array([-0.5, -1.0, -0.2])

    def encode(x):
        return jnp.asarray(mean, jnp.float32)[:, None], jnp.asarray(log_std, jnp.float32)[:, None]

    def q(z):
        return scipy.stats.norm.pdf(z, mean, np.exp(log_std))

    prior = scipy.stats.norm.logpdf
    kl = scipy.integrate.quad(lambda z: q(z).mean() * (np.log(q(z).mean()) - prior(z)), -9, 9, limit=200)[0]
    rates = [
        scipy.integrate.quad(lambda z, i=i: q(z)[i] * (np.log(q(z)[i]) - prior(z)), -9, 9, limit=200)[0]
        for i in range(3)
    ]
    x = jnp.zeros((3, 1))
    excess, found = vae_conflict.aggregate_kl(encode, x, jax.random.key(0), draws=4000)
    assert abs(excess.mean() - kl) < 4 * excess.std() / np.sqrt(len(excess))
    np.testing.assert_allclose(found, np.mean(rates), rtol=1e-5)
    assert 0 < np.mean(rates) - kl < np.log(3)


def test_objectives_agree_where_they_should():
    """With the same draws DReG has IWAE's value; a VAE's mean of bounds is below it, and equals it for one draw."""
    model, x = dense((8,), 3), (jax.random.uniform(jax.random.key(0), (6, 28, 28, 1)) > 0.5).astype(float)
    params, key = model.init(jax.random.key(1)), jax.random.key(2)

    def mean_of(objective, draws):
        values = (
            jax.jit(objective, static_argnums=(0, 4))(model, params, jnp.tile(x, (100, 1, 1, 1)), key, draws)
            .reshape(100, 6)
            .mean(1)
        )
        return float(values.mean()), float(values.std() / np.sqrt(len(values)))

    iwae, dreg = (objective(model, params, x, key, 4) for objective in (iwae_table1.iwae, iwae_table1.dreg))
    np.testing.assert_allclose(iwae, dreg, rtol=1e-5)
    (tight, _), (loose, loose_error) = mean_of(iwae_table1.iwae, 4), mean_of(iwae_table1.vae, 4)
    assert loose < tight
    single, single_error = mean_of(iwae_table1.iwae, 1)
    assert abs(single - loose) < 4 * np.hypot(single_error, loose_error)


def test_the_table_pairs_digits():
    rng = np.random.default_rng(0)
    base = rng.normal(-100, 10, 50)
    gain = rng.normal(2, 0.5, 50)
    common = {
        "active": 3,
        "effective_sample_size": 9.0,
        "sampling_error": 0.1,
        "validation": [[2, -101.0], [4, -102.0]],
    }
    records = [
        {"objective": "VAE", "k": 1, "log_likelihood": list(base), **common},
        {"objective": "IWAE", "k": 5, "log_likelihood": list(base + gain), **common},
    ]
    text, scores = iwae_table1.table(records)
    row = scores["IWAE, k = 5"]
    assert row["nll"] == pytest.approx(-(base + gain).mean())
    assert row["error"] == pytest.approx(scipy.stats.sem(base + gain))
    assert row["gain"] == pytest.approx(-gain.mean())
    assert row["gain_error"] == pytest.approx(scipy.stats.sem(gain))
    assert text.splitlines()[-1].endswith("| 3 | 9 | 2 |")


def test_laws_are_fitted_to_the_codes():
    config = replace(autoencoder.SMOKE, drawn=2000)
    known = digits("train[:100]")
    data = Sets(known, jnp.tile(known.binary()[:100], (20, 1, 1, 1)), Reference(known.binary()))
    params = autoencoder.network(config, "autoencoder").init(jax.random.key(0))
    z = autoencoder.latents(config, "autoencoder", params, data, jax.random.key(1))
    codes = np.asarray(autoencoder.network(config, "autoencoder").encode(params, known.binary())[0], np.float64)
    expected, found = np.cov(codes, rowvar=False), np.asarray(z["fitted law"], np.float64)
    std = np.sqrt(np.diag(expected))
    assert np.all(np.abs(found.mean(0) - codes.mean(0)) < 4 * std / np.sqrt(2000))
    # the error of a covariance of normal draws
    error = np.sqrt((expected**2 + np.outer(std, std) ** 2) / 2000)
    assert np.all(np.abs(np.cov(found, rowvar=False) - expected) < 4 * error)

    params = autoencoder.network(config, "VQ-VAE").init(jax.random.key(0))
    params["codes"] = jax.random.normal(jax.random.key(2), (config.codes, config.dim))
    z = autoencoder.latents(config, "VQ-VAE", params, data, jax.random.key(1))

    def shares(kind):
        vectors = np.asarray(z[kind]).reshape(2000, config.positions, 1, config.dim)
        same = (vectors == np.asarray(params["codes"])).all(-1)
        assert (same.sum(-1) == 1).all()  # nothing but codes
        return same.mean(0)

    p = shares("reconstruction")  # of the 100 digits, 20 times each
    assert np.all(np.abs(shares("fitted law") - p) <= 4 * np.sqrt(p * (1 - p) / 2000))
    assert np.all(np.abs(shares("simple law") - 1 / 8) <= 4 * np.sqrt(7 / 64 / 2000))


def test_counted_products_are_those_of_the_compiled_step():
    """XLA counts all operations; what is not a product is below 5 % at these sizes."""
    for model, objective, draws in (
        (dense((500,), 20), iwae_table1.vae, 1),
        (dense((200, 200), 50), iwae_table1.vae, 3),
    ):
        params = jax.eval_shape(model.init, jax.random.key(0))
        x = jax.ShapeDtypeStruct((8, 28, 28, 1), jnp.float32)
        key = jax.eval_shape(jax.random.key, 0)
        loss = partial(_mean_loss, model, objective, draws)
        counted = jax.jit(jax.grad(loss)).lower(params, x, key).compile().cost_analysis()["flops"]
        assert 1 <= counted / (8 * flops(model, draws=draws)) < 1.05


def _mean_loss(model, objective, draws, params, x, key):
    return -objective(model, params, x, key, draws).mean()
