"""`experiments.inverse_problems` runs, finishes, and measures what it says; its replacement is in singular vectors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_experiments import check_pictures, experiment

from experiments import _inverse_exact as exact
from experiments._inverse_methods import dense, operators_of, replacement


def test_smoke(tmp_path):
    directory = tmp_path / "inverse"
    first = experiment("experiments.inverse_problems", "--smoke", "--run-dir", str(directory))
    assert first.returncode == 0, first.stderr
    check_pictures(directory, {"inverse_problems.png"})
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert {(r["part"], r["operator"]) for r in rows} == {
        (part, operator) for part in ("exact", "images") for operator in ("mask", "grayscale")
    }
    assert all(np.isfinite(r["coverage"]) for r in rows)


def test_the_fast_denoiser_is_the_mixtures_and_scores_see_what_is_wrong():
    x = jax.random.normal(jax.random.key(0), (5, *exact.EVENT))
    t = jnp.linspace(0.01, 0.99, 5)
    slow = exact.MIXTURE.denoise(exact.PROCESS)(x.reshape(5, -1), t)
    np.testing.assert_allclose(exact.denoise(x, t).reshape(5, -1), slow, atol=1e-5)

    operator = operators_of(exact.EVENT, rows=3, box=0.5)["mask"]
    x_0, y = exact.measured(operator, 0.3, 40)
    posteriors = [exact.posterior(operator, one, 0.3) for one in y]
    rng = np.random.default_rng(0)
    draws = np.stack([one.draw(rng, 200) for one in posteriors])
    right, narrow = (
        exact.scores(d, x_0, posteriors) for d in (draws, 0.3 * draws + 0.7 * draws.mean(1, keepdims=True))
    )
    assert right["mean_error"] < 0.1
    assert abs(right["coverage"] - 0.9) < 4 * right["coverage_se"]
    assert narrow["coverage"] < 0.7
    assert narrow["covariance_error"] > 0.8


@pytest.mark.parametrize("name", ["mask", "blur", "downsample", "grayscale", "compressed"])
def test_replacement_by_singular_vectors_sets_what_is_measured(name):
    """In an operator's own coordinates the known part of x is that of x_0: A x = y where all of y is well measured."""
    operator, rng = operators_of(exact.EVENT, rows=3, box=0.5)[name], np.random.default_rng(0)
    x_0 = jnp.asarray(rng.standard_normal((2, *exact.EVENT)), jnp.float32)
    y = operator(x_0)
    kernel = replacement(operator, exact.EVENT, y, 1)
    forward, back = kernel.transform
    other = jnp.asarray(rng.standard_normal(x_0.shape), jnp.float32)
    np.testing.assert_allclose(back(forward(other)), other, atol=1e-5)
    inside = jnp.where(kernel.mask[None], kernel.y, forward(other))
    np.testing.assert_allclose(operator(back(inside)), y, atol=1e-4)
    assert int(kernel.mask.sum()) == np.linalg.matrix_rank(dense(operator, exact.EVENT))
