"""Images of any data set in one shape, and files of drawn ones that are whole or refused."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from experiments import _image_data
from experiments._image_data import fitted, image_records, local_batches
from experiments._image_files import ImageFiles


def ramp(height, width, channels=3):
    return np.arange(height * width * channels, dtype=np.int64).reshape(height, width, channels) % 251


@pytest.mark.parametrize("channels", [1, 3])
def test_fitting(channels):
    image = ramp(8, 8, channels).astype(np.uint8)
    np.testing.assert_array_equal(fitted(image, 8), image)
    padded = fitted(image, 11)
    assert padded.shape == (11, 11, channels)
    np.testing.assert_array_equal(padded[1:9, 1:9], image)
    assert padded.sum() == image.sum()
    # a mean over squares of 2 x 2, to the nearest integer
    means = image.reshape(4, 2, 4, 2, channels).astype(float).mean((1, 3))
    np.testing.assert_allclose(fitted(image, 4), means, atol=1.0)
    np.testing.assert_array_equal(fitted(image[:, :, :1].squeeze(-1), 8)[..., 0], image[..., 0])


def test_faces_are_cut_before_they_are_shrunk():
    image = np.zeros((218, 178, 3), np.uint8)
    image[39:179, 19:159] = 200  # the centre 140 x 140
    np.testing.assert_array_equal(fitted(image, 64, _image_data.CROPS["celeb_a"]), np.full((64, 64, 3), 200))


def test_wide_images_keep_their_centre():
    image = np.zeros((10, 30, 1), np.uint8)
    image[:, 10:20] = 7
    np.testing.assert_array_equal(fitted(image, 5), np.full((5, 5, 1), 7))


def test_digits_and_their_classes():
    records = image_records("digits", "train", size=0, classes=10)
    assert records[3]["image"].shape == (8, 8, 1)
    assert records[3]["label"].dtype == np.int32
    assert set(records[0]) == {"image", "label"}
    assert set(image_records("digits", "train", size=16, classes=0)[0]) == {"image"}
    np.testing.assert_array_equal(records.__getitems__([5])[0]["image"], records[5]["image"])
    batch = next(local_batches(records, 12, seed=0, process=1, processes=3))
    assert batch["image"].shape == (4, 8, 8, 1)
    assert batch["label"].shape == (4,)


def test_refusals():
    with pytest.raises(ValueError, match="Expected labels below classes=5"):
        image_records("digits", "train", size=0, classes=5)
    records = image_records("digits", "train", size=0, classes=0)
    with pytest.raises(ValueError, match="the 3 processes share equally; got batch=4"):
        local_batches(records, 4, seed=0, process=0, processes=3)


@pytest.mark.parametrize(
    ("name", "size", "classes", "shape"),
    [
        ("cifar10", 0, 10, (32, 32, 3)),
        ("cifar100", 0, 100, (32, 32, 3)),
        ("mnist", 32, 10, (32, 32, 1)),
        ("fashion_mnist", 0, 10, (28, 28, 1)),
        ("celeb_a", 64, 0, (64, 64, 3)),
        ("imagenet_resized/32x32", 0, 1000, (32, 32, 3)),
        ("imagenet_resized/64x64", 0, 1000, (64, 64, 3)),
    ],
)
def test_catalog(monkeypatch, name, size, classes, shape):
    """TFDS's mock data have the features of the real ones, and nothing is downloaded."""

    def mocked(name, split, *, data_dir):
        return tfds.data_source(name, split=split)

    monkeypatch.setattr(_image_data, "source", mocked)
    with tfds.testing.mock_data(num_examples=3):
        records = image_records(name, "train", size=size, classes=classes)
        record = records[0]
    assert record["image"].shape == shape
    assert record["image"].dtype == np.uint8
    assert ("label" in record) == bool(classes)


def test_faces_need_a_size(monkeypatch):
    monkeypatch.setattr(_image_data, "source", lambda *_, **__: [{"image": np.zeros((218, 178, 3), np.uint8)}])
    with pytest.raises(ValueError, match="Expected --size, as the images of celeb_a are not square; got 218 x 178"):
        image_records("celeb_a", "train", size=0, classes=0)
    with pytest.raises(ValueError, match='Expected records with "image" and "label"'):
        image_records("celeb_a", "train", size=64, classes=3)


def test_files_are_whole_or_refused(tmp_path):
    files = ImageFiles(tmp_path, 2, 3, (4, 4, 1))
    images = np.arange(96, dtype=np.uint8).reshape(6, 4, 4, 1)
    assert not files.is_there(0)
    files.write(0, images=images[:3], labels=np.arange(3))
    files.write(1, images=images[3:])
    assert files.is_there(0)
    np.testing.assert_array_equal(files.images(), images)
    np.testing.assert_array_equal(files.numbers(1), [3, 4, 5])
    assert {path.name for path in tmp_path.iterdir()} == {"samples-00000.npz", "samples-00001.npz"}
    whole = files.path(1).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"not a zip"):
        files.path(1).write_bytes(damaged)
        with pytest.raises(SystemExit, match="Expected images as sample_images writes them"):
            files.is_there(1)
    files.write(1, images=images[3:, :2])
    with pytest.raises(SystemExit, match="Expected uint8 images"):
        files.is_there(1)
    np.savez(files.path(1), images=np.array([{"an": "object"}], dtype=object))  # needs pickle
    with pytest.raises(SystemExit, match="allow_pickle"):
        files.is_there(1)
