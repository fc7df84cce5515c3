"""Samplers on a trained network: handwritten digits of all ten classes by the network of `experiments.quickstart`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.data import from_unit, load, source
from dgm_jax.training.parallel import pmap_sampler
from dgm_jax.typing import Denoiser
from experiments._digits import certainty, fit_classifier, flat
from experiments._distances import energy_distance, summary
from experiments._frontier_samplers import GRIDS, SAMPLERS, Sampler
from experiments.quickstart import PROCESS, SHAPE, load_denoiser

# the others are dear on a network, and close to one of these
NAMES = (
    "ODE, Euler in time",
    "DDIM",
    "EDM Heun",
    "DPM-Solver++(2M)",
    "DEIS, order 3",
    "SDE, Euler in time",
    "SDE, Heun in noise",
    "DDPM, posterior variance",
    "DPM-Solver++(2M) SDE",
    "PC, reverse diffusion",
)


@dataclass(frozen=True, eq=False)
class DigitsMode:
    """Ten samplers on a network; sets are compared with the 500 digits that it was not trained on."""

    denoisers: Callable[[jax.Array], Denoiser]  # labels -> denoiser
    points: int  # digits, as many of each class
    title: str = "trained network, 28 x 28 digits"
    samplers: tuple[Sampler, ...] = tuple(sampler for sampler in SAMPLERS if sampler.name in NAMES)
    grids: tuple[str, ...] = ("uniform", "Karras", "log-SNR")
    budgets: tuple[int, ...] = (5, 10, 20, 50)
    measure: str = "energy distance"

    @cached_property
    def real(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Digits that the network was trained on, and digits held out."""
        return load(source("mnist5k", "train")), load(source("mnist5k", "test"))

    @cached_property
    def classify(self) -> Callable[[np.ndarray], np.ndarray]:
        """Class probabilities."""
        known, _ = self.real
        return fit_classifier(known["image"], known["label"])

    @property
    def labels(self) -> np.ndarray:
        """0 .. 9, 0 .. 9, ..."""
        return np.arange(self.points) % 10

    def floor(self, repeats: int) -> dict[str, dict[str, float]]:
        """Mean and 95 % point of each error, for real digits of the same classes."""
        known, _ = self.real
        of_class = [np.flatnonzero(known["label"] == label) for label in range(10)]
        rng, found = np.random.default_rng(0), []
        for _ in range(repeats):
            chosen = np.array([rng.choice(of_class[label]) for label in self.labels])
            found.append(self.errors(known["image"][chosen], 0))
        return {name: summary([row[name] for row in found]) for name in found[0]}

    def draw(self, sampler: Sampler, grid: str, size: float) -> tuple[list[np.ndarray], int, bool]:
        """One set of digits on so many steps of the grid; evaluations; and whether all went well."""
        _, grid_of = GRIDS[grid]
        keys = jax.random.split(jax.random.key(7), self.points)
        found = self._compiled(sampler, int(size))(grid_of(int(size)), keys, jnp.asarray(self.labels))
        images = np.asarray(from_unit(np.clip(np.nan_to_num(found["x"]), -1, 1)))
        return [images], int(found["evaluations"][0]), bool(np.all(found["succeeded"]))

    @lru_cache(maxsize=1)  # noqa: B019 one program for all grids of a number of steps
    def _compiled(self, sampler: Sampler, steps: int) -> Callable[..., dict[str, jax.Array]]:
        def draw(ts: jax.Array, keys: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
            found = sampler.draw(jax.jit(self.denoisers(labels)), PROCESS, keys, (len(keys), *SHAPE), ts=ts)
            succeeded = found.result == diffrax.RESULTS.successful
            return {"x": found.x, "evaluations": found.evaluations, "succeeded": jnp.asarray(succeeded)}

        return pmap_sampler(draw)

    def errors(self, images: np.ndarray, i: int) -> dict[str, float]:
        """Energy distance on pixels to the digits held out, and the share of which a classifier is not rightly sure."""
        _, held_out = self.real
        certain = certainty(self.classify(images), self.labels)
        return {
            self.measure: energy_distance(flat(images), flat(held_out["image"])),
            "unsure or wrong": 1 - certain["sure_and_right"],
        }


def digits_mode(run_dir: str, points: int) -> DigitsMode | None:
    """The network of a run, or None, with a line that says what to do, where there is no trained one."""
    if not (Path(run_dir) / "scores.json").exists():
        print(f"No trained network in {run_dir}, so no digits: python -m experiments.quickstart")
        return None
    return DigitsMode(load_denoiser(run_dir), points)
