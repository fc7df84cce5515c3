"""Half and twice the size of images: by means and repetition, or by the low-pass filter [1, 3, 3, 1] along each axis.

    down  y[i] = (x[2i - 1] + 3 x[2i] + 3 x[2i + 1] + x[2i + 2]) / 8
    up    y[2i] = (x[i - 1] + 3 x[i]) / 4,    y[2i + 1] = (3 x[i] + x[i + 1]) / 4

with x = 0 outside. The filter passes less of the frequencies that half the size cannot show.

Reference: Zhang 2019, arXiv:1904.11486; Karras et al. 2020 (StyleGAN2), arXiv:1912.04958; used by Song et al. 2021,
arXiv:2011.13456, appendix H.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from dgm_jax.networks.layers import Images, check_divisible

Resized = Float[Array, "batch rows columns channels"]


def mean_downsample(x: Images) -> Resized:
    """The mean of each square of 2 x 2 pixels."""
    batch, height, width, channels = x.shape
    check_divisible((height, width), 2)
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def repeat_upsample(x: Images) -> Resized:
    """Every pixel 2 x 2 times."""
    batch, height, width, channels = x.shape
    spread = jnp.broadcast_to(x[:, :, None, :, None, :], (batch, height, 2, width, 2, channels))
    return spread.reshape(batch, 2 * height, 2 * width, channels)


def fir_downsample(x: Images) -> Resized:
    """Filtered and halved."""
    check_divisible(x.shape[1:3], 2)
    return _rows_down(_rows_down(x).swapaxes(1, 2)).swapaxes(1, 2)


def fir_upsample(x: Images) -> Resized:
    """Doubled and filtered."""
    return _rows_up(_rows_up(x).swapaxes(1, 2)).swapaxes(1, 2)


def blur(x: Images, *, pad: int) -> Resized:
    """Filtered at full size, with `pad` zeros at each side: height + 2 pad - 3 rows."""
    return _rows_blurred(_rows_blurred(x, pad).swapaxes(1, 2), pad).swapaxes(1, 2)


def _rows_blurred(x: Array, pad: int) -> Array:
    x = jnp.pad(x, ((0, 0), (pad, pad), (0, 0), (0, 0)))
    rows = x.shape[1] - 3
    first, second, third, fourth = (x[:, k : k + rows] for k in range(4))
    return (first + 3 * second + 3 * third + fourth) / 8


def _rows_down(x: Array) -> Array:
    return _rows_blurred(x, 1)[:, ::2]


def _rows_up(x: Array) -> Array:
    batch, rows, columns, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
    even, odd = (padded[:, :-2] + 3 * x) / 4, (3 * x + padded[:, 2:]) / 4
    return jnp.stack([even, odd], axis=2).reshape(batch, 2 * rows, columns, channels)
