"""The experiments on guidance and latent spaces run and finish; their data, attributes and exact answers are right."""

import colorsys
import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _colour_digits, _digit_attributes, _guidance_exact, colour_digits, score_sde_figure4
from experiments._distances import fixed_directions, sliced_wasserstein_2
from tests import oracles
from tests.test_experiments import check_pictures
from tests.test_paper_experiments import default_jax, smoke

__all__ = ["default_jax"]  # a fixture


# whole experiments ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_colour_digits_smoke(tmp_path):
    rows = smoke("colour_digits", tmp_path)
    check_pictures(tmp_path, {"digits.png"})
    assert rows[-1]["step"] == 20
    denoise = colour_digits.load_colour_denoiser(tmp_path)(jnp.zeros(2, int))
    assert denoise(jnp.zeros((2, *_colour_digits.SHAPE)), jnp.full(2, 0.5)).shape == (2, *_colour_digits.SHAPE)


def test_guidance_strength_smoke(tmp_path):
    rows = smoke("guidance_strength", tmp_path)
    check_pictures(tmp_path, {"guidance_strength.png", "guidance_grid.png", "guidance_exact.png"})
    digits = [row for row in rows if row["part"] == "digits"]
    assert {(row["method"], row["scale"]) for row in digits} == {
        ("real digits", 0.0),
        ("guidance", 0.0),
        ("guidance", 1.0),
        ("guidance", 3.0),
        ("limited interval", 3.0),
    }
    # the stand-in's pixels are N(m, 1/4) with a mean for each class: guidance carries them away from all means
    beyond = {row["scale"]: row["beyond"] for row in digits if row["method"] == "guidance"}
    assert beyond[3.0] > 2 * beyond[1.0]
    assert all(row["beyond"] == 0 for row in digits if row["method"] == "real digits")
    with (tmp_path / "guidance_strength.csv").open() as file:
        assert len(list(csv.reader(file))) == 1 + 7 * 5 + 3 * 3


@pytest.mark.slow
def test_score_sde_figure4_smoke(tmp_path):
    smoke("score_sde_figure4", tmp_path)
    check_pictures(tmp_path, {"figure4.png"})
    scores = json.loads((tmp_path / "scores.json").read_text())
    known = {name: row["known"][0] for name, row in scores.items() if "hidden" in name}
    # what is known is there to within the noise of the last level, sigma(1e-3)
    sigma = float(colour_digits.PROCESS.sigma(jnp.asarray(colour_digits.T_MIN)))
    assert known
    assert all(value == pytest.approx(sigma, rel=0.1) for value in known.values()), (known, sigma)


def test_ddpm_interpolation_smoke(tmp_path):
    smoke("ddpm_interpolation", tmp_path)
    check_pictures(tmp_path, {"figure8.png", "figure9.png"})
    scores = json.loads((tmp_path / "scores.json").read_text())
    errors = [scores[f"t = {t}"]["error"][0] for t in ("0", "0.5", "1")]
    assert errors[0] == 0
    assert errors == sorted(errors)  # less of a digit is left at later times


@pytest.mark.slow
def test_latent_spaces_smoke(tmp_path):
    rows = smoke("latent_spaces", tmp_path)
    check_pictures(tmp_path, {"latent_spaces.png"})
    assert [row["family"] for row in rows] == ["VAE", "GAN", "diffusion"]
    assert all(np.isfinite(value) for row in rows for value in row.values() if isinstance(value, float))


def test_a_missing_network_says_what_to_run(tmp_path):
    with pytest.raises(SystemExit, match=r"python -m experiments\.colour_digits"):
        colour_digits.load_conditional(tmp_path / "none")


# their own formulas ---------------------------------------------------------------------------------------------


def test_hues_are_those_of_the_standard_library(default_jax):
    hues = np.linspace(0, 0.999, 37)
    expected = [colorsys.hsv_to_rgb(hue, 1, 1) for hue in hues]
    assert np.allclose(_colour_digits.colour(jnp.asarray(hues, jnp.float32)), expected, atol=1e-5)


def test_colour_digits_hide_their_grey_under_one_colour(default_jax):
    digits = _colour_digits.colour_digits("test")
    again = _colour_digits.colour_digits("test")
    assert np.array_equal(digits.images, again.images)
    assert np.bincount(digits.labels).tolist() == [50] * 10
    ordered = _colour_digits.by_class(digits)
    assert ordered.labels[:20].tolist() == [*range(10), *range(10)]
    # images over their brightness are the colour, wherever there is ink
    bright = _colour_digits.brightness(digits.images)
    rgb = (digits.images + 1) / 2 / np.maximum(bright, 1e-6)[..., None]
    expected = np.asarray(_colour_digits.colour(jnp.asarray(digits.hues)))[:, None, None, :]
    assert np.abs(np.where(bright[..., None] > 0.1, rgb - expected, 0)).max() < 1e-4
    assert score_sde_figure4.colour_spread(digits.images).max() < 1e-4


