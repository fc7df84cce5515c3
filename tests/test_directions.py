"""Directions of attributes against scikit-learn and the theory of Gaussian classes; edits of a chosen strength."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dgm_jax.latents import edit, logistic_direction, mean_direction

N = 3000
COVARIANCE = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.1], [0.0, 0.1, 0.5]])
BETWEEN = np.array([0.8, -0.3, 0.5])


def classes(dtype=np.float64):
    """Two Gaussians of one covariance, a third of the examples with the attribute."""
    rng = np.random.default_rng(0)
    labels = (np.arange(N) % 3 == 0).astype(np.int32)
    noise = rng.standard_normal((N, 3)) @ np.linalg.cholesky(COVARIANCE).T
    return (0.3 + labels[:, None] * BETWEEN + noise).astype(dtype), labels


def test_means_differ_by_the_direction():
    z, labels = classes()
    with jax.enable_x64(True):
        found = mean_direction(jnp.asarray(z), jnp.asarray(labels))
    np.testing.assert_allclose(found, z[labels == 1].mean(0) - z[labels == 0].mean(0), atol=1e-12)


def test_the_logistic_normal_is_scikit_learns():
    z, labels = classes()
    scaler = StandardScaler().fit(z)
    model = LogisticRegression(C=1 / 3.0, tol=1e-10, max_iter=1000).fit(scaler.transform(z), labels)
    normal = model.coef_[0] / scaler.scale_
    with jax.enable_x64(True):
        found = np.asarray(logistic_direction(jnp.asarray(z), jnp.asarray(labels == 1), penalty=3.0))
    np.testing.assert_allclose(found / np.linalg.norm(found), normal / np.linalg.norm(normal), atol=1e-6)


def test_of_gaussian_classes_it_is_fishers_and_the_means_are_not():
    z, labels = classes(np.float32)
    fisher = np.linalg.solve(COVARIANCE, BETWEEN)
    found = np.asarray(logistic_direction(jnp.asarray(z), jnp.asarray(labels), penalty=1e-3))
    cosine = found @ fisher / np.linalg.norm(found) / np.linalg.norm(fisher)
    means = BETWEEN @ fisher / np.linalg.norm(BETWEEN) / np.linalg.norm(fisher)
    assert cosine > 0.99 > 0.9 > means


@pytest.mark.parametrize("rule", ["mean", "logistic"])
def test_strength_one_carries_one_class_to_the_other(rule):
    z, labels = classes(np.float32)
    z = jnp.asarray(z).reshape(N, 3, 1)
    labels = jnp.asarray(labels)
    direction = mean_direction(z, labels) if rule == "mean" else logistic_direction(z, labels, penalty=1.0)
    assert direction.shape == (3, 1)
    moved = edit(z, direction, (labels == 0).astype(jnp.float32))
    along = jnp.sum(moved * direction[None], axis=(1, 2))
    assert abs(along[labels == 0].mean() - along[labels == 1].mean()) < 1e-4
    np.testing.assert_array_equal(edit(z, direction, 0.0), z)
    np.testing.assert_array_equal(moved[labels == 1], z[labels == 1])


Z = jnp.ones((4, 2))
BAD = {
    "whole numbers": (lambda: edit(jnp.ones((4, 2), int), jnp.ones(2), 1.5), "floating-point"),
    "latents that are all one": (lambda: logistic_direction(Z, jnp.arange(4) % 2, penalty=1.0), "that vary"),
    "a direction of another shape": (lambda: edit(Z, jnp.ones(3), 1.0), "direction of shape"),
    "strengths of another batch": (lambda: edit(Z, jnp.ones(2), jnp.ones(3)), "one strength"),
    "one class": (lambda: mean_direction(Z, jnp.zeros(4, int)), "both present"),
    "three classes": (lambda: mean_direction(Z, jnp.arange(4) % 3), "both present"),
    "labels of another batch": (lambda: logistic_direction(Z, jnp.arange(3) % 2, penalty=1.0), "labels 0 or 1"),
    "probabilities": (lambda: mean_direction(Z, jnp.linspace(0, 1, 4)), "labels 0 or 1"),
    "no penalty": (lambda: logistic_direction(Z, jnp.arange(4) % 2, penalty=0.0), "penalty > 0"),
    "NaN": (lambda: mean_direction(Z * jnp.nan, jnp.arange(4) % 2), "finite the latents"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, untyped):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
