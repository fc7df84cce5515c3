"""The digits network of `experiments.quickstart`: loaded, seen through another process, drawn from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.data import from_unit
from dgm_jax.numerics import expand_to
from dgm_jax.processes import GaussianProcess
from dgm_jax.samplers import Samples
from dgm_jax.training.parallel import pmap_sampler
from dgm_jax.typing import Data, Denoiser, PerExample
from experiments.quickstart import PROCESS, SHAPE, load_denoiser

Denoisers = Callable[[jax.Array], Denoiser]  # labels [batch] -> denoiser under quickstart's process
STAND_IN = "stand-in"  # for a run's directory: no network, for --smoke


class Drawn(NamedTuple):
    """Points [n, *event] in data units, the mean evaluations of a device, and whether all went well."""

    x: np.ndarray
    evaluations: int
    succeeded: bool


def denoisers(trained: str) -> Denoisers:
    """The network of a run of `experiments.quickstart`, or, as a stand-in, the exact denoiser of pixels N(0, 1/4)."""
    if trained == STAND_IN:
        return lambda labels: _stand_in
    if not (Path(trained) / "scores.json").exists():
        raise SystemExit(
            f"Expected a trained network in {trained}, as digits are drawn from it; got none. First: make demo"
        )
    return load_denoiser(trained)


def _stand_in(x_t: Data, t: PerExample) -> Data:
    alpha, variance = PROCESS.alpha(t), PROCESS.variance(t)
    return expand_to(alpha / (alpha**2 + 4 * variance), x_t) * x_t


def seen_through(denoise: Denoiser, trained: GaussianProcess, process: GaussianProcess) -> Denoiser:
    """A denoiser under `trained` as one under `process`, exactly, and without training.

    x_t/alpha = x_0 + (sigma/alpha) noise has the same law in all processes at equal sigma/alpha, so that the states
    differ by a factor alone. Where sigma/alpha is outside the range of `trained`, its nearer end is taken.
    """

    def through(x_t: Data, t: PerExample) -> Data:
        at = trained.time_at(process.noise_ratio(t))
        return denoise(expand_to(trained.alpha(at) / process.alpha(t), x_t) * x_t, at)

    return through


def drawer(
    network: Denoisers, process: GaussianProcess, sample: Callable[..., Samples], event: tuple[int, ...] = SHAPE
) -> Callable[[dict[str, Any], int, int], Drawn]:
    """(options, n, seed) -> n digits of the classes 0 .. 9 in turn, split over the devices; compiled once.

    Args:
        sample: (denoise, process, key, shape, **options), as the samplers are; options are arrays.
    """

    def program(options: dict[str, Any], keys: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        denoise = jax.jit(network(labels))  # traced once, though diffrax asks three times
        if process is not PROCESS:
            denoise = seen_through(denoise, PROCESS, process)
        found = sample(denoise, process, keys, (len(keys), *event), **options)
        succeeded = jnp.asarray(found.result == diffrax.RESULTS.successful)
        return {"x": found.x, "evaluations": found.evaluations, "succeeded": succeeded}

    mapped = pmap_sampler(program)

    def draw(options: dict[str, Any], n: int, seed: int) -> Drawn:
        keys = jax.random.split(jax.random.key(seed), n)
        found = jax.tree.map(np.asarray, mapped(options, keys, labels_of(n)))
        return Drawn(found["x"], round(float(found["evaluations"].mean())), bool(found["succeeded"].all()))

    return draw


def labels_of(n: int) -> np.ndarray:
    """0 .. 9 in turn."""
    return np.arange(n) % 10


def levels(x: np.ndarray) -> np.ndarray:
    """Images in levels 0 to 255, whatever a sampler made of them."""
    return np.asarray(from_unit(np.nan_to_num(np.clip(x, -1, 1))))
