"""Inception v3 as the Frechet Inception distance uses it: a pure function of the published weights' own names.

    images [batch, 299, 299, 3] in [-1, 1]  ->  means over positions of the last block [batch, 2048]

It differs from the classifier of Szegedy et al. in what the 2015 TensorFlow graph had: average pools that leave padding
out of the mean, and a maximum instead in the last block. Weights are named and laid out as PyTorch's state dictionary,
`Mixed_5b.branch1x1.conv.weight [out, in, height, width]` and so on; batch norm keeps its running statistics.

References: Szegedy et al. 2016, arXiv:1512.00567; Heusel et al. 2017, arXiv:1706.08500.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Weights = Mapping[str, Any]
Images = Float[Array, "batch height width channels"]
EPSILON = 1e-3  # of batch norm
LEAST = 75  # pixels, below which the last blocks have none


def inception_features(weights: Weights, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch 2048"]:
    """The features of images in [-1, 1], 299 x 299 where they are to compare with published numbers."""
    if images.ndim != 4 or images.shape[3] != 3 or min(images.shape[1:3]) < LEAST:
        raise ValueError(
            f"Expected images [batch, height, width, 3] of {LEAST} pixels a side or more, as blocks halve them; got "
            f"{images.shape}."
        )
    net = partial(_unit, weights)
    x = net("Conv2d_1a_3x3", images, stride=2)
    x = net("Conv2d_2a_3x3", x)
    x = net("Conv2d_2b_3x3", x, padding=1)
    x = _max_pool(x, stride=2)
    x = net("Conv2d_3b_1x1", x)
    x = net("Conv2d_4a_3x3", x)
    x = _max_pool(x, stride=2)
    for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        x = _block_5(net, name, x)
    x = _halving_6(net, "Mixed_6a", x)
    for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        x = _block_6(net, name, x)
    x = _halving_7(net, "Mixed_7a", x)
    x = _block_7(net, "Mixed_7b", x, pool=_mean_pool)
    x = _block_7(net, "Mixed_7c", x, pool=partial(_max_pool, stride=1, padding=1))
    return x.mean((1, 2))


def _unit(weights: Weights, name: str, x: Array, *, stride: int = 1, padding: int | tuple[int, int] = 0) -> Array:
    """Convolution, batch norm and rectifier."""
    kernel, gain, bias, mean, variance = (
        jnp.asarray(_found(weights, f"{name}.{part}"), x.dtype)
        for part in ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var")
    )
    rows, columns = (padding, padding) if isinstance(padding, int) else padding
    scale = gain / jnp.sqrt(variance + EPSILON)
    x = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((rows, rows), (columns, columns)),
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
    )
    return jax.nn.relu(x * scale.reshape(1, 1, 1, -1) + (bias - mean * scale).reshape(1, 1, 1, -1))


def _found(weights: Weights, name: str) -> Any:
    if name not in weights:
        raise ValueError(
            f"Expected {name!r} among the weights, as Inception v3 has it; got {len(weights)} others, "
            f"{', '.join(list(weights)[:3])}, ..."
        )
    return weights[name]


def _chain(net: Any, name: str, x: Array, *units: tuple[str, dict[str, Any]]) -> Array:
    for unit, options in units:
        x = net(f"{name}.{unit}", x, **options)
    return x


ROW, COLUMN, ROW_3, COLUMN_3 = (
    {"padding": pads} for pads in ((0, 3), (3, 0), (0, 1), (1, 0))
)  # of kernels 1 x 7, 7 x 1, 1 x 3 and 3 x 1


def _block_5(net: Any, name: str, x: Array) -> Array:
    across = partial(_chain, net, name, x)
    five = across(("branch5x5_1", {}), ("branch5x5_2", {"padding": 2}))
    three = across(("branch3x3dbl_1", {}), ("branch3x3dbl_2", {"padding": 1}), ("branch3x3dbl_3", {"padding": 1}))
    pooled = net(f"{name}.branch_pool", _mean_pool(x))
    return jnp.concatenate([across(("branch1x1", {})), five, three, pooled], axis=-1)


def _halving_6(net: Any, name: str, x: Array) -> Array:
    across = partial(_chain, net, name, x)
    twice = across(("branch3x3dbl_1", {}), ("branch3x3dbl_2", {"padding": 1}), ("branch3x3dbl_3", {"stride": 2}))
    return jnp.concatenate([across(("branch3x3", {"stride": 2})), twice, _max_pool(x, stride=2)], axis=-1)


def _block_6(net: Any, name: str, x: Array) -> Array:
    across = partial(_chain, net, name, x)
    seven = across(("branch7x7_1", {}), ("branch7x7_2", ROW), ("branch7x7_3", COLUMN))
    parts = [("branch7x7dbl_1", {}), *((f"branch7x7dbl_{i}", COLUMN if i % 2 == 0 else ROW) for i in range(2, 6))]
    pooled = net(f"{name}.branch_pool", _mean_pool(x))
    return jnp.concatenate([across(("branch1x1", {})), seven, across(*parts), pooled], axis=-1)


def _halving_7(net: Any, name: str, x: Array) -> Array:
    across = partial(_chain, net, name, x)
    three = across(("branch3x3_1", {}), ("branch3x3_2", {"stride": 2}))
    seven = across(
        ("branch7x7x3_1", {}), ("branch7x7x3_2", ROW), ("branch7x7x3_3", COLUMN), ("branch7x7x3_4", {"stride": 2})
    )
    return jnp.concatenate([three, seven, _max_pool(x, stride=2)], axis=-1)


def _block_7(net: Any, name: str, x: Array, *, pool: Any) -> Array:
    across = partial(_chain, net, name, x)
    three = across(("branch3x3_1", {}))
    twice = across(("branch3x3dbl_1", {}), ("branch3x3dbl_2", {"padding": 1}))
    parts = [
        across(("branch1x1", {})),
        net(f"{name}.branch3x3_2a", three, **ROW_3),
        net(f"{name}.branch3x3_2b", three, **COLUMN_3),
        net(f"{name}.branch3x3dbl_3a", twice, **ROW_3),
        net(f"{name}.branch3x3dbl_3b", twice, **COLUMN_3),
        net(f"{name}.branch_pool", pool(x)),
    ]
    return jnp.concatenate(parts, axis=-1)


def _max_pool(x: Images, *, stride: int, padding: int = 0) -> Float[Array, "batch height_2 width_2 channels"]:
    """The largest of 3 x 3."""
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    least = np.asarray(-np.inf, x.dtype)
    return jax.lax.reduce_window(x, least, jax.lax.max, (1, 3, 3, 1), (1, stride, stride, 1), pads)


def _mean_pool(x: Images) -> Images:
    """The mean of those of 3 x 3 that are in the image."""
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    total, count = (
        jax.lax.reduce_window(part, np.asarray(0, x.dtype), jax.lax.add, (1, 3, 3, 1), (1, 1, 1, 1), pads)
        for part in (x, jnp.ones_like(x[:1, :, :, :1]))
    )
    return total / jnp.broadcast_to(count, total.shape)