def test_two_colours_in_an_image_spread(default_jax):
    """Half red, half blue: each channel but green has std 1/2, so the RMS over channels is sqrt(1/6)."""
    image = -np.ones((1, 16, 16, 3), np.float32)
    image[:, :8, :, 0] = image[:, 8:, :, 2] = 1
    assert score_sde_figure4.colour_spread(image)[0] == pytest.approx(np.sqrt(1 / 6), rel=1e-5)


@pytest.mark.parametrize("label", [0, 7, colour_digits.NULL])
def test_the_stand_in_is_the_denoiser_of_its_gaussian(default_jax, label):
    mean = -0.5 if label == colour_digits.NULL else label / 10 - 1
    exact = oracles.Mixture(np.ones(1), np.full((1, 1), mean), np.full((1, 1, 1), 0.25)).denoise(colour_digits.PROCESS)
    x, t = jnp.linspace(-2, 2, 5)[:, None], jnp.linspace(0.1, 0.9, 5)
    found = colour_digits.load_conditional("stand-in")(x, t, jnp.full(5, label))
    assert jnp.allclose(found, exact(x, t), atol=1e-5)


def bar(shear: float, width: float) -> np.ndarray:
    """A stroke of this width in pixels that leans by `shear` columns a row, antialiased, 28 x 28."""
    fine = (np.arange(28 * 8) + 0.5) / 8
    rows, columns = np.meshgrid(fine, fine, indexing="ij")
    inside = (np.abs(columns - 14 + shear * (rows - 14)) < width / 2) & (np.abs(rows - 14) < 10)
    return inside.reshape(28, 8, 28, 8).mean((1, 3))


@pytest.mark.parametrize(("shear", "width"), [(0.0, 4.0), (0.4, 4.0), (-0.3, 6.0)])
def test_attributes_are_those_of_a_bar(default_jax, shear, width):
    slant, thickness, spread = np.asarray(_digit_attributes.attributes(jnp.asarray(bar(shear, width))[None]))[0]
    assert slant == pytest.approx(shear, abs=0.02)
    assert spread == pytest.approx(width / np.sqrt(12), rel=0.05)  # the std of a uniform law
    # 2 area/perimeter, with the perimeter of a parallelogram of 20 rows; the gradient spreads corners a little
    perimeter = 2 * 20 * np.hypot(1, shear) + 2 * width
    assert thickness == pytest.approx(2 * 20 * width / perimeter, rel=0.06)


def test_tilted_points_have_the_moments_of_quadrature(default_jax):
    """Against an integral on another grid, of the density by scipy's normal laws."""
    from scipy.stats import multivariate_normal as normal

    ticks = np.linspace(-4, 4, 401)
    grid = np.stack(np.meshgrid(ticks, ticks), -1)
    parts = [
        weight * normal(mean, covariance).pdf(grid)
        for weight, mean, covariance in zip(
            _guidance_exact.WEIGHTS, _guidance_exact.MEANS, _guidance_exact.COVARIANCES, strict=True
        )
    ]
    everything = np.sum(parts, 0)
    asked = np.sum([part for part, label in zip(parts, _guidance_exact.CLASS, strict=True) if label == 0], 0)
    density = everything * (asked / everything) ** 3
    mean = (density[..., None] * grid).sum((0, 1)) / density.sum()
    variance = (density[..., None] * (grid - mean) ** 2).sum((0, 1)) / density.sum()
    x = _guidance_exact.tilted_points(3.0, 20_000, 0, 400)
    assert np.abs(x.mean(0) - mean).max() < 4 * np.sqrt(variance.max() / 20_000)
    assert np.allclose(x.var(0), variance, rtol=0.05)


def test_guidance_draws_the_conditional_at_1_and_not_the_tilted_density_at_3(default_jax):
    n, directions = 1000, fixed_directions(2, 16)
    draw = _guidance_exact.guided_points("ODE", n, 40)
    for scale, same in ((1.0, True), (3.0, False)):
        truth = [_guidance_exact.tilted_points(scale, n, seed, 200) for seed in range(9)]
        floor = [sliced_wasserstein_2(x, truth[0], directions) for x in truth[1:]]
        distance = sliced_wasserstein_2(draw(scale, 5), truth[0], directions)
        assert (distance < np.mean(floor) + 4 * np.std(floor)) == same, (scale, distance, floor)


def test_the_basis_of_colours_is_orthogonal_with_grey_first(default_jax):
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 3))
    z = score_sde_figure4.to_basis(x)
    assert jnp.allclose(z[..., 0], x.sum(-1) / np.sqrt(3), atol=1e-5)
    assert jnp.allclose(score_sde_figure4.from_basis(z), x, atol=1e-5)
