"""Attention: of pixels to each other, and of pixels to a context, such as the words of a caption.

    attention(q, k, v) = softmax(q k^T / sqrt(width of a head)) v,   the softmax over the keys, in at least float32

Reference: Rombach et al., "High-resolution image synthesis with latent diffusion models", 2022, arXiv:2112.10752,
section 3.3; Vaswani et al. 2017, arXiv:1706.03762, section 3.2.2, for heads.
"""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from dgm_jax.networks.layers import KERNEL_INIT, ZERO_INIT, GroupNorm, Images
from dgm_jax.numerics import sum_dtype
from dgm_jax.typing import Size

Context = Float[Array, "batch tokens features"]
Mask = Bool[Array, "batch tokens"]


def multi_head_attention(
    query: Float[Array, "batch queries channels"],
    key: Float[Array, "batch tokens channels"],
    value: Float[Array, "batch tokens channels"],
    mask: Mask | None = None,
    *,
    heads: int,
) -> Float[Array, "batch queries channels"]:
    """Softmax attention of each head on its share of the channels; zero where an example has no token to attend to.

    Args:
        mask: True where a token may be attended to; `None` is all.

    Reference: Vaswani et al. 2017, arXiv:1706.03762, eq. 1.
    """
    channels = query.shape[-1]
    if heads < 1 or channels % heads:
        raise ValueError(f"Expected heads to divide the channels, as each has its share; got {heads=}, {channels=}.")

    def split(x: Array) -> Array:
        return x.reshape(*x.shape[:2], heads, channels // heads)

    logits = jnp.einsum("bqhc,bkhc->bhqk", split(query), split(key)) * (channels // heads) ** -0.5
    logits = logits.astype(sum_dtype(logits.dtype))
    if mask is None:
        weights = nn.softmax(logits)
    else:
        seen = jnp.broadcast_to(mask[:, None, None, :], logits.shape)
        # The lowest finite number, not -inf, of which a row of nothing else has no gradient.
        weights = nn.softmax(jnp.where(seen, logits, jnp.finfo(logits.dtype).min))
        weights = jnp.where(seen, weights, 0.0)
    mixed = jnp.einsum("bhqk,bkhc->bqhc", weights.astype(value.dtype), split(value))
    return mixed.reshape(query.shape)


class SelfAttention(nn.Module):
    """x plus single-head self-attention over all pixels of norm(x), the output projection zero at first."""

    groups: int = 32
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images) -> Images:
        """`x` plus its attention, in the same shape."""
        batch, height, width, channels = x.shape
        dtype = x.dtype if self.dtype is None else self.dtype
        dense = partial(nn.Dense, channels, dtype=dtype)
        h = GroupNorm(self.groups, name="norm")(x).reshape(batch, height * width, channels)
        query, key, value = (dense(kernel_init=KERNEL_INIT, name=name)(h) for name in ("query", "key", "value"))
        logits = jnp.einsum("bqc,bkc->bqk", query, key) * channels**-0.5
        weights = nn.softmax(logits.astype(sum_dtype(dtype))).astype(dtype)
        h = jnp.einsum("bqk,bkc->bqc", weights, value)
        return x.astype(dtype) + dense(kernel_init=ZERO_INIT, name="out")(h).reshape(x.shape)


class CrossAttention(nn.Module):
    """x plus the attention of the pixels of norm(x) to a context's tokens, the output projection zero at first.

    No projection has a bias, so that an example whose tokens are all masked comes back as it is.

    Attributes:
        heads: among which the channels are shared.
        groups: of the group norm of x.
        dtype: compute dtype; `None` is that of `x`.
    """

    heads: int = 1
    groups: int = 32
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Images, context: Context, mask: Mask | None = None) -> Images:
        """`x` plus its attention to the tokens that `mask` leaves, in the same shape; tokens have no order here."""
        check_context(context, mask, x.shape[0])
        batch, height, width, channels = x.shape
        dtype = x.dtype if self.dtype is None else self.dtype
        dense = partial(nn.Dense, channels, use_bias=False, dtype=dtype)
        h = GroupNorm(self.groups, name="norm")(x).reshape(batch, height * width, channels)
        query = dense(kernel_init=KERNEL_INIT, name="query")(h)
        key, value = (dense(kernel_init=KERNEL_INIT, name=name)(context.astype(dtype)) for name in ("key", "value"))
        h = multi_head_attention(query, key, value, mask, heads=self.heads)
        return x.astype(dtype) + dense(kernel_init=ZERO_INIT, name="out")(h).reshape(x.shape)


def check_context(context: Array, mask: Array | None, batch: Size) -> None:
    """Raise `ValueError` unless the context is a floating-point batch of tokens, with a boolean mask of them if any."""
    if context.ndim != 3 or context.shape[0] != batch or not jnp.issubdtype(context.dtype, jnp.floating):
        raise ValueError(
            f"Expected a floating-point context [{batch}, tokens, features], as each example has its own tokens; "
            f"got shape {context.shape}, dtype {context.dtype}."
        )
    if mask is not None and (mask.shape != context.shape[:2] or mask.dtype != jnp.bool_):
        raise ValueError(
            f"Expected a boolean mask of shape {context.shape[:2]}, as it says which tokens are there; "
            f"got shape {mask.shape}, dtype {mask.dtype}."
        )
