"""One's own data on disk: a folder of images as a source, decoded by Pillow when a record is read.

Each image is turned upright by its EXIF tag, converted to grey or RGB (transparency is laid on white), cut to its
largest centred square and resized to `size` x `size` by Pillow's bicubic filter, which averages where it shrinks.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_EIGHT_BIT_MODES = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "CMYK", "YCbCr", "HSV", "LAB"}


@dataclass(frozen=True)
class FolderSource:
    """Records with the field "image", uint8 [size, size, channels], built by `from_folder`."""

    paths: tuple[Path, ...]
    size: int
    channels: int

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        return {"image": _decode(self.paths[index], self.size, self.channels)}


def from_folder(path: str | os.PathLike, *, size: int, channels: int = 3) -> FolderSource:
    """The images below `path`, subfolders included, sorted by path; hidden files and other kinds are left out.

    Args:
        size: height and width of every record, in pixels.
        channels: 1 for grey, 3 for RGB; images of the other kind are converted.

    Raises:
        ValueError: here where the folder has no image; on reading a record, where Pillow cannot decode its file.
    """
    from PIL import Image

    if size < 1 or channels not in (1, 3):
        raise ValueError(f"Expected size >= 1 and channels 1 (grey) or 3 (RGB); got {size=}, {channels=}.")
    folder = Path(path)
    if not folder.is_dir():
        raise ValueError(f"Expected a folder of images that exists; got path={str(folder)!r}.")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise ValueError(f"Expected a folder that may be read; got path={str(folder)!r} without the permission.")
    suffixes = {suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN}
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
    paths = tuple(file for file in found if not file.name.startswith("."))
    if not paths:
        raise ValueError(f"Expected a folder with at least one image (PNG, JPEG, ...); got none below {str(folder)!r}.")
    return FolderSource(paths, size, channels)


def _decode(path: Path, size: int, channels: int) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # Pillow reports a broken PNG as SyntaxError
        raise ValueError(f"Expected an image that Pillow can decode; got {str(path)!r} ({error}).") from error
    if image.mode not in _EIGHT_BIT_MODES:
        raise ValueError(f"Expected 8 bits a channel, as conversion would clip more; got {str(path)!r}, {image.mode=}.")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("L" if channels == 1 else "RGB")
    fitted = ImageOps.fit(image, (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(fitted).reshape(size, size, channels)
