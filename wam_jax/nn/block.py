"""The Wan-compatible diffusion transformer block, cut where streams meet.

A block is called in two halves, so that one attention can join tokens of several experts: ``project`` gives queries,
keys and values; ``finish`` takes what was attended to and does the rest (residual, text cross-attention, feed-forward).
Source: Wan 2.1 reference ``WanAttentionBlock`` (arXiv 2503.20314).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wam_jax.nn.attention import CrossAttention, Projections
from wam_jax.nn.module import FeedForward, LayerNorm, standardize


class DiTBlock(nnx.Module):
    """One layer of one expert. adaLN modulation = a learned offset + the projected noise level."""

    def __init__(
        self, width: int, ffn_width: int, num_heads: int, head_dim: int, rngs: nnx.Rngs, output_gain: float = 1.0
    ):
        self.modulation = nnx.Param(initial_modulation(rngs.params(), width), axes=(None, "embed"))
        self.attention = Projections(width, num_heads, head_dim, rngs, output_gain)
        self.text_norm = LayerNorm(width, ("embed",))
        self.text_attention = CrossAttention(width, num_heads, head_dim, rngs, output_gain)
        self.ffn = FeedForward(width, ffn_width, rngs, gain=output_gain)

    def project(
        self, x: Float[Array, "B N D"], modulation: Float[Array, "B N|1 6 D"]
    ) -> tuple[Float[Array, "B N H Dh"], Float[Array, "B N H Dh"], Float[Array, "B N H Dh"]]:
        """Queries, keys and values of the modulated tokens."""
        shift, scale = (self._modulate(modulation, i, x.dtype) for i in (0, 1))
        y = standardize(x) * (1 + scale) + shift
        return self.attention.queries(y), *self.attention.keys_values(y)

    def finish(
        self,
        x: Float[Array, "B N D"],
        attended: Float[Array, "B N H Dh"],
        modulation: Float[Array, "B N|1 6 D"],
        text: Float[Array, "B L D"],
        text_mask: Bool[Array, "B L"],
    ) -> Float[Array, "B N D"]:
        """The tokens after this layer."""
        gate, ffn_shift, ffn_scale, ffn_gate = (self._modulate(modulation, i, x.dtype) for i in (2, 3, 4, 5))
        x = x + gate * self.attention.merge(attended)
        x = x + self.text_attention(self.text_norm(x), text, text_mask)
        return x + ffn_gate * self.ffn(standardize(x) * (1 + ffn_scale) + ffn_shift)

    def _modulate(self, modulation: Array, index: int, dtype: jnp.dtype) -> Array:
        return (modulation[:, :, index] + self.modulation[...][index]).astype(dtype)


def initial_modulation(key: jax.Array, width: int) -> Float[Array, "6 D"]:
    """Gates start open (1), shifts and scales near 0, so that a shallow trunk trained from nothing learns at once."""
    noise = jax.random.normal(key, (6, width)) * 0.02
    return noise.at[jnp.array([2, 5])].add(1.0)
