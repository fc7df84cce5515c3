"""Inception's features from the published weights in a local file: what FID and KID are usually computed on.

The usual file is `pt_inception-2015-12-05-6726825d.pth`, the 2015 TensorFlow graph's weights as a PyTorch state
dictionary. Nothing is downloaded. Images are resized as pytorch-fid does, which is part of the number: see `RESIZE`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dgm_jax.data.torch_files import read_torch_file
from dgm_jax.networks.inception import inception_features

SIDE = 299
RESIZE = "bilinear to 299 x 299, half-pixel centres, no antialiasing"


def load_inception(path: str | Path, *, chunk: int = 32) -> Callable[[Any], np.ndarray]:
    """A function of images uint8 `[n, height, width, 3]` that returns features `[n, 2048]` in float32.

    Args:
        path: of the state dictionary.
        chunk: images that are computed at once.

    Raises:
        ValueError: the file holds no Inception v3, or images are not what they should be.
    """
    weights = read_torch_file(path)
    try:
        jax.eval_shape(lambda x: inception_features(weights, x), jnp.zeros((1, SIDE, SIDE, 3)))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Expected Inception v3's weights, as features are computed by it; got {path}: {error}"
        ) from None

    @jax.jit
    def of_chunk(images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32) / 255
        x = jax.image.resize(x, (len(x), SIDE, SIDE, 3), "bilinear", antialias=False)
        return inception_features(weights, 2 * x - 1)

    def features(images: Any) -> np.ndarray:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or not len(images):
            raise ValueError(
                f"Expected images uint8 [n, height, width, 3], as Inception saw colours of 256 levels (grey ones: "
                f"repeat the channel); got shape {images.shape}, dtype {images.dtype}."
            )
        parts = []
        for start in range(0, len(images), chunk):
            part = jnp.asarray(images[start : start + chunk])
            padded = jnp.pad(part, ((0, chunk - len(part)), (0, 0), (0, 0), (0, 0))) if start else part
            parts.append(np.asarray(of_chunk(padded))[: len(part)])
        return np.concatenate(parts)

    return features
