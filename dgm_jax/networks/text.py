"""A small encoder of token sequences, such as captions: what cross-attention looks at.

Captions are integers [batch, tokens] of a vocabulary of the user's own; 0 is padding, on the right or anywhere. There
is no tokenizer here: split on blanks, and number the words from 1.

    h = token embedding + position embedding
    h = h + attention(norm(h));  h = h + mlp(norm(h))        in each block (pre-norm); norm at the end

Reference: Vaswani et al. 2017, arXiv:1706.03762; Xiong et al. 2020, arXiv:2002.04745, figure 1b, for the pre-norm;
Rombach et al. 2022, arXiv:2112.10752, section 3.3, where such an encoder is trained with the denoiser.
"""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Int

from dgm_jax.networks.attention import Context, Mask, multi_head_attention
from dgm_jax.networks.dense import check_widths
from dgm_jax.networks.layers import KERNEL_INIT, GroupNorm
from dgm_jax.numerics import is_count, known

PADDING = 0
Tokens = Int[Array, "batch tokens"]


class Text(NamedTuple):
    """Encoded captions: one vector for each token, and which tokens are there."""

    context: Context
    mask: Mask


class TextEncoder(nn.Module):
    """Tokens [batch, tokens] to vectors [batch, tokens, features] and the mask of those that are not padding.

    A caption of padding alone is the null caption of classifier-free guidance: its mask is False throughout.

    Attributes:
        vocabulary: number of tokens with padding, so that tokens are below it.
        features: of each vector, and of the blocks.
        longest: number of tokens for which there are positions.
        blocks: of attention and a two-layer map; 0 has embeddings alone, and no order beyond their positions'.
        heads: of each attention; divides `features`.
        dtype: compute dtype, and that of the vectors.
    """

    vocabulary: int
    features: int
    longest: int
    blocks: int = 2
    heads: int = 4
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, tokens: Tokens) -> Text:
        """The vectors and the mask; vectors at padding mean nothing."""
        check_widths((self.features,), self.vocabulary, self.longest, self.heads)
        if not is_count(self.blocks, least=0):
            raise ValueError(f"Expected a whole number of blocks >= 0, as they are stacked; got {self.blocks}.")
        check_tokens(tokens, self.vocabulary, self.longest)
        mask = tokens != PADDING
        normal = nn.initializers.normal(0.02**0.5)
        h = nn.Embed(self.vocabulary, self.features, dtype=self.dtype, embedding_init=normal, name="token")(tokens)
        h = jnp.where((tokens >= 0)[..., None], h, jnp.nan)  # as for tokens too large, which under jit are not refused
        positions = self.param("position", normal, (self.longest, self.features), jnp.float32)
        h = h + positions[None, : tokens.shape[1]].astype(self.dtype)
        for i in range(self.blocks):
            h = TextBlock(self.heads, dtype=self.dtype, name=f"block_{i}")(h, mask)
        return Text(layer_norm(h, "norm_out"), mask)


class TextBlock(nn.Module):
    """Attention of all tokens to those that the mask leaves, then a two-layer map, each added to what it reads."""

    heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, h: Context, mask: Mask) -> Context:
        """The tokens' vectors after the block."""
        features = h.shape[-1]

        def dense(name: str, width: int = features) -> nn.Dense:
            return nn.Dense(width, kernel_init=KERNEL_INIT, dtype=self.dtype, name=name)

        normed = layer_norm(h, "norm_1")
        query, key, value = (dense(name)(normed) for name in ("query", "key", "value"))
        h = h + dense("out")(multi_head_attention(query, key, value, mask, heads=self.heads))
        normed = layer_norm(h, "norm_2")
        return h + dense("mlp_2")(nn.gelu(dense("mlp_1", 4 * features)(normed)))


def layer_norm(h: Context, name: str) -> Context:
    """Each token's features normalised, as one group; called inside a module, whose layer it is."""
    return GroupNorm(groups=1, name=name)(h.reshape(-1, h.shape[-1])).reshape(h.shape)


def check_tokens(tokens: Array, vocabulary: int, longest: int) -> None:
    """Raise `ValueError` unless tokens are integers [batch, tokens], no more than `longest`, in the vocabulary."""
    if tokens.ndim != 2 or not tokens.size or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(
            f"Expected integer tokens [batch, tokens], as each is a word's number; "
            f"got shape {tokens.shape}, dtype {tokens.dtype}."
        )
    if tokens.shape[1] > longest:
        raise ValueError(f"Expected at most {longest=} tokens, as there are no more positions; got {tokens.shape[1]}.")
    values = known(tokens)
    if values is not None and values.size and not ((values >= 0) & (values < vocabulary)).all():
        raise ValueError(
            f"Expected tokens in [0, {vocabulary - 1}], as the vocabulary has {vocabulary} with padding; "
            f"got values in [{values.min()}, {values.max()}]."
        )
