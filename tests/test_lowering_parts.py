"""The smaller public functions lower for a TPU and for CUDA too, and every public function is in a list."""

import ast
import importlib
import inspect
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_lowering import ELSEWHERE, of

from dgm_jax import latents, likelihood, losses, metrics, networks, parameterizations, processes, samplers
from dgm_jax.parameterizations import operators

PARTS = ("losses", "samplers", "likelihood", "latents", "metrics", "parameterizations", "processes", "networks")
VP = processes.variance_preserving()
TS = processes.uniform(3, t_min=0.05, t_max=0.95)
PAIR = operators.mask(np.array([True, False, True]))


def denoise(x_t, t):
    return jnp.tanh(x_t) * (1 - t)[:, None]


def encode(x):
    return 0.5 * x, 0.1 * x


def with_factor(x):
    return 0.5 * x, jnp.tile(0.1 * x, (1, 2))


def critic(x):
    return jnp.tanh(x).sum(1)


def gaussian_draw(x, key):
    return losses.diagonal_posterior(encode)(x, key)


def gaussian_density(x, z):
    return losses.diagonal_log_density(encode)(x, z)


def layer(z, context):
    return 2.0 * z, jnp.full(z.shape[0], 3 * jnp.log(2.0))


def twist(x, t):
    return -0.1 * (x**2).sum(1)


def elbo(x):
    return losses.gaussian_elbo(encode, lambda z, x: -((z - x) ** 2).sum(1), x, jax.random.key(0))


def at(x, t=0.3):
    return jnp.full(x.shape[0], t, x.dtype)


def called(guided):
    """A denoiser of x and y at one time."""
    return lambda x, y, key: guided(x, y)(x, at(x))


