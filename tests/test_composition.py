"""Guidance, an interval, a measurement and a threshold, one in another, under every sampler and transformation."""

from functools import partial

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import PROCESSES

from dgm_jax.parameterizations import (
    classifier_free_batched,
    dps,
    inpaint,
    limited_interval,
    operators,
    pigdm,
    pigdm_forward,
    project,
    static_threshold,
)
from dgm_jax.processes import uniform
from dgm_jax.samplers import (
    Ancestral,
    DPSStep,
    Langevin,
    Replacement,
    annealed_langevin,
    ddim,
    ddpm,
    deis,
    dpm_solver_pp_2m,
    dpm_solver_pp_2m_sde,
    edm_heun,
    final_denoising,
    predictor_corrector,
    sample_ode,
    sample_sde,
)
from dgm_jax.training import parallel

VP, BATCH, STD = PROCESSES["vp"], 8, 0.3
WEIGHTS, MEANS = jnp.asarray([0.2, 0.5, 0.3]), jnp.asarray([[-1.0, 0.4], [1.0, 0.9], [0.3, -1.2]])
TS = uniform(5, t_min=0.0)


def langevin(denoise, process, key, shape, *, ts):
    """With the denoiser's estimate as its last step, as other samplers have on a grid to t = 0."""
    drawn = annealed_langevin(denoise, process, key, shape, ts=ts[:-1], epsilon=0.1, steps=1)
    return final_denoising(denoise, drawn, ts[-2])


SAMPLERS = {
    "sample_ode, adaptive": partial(sample_ode, controller=diffrax.PIDController(rtol=1e-2, atol=1e-2)),
    "sample_ode": sample_ode,
    "sample_sde": sample_sde,
    "ddpm": ddpm,
    "ddim": partial(ddim, eta=0.5),
    "edm_heun": partial(edm_heun, churn=2.0),
    "dpm_solver_pp_2m": dpm_solver_pp_2m,
    "dpm_solver_pp_2m_sde": dpm_solver_pp_2m_sde,
    "deis": partial(deis, order=2),
    "predictor_corrector": partial(predictor_corrector, predictor=Ancestral(), corrector=Langevin(0.1)),
    "annealed_langevin": langevin,
}
Y = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (BATCH, 2)), jnp.float32)
MASK = jnp.asarray([[True, False], [False, True]] * (BATCH // 2))


def given(x_t, t, labels):
    """E[x_0 | x_t, label] of three round Gaussians; label 3 is none."""
    alpha, variance = VP.alpha(t)[:, None, None], VP.variance(t)[:, None, None]
    centred, spread = x_t[:, None] - alpha * MEANS[None], alpha**2 * STD**2 + variance
    shares = jax.nn.softmax(jnp.log(WEIGHTS)[None] - (centred**2 / (2 * spread)).sum(2))
    estimates = MEANS[None] + alpha * STD**2 / spread * centred
    chosen = jnp.where(labels[:, None] == 3, shares, jax.nn.one_hot(labels, 3))
    return jnp.einsum("bk,bkd->bd", chosen, estimates)


@pytest.mark.parametrize("name", SAMPLERS)
def test_all_at_once(name):
    traces = []

    def sample(scale, keys, labels, mask, y):
        traces.append(name)
        guided = classifier_free_batched(given, labels, 3, scale)
        steered = limited_interval(guided, lambda x, t: given(x, t, labels), VP, low=0.05, high=5.0)
        denoise = static_threshold(inpaint(steered, mask, y), low=-1.5, high=1.5)
        return SAMPLERS[name](denoise, VP, keys, (len(keys), 2), ts=TS).x

    jitted, scales = jax.jit(sample), jnp.asarray([1.0, 3.0])
    keys, labels = jax.random.split(jax.random.key(0), BATCH), jnp.arange(BATCH) % 3
    single = jnp.stack([jitted(scale, keys, labels, MASK, Y) for scale in scales], 1)
    assert traces == [name]
    mapped = parallel.pmap_sampler(
        lambda scales, *rows: jnp.moveaxis(jax.vmap(sample, in_axes=(0, None, None, None, None))(scales, *rows), 0, 1),
        jax.devices()[:2],
    )
    found = mapped(scales, keys, labels, MASK, Y)
    tolerance = 0.05 if "adaptive" in name else 2e-5  # each device and each lane has steps of its own
    np.testing.assert_allclose(found, single, atol=tolerance)
    assert (jnp.abs(found[:, 0] - found[:, 1]).max(1) > 1e-3).any()  # the scale does something
    np.testing.assert_allclose(jnp.where(MASK[:, None], found - Y[:, None], 0.0), 0.0, atol=1e-5)
    assert float(jnp.abs(found).max()) <= 1.5 + 1e-5


BLUR = operators.matrix(jnp.asarray([[0.6, 0.8]]))
MEASUREMENTS = {
    "inpaint": lambda denoise, y: inpaint(denoise, MASK[0], y),
    "project": lambda denoise, y: project(denoise, BLUR, BLUR(y)),
    "dps": lambda denoise, y: dps(denoise, VP, BLUR, BLUR(y), noise_std=0.5),
    "pigdm": lambda denoise, y: pigdm(denoise, VP, BLUR, BLUR(y), noise_std=0.1, data_std=1.0),
    "pigdm_forward": lambda denoise, y: pigdm_forward(denoise, VP, BLUR, BLUR(y), noise_std=0.1, data_std=1.0),
}
KERNELS = {
    "Replacement": lambda y: Replacement(MASK[0], y),
    "RePaint": lambda y: Replacement(MASK[0], y, resamples=2),
    "DPSStep": lambda y: DPSStep(BLUR, BLUR(y), size=0.3),
}


@pytest.mark.parametrize("name", [*MEASUREMENTS, *KERNELS])
def test_every_rule_for_measurements(name):
    """With guidance and a threshold about it, of measurements that differ between examples and between lanes."""
    traces = []

    def sample(shift, keys, labels, y):
        traces.append(name)
        denoise = static_threshold(classifier_free_batched(given, labels, 3, 2.0), low=-1.5, high=1.5)
        if name in KERNELS:
            return sample_sde(denoise, VP, keys, y.shape, ts=TS, solver=KERNELS[name](y + shift)).x
        return sample_sde(MEASUREMENTS[name](denoise, y + shift), VP, keys, y.shape, ts=TS, solver=Ancestral()).x

    jitted, shifts = jax.jit(sample), jnp.asarray([0.0, 0.5])
    keys, labels = jax.random.split(jax.random.key(0), BATCH), jnp.arange(BATCH) % 3
    single = jnp.stack([jitted(shift, keys, labels, Y) for shift in shifts], 1)
    assert traces == [name]
    mapped = parallel.pmap_sampler(
        lambda shifts, *rows: jnp.moveaxis(jax.vmap(sample, in_axes=(0, None, None, None))(shifts, *rows), 0, 1),
        jax.devices()[:2],
    )
    np.testing.assert_allclose(mapped(shifts, keys, labels, Y), single, atol=5e-5)
    assert (jnp.abs(single[:, 0] - single[:, 1]).max(1) > 1e-3).any()  # the measurement does something
