"""Rows of the oracle table for latents: the exact flow of Gaussian data, linear decoders, Gaussian classes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from scipy.spatial import geometric_slerp
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dgm_jax.latents import (
    LatentSpace,
    ddim_invert,
    ddim_space,
    decode,
    diffusion_space,
    direction_effects,
    draw_latents,
    edit,
    encode,
    flattened,
    gan_space,
    interpolate,
    invert_generator,
    latent_scale,
    linear,
    linear_separability,
    logistic_direction,
    mean_direction,
    noised_space,
    perceptual_path_length,
    realism_faithfulness,
    reconstruction_error,
    scaled_space,
    sdedit,
    spherical,
    vae_space,
)
from dgm_jax.processes import GaussianProcess, log_snr_grid
from dgm_jax.samplers import Ancestral
from experiments._oracle_rows import ALL, Row, paper, relative, standard_errors, worst
from tests.oracles import GAUSSIAN, PROCESSES, gaussian_flow, last_time

SONG, DDIM, DDPM = (
    paper("2011.13456", "appendix D.2"),
    paper("2010.02502", "eq. 14"),
    paper("2006.11239", "section 4.3"),
)
STYLE, RADFORD, MENG = "1812.04948", "1511.06434", paper("2108.01073", "algorithm 1")
DOUBLE: Any = np.float64
SHARES = np.linspace(0, 1, 5)


def latent_rows(names: Sequence[str]) -> Iterator[Row]:
    """Solves under each process; the rest depends on none."""
    for name in names:
        yield from flow_rows(name)
        yield from edit_rows(name)
    yield from path_rows()
    yield from direction_rows()
    yield from generator_rows()
    yield from measure_rows()
    yield from autoencoder_rows()


def grid(name: str, steps: int, *, t_min: float = 0.02) -> np.ndarray:
    """Falling, even in log-SNR."""
    return np.asarray(log_snr_grid(PROCESSES[name], steps, t_min=t_min, t_max=0.98 * last_time(name)), DOUBLE)


def flow_rows(name: str) -> Iterator[Row]:
    """Encoding and decoding against the flow in closed form, and DDIM's steps undone."""
    process, exact = PROCESSES[name], GAUSSIAN.denoise(PROCESSES[name])
    x = jnp.asarray(GAUSSIAN.sample(np.random.default_rng(0), 6, DOUBLE))
    ts = grid(name, 96)
    there = gaussian_flow(process, x, float(ts[-1]), float(ts[0]))
    options = {"ts": ts, "coordinates": "noise"}
    bound = 3 * float(np.log(float(process.noise_ratio(ts[0]) / process.noise_ratio(ts[-1]))) / 96) ** 2
    solves: dict[str, tuple[Callable[[Array], Array], Any, Any]] = {
        "`encode`": (lambda x: encode(exact, process, x, **options).x, x, there),
        "`decode`": (lambda x: decode(exact, process, x, **options).x, jnp.asarray(there), x),
    }
    for method, (solve, start, expected) in solves.items():
        error = np.abs(np.asarray(jax.jit(solve)(start)) - expected).max() / np.abs(expected).max()
        yield Row(method, SONG, name, "closed-form flow, 96 Heun steps", (float(error), bound))
    space = diffusion_space(exact, process, **options)
    std = float(process.sigma(jnp.asarray(ts[0])))
    error = np.abs(np.asarray(jax.jit(space.encode)(x)) * std - there).max() / np.abs(there).max()
    yield Row("`diffusion_space`", SONG, name, "closed-form flow, 96 Heun steps", (float(error), bound))
    ts = grid(name, 10)
    again = ddim_space(exact, process, ts=ts, corrections=80)
    inverted = ddim_invert(exact, process, x, ts=ts, corrections=80).x
    error = relative(again.decode(inverted / float(process.sigma(jnp.asarray(ts[0])))), x)
    yield Row("`ddim_invert`", DDIM, name, "DDIM's steps lead back, 80 corrections", worst(error, 1e-8))
    error = relative(again.decode(again.encode(x)), x)
    yield Row("`ddim_space`", DDIM, name, "DDIM's steps lead back, 80 corrections", worst(error, 1e-8))


def edit_rows(name: str) -> Iterator[Row]:
    """Edits of Gaussian data are Gaussian: their mean, in standard errors."""
    process, n = PROCESSES[name], 4000
    guide = jnp.broadcast_to(jnp.asarray([[0.2, 1.1]]), (n, 2))
    ts = np.asarray(log_snr_grid(process, 60, t_min=0.01, t_max=0.5), DOUBLE)
    exact = GAUSSIAN.denoise(process)
    values, bias = edited_mean(process, float(ts[0]), float(ts[-1]))
    options = {"ts": ts, "solver": Ancestral()}
    x = jax.jit(lambda key: sdedit(exact, process, guide, key, **options).x)(jax.random.key(0))
    error, allowed = standard_errors(x[:, 0] / float(process.alpha(jnp.asarray(ts[-1]))), values, bias=bias)
    yield Row("`sdedit`", MENG, name, "mean of the edits, closed form", (error, allowed))


