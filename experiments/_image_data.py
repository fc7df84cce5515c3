"""Images of any TFDS data set as batches for training: one shape, uint8, with the class where there is one.

digits, mnist5k                                   no network needed
mnist, fashion_mnist, cifar10, cifar100           as they are; --size 32 pads 28 x 28 for networks of four levels
celeb_a                                           the centre 140 x 140 of the face, resized: --size 64
imagenet_resized/32x32, imagenet_resized/64x64    with classes; test split "validation"
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dgm_jax.data import batches, source
from dgm_jax.data.batches import Batches
from dgm_jax.data.records import Source
from experiments._tiles import tiled

LEVELS = {"digits": 17}  # others have 256
CROPS = {"celeb_a": 140}  # Song et al. 2021, section C; the full 178 x 218 shows more background than face


@dataclass(frozen=True)
class ImageRecords:
    """Records with "image", uint8 [size, size, channels], and "label", int32, where classes are asked for."""

    records: Source
    size: int
    crop: int | None
    labelled: bool

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return self._prepared(self.records[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, np.ndarray]]:
        """The records at `indices`."""
        read_many = getattr(self.records, "__getitems__", None)
        found = [self.records[i] for i in indices] if read_many is None else read_many(indices)
        return [self._prepared(record) for record in found]

    def _prepared(self, record: Any) -> dict[str, np.ndarray]:
        prepared = {"image": fitted(np.asarray(record["image"]), self.size, self.crop)}
        if self.labelled:
            prepared["label"] = np.asarray(record["label"], np.int32)
        return prepared


def image_records(dataset: str, split: str, *, size: int, classes: int, data_dir: str | None = None) -> ImageRecords:
    """One split of a TFDS data set; `size` 0 keeps the images' own, `classes` 0 leaves labels out.

    Raises:
        ValueError: records have no image, or no label where classes are asked for; or labels beyond them, in the first
            256 records.
    """
    records = source(dataset, split, data_dir=data_dir)
    first = records[0]
    if "image" not in first or (classes and "label" not in first):
        wanted = '"image" and "label"' if classes else '"image"'
        raise ValueError(f"Expected records with {wanted}, as a network learns them; got {sorted(first)} in {dataset}.")
    height, width = first["image"].shape[:2]
    if not size and height != width:
        raise ValueError(f"Expected --size, as the images of {dataset} are not square; got {height} x {width}.")
    largest = max((int(records[i]["label"]) for i in range(min(len(records), 256))), default=0) if classes else 0
    if classes and largest >= classes:
        raise ValueError(f"Expected labels below classes={classes}, as each has a row; got {largest} in {dataset}.")
    return ImageRecords(records, size or height, CROPS.get(dataset), bool(classes))


def local_batches(records: ImageRecords, batch: int, *, seed: int, process: int, processes: int) -> Batches:
    """This process's part of each global batch of `batch` images."""
    if batch % processes:
        raise ValueError(f"Expected a batch that the {processes} processes share equally; got {batch=}.")
    return batches(records, batch // processes, seed=seed, shard_index=process, shard_count=processes)


def levels_of(dataset: str) -> int:
    """How many values a pixel has."""
    return LEVELS.get(dataset, 256)


def fitted(image: np.ndarray, size: int, crop: int | None = None) -> np.ndarray:
    """The image as [size, size, channels]: its centre of `crop` pixels; larger ones shrunk by means, smaller padded.

    Padding is with the value 0, which is black.
    """
    image = image.reshape(*image.shape[:2], -1)
    if crop is not None:
        top, left = (image.shape[0] - crop) // 2, (image.shape[1] - crop) // 2
        image = image[top : top + crop, left : left + crop]
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    if max(height, width) > size:
        return _shrunk(image, size)
    before = ((size - height) // 2, (size - width) // 2)
    after = (size - height - before[0], size - width - before[1])
    return np.pad(image, ((before[0], after[0]), (before[1], after[1]), (0, 0)))


def _shrunk(image: np.ndarray, size: int) -> np.ndarray:
    from PIL import Image, ImageOps

    picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return np.asarray(ImageOps.fit(picture, (size, size), method=Image.Resampling.BOX)).reshape(size, size, -1)


def png(images: np.ndarray, columns: int) -> bytes:
    """Images uint8 as one picture in PNG."""
    from PIL import Image

    picture, buffer = tiled(images, columns), io.BytesIO()
    Image.fromarray(picture).save(buffer, format="png", optimize=True)
    return buffer.getvalue()