LABELS = jnp.asarray(np.arange(8) % 2)
LOSSES = {
    "bernoulli_log_likelihood": lambda x, y, key: losses.bernoulli_log_likelihood(x, (y > 0).astype(x.dtype)),
    "categorical_log_likelihood": lambda x, y, key: losses.categorical_log_likelihood(x[:, None], LABELS[:, None]),
    "discretized_logistic_log_likelihood": lambda x, y, key: losses.discretized_logistic_log_likelihood(
        x, 0.1 * y, jnp.tanh(y), levels=16
    ),
    "gaussian_kl": lambda x, y, key: losses.gaussian_kl(x, y),
    "gaussian_kl_between": lambda x, y, key: losses.gaussian_kl_between(x, y, y, x),
    "free_bits of gaussian_kl_per_latent": lambda x, y, key: losses.free_bits(
        losses.gaussian_kl_per_latent(x, y), nats=0.1
    ),
    "full_covariance_kl": lambda x, y, key: losses.full_covariance_kl(*with_factor(x)),
    "full_covariance_posterior": lambda x, y, key: losses.full_covariance_posterior(with_factor)(x, key),
    "full_covariance_log_density": lambda x, y, key: losses.full_covariance_log_density(with_factor)(x, y),
    "monte_carlo_kl": lambda x, y, key: losses.monte_carlo_kl(
        gaussian_draw, lambda z: -(z**2).sum(1), x, key, samples=2
    ),
    "r1_penalty": lambda x, y, key: losses.r1_penalty(critic, x) + losses.r2_penalty(critic, y),
    "one_sided_penalty": lambda x, y, key: losses.one_sided_penalty(critic, x, y, key),
    "flow_posterior": lambda x, y, key: losses.flow_posterior(gaussian_draw, [layer])(x, key),
    "flow_log_density": lambda x, y, key: losses.flow_log_density(gaussian_density, [layer])(x, y),
    "beta_loss, capacity_loss": lambda x, y, key: (
        losses.beta_loss(elbo(x), beta=2.0) + losses.capacity_loss(elbo(y), capacity=1.0, gamma=2.0)
    ),
    "log_mean_exp": lambda x, y, key: losses.log_mean_exp(x),
    "bits_per_dim, discrete_bits_per_dim": lambda x, y, key: (
        likelihood.bits_per_dim(x[:, 0], 3, levels=16) + likelihood.discrete_bits_per_dim(y[:, 0], 3)
    ),
}
GUIDANCE = {
    "autoguided": called(lambda x, y: parameterizations.autoguided(denoise, lambda x, t: x, 2.0)),
    "classifier_free": called(lambda x, y: parameterizations.classifier_free(denoise, lambda x, t: x, 2.0)),
    "classifier_guided": called(lambda x, y: parameterizations.classifier_guided(denoise, VP, twist, 2.0)),
    "dps": called(lambda x, y: parameterizations.dps(denoise, VP, PAIR.apply, PAIR.apply(y), noise_std=0.1, scale=1.0)),
    "pigdm_forward": called(
        lambda x, y: parameterizations.pigdm_forward(denoise, VP, PAIR, PAIR.apply(y), noise_std=0.1, data_std=1.0)
    ),
    "inpaint": called(lambda x, y: parameterizations.inpaint(denoise, np.array([True, False, True]), y)),
    "project": called(lambda x, y: parameterizations.project(denoise, PAIR, PAIR.apply(y))),
    "projected": called(lambda x, y: parameterizations.projected(denoise, jnp.tanh)),
    "limited_interval": called(
        lambda x, y: parameterizations.limited_interval(denoise, lambda x, t: x, VP, low=0.1, high=1.0)
    ),
    "dynamic_threshold": called(lambda x, y: parameterizations.dynamic_threshold(denoise, quantile=0.9, bound=1.0)),
    "drop_conditions": lambda x, y, key: parameterizations.drop_conditions(LABELS, jnp.int32(9), key, rate=0.5),
    "gaussian_likelihood": lambda x, y, key: parameterizations.gaussian_likelihood(
        PAIR.apply, PAIR.apply(y), noise_std=0.1
    )(x),
    "gaussian_twist": lambda x, y, key: parameterizations.gaussian_twist(
        VP, PAIR, PAIR.apply(y), noise_std=0.1, data_std=1.0
    )(x, at(x)),
    "noise_of, score_of, velocity_of": lambda x, y, key: [
        of(denoise, VP)(x, at(x))
        for of in (parameterizations.noise_of, parameterizations.score_of, parameterizations.velocity_of)
    ],
    "target_of": lambda x, y, key: parameterizations.target_of(VP, x, at(x), y, "v"),
    "posterior_of, reverse_variance": lambda x, y, key: parameterizations.reverse_variance(
        parameterizations.posterior_of(VP, at(x, 0.5), at(x)), "posterior", x, at(x, 0.5)
    ),
}
OPERATORS = {
    "mask, pseudo_inverse, residual": lambda x, y, key: operators.pseudo_inverse(
        PAIR, operators.residual(PAIR.apply, PAIR.apply(y), x)
    ),
    "linear, adjoint_of, carried_back": lambda x, y, key: operators.carried_back(
        operators.linear(lambda x: x[:, ::-1] * 2, (3,)), operators.adjoint_of(PAIR)(PAIR.apply(y)), x
    ),
    "blur": lambda x, y, key: operators.blur(np.array([0.25, 0.5, 0.25], np.float32)).apply(x),
    "downsample": lambda x, y, key: operators.downsample((3,)).apply(x),
    "grayscale": lambda x, y, key: operators.grayscale(np.array([0.3, 0.6, 0.1], np.float32)).apply(x[:, None]),
}
SAMPLERS = {
    "leapfrog": lambda x, y, key: samplers.leapfrog(jnp.tanh, x, y, step_size=0.1, steps=2),
    "dpm_solver_pp_2m, final_denoising": lambda x, y, key: samplers.final_denoising(
        denoise, samplers.dpm_solver_pp_2m(denoise, VP, key, (8, 3), ts=TS), 0.05
    ),
    "smc, resample": lambda x, y, key: samplers.resample(
        samplers.smc(denoise, VP, lambda x: twist(x, 0.0), twist, key, (8, 3), ts=TS), key, 4
    ),
    "colorization_transform": lambda x, y, key: x @ samplers.colorization_transform(),
}
SPACES = {
    "diffusion_space": latents.diffusion_space(denoise, VP, ts=TS),
    "ddim_space": latents.ddim_space(denoise, VP, ts=TS, corrections=1),
    "vae_space": latents.vae_space(encode, jnp.tanh),
    "scaled_space": latents.scaled_space(encode, jnp.tanh, scale=2.0),
    "noised_space": latents.noised_space(VP, jnp.tanh, jax.random.key(0), t=0.5),
}
LATENTS = {
    **{name: lambda x, y, key, space=space: latents.reconstruction_error(space, x) for name, space in SPACES.items()},
    "interpolate": lambda x, y, key: latents.interpolate(
        SPACES["vae_space"], x, y, np.array([0.0, 0.5, 1.0], np.float32), rule=latents.linear
    ),
    "spherical": lambda x, y, key: latents.spherical(x, y, np.array([0.0, 0.5], np.float32)),
    "decode": lambda x, y, key: latents.decode(denoise, VP, x, ts=TS),
    "draw_latents, latent_scale": lambda x, y, key: latents.draw_latents(x, y, key, scale=latents.latent_scale(x, y)),
    "edit, mean_direction": lambda x, y, key: latents.edit(x, latents.mean_direction(y, LABELS), 0.5),
    "logistic_direction": lambda x, y, key: latents.logistic_direction(x, LABELS, penalty=1.0),
    "linear_separability": lambda x, y, key: latents.linear_separability(x, LABELS, penalty=1.0),
}
METRICS = {
    "median_distance": lambda x, y, key: metrics.median_distance(x, y),
    "polynomial, distance_kernel": lambda x, y, key: metrics.polynomial()(x, y) + metrics.distance_kernel()(x, y),
    "birthday_batch": lambda x, y, key: metrics.birthday_batch(jnp.abs(x).sum() + 10),
    "mode_scores, reverse_kl": lambda x, y, key: (
        metrics.mode_scores(LABELS, x[:, 0] > 0, jnp.array([0.25, 0.75])),
        metrics.reverse_kl(LABELS, jnp.array([0.25, 0.75])),
    ),
    "frechet_distance": lambda x, y, key: metrics.frechet_distance(x[0], x[:3], y[0], y[:3]),
    "wild_energy_test": lambda x, y, key: metrics.wild_energy_test(x, y, key, draws=9),
    "wasserstein_along": lambda x, y, key: metrics.wasserstein_along(x, y, jnp.eye(3)),
}
NETWORKS = {
    "depth_to_space, space_to_depth": lambda x, y, key: networks.depth_to_space(
        networks.space_to_depth(x.reshape(1, 4, 6, 1), 2), 2
    ),
    "fir_upsample of fir_downsample": lambda x, y, key: networks.fir_upsample(
        networks.fir_downsample(x.reshape(1, 4, 6, 1))
    ),
    "repeat_upsample of mean_downsample": lambda x, y, key: networks.repeat_upsample(
        networks.mean_downsample(x.reshape(1, 4, 6, 1))
    ),
    "blur": lambda x, y, key: networks.blur(x.reshape(1, 4, 6, 1), pad=2),
}
CASES = {
    f"{part}: {name}": function
    for part, cases in {
        "losses": LOSSES,
        "guidance": GUIDANCE,
        "operators": OPERATORS,
        "samplers": SAMPLERS,
        "latents": LATENTS,
        "metrics": METRICS,
        "networks": NETWORKS,
    }.items()
    for name, function in cases.items()
}


