"""Many images in files of equal parts, each written whole or not at all, so that drawing them can be cut short."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class ImageFiles:
    """samples-<j>.npz for j below `count`, each with "images", uint8 [chunk, *shape]."""

    directory: Path
    count: int
    chunk: int
    shape: tuple[int, int, int]

    def path(self, j: int) -> Path:
        """Of file j."""
        return self.directory / f"samples-{j:05d}.npz"

    def numbers(self, j: int) -> np.ndarray:
        """Of the images in file j, among all."""
        return j * self.chunk + np.arange(self.chunk)

    def write(self, j: int, **fields: np.ndarray) -> None:
        """Write file j aside and rename it."""
        scratch = self.directory / f".{self.path(j).name}.part"
        with scratch.open("wb") as file:
            np.savez(file, allow_pickle=False, **fields)
        scratch.replace(self.path(j))

    def is_there(self, j: int) -> bool:
        """Whether file j has been written; one that is not as `write` leaves it is refused."""
        return self.path(j).exists() and self._read(j) is not None

    def images(self) -> np.ndarray:
        """All of them, in order: [count chunk, *shape]."""
        return np.concatenate([self._read(j) for j in range(self.count)])

    def _read(self, j: int) -> np.ndarray:
        try:
            # opened here, as np.load leaves open what it cannot read
            with self.path(j).open("rb") as file, np.load(file, allow_pickle=False) as fields:
                images = fields["images"]
        except Exception as error:  # of many kinds: zip, header, missing field
            raise SystemExit(
                f"Expected images as sample_images writes them; got {self.path(j)}: {error}. Move it away to draw it "
                "again."
            ) from None
        if images.shape != (self.chunk, *self.shape) or images.dtype != np.uint8:
            raise SystemExit(
                f"Expected uint8 images {(self.chunk, *self.shape)} in {self.path(j)}; got {images.dtype} "
                f"{images.shape}. Move it away to draw it again."
            )
        return images
