"""What tables of samplers are scored by, beside its noise floor: digits of a network, points of an exact mixture."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import numpy as np
from scipy.spatial.distance import cdist

from dgm_jax.data import load, source, unequal_mixture
from dgm_jax.metrics import frechet_distance
from dgm_jax.processes import GaussianProcess
from dgm_jax.samplers import Samples
from experiments._digits import certainty, fit_classifier, flat
from experiments._distances import fixed_directions, sliced_wasserstein_2
from experiments._frontier_exact import Diffused
from experiments._run import Run

Scores = dict[str, Any]
PARTS = 4  # in which drawn digits are split for a standard error; 40 digits have as many of each class in all


@dataclass(frozen=True, eq=False)
class DigitScores:
    """Drawn digits against digits that no network was trained on; `known` and `held_out` hold images and labels."""

    known: dict[str, np.ndarray]
    held_out: dict[str, np.ndarray]

    @cached_property
    def classify(self) -> Callable[[np.ndarray], np.ndarray]:
        """Class probabilities."""
        return fit_classifier(self.known["image"], self.known["label"])

    @cached_property
    def exact(self) -> tuple[np.ndarray, np.ndarray, float]:
        """Of the held-out digits: pixels, the classifier's answers, and the mean distance between two of them."""
        real = flat(self.held_out["image"])
        return real, log_odds(self.classify(self.held_out["image"])), _mean_within(cdist(real, real))

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> Scores:
        """Unbiased energy distance on pixels, Frechet distance of the classifier's answers, and its certainty.

        The energy distance's standard error is from its spread over parts of the drawn digits.
        """
        drawn, (real, exact, within) = flat(images), self.exact
        to_real, to_drawn, probabilities = cdist(drawn, real), cdist(drawn, drawn), self.classify(images)

        def energy(rows: np.ndarray) -> float:
            return float(2 * to_real[rows].mean() - _mean_within(to_drawn[np.ix_(rows, rows)]) - within)

        everything = np.arange(len(drawn))
        parts = [energy(rows) for rows in np.array_split(everything, PARTS)]
        return {
            **certainty(probabilities, labels),
            "energy": energy(everything),
            "energy_error": float(np.std(parts, ddof=1) / np.sqrt(PARTS)),
            "frechet": float(frechet_distance(*_moments(log_odds(probabilities)), *_moments(exact))),
        }

    def floor(self, n: int, *, repeats: int = 20) -> Scores:
        """Mean and 95 % point of each distance for `n` real digits, as many of each class; their share of all held out.

        Equal numbers of each class make the energy distance of sets of one law fall below 0, in the floor as in what is
        drawn, so that their difference is what is to be shown.
        """
        of_class = [np.flatnonzero(self.known["label"].reshape(-1) == label) for label in range(10)]
        labels, rng = np.arange(n) % 10, np.random.default_rng(0)
        rows = []
        for _ in range(repeats):
            chosen = np.array([rng.choice(of_class[label]) for label in labels])
            rows.append(self(self.known["image"][chosen], labels))
        own = certainty(self.classify(self.held_out["image"]), self.held_out["label"].reshape(-1))
        return {
            "sure_and_right": own["sure_and_right"],
            **{name: float(np.mean([row[name] for row in rows])) for name in ("energy", "frechet")},
            **{f"{name}_95": float(np.quantile([row[name] for row in rows], 0.95)) for name in ("energy", "frechet")},
        }


def _mean_within(distances: np.ndarray) -> float:
    """The mean over pairs of different points."""
    return float(distances.sum() / (len(distances) * (len(distances) - 1)))


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance, in float64."""
    return features.mean(0), np.cov(features, rowvar=False)


def digit_scores(most: int = 4500) -> DigitScores:
    """Of the 28 x 28 digits: 4,500, or `most`, that the quickstart's network was trained on, and 500 held out."""
    return DigitScores(load(source("mnist5k", f"train[:{most}]")), load(source("mnist5k", "test")))


def log_odds(probabilities: np.ndarray) -> np.ndarray:
    """The classifier's answers as features: logarithms, cut off where it is certain."""
    return np.log(probabilities + 1e-3)


