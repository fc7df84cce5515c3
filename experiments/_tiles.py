"""Many images as one picture, without matplotlib."""

import numpy as np


def tiled(images: np.ndarray, columns: int) -> np.ndarray:
    """Images [n, height, width, 1 or 3] in [-1, 1] as one picture [rows height, columns width (, 3)], row by row."""
    rows = len(images) // columns
    height, width = images.shape[1:3]
    colours = images.shape[3:] if images.shape[3:] != (1,) else ()
    squares = images[: rows * columns].reshape(rows, columns, height, width, *colours)
    return squares.swapaxes(1, 2).reshape(rows * height, columns * width, *colours)
