"""One's own arrays and folders of images, and the scaling of integers to [-1, 1]."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from dgm_jax.data import Source, batches, from_array, from_folder, from_unit, load, to_unit

pytestmark = pytest.mark.usefixtures("no_network")


def test_from_array_serves_what_it_was_given():
    x, labels = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32), np.arange(5)
    whole = load(from_array(x, labels))
    np.testing.assert_array_equal(whole["image"], x)
    np.testing.assert_array_equal(whole["label"], labels)
    assert set(from_array(x)[0]) == {"image"}
    assert isinstance(from_array(x), Source)


@pytest.mark.parametrize(
    ("x", "labels", "message"),
    [
        (np.zeros(5), None, "at least one event axis"),
        (np.zeros((0, 2)), None, "n >= 1"),
        (np.zeros((4, 0)), None, "n >= 1"),
        (np.zeros((4, 2), np.int64), None, r"uint8.*got int64.*astype"),
        (np.zeros((4, 2), bool), None, "got bool"),
        (np.array([[0.0, np.nan]]), None, "got 1 such"),
        (np.array([[np.inf, np.nan]], np.float32), None, "got 2 such"),
        (np.zeros((4, 2)), np.zeros(3, int), "one label per example, 4 of them"),
        (np.zeros((4, 2)), np.array(0), "one label per example"),
        (np.zeros((4, 2)), np.array(list("abcd")), "labels as integers or floats"),
        (np.zeros((2, 2)), np.array([0.0, np.nan]), "finite labels"),
    ],
)
def test_bad_arrays(x, labels, message):
    with pytest.raises(ValueError, match=message):
        from_array(x, labels)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    PIL.Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "b" / "2.png")
    PIL.Image.new("L", (12, 6), 77).save(tmp_path / "a.PNG")
    PIL.Image.new("RGBA", (6, 12), (0, 0, 0, 0)).save(tmp_path / "c.webp", lossless=True)
    (tmp_path / "notes.txt").write_text("not an image")
    (tmp_path / ".hidden.png").write_text("not an image")
    return tmp_path


def test_a_folder_in_sorted_order_in_colour_and_in_grey(folder):
    colour = load(from_folder(folder, size=4))["image"]
    assert colour.shape == (3, 4, 4, 3)
    assert colour.dtype == np.uint8
    np.testing.assert_array_equal(colour[:, 0, 0], [[77] * 3, [10, 20, 30], [255] * 3])
    grey = load(from_folder(str(folder), size=4, channels=1))["image"]
    assert grey.shape == (3, 4, 4, 1)
    luma = round(0.299 * 10 + 0.587 * 20 + 0.114 * 30)  # ITU-R 601-2
    np.testing.assert_array_equal(grey[:, 0, 0, 0], [77, luma, 255])


def test_images_are_cut_to_the_centred_square(tmp_path):
    pixels = np.zeros((4, 8), np.uint8)
    pixels[:, 2:6] = np.arange(16).reshape(4, 4) * 10
    PIL.Image.fromarray(pixels).save(tmp_path / "wide.png")
    PIL.Image.fromarray(pixels.T.copy()).save(tmp_path / "tall.png")
    tall, wide = load(from_folder(tmp_path, size=4, channels=1))["image"][..., 0]
    np.testing.assert_array_equal(wide, pixels[:, 2:6])
    np.testing.assert_array_equal(tall, pixels[:, 2:6].T)


def test_shrinking_averages(tmp_path):
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    PIL.Image.fromarray(stripes).save(tmp_path / "stripes.png")
    image = from_folder(tmp_path, size=8, channels=1)[0]["image"]
    assert abs(image[2:-2, 2:-2].astype(int) - 127.5).max() < 5  # picking pixels would give 0 or 255


def test_images_are_turned_upright(tmp_path):
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    exif = PIL.Image.Exif()
    exif[0x0112] = 3  # orientation: turned by 180 degrees
    PIL.Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(from_folder(tmp_path, size=4, channels=1)[0]["image"][..., 0], pixels[::-1, ::-1])


def test_a_folder_feeds_batches(folder):
    assert next(batches(from_folder(folder, size=4), 2, seed=0))["image"].shape == (2, 4, 4, 3)


@pytest.mark.parametrize("broken", ["text", "truncated"])
def test_an_undecodable_image_is_named(broken, tmp_path):
    path = tmp_path / "x.png"
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    PIL.Image.fromarray(noise).save(path)
    path.write_bytes(b"not an image" if broken == "text" else path.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"Pillow can decode; got '.*x\.png'"):
        load(from_folder(tmp_path, size=4))


def test_sixteen_bit_images_are_refused(tmp_path):
    PIL.Image.fromarray(np.full((4, 4), 60000, np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="8 bits a channel"):
        load(from_folder(tmp_path, size=4))


def test_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="folder of images that exists"):
        from_folder(tmp_path / "nowhere", size=4)
    with pytest.raises(ValueError, match="at least one image"):
        from_folder(tmp_path, size=4)
    with pytest.raises(ValueError, match="size >= 1"):
        from_folder(tmp_path, size=0)
    with pytest.raises(ValueError, match="channels 1"):
        from_folder(tmp_path, size=4, channels=2)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission(tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o000)
    with pytest.raises(ValueError, match="without the permission"):
        from_folder(locked, size=4)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_round_trip_is_exact(levels):
    image = np.arange(levels, dtype=np.uint8)
    unit = to_unit(image, levels=levels)
    assert unit.dtype == jnp.float32
    np.testing.assert_allclose(unit, np.linspace(-1, 1, levels), atol=2e-7)
    assert (unit[0], unit[-1]) == (-1, 1)
    np.testing.assert_array_equal(from_unit(unit, levels=levels), image)
    jitted = jax.jit(lambda x: from_unit(to_unit(x, levels=levels), levels=levels))(image)
    np.testing.assert_array_equal(jitted, image)
    assert jitted.dtype == jnp.uint8


def test_from_unit_rounds_to_the_nearest_level_and_clips():
    half_step = 1 / 16
    values = jnp.array([-7.0, -1 + 0.99 * half_step, -1 + 1.01 * half_step, 0.0, 1.5, jnp.inf])
    np.testing.assert_array_equal(from_unit(values, levels=17), [0, 0, 1, 8, 16, 16])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: to_unit(np.zeros((2, 2), np.float32)), "uint8.*got float32"),
        (lambda: to_unit(np.zeros((2, 2), np.int32)), "uint8.*got int32"),
        (lambda: to_unit(np.full((2, 2), 255, np.uint8), levels=17), "below levels=17.*got 255"),
        (lambda: to_unit(np.zeros((2, 2), np.uint8), levels=1), "2 <= levels <= 256"),
        (lambda: from_unit(np.zeros((2, 2), np.uint8)), "floating-point image.*got uint8"),
        (lambda: from_unit(np.array([0.0, np.nan])), "no NaN"),
        (lambda: from_unit(jnp.zeros(2), levels=257), "2 <= levels <= 256"),
    ],
)
def test_bad_images(call, message):
    with pytest.raises(ValueError, match=message):
        call()