@dataclass(frozen=True, eq=False)
class MixtureScores:
    """A sampler with the exact denoiser of three unequal Gaussians in the plane: sliced Wasserstein-2 distance.

    Every seed has its own noise and its own exact points, of which the floor has another set.
    """

    points: int
    seeds: int
    directions: int = 64

    def of(self, process: GaussianProcess, sample: Callable[..., Samples]) -> Callable[..., Scores]:
        """(**options) -> the distance's mean over seeds with its standard error, and evaluations; compiled once.

        Args:
            sample: (denoise, process, key, shape, **options), as the samplers are; options are arrays.
        """
        denoise = Diffused(unequal_mixture()).denoiser(process)
        program = jax.jit(lambda key, options: sample(denoise, process, key, (self.points, 2), **options))

        def score(**options: Any) -> Scores:
            found = [program(jax.random.key(seed), options) for seed in range(self.seeds)]
            return {**self._summary([np.asarray(row.x) for row in found]), "evaluations": int(found[0].evaluations)}

        return score

    def floor(self) -> Scores:
        """The same of exact points."""
        return self._summary([self._exact(1, seed) for seed in range(self.seeds)])

    def _summary(self, sets: Iterable[np.ndarray]) -> Scores:
        directions = fixed_directions(2, self.directions)
        values = [sliced_wasserstein_2(x, self._exact(0, seed), directions) for seed, x in enumerate(sets)]
        error = np.std(values, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.nan
        return {"distance": float(np.mean(values)), "error": float(error)}

    def _exact(self, family: int, seed: int) -> np.ndarray:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(2026), family), seed)
        return np.asarray(unequal_mixture().sample(key, self.points), np.float32)


def finish(run: Run, text: str, *, page: str, picture: str, plot: Callable[[Path], None], scores: Scores) -> None:
    """Print the tables and write them, then the picture, then the scores, which mark the run as done."""
    print(text)
    (run.directory / page).write_text(text)
    plot(run.directory / picture)
    run.finish(scores)
    print(f"Look at {run.directory}/{picture} and {page}")


def score_tables(run: Run, digits: int, table: Callable[[str, Callable[[Scores], str]], str]) -> str:
    """The tables of all scores of `digits` drawn digits, and of the mixture's, each beside its noise floor.

    Args:
        table: (data, what a cell shows of its record) -> markdown.
    """
    real, exact = (run.measured(f"{data}_floor", dict) for data in ("digits", "mixture"))
    return "\n".join(
        [
            f"Energy distance of {digits} drawn digits to 500 held out, less that of as many real digits, which is "
            f"below {real['energy_95'] - real['energy']:.3f} in 95 %:\n",
            table("digits", lambda row: excess_energy(row, real)),
            f"Share that the classifier is sure of and right; of real digits {real['sure_and_right']:.2f}:\n",
            table("digits", lambda row: plus_minus(row["sure_and_right"], row["standard_error"], 2)),
            f"Frechet distance of the classifier's answers; of real digits {real['frechet']:.2f}, below "
            f"{real['frechet_95']:.2f} in 95 %:\n",
            table("digits", lambda row: f"{row['frechet']:.2f}"),
            "Exact denoiser of a mixture in the plane, sliced Wasserstein-2 distance, mean over seeds; of exact points "
            f"{plus_minus(exact['distance'], exact['error'], 3)}:\n",
            table("mixture", lambda row: plus_minus(row["distance"], row["error"], 3)),
        ]
    )


def excess_energy(row: Scores, floor: Scores) -> str:
    """The energy distance beyond that of as many real digits, with its standard error."""
    return plus_minus(row["energy"] - floor["energy"], row["energy_error"], 3)


def plus_minus(value: float, error: float, digits: int = 4) -> str:
    """A number with its standard error."""
    return f"{value:.{digits}f} +- {error:.{digits}f}"


def markdown(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table."""
    header = list(header)
    lines = [header, ["---"] * len(header), *([str(cell) for cell in row] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
