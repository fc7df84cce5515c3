"""Part A of `experiments.inverse_problems`: eight dimensions, where the posterior is known.

Data are a mixture of three Gaussians on four places with two channels, smooth along the places, and the network is its
exact denoiser: what errs is the method. For each y the draws' mean and covariance are compared with the posterior's,
and x_0, which made y, with the draws' central 90 %.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.parameterizations import gaussian_likelihood, gaussian_twist
from dgm_jax.parameterizations.operators import LinearOperator
from dgm_jax.processes import log_snr_grid, variance_preserving
from dgm_jax.samplers import resample, smc
from dgm_jax.samplers.grid import Grid
from experiments._inverse_methods import Sizes, dense, sampler
from tests.exact_posterior import condition
from tests.oracles import Mixture

EVENT = (4, 2)
PROCESS = variance_preserving()


def mixture() -> Mixture:
    """Three unequal Gaussians, each correlated along the places and between channels."""
    rng, places, size = np.random.default_rng(3), EVENT[0], int(np.prod(EVENT))
    distance = np.abs(np.subtract.outer(np.arange(places), np.arange(places)))
    along = np.exp(-np.minimum(distance, places - distance) / 1.5)
    smooth = np.kron(along, [[1.0, 0.6], [0.6, 1.0]])
    means = np.linalg.cholesky(smooth) @ rng.standard_normal((size, 3)) * 1.1
    return Mixture(
        weights=np.array([0.2, 0.5, 0.3]),
        means=means.T,
        covariances=np.stack([s**2 * (0.8 * smooth + 0.2 * np.eye(size)) for s in (0.3, 0.5, 0.4)]),
    )


MIXTURE = mixture()
DATA_STD = float(np.sqrt(np.trace(MIXTURE.covariance) / len(MIXTURE.covariance)))


def denoise(x_t: jax.Array, t: jax.Array) -> jax.Array:
    """The exact denoiser: all components have the same axes, along which it is a mixture of one dimension each."""
    widths, axes = np.linalg.eigh(MIXTURE.covariances[0])
    scales = np.trace(MIXTURE.covariances, axis1=1, axis2=2) / np.trace(MIXTURE.covariances[0])
    centres, variances = (jnp.asarray(a, x_t.dtype) for a in (MIXTURE.means @ axes, np.outer(scales, widths)))
    alpha, noise = PROCESS.alpha(t)[:, None, None], PROCESS.variance(t)[:, None, None]
    along = x_t.reshape(len(x_t), 1, -1) @ jnp.asarray(axes, x_t.dtype)[None] - alpha * centres[None]
    total = alpha**2 * variances[None] + noise
    logs = jnp.log(jnp.asarray(MIXTURE.weights, x_t.dtype))[None] - jnp.sum(along**2 / total + jnp.log(total), -1) / 2
    each = centres[None] + alpha * variances[None] / total * along
    mean = jnp.sum(jax.nn.softmax(logs, axis=1)[..., None] * each, axis=1)
    return (mean @ jnp.asarray(axes.T, x_t.dtype)).reshape(x_t.shape)


def measured(operator: LinearOperator, noise_std: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n points of the data and a measurement of each."""
    rng = np.random.default_rng(5)
    x_0 = MIXTURE.sample(rng, n)
    y = np.asarray(operator(jnp.asarray(x_0).reshape(n, *EVENT)))
    return x_0, (y + noise_std * rng.standard_normal(y.shape)).astype(np.float32)


def draws(
    method: str, operator: LinearOperator, y: np.ndarray, sizes: Sizes, *, steps: int, points: int
) -> tuple[np.ndarray, int]:
    """(draws [measurements, points, 8], calls of the network a draw); "exact" draws from the posterior itself."""
    ts = log_snr_grid(PROCESS, steps, t_min=1e-3, t_max=1.0)
    if method == "exact":
        rng = np.random.default_rng(7)
        found = [posterior(operator, one, sizes.noise_std).draw(rng, points) for one in y]
        return np.stack(found), 0
    if method == "SMC":
        return _particles(operator, y, sizes, ts, points)
    draw = jax.jit(sampler(method, denoise, PROCESS, operator, EVENT, sizes, ts))
    keys = jax.random.split(jax.random.key(0), len(y) * points)
    found = draw(keys, jnp.repeat(jnp.asarray(y), points, axis=0))
    return np.asarray(found.x).reshape(len(y), points, -1), int(found.evaluations)


def _particles(operator: LinearOperator, y: np.ndarray, sizes: Sizes, ts: Grid, points: int) -> tuple[np.ndarray, int]:
    def one(key: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        key, key_resample = jax.random.split(key)
        likelihood = gaussian_likelihood(operator, y, noise_std=sizes.noise_std)
        twist = gaussian_twist(PROCESS, operator, y, noise_std=sizes.noise_std, data_std=sizes.data_std)
        found = smc(denoise, PROCESS, likelihood, twist, key, (points, *EVENT), ts=ts)
        return resample(found, key_resample, points), found.evaluations

    x, evaluations = jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(1), len(y)), jnp.asarray(y))
    return np.asarray(x).reshape(len(y), points, -1), int(evaluations[0])


def posterior(operator: LinearOperator, y: np.ndarray, noise_std: float) -> Any:
    """The exact posterior of one measurement, over its measured entries."""
    matrix, flat = dense(operator, EVENT), y.reshape(-1).astype(np.float64)
    rows = np.abs(matrix).sum(1) > 0  # a mask's others measure nothing
    return condition(MIXTURE, matrix[rows], flat[rows], noise_std)


def scores(found: np.ndarray, x_0: np.ndarray, exact: list[Any]) -> dict[str, float]:
    """Errors of the posterior's mean, in its standard deviations, and of its covariance; coverage."""
    means, widths, covered = [], [], []
    for drawn, truth, one in zip(found.astype(np.float64), x_0, exact, strict=True):
        mean, covariance = one.posterior.mean, one.posterior.covariance
        means.append(np.sqrt(np.mean((drawn.mean(0) - mean) ** 2 / np.diag(covariance))))
        widths.append(np.linalg.norm(np.cov(drawn.T) - covariance) / np.linalg.norm(covariance))
        low, high = np.quantile(drawn, [0.05, 0.95], axis=0)
        covered.append(np.mean((truth >= low) & (truth <= high)))
    names = {"mean_error": means, "covariance_error": widths, "coverage": covered}
    errors = {f"{name}_se": float(np.std(v, ddof=1) / np.sqrt(len(v))) for name, v in names.items()}
    return {**{name: float(np.mean(v)) for name, v in names.items()}, **errors}
