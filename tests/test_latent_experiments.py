"""The experiments with latents and captions run, finish and say so; captions, places and scores are what they say."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dgm_jax.data import load, source
from experiments import latent_diffusion, text_to_digits
from experiments._captions import (
    CORNERS,
    DIGITS,
    LONGEST,
    NUMBERS,
    TEMPLATES,
    caption,
    caption_table,
    corners_seen,
    fit_reader,
    pairs,
    placed,
    read,
    squares,
    tokens_of,
)
from experiments._latent_models import flops_of
from tests.test_experiments import check_pictures


@pytest.fixture(autouse=True)
def default_jax():
    """Experiments run in JAX's own settings, and smoke runs change one for their process."""
    before = jax.config.read("jax_disable_most_optimizations")
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        yield
    jax.config.update("jax_disable_most_optimizations", before)


def smoke(module, directory, capsys, **settings):
    """The scores of a smoke run, which is not made again."""
    config = replace(module.SMOKE, run_dir=str(directory), **settings)
    module.main(config)
    assert f"Look at {directory}" in capsys.readouterr().out.splitlines()[-1]
    module.main(config)
    assert "is done" in capsys.readouterr().out
    check_pictures(directory, set(module.PICTURES))
    return json.loads((directory / "scores.json").read_text())


@pytest.mark.slow
def test_latent_diffusion_smoke(tmp_path, capsys):
    scores = smoke(latent_diffusion, tmp_path, capsys, features=str(tmp_path / "features"))
    assert len(scores) == 2 + 2 * len(latent_diffusion.SMOKE.scales)
    assert all(np.isfinite(list(row.values())).all() for row in scores.values())
    cost = json.loads((tmp_path / "config.json").read_text())["measured"]["flops"]
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = next(record for record in records if record["method"] == "steps")
    budget = steps["pixel diffusion"] * cost["pixel"]
    spent = steps["autoencoder"] * cost["autoencoder"] + steps["latent diffusion"] * cost["latent"]
    assert 0.8 * budget < spent <= budget  # the rest is the encoding of the digits


@pytest.mark.slow
def test_text_to_digits_smoke(tmp_path, capsys):
    scores = smoke(text_to_digits, tmp_path, capsys)
    assert len(scores) == 1 + 2 * len(text_to_digits.SMOKE.scales)
    assert scores["real -1"]["corner"][0] == 1.0
    assert scores["real -1"]["digit"][0] > 0.9


def test_operations_of_a_product_are_counted():
    count = flops_of(lambda a, b: a @ b, jnp.ones((3, 5)), jnp.ones((5, 7)))
    assert count == pytest.approx(2 * 3 * 5 * 7, rel=0.2)


def test_captions_are_told_apart_and_name_their_pair():
    table = caption_table()
    assert table.shape == (10, 4, len(TEMPLATES), LONGEST)
    assert len(np.unique(table.reshape(-1, LONGEST), axis=0)) == 10 * 4 * len(TEMPLATES)
    for digit, corner, wording in np.ndindex(table.shape[:3]):
        words = caption(digit, corner, wording).split()
        assert {DIGITS[digit], *CORNERS[corner]} <= set(words)
        assert table[digit, corner, wording].tolist()[: len(words)] == [NUMBERS[word] for word in words]
    assert 0 not in NUMBERS.values()
    assert tokens_of("three top left")[3:].tolist() == [0] * (LONGEST - 3)


def test_every_digit_and_every_corner_is_seen_but_not_every_pair():
    seen, unseen = pairs(seen=True), pairs(seen=False)
    assert sorted(seen + unseen) == [(d, c) for d in range(10) for c in range(4)]
    assert [d for d, _ in unseen] == list(range(10))
    assert {c for _, c in unseen} == set(range(4))
    assert {(d, c) for d in range(10) for c in corners_seen()[d]} == set(seen)


def test_digits_are_whole_in_their_corner_and_are_read_there():
    digits = load(source("digits", "test"))
    corners = np.arange(len(digits["label"])) % 4
    keys = jax.random.split(jax.random.key(0), len(corners))
    images = np.asarray(placed(jnp.asarray(digits["image"]), jnp.asarray(corners), keys))
    parts = squares(images)
    ink = np.asarray(digits["image"], np.float64).sum((1, 2, 3)) / 16
    np.testing.assert_allclose(parts.sum((2, 3))[np.arange(len(corners)), corners], ink, rtol=1e-5)
    np.testing.assert_allclose(parts.sum((1, 2, 3)), ink, rtol=1e-5)
    assert len({tuple(np.argwhere(image[..., 0] > 0.5).min(0) % 10) for image in images}) > 4  # not always at one place
    known = {field: values[:400] for field, values in load(source("digits", "train")).items()}
    corner, digit, elsewhere = read(fit_reader(known, copies=1), images)
    np.testing.assert_array_equal(corner, corners)
    assert np.abs(elsewhere).max() < 1e-5
    assert (digit == digits["label"].reshape(-1)).mean() > 0.75
