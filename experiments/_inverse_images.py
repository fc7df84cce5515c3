"""Part B of `experiments.inverse_problems`: colour digits with a trained network, which is asked without a class.

Of each digit held out 19 posterior draws are made. A pixel between the least and the largest of 19 exchangeable draws
has a chance of 18/20: coverage is 90 % where the draws are as wide as they should be.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.parameterizations.operators import LinearOperator, residual
from dgm_jax.processes import log_snr_grid
from dgm_jax.training.parallel import pmap_sampler
from experiments._colour_digits import NULL, SHAPE, by_class, colour_digits
from experiments._inverse_methods import Sizes, sampler
from experiments.colour_digits import PROCESS, T_MIN, Conditional

DRAWS = 19  # of each image


def images(n: int) -> np.ndarray:
    """n digits held out, of the classes 0, 1, ... in turn."""
    return by_class(colour_digits("test")).images[:n]


def measured(operator: LinearOperator, x_0: np.ndarray, noise_std: float) -> np.ndarray:
    """A measurement of each image."""
    y = np.asarray(operator(jnp.asarray(x_0)))
    return (y + noise_std * np.random.default_rng(5).standard_normal(y.shape)).astype(np.float32)


def draws(
    method: str, denoise_given: Conditional, operator: LinearOperator, y: np.ndarray, sizes: Sizes, *, steps: int
) -> tuple[np.ndarray, int]:
    """(draws [images, 19, 16, 16, 3], calls of the network a draw), split over the devices."""
    ts = log_snr_grid(PROCESS, steps, t_min=T_MIN, t_max=1.0)

    def program(_: Any, keys: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        labels = jnp.full(len(keys), NULL)
        denoise = jax.jit(lambda x_t, t: denoise_given(x_t, t, labels))
        found = sampler(method, denoise, PROCESS, operator, SHAPE, sizes, ts)(keys, y)
        return found.x, jnp.broadcast_to(found.evaluations, (len(keys),))

    n = len(y) * DRAWS
    keys = jax.random.split(jax.random.key(0), n + n % 2)
    each = np.repeat(y, DRAWS, axis=0)
    each = np.concatenate([each, each[:1]]) if n % 2 else each  # for two devices
    x, evaluations = pmap_sampler(program)({}, keys, each)
    return np.asarray(x)[:n].reshape(len(y), DRAWS, *SHAPE), int(np.asarray(evaluations)[0])


def scores(found: np.ndarray, x_0: np.ndarray, operator: LinearOperator, y: np.ndarray) -> dict[str, float]:
    """PSNR in dB of a draw and of the draws' mean, coverage of pixels, and the residual |y - A x| per measurement."""
    clipped = np.clip(np.nan_to_num(found), -1, 1)
    single = [psnr(((drawn - truth) ** 2).mean()) for drawn, truth in zip(clipped, x_0, strict=True)]
    mean = [psnr(((drawn.mean(0) - truth) ** 2).mean()) for drawn, truth in zip(clipped, x_0, strict=True)]
    inside = (found.min(1) <= x_0) & (x_0 <= found.max(1))
    covered = inside.mean((1, 2, 3))
    error = residual(operator, np.repeat(y, DRAWS, axis=0), jnp.asarray(found.reshape(-1, *SHAPE)))
    names = {"psnr": single, "psnr_of_mean": mean, "coverage": covered}
    errors = {f"{name}_se": float(np.std(v, ddof=1) / np.sqrt(len(v))) for name, v in names.items()}
    values = {name: float(np.mean(v)) for name, v in names.items()}
    return {**values, **errors, "residual": float(jnp.sqrt(jnp.mean(error**2)))}


def psnr(squared_error: float) -> float:
    """Of images in [-1, 1], dB."""
    return float(10 * np.log10(4 / max(squared_error, 1e-12)))
