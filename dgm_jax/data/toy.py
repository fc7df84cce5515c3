"""Toy densities in the plane, each with exact `log_prob`, `score` and `sample`.

Curves with noise (two moons, Swiss roll) have no density in closed form: it is an integral over the curve. They are
defined here as mixtures of equal Gaussians placed on the curve, at most `std`/2 apart, so that all three methods are
exact for the density as defined. The mixture is the midpoint rule for that integral: at this spacing the ripple along
a straight line is 2 exp(-8 pi^2) of the density, far below rounding.
"""

import numpy as np

from dgm_jax.data.densities import Checkerboard, GaussianMixture, isotropic


def ring(modes: int = 8, *, radius: float = 2.0, std: float = 0.02) -> GaussianMixture:
    """Equal Gaussians evenly spaced on a circle (Metz et al. 2017, arXiv:1611.02163, figure 2)."""
    angles = 2 * np.pi * np.arange(modes) / modes
    return isotropic(np.full(modes, 1 / modes), radius * np.stack([np.cos(angles), np.sin(angles)], axis=1), std)


def grid(side: int = 5, *, spacing: float = 2.0, std: float = 0.05) -> GaussianMixture:
    """Equal Gaussians on a centred `side` x `side` grid (Lin et al. 2018, arXiv:1712.04086, section 4)."""
    ticks = spacing * (np.arange(side) - (side - 1) / 2)
    means = np.stack(np.meshgrid(ticks, ticks, indexing="ij"), axis=-1).reshape(-1, 2)
    return isotropic(np.full(len(means), 1 / len(means)), means, std)


def unequal_mixture() -> GaussianMixture:
    """Three Gaussians of weights 0.6, 0.3 and 0.1 and different shapes, off centre: nothing in it is symmetric."""
    weights = np.array([0.6, 0.3, 0.1])
    means = np.array([[1.5, 0.5], [-1.0, 1.5], [0.0, -2.0]])
    covariances = np.array([[[0.30, 0.15], [0.15, 0.20]], [[0.10, -0.05], [-0.05, 0.40]], [[0.05, 0.0], [0.0, 0.05]]])
    return GaussianMixture(weights, means, covariances)


def two_moons(*, std: float = 0.1) -> GaussianMixture:
    """Two interleaved half circles of radius 1, about (0, 0) and (1, 1/2), uniform in arc length, with noise `std`."""
    _check_std(std)
    points = int(np.ceil(np.pi / (std / 2)))
    angles = np.pi * (np.arange(max(points, 100)) + 0.5) / max(points, 100)
    upper = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    lower = np.array([1.0, 0.5]) - upper
    means = np.concatenate([upper, lower])
    return isotropic(np.full(len(means), 1 / len(means)), means, std)


def swiss_roll(*, radius: float = 2.0, std: float = 0.05) -> GaussianMixture:
    """The spiral r = radius angle/(4.5 pi), uniform in the angle from 1.5 pi to 4.5 pi, with noise `std`.

    Uniform in the angle means denser towards the middle, as in scikit-learn's `make_swiss_roll`.
    """
    _check_std(std)
    outer_speed = radius / (4.5 * np.pi) * np.sqrt(1 + (4.5 * np.pi) ** 2)  # the largest |dx/d angle|
    points = max(int(np.ceil(3 * np.pi * outer_speed / (std / 2))), 200)
    angles = 1.5 * np.pi + 3 * np.pi * (np.arange(points) + 0.5) / points
    spiral = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (radius * angles / (4.5 * np.pi))[:, None]
    return isotropic(np.full(points, 1 / points), spiral, std)


def checkerboard(cells: int = 4, *, half_width: float = 4.0) -> Checkerboard:
    """Uniform on the even squares of a `cells` x `cells` board over [-half_width, half_width]^2."""
    return Checkerboard(cells, half_width)


def _check_std(std: float) -> None:
    if not std > 0:
        raise ValueError(f"Expected std > 0, as a curve without noise has no density; got {std=}.")
