"""Handwritten digits of scikit-learn: 1,797 images of 8 x 8 x 1 with 17 levels (0 .. 16), labels 0 .. 9."""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from dgm_jax.data.builders import stratified_split


class Digits(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """1,497 images to train on and 300 held out, 30 of each class."""

    PACKAGE = "sklearn"
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8)
        label = tfds.features.ClassLabel(num_classes=10)
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits in 17 levels: the test part of the UCI set, as scikit-learn ships it.",
            features=tfds.features.FeaturesDict({"image": image, "label": label}),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        images = np.asarray(pixels, np.uint8).reshape(-1, 8, 8, 1)
        labels = np.asarray(labels)
        splits = stratified_split(labels, test_per_class=30)
        return {name: self._generate_examples(images, labels, members) for name, members in splits.items()}

    def _generate_examples(self, images: np.ndarray, labels: np.ndarray, members: np.ndarray) -> Iterator:
        for index in members.tolist():
            yield index, {"image": images[index], "label": int(labels[index])}
