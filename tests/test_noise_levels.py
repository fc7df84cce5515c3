"""NCSNv2's choices against the paper's own settings, SciPy, and the variance of Langevin dynamics step by step."""

import numpy as np
import pytest
from scipy import optimize, spatial, stats

from dgm_jax.samplers import langevin_epsilon, largest_distance, level_count, level_ratio

# the configurations of Song & Ermon 2020 (arXiv:2006.09011): dim, sigma_1, L, T, epsilon; sigma_L is 0.01
PUBLISHED = {
    "CIFAR-10": (32 * 32 * 3, 50.0, 232, 5, 6.2e-6),
    "CelebA": (64 * 64 * 3, 90.0, 500, 5, 3.3e-6),
    "LSUN church": (96 * 96 * 3, 140.0, 788, 4, None),  # the paper's 4.9e-6 is twice the minimiser of its own criterion
    "LSUN bedroom": (128 * 128 * 3, 190.0, 1086, 3, 1.8e-6),
    "FFHQ": (256 * 256 * 3, 348.0, 2311, 3, 0.9e-6),
}
EACH = pytest.mark.parametrize("name", PUBLISHED)


@EACH
def test_the_papers_numbers_of_levels(name):
    """All five have an overlap of 0.567, where the text says about 0.5: with 0.5 they are 6 per cent fewer."""
    dim, sigma_max, count, _, _ = PUBLISHED[name]
    assert level_count(dim, sigma_min=0.01, sigma_max=sigma_max, overlap=0.5669) == count
    assert 0.93 < level_count(dim, sigma_min=0.01, sigma_max=sigma_max) / count < 0.96


@pytest.mark.parametrize("dim", [5, 64, 784, 3072])
@pytest.mark.parametrize("overlap", [0.3, 0.5])
def test_the_ratio_solves_the_papers_equation(dim, overlap):
    gamma = level_ratio(dim, overlap=overlap)
    centre = np.sqrt(2 * dim) * (gamma - 1)
    found = stats.norm.cdf(centre + 3 * gamma) - stats.norm.cdf(centre - 3 * gamma)
    np.testing.assert_allclose(found, overlap, rtol=1e-9)


def test_the_overlap_is_the_mass_near_the_next_levels_radius():
    """Radii of 784-dimensional noise by the chi distribution, which the paper takes as normal."""
    dim, gamma = 784, level_ratio(784)
    low, high = gamma * (np.sqrt(dim) - 3 / np.sqrt(2)), gamma * (np.sqrt(dim) + 3 / np.sqrt(2))
    mass = stats.chi(dim).cdf(high) - stats.chi(dim).cdf(low)
    # Berry and Esseen's bound on a normal approximation falls with the root of the dimension
    assert abs(mass - 0.5) < 0.5 / np.sqrt(dim)


def variance_after(steps, epsilon, sigma, start):
    """The variance of algorithm 1's steps x + epsilon/2 score + sqrt(epsilon) z on N(0, sigma^2), one by one."""
    variance = start
    for _ in range(steps):
        variance = (1 - epsilon / (2 * sigma**2)) ** 2 * variance + epsilon
    return variance


@pytest.mark.parametrize(("steps", "ratio"), [(1, 1.5), (5, 1.0376), (100, 1.668), (3, 1.0045)])
def test_epsilon_brings_the_variance_nearest_to_the_levels_own(steps, ratio):
    sigma = 0.3
    best = optimize.minimize_scalar(
        lambda e: variance_after(steps, e, sigma, (ratio * sigma) ** 2),
        bounds=(0, 2 * sigma**2),
        options={"xatol": 1e-12},
    )
    epsilon = langevin_epsilon(steps, ratio=ratio, sigma_min=sigma)
    least = variance_after(steps, epsilon, sigma, (ratio * sigma) ** 2)
    np.testing.assert_allclose(least, best.fun, rtol=1e-8)
    np.testing.assert_allclose(epsilon, best.x, rtol=1e-3)  # a minimum is flat


@pytest.mark.parametrize("name", [name for name, row in PUBLISHED.items() if row[-1]])
def test_the_papers_step_sizes(name):
    """To the tenths of 1e-6 that it prints, and twice as large, as its steps are x + alpha score + sqrt(2 alpha) z."""
    _, sigma_max, count, steps, published = PUBLISHED[name]
    ratio = (sigma_max / 0.01) ** (1 / (count - 1))
    epsilon = langevin_epsilon(steps, ratio=ratio, sigma_min=0.01)
    assert round(epsilon / 2 * 1e6, 1) == round(published * 1e6, 1)


def test_the_largest_distance(monkeypatch):
    x = np.random.default_rng(0).standard_normal((40, 3, 2)) + 1e4
    expected = spatial.distance.pdist(x.reshape(40, 6)).max()
    np.testing.assert_allclose(largest_distance(x), expected, rtol=1e-9)
    many = np.random.default_rng(1).standard_normal((4000, 2))  # more than one block
    np.testing.assert_allclose(largest_distance(many), spatial.distance.pdist(many).max(), rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: largest_distance(np.zeros((1, 3))), "2 finite points"),
        (lambda: largest_distance(np.array([[0.0], [np.nan]])), "2 finite points"),
        (lambda: level_ratio(4), "dim >= 5.*dim=4"),
        (lambda: level_ratio(64, overlap=1.0), "overlap < 0.9.*1.0"),
        (lambda: level_count(64, sigma_min=1.0, sigma_max=0.1), "sigma_min < sigma_max"),
        (lambda: langevin_epsilon(0, ratio=1.1, sigma_min=0.1), "steps >= 1"),
        (lambda: langevin_epsilon(5, ratio=1.0, sigma_min=0.1), "ratio > 1"),
        (lambda: langevin_epsilon(5, ratio=1.1, sigma_min=0.0), "sigma_min > 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=f"Expected.*{message}"):
        call()
