"""Encoding against the exact flow of Gaussian data, round trips, and DDIM's steps undone."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GAUSSIAN, MIXTURE, PROCESSES, gaussian_flow, last_time

from dgm_jax.latents import ddim_invert, decode, encode
from dgm_jax.metrics import energy_test
from dgm_jax.processes import log_snr_grid, uniform

EULER = {"solver": diffrax.Euler(), "coordinates": "noise"}


def data(mixture, n=6, dtype=np.float64):
    return jnp.asarray(mixture.sample(np.random.default_rng(1), n, dtype))


def grid(name, steps):
    return log_snr_grid(PROCESSES[name], steps, t_min=0.02, t_max=0.98 * last_time(name))


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_encoding_follows_the_exact_flow_with_the_solvers_order(name):
    with jax.enable_x64(True):
        process, x = PROCESSES[name], data(GAUSSIAN)
        exact = GAUSSIAN.denoise(process)
        encoding = jax.jit(lambda x, ts: encode(exact, process, x, ts=ts, coordinates="noise").x)
        errors, back = [], []
        for steps in (32, 64, 128):
            ts = grid(name, steps)
            expected = gaussian_flow(process, x, float(ts[-1]), float(ts[0]))
            found = encoding(x, ts)
            errors.append(np.abs(found - expected).max() / np.abs(expected).max())
            back.append(np.abs(decode(exact, process, found, ts=ts, coordinates="noise").x - x).max())
        # there and back, the leading errors of a method of even order cancel: one order more
        for each, order in ((errors, 2), (back, 3)):
            fitted = -np.polyfit(np.log([32, 64, 128]), np.log(each), 1)[0]
            assert abs(fitted - order) < 0.35, each
        assert back[-1] < 1e-4


@pytest.mark.parametrize("name", ["vp", "ve"])
def test_data_are_encoded_as_standard_normal_noise(name):
    process, n = PROCESSES[name], 1500
    exact = MIXTURE.denoise(process)
    ts = log_snr_grid(process, 40, t_min=1e-3, t_max=1.0)
    found = jax.jit(lambda x: encode(exact, process, x, ts=ts, coordinates="noise").x)(data(MIXTURE, n, np.float32))
    z = found / process.sigma(jnp.asarray(1.0))
    noise = jax.random.normal(jax.random.key(0), (n, 2))
    assert energy_test(z, noise, jax.random.key(1), permutations=199).p_value > 1e-2
    assert energy_test(1.15 * z, noise, jax.random.key(1), permutations=199).p_value <= 1e-2


@pytest.mark.parametrize(("name", "mixture"), [("vp", MIXTURE), ("ve", GAUSSIAN)])
def test_corrections_undo_ddims_steps(name, mixture):
    """Geometrically in the corrections, to rounding; without one the round trip misses by the step's error."""
    with jax.enable_x64(True):
        process, x, ts = PROCESSES[name], data(mixture), grid(name, 12)
        exact = mixture.denoise(process)
        errors = []
        for corrections in (0, 3, 6, 60):
            encoded = ddim_invert(exact, process, x, ts=ts, corrections=corrections)
            assert encoded.evaluations == 12 * (1 + corrections)
            errors.append(float(np.abs(decode(exact, process, encoded.x, ts=ts, **EULER).x - x).max()))
        assert errors[0] > 1e-2
        assert errors[1] < errors[0] / 3
        assert errors[2] < errors[1] / 3
        assert errors[3] < 1e-11


def test_the_explicit_inversion_is_eulers_encoding():
    process, x, ts = PROCESSES["vp"], data(MIXTURE, dtype=np.float32), grid("vp", 8)
    exact = MIXTURE.denoise(process)
    found = ddim_invert(exact, process, x, ts=ts, corrections=0, save_path=True)
    np.testing.assert_allclose(found.x, encode(exact, process, x, ts=ts, **EULER).x, rtol=1e-5, atol=1e-5)
    assert found.path.shape == (9, 6, 2)


def test_encoding_calls_the_network_as_often_as_sampling():
    process, x, ts = PROCESSES["vp"], data(MIXTURE, dtype=np.float32), uniform(10, t_min=0.01)
    exact = MIXTURE.denoise(process)
    forth, back = encode(exact, process, x, ts=ts), decode(exact, process, x, ts=ts)
    assert forth.evaluations == back.evaluations


BAD = {
    "a rising grid": (lambda x, ts: encode(None, PROCESSES["vp"], x, ts=ts[::-1]), "falling ts"),
    "a rising grid, decoding": (lambda x, ts: decode(None, PROCESSES["vp"], x, ts=ts[::-1]), "falling ts"),
    "half a correction": (
        lambda x, ts: ddim_invert(None, PROCESSES["vp"], x, ts=ts, corrections=0.5),
        "corrections >= 0",
    ),
    "fewer than none": (lambda x, ts: ddim_invert(None, PROCESSES["vp"], x, ts=ts, corrections=-1), "corrections >= 0"),
    "noiseless data": (lambda x, ts: encode(None, PROCESSES["vp"], x, ts=uniform(4, t_min=0.0)), "sigma > 0"),
    "pure noise": (lambda x, ts: ddim_invert(None, PROCESSES["cosine"], x, ts=ts, corrections=1), "alpha > 0"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused(case, untyped):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call(jnp.ones((2, 1)), uniform(4, t_min=0.1))
