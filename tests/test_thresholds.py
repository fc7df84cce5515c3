"""Thresholds of estimates: Imagen's rule by NumPy, data ranges, projections of another library."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from oracles import MIXTURE, PROCESSES

from dgm_jax.parameterizations import (
    classifier_free,
    dynamic_threshold,
    limited_interval,
    projected,
    static_threshold,
)
from dgm_jax.processes import log_snr_grid
from dgm_jax.samplers import sample_ode

RNG = np.random.default_rng(0)
ESTIMATES = jnp.asarray(
    RNG.standard_normal((5, 4, 3)) * np.array([0.1, 0.5, 1.0, 3.0, 9.0])[:, None, None], jnp.float32
)
TIMES = jnp.full(5, 0.3)


def said(x_t, t):
    return x_t


@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.9, 1.0])
def test_dynamic_threshold_is_imagens(quantile):
    """Each example's own quantile; where that is within the bound, it is the static threshold."""
    found = dynamic_threshold(said, quantile=quantile, bound=1.0)(ESTIMATES, TIMES)
    for estimate, one in zip(np.asarray(ESTIMATES), found, strict=True):
        s = np.quantile(np.abs(estimate), quantile)
        expected = np.clip(estimate, -s, s) / s if s > 1 else np.clip(estimate, -1, 1)
        np.testing.assert_allclose(one, expected, rtol=1e-5)
    assert jnp.abs(found).max() <= 1


def test_static_threshold_leaves_what_is_within():
    found = static_threshold(said, low=-0.5, high=2.0)(ESTIMATES, TIMES)
    np.testing.assert_array_equal(found, np.clip(np.asarray(ESTIMATES), -0.5, 2.0))


@pytest.mark.parametrize("bound", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("data", [jnp.float32, jnp.float64])
def test_bounds_leave_the_precision_of_the_data(data, bound):
    with jax.enable_x64(True):
        x, t = ESTIMATES.astype(data), TIMES.astype(data)
        low, high = jnp.asarray(0.1, bound), jnp.asarray(0.5, bound)
        assert static_threshold(said, low=low, high=high)(x, t).dtype == data
        assert dynamic_threshold(said, quantile=high, bound=high)(x, t).dtype == data
        assert limited_interval(said, said, PROCESSES["vp"], low=low, high=high)(x, t).dtype == data


def test_projections_of_optax_on_each_example():
    """Categorical data: every estimate on the simplex."""
    simplex = jax.vmap(optax.projections.projection_simplex)
    with jax.numpy_dtype_promotion("standard"):  # optax divides by integers
        found = projected(said, simplex)(ESTIMATES[:, :, 0], TIMES)
        np.testing.assert_allclose(projected(said, simplex)(found, TIMES), found, atol=1e-6)
    np.testing.assert_allclose(found.sum(1), np.ones(5), rtol=1e-5)
    assert (found >= 0).all()


@pytest.mark.parametrize("coordinates", ["time", "data"])
def test_what_strong_guidance_draws_stays_in_range(coordinates):
    """Without a threshold most of it does not."""
    process = PROCESSES["vp"]

    def other(x_t, t):
        return -MIXTURE.denoise(process)(-x_t, t)

    guided = classifier_free(MIXTURE.denoise(process), other, 6.0)
    ts = log_snr_grid(process, 12, t_min=1e-3, t_max=1.0)

    def draw(denoise):
        return sample_ode(denoise, process, jax.random.key(0), (200, 2), ts=ts, coordinates=coordinates).x

    assert (jnp.abs(draw(guided)).max(1) > 2.1).mean() > 0.5
    for rule in (static_threshold(guided, low=-2.0, high=2.0), dynamic_threshold(guided, quantile=0.9, bound=2.0)):
        assert jnp.abs(draw(rule)).max() < 2.1  # the noise that is left at t_min is 0.01


BAD = {
    "an empty interval": (lambda: static_threshold(said, low=1.0, high=-1.0), "low < high"),
    "one point": (lambda: static_threshold(said, low=1.0, high=1.0), "low < high"),
    "a percentile": (lambda: dynamic_threshold(said, quantile=99.5, bound=1.0), "quantile in"),
    "no range": (lambda: dynamic_threshold(said, quantile=0.9, bound=0.0), "bound > 0"),
    "a range without end": (lambda: dynamic_threshold(said, quantile=0.9, bound=np.inf), "finite bound > 0"),
    "NaN": (lambda: dynamic_threshold(said, quantile=float("nan"), bound=1.0), "quantile in"),
    "a projection of one example": (lambda: projected(said, lambda x: x[0])(ESTIMATES, TIMES), "projection to return"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, untyped):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()