def edited_mean(process: GaussianProcess, t: float, t_min: float) -> tuple[float, float]:
    """E[x_0] of the first coordinate after noise to t, and what 60 steps may miss of it."""
    alpha, variance = (float(f(jnp.asarray(t))) for f in (process.alpha, process.variance))
    mean, covariance = GAUSSIAN.means[0], GAUSSIAN.covariances[0]
    gain = alpha * covariance @ np.linalg.inv(alpha**2 * covariance + variance * np.eye(2))
    away = alpha * gain @ (np.array([0.2, 1.1]) - mean)
    ratios = [float(process.noise_ratio(jnp.asarray(s))) for s in (t, t_min)]
    return float((mean + away)[0]), float(np.abs(away).max() * np.log(ratios[0] / ratios[1]) / 60)


def path_rows() -> Iterator[Row]:
    """Straight ways and arcs, of latents and through spaces."""
    a, b = np.random.default_rng(1).standard_normal((2, 6, 8))
    ends = jnp.asarray(a), jnp.asarray(b)
    straight = np.stack([(1 - s) * a + s * b for s in SHARES])
    yield Row("`linear`", DDPM, ALL, "NumPy", worst(relative(linear(*ends, SHARES), straight), 1e-12))
    units = [z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b)]
    arcs = np.stack([geometric_slerp(u, v, SHARES) for u, v in zip(*units, strict=True)], 1)
    found = spherical(jnp.asarray(units[0]), jnp.asarray(units[1]), SHARES)
    yield Row("`spherical`", paper("2010.02502", "eq. 67"), ALL, "SciPy's arc", worst(relative(found, arcs), 1e-12))
    space = LatentSpace(lambda x: 2 * x, lambda z: z / 2 + 1)
    found = interpolate(space, *ends, SHARES, rule=linear)
    yield Row("`interpolate`", DDPM, ALL, "a linear space", worst(relative(found, straight + 1), 1e-12))
    process = PROCESSES["vp"]
    noised = noised_space(process, lambda x_t: x_t, jax.random.key(0), t=0.5)
    x = jnp.zeros((4000, 2)) + 0.7
    centred = noised.encode(x) - 0.7 * float(process.alpha(jnp.asarray(0.5)))
    variance = float(process.variance(jnp.asarray(0.5)))
    yield Row("`noised_space`", DDPM, "vp", "variance", standard_errors(jnp.mean(centred**2, 1), variance))


def direction_rows() -> Iterator[Row]:
    """Against scikit-learn; effects and separability where they are known."""
    rng = np.random.default_rng(2)
    labels = np.arange(2000) // 2 % 2
    z = rng.standard_normal((2000, 3)) @ np.array([[1, 0.5, 0], [0, 1, 0], [0, 0.3, 2]]) + labels[:, None] * 0.7
    latents, attribute = jnp.asarray(z), jnp.asarray(labels)
    means = z[labels == 1].mean(0) - z[labels == 0].mean(0)
    found = mean_direction(latents, attribute)
    yield Row("`mean_direction`", paper(RADFORD), ALL, "NumPy", worst(relative(found, means), 1e-12))
    scaler = StandardScaler().fit(z)
    model = LogisticRegression(C=0.5, tol=1e-12, max_iter=2000).fit(scaler.transform(z), labels)
    normal = model.coef_[0] / scaler.scale_
    expected = normal * (means @ normal) / (normal @ normal)
    found = logistic_direction(latents, attribute, penalty=2.0)
    source = paper("1907.10786", "section 2.2")
    yield Row("`logistic_direction`", source, ALL, "scikit-learn's normal", worst(relative(found, expected), 1e-6))
    moved = edit(latents, jnp.asarray(means), 0.5)
    yield Row("`edit`", paper(RADFORD), ALL, "NumPy", worst(relative(moved, z + 0.5 * means), 1e-12))
    directions = np.eye(3) + 0.2
    effects = direction_effects(lambda z: z, latents, jnp.asarray(directions), lambda x: x, strength=1.5)
    error = relative(effects.matrix, 1.5 * directions / z.std(0))
    yield Row("`direction_effects`", "", ALL, "linear attributes", worst(error, 1e-12))
    n, d = 20_000, 1.5
    labels = np.arange(n) // 2 % 2
    apart = rng.standard_normal((n, 2)) + d * labels[:, None] * np.array([1.0, 0.0])
    found = linear_separability(jnp.asarray(apart), jnp.asarray(labels), penalty=1.0)
    right = norm.cdf(d / 2)
    z_score = float(abs(float(found.accuracy) - right) / np.sqrt(right * (1 - right) / (n / 2)))
    source = paper(STYLE, "section 4.2")
    yield Row("`linear_separability`", source, ALL, "the best accuracy, in standard errors", (z_score, 4.0 + 0.3))


