"""What both parts of `experiments.inverse_problems` share: operators by name, methods by name, spectral coordinates.

Replacement needs orthogonal coordinates in which what is measured is a mask. Any linear operator has them, those of its
singular vectors; for a mask they are the pixels, for a grey image the grey direction of each (Song et al. 2021,
arXiv:2011.13456, appendix I.3).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.parameterizations import dps, operators, pigdm, project
from dgm_jax.parameterizations.operators import LinearOperator
from dgm_jax.processes import GaussianProcess
from dgm_jax.samplers import Ancestral, DPSStep, Replacement, Samples, sample_sde
from dgm_jax.samplers.grid import Grid
from dgm_jax.typing import Denoiser

LEAST = 0.1  # of the largest singular value: what is measured less well is not replaced
METHODS = ("replacement", "RePaint", "project", "DPS", "DPS steps", "PiGDM")


class Sizes(NamedTuple):
    """Numbers that methods take."""

    noise_std: float
    data_std: float
    resamples: int
    size: float  # of DPS's normalised step


def operators_of(event: tuple[int, ...], *, rows: int, box: float, seed: int = 0) -> dict[str, LinearOperator]:
    """The five linear operators, for events [n, channels] or [n, n, channels].

    Args:
        rows: of the matrix of compressed sensing, with entries N(0, 1/size of the event).
        box: share of each side that is missing in the middle.
    """
    places, channels = event[:-1], event[-1]
    inside = [np.abs(np.arange(n) - (n - 1) / 2) < box * n / 2 for n in places]
    known = np.ones(event, bool)
    known[np.ix_(*inside)] = False
    window = np.array([1.0, 2.0, 3.0, 2.0, 1.0] if places[0] > 4 else [1.0, 2.0, 1.0])
    kernel = window / window.sum()
    kernel = kernel if len(places) == 1 else np.outer(kernel, kernel)
    sensing = np.random.default_rng(seed).standard_normal((rows, *event)) / np.sqrt(np.prod(event))
    return {
        "mask": operators.mask(known),
        "blur": operators.blur(kernel.astype(np.float32)),
        "downsample": operators.downsample((2,) * len(places)),
        "grayscale": operators.grayscale(np.full(channels, 1 / channels, np.float32)),
        "compressed": operators.matrix(sensing.astype(np.float32)),
    }


def dense(operator: LinearOperator, event: tuple[int, ...]) -> np.ndarray:
    """The operator's matrix [measurements, size of the event]."""
    size = int(np.prod(event))
    with jax.ensure_compile_time_eval():
        columns = np.asarray(operator(jnp.eye(size).reshape(size, *event)), np.float64)
    return columns.reshape(size, -1).T


def replacement(operator: LinearOperator, event: tuple[int, ...], y: jax.Array, resamples: int) -> Replacement:
    """Replacement in the coordinates of the operator's singular vectors."""
    left, singular, right = np.linalg.svd(dense(operator, event))
    known = np.zeros(right.shape[0], bool)
    known[: len(singular)] = singular > LEAST * singular[0]
    k = int(known.sum())
    into = jnp.asarray(right, jnp.float32).T
    from_y = jnp.asarray(left[:, :k] / singular[:k], jnp.float32)
    inside = y.reshape(len(y), -1) @ from_y
    inside = jnp.pad(inside, [(0, 0), (0, len(known) - k)])

    def forward(x: jax.Array) -> jax.Array:
        return (x.reshape(len(x), -1) @ into).reshape(x.shape)

    def back(x: jax.Array) -> jax.Array:
        return (x.reshape(len(x), -1) @ into.T).reshape(x.shape)

    return Replacement(
        known.reshape(event), inside.reshape(len(y), *event), transform=(forward, back), resamples=resamples
    )


def sampler(
    name: str,
    denoise: Denoiser,
    process: GaussianProcess,
    operator: Callable,
    event: tuple[int, ...],
    sizes: Sizes,
    ts: Grid,
) -> Callable[[jax.Array, jax.Array], Samples]:
    """(keys [batch], y [batch, ...]) -> draws, one for each y; ancestral sampling under all."""

    def draw(keys: jax.Array, y: jax.Array) -> Samples:
        guided, kernel = denoise, Ancestral()
        if name in ("replacement", "RePaint"):
            kernel = replacement(operator, event, y, 1 if name == "replacement" else sizes.resamples)  # type: ignore
        elif name == "project":
            guided = project(denoise, operator, y)  # type: ignore[arg-type]
        elif name == "DPS":
            guided = dps(denoise, process, operator, y, noise_std=sizes.noise_std)
        elif name == "DPS steps":
            kernel = DPSStep(operator, y, size=sizes.size)
        elif name == "PiGDM":
            guided = pigdm(denoise, process, operator, y, noise_std=sizes.noise_std, data_std=sizes.data_std)  # type: ignore
        else:
            raise ValueError(f"Expected one of {METHODS}, as each is a row of the table; got {name!r}.")
        return sample_sde(guided, process, keys, (len(keys), *event), ts=ts, solver=kernel)

    return draw