@pytest.mark.parametrize("name", CASES)
def test_parts(name):
    exported = jax.export.export(jax.jit(CASES[name]), platforms=ELSEWHERE)(of(8, 3), of(8, 3), jax.random.key(0))
    assert exported.platforms == ELSEWHERE


# These run on the host, or run others' programs one after another.
ON_THE_HOST = {
    "reads a file": {"load_inception"},
    "numbers of a schedule, in Python": {"langevin_epsilon", "level_count", "level_ratio", "sigmoid_betas"},
    "NumPy in float64": {
        *("largest_distance", "init_moments", "merge_moments", "update_moments", "wasserstein", "difference"),
        "summarize_likelihood",
    },
    "a loop over the caller's own programs": {
        *("noise_floor", "frechet_infinity", "bootstrap_interval", "realism_faithfulness"),
        *("perceptual_path_length", "direction_effects"),
    },
    "functions of t of which samplers above are made": {
        *("variance_preserving", "sub_variance_preserving", "variance_exploding", "karras", "rectified"),
        *("from_betas", "from_log_snr", "karras_grid", "log_snr_grid", "quadratic", "trailing"),
        *("stratified", "log_normal", "log_snr_uniform", "coordinates_of"),
    },
    "sizes of networks that are in the list": {
        *("unet_8x8", "unet_28x28", "ddpmpp_cifar10", "ncsnpp_cifar10", "edm_ddpmpp_cifar10", "edm_ncsnpp_cifar10"),
    },
    "inside networks that are in the list": {"multi_head_attention", "group_norm", "sinusoidal_embedding"},
    "a pair of functions of the caller's": {"flattened", "gan_space"},
    "checks of arguments": {"check_measured", "observation_like", "observed_like", "solved", "as_mask"},
}


def test_every_public_function_is_in_a_list():
    """By name, in the programs of this file, of `contract_cases` or of `test_lowering`, or in the list above."""
    named = set()
    for file in (Path(__file__), *(Path(__file__).with_name(n) for n in ("contract_cases.py", "test_lowering.py"))):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute):
                named.add(node.attr)
            elif isinstance(node, ast.Name):
                named.add(node.id)
    excepted = set().union(*ON_THE_HOST.values())
    public = set()
    for part in (*PARTS, "parameterizations.guidance", "parameterizations.operators"):
        module = importlib.import_module(f"dgm_jax.{part}")
        public |= {name for name, value in vars(module).items() if inspect.isfunction(value) and name[0] != "_"}
    assert public - named - excepted == set()
    assert excepted <= public