def generator_rows() -> Iterator[Row]:
    """A linear generator, whose inverse is least squares."""
    matrix = np.random.default_rng(3).standard_normal((3, 7))
    x = np.random.default_rng(4).standard_normal((4, 7))
    search: dict[str, Any] = {"latent_shape": (3,), "optimizer": optax.adam(0.05), "steps": 600, "starts": 2}

    def generate(z: Array) -> Array:
        return z @ jnp.asarray(matrix)

    best = np.linalg.lstsq(matrix.T, x.T, rcond=None)[0].T
    source = paper("1609.03552", "eq. 5")
    found = invert_generator(generate, jnp.asarray(x), jax.random.key(0), **search)
    yield Row("`invert_generator`", source, ALL, "least squares", worst(relative(found.z, best), 1e-4))
    space = gan_space(generate, jax.random.key(0), **search)
    yield Row("`gan_space`", source, ALL, "least squares", worst(relative(space.encode(jnp.asarray(x)), best), 1e-4))
    vae = vae_space(lambda x: (x @ jnp.asarray(np.linalg.pinv(matrix)), jnp.zeros((len(x), 3))), generate)
    error = relative(vae.encode(jnp.asarray(x)), best)
    yield Row("`vae_space`", paper("1312.6114"), ALL, "the posterior's mean", worst(error, 1e-12))
    lost = np.mean((best @ matrix - x) ** 2, 1)
    error = relative(reconstruction_error(vae, jnp.asarray(x)), lost)
    yield Row("`reconstruction_error`", "", ALL, "residual of least squares", worst(error, 1e-12))


def measure_rows() -> Iterator[Row]:
    """Path lengths of linear decoders, and SDEdit's curve of a known model."""
    rng = np.random.default_rng(5)
    matrix, (a, b) = rng.standard_normal((3, 4)), rng.standard_normal((2, 6, 3))
    found = perceptual_path_length(
        lambda z: z @ jnp.asarray(matrix),
        jnp.asarray(a),
        jnp.asarray(b),
        lambda x: x,
        jax.random.key(0),
        epsilon=1e-4,
        rule=linear,
    )
    expected = np.sum(((b - a) @ matrix) ** 2, 1)
    source = paper(STYLE, "eq. 2")
    yield Row("`perceptual_path_length`", source, ALL, "a linear decoder's", worst(relative(found, expected), 1e-8))
    process, n = PROCESSES["vp"], 4000
    guide = jnp.broadcast_to(jnp.asarray([[0.2, 1.1]]), (n, 2))
    ts = np.asarray(log_snr_grid(process, 60, t_min=0.01, t_max=1.0), DOUBLE)
    curve = realism_faithfulness(
        GAUSSIAN.denoise(process),
        process,
        guide,
        jax.random.key(0),
        grids=[ts],
        realism=lambda x: x.mean(),
        solver=Ancestral(),
    )
    expected = np.trace(GAUSSIAN.covariances[0]) + np.sum((GAUSSIAN.means[0] - np.array([0.2, 1.1])) ** 2)
    squared = standard_errors(2 * curve.distance[0] ** 2, expected, bias=0.02 * expected)
    yield Row("`realism_faithfulness`", MENG, "vp", "squared distance of data from the guide", squared)


def autoencoder_rows() -> Iterator[Row]:
    """What latent diffusion takes of an autoencoder: posteriors N(mean, std^2) of given means."""
    rng = np.random.default_rng(6)
    mean, log_std = 2 * rng.standard_normal((4000, 2, 3)) + 0.5, np.full((4000, 2, 3), np.log(0.4))
    scale = latent_scale(jnp.asarray(mean), jnp.asarray(log_std))
    source = paper("2112.10752", "appendix G")
    error = relative(scale, 1 / np.sqrt(mean.var() + 0.16))
    yield Row("`latent_scale`", source, ALL, "1 / std of all latents, NumPy", worst(error, 1e-12))
    z = draw_latents(jnp.asarray(mean), jnp.asarray(log_std), jax.random.key(0), scale=scale)
    around = (z - float(scale) * mean.mean()) ** 2
    yield Row("`draw_latents`", source, ALL, "unit variance", standard_errors(around.mean((1, 2)), 1.0))

    def encode(x: Array) -> tuple[Array, Array]:
        return 3 * x, jnp.zeros_like(x)

    space = scaled_space(encode, lambda z: z / 3, scale=0.5)
    x = jnp.asarray(mean[:5])
    error = relative(np.stack([space.encode(x), space.decode(space.encode(x))]), np.stack([1.5 * mean[:5], mean[:5]]))
    yield Row("`scaled_space`", source, ALL, "a linear autoencoder", worst(error, 1e-12))
    flat_encode, flat_decode = flattened(encode, lambda z: z / 3, latent_shape=(2, 3))
    vectors = flat_encode(x)[0]
    error = relative(vectors, 3 * mean[:5].reshape(5, 6)).max() + relative(flat_decode(vectors), x).max()
    yield Row("`flattened`", source, ALL, "a linear autoencoder", worst(error, 1e-12))
