"""The Wan-compatible diffusion transformer block, cut where streams meet.

A block is called in parts, so that one attention can join tokens of several experts: ``project`` gives queries, keys
and values; ``attend`` takes what was attended to and reads the instruction; ``read`` crosses a bridge, if there is one;
``feed_forward`` ends the layer.
Source: Wan 2.1 reference ``WanAttentionBlock`` (arXiv 2503.20314).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wam_jax.nn.attention import CrossAttention, Projections
from wam_jax.nn.module import FeedForward, LayerNorm, Linear, standardize

HeadsTriple = tuple[Float[Array, "B N H Dh"], Float[Array, "B N H Dh"], Float[Array, "B N H Dh"]]


class SharedAttention(nnx.Module):
    """Self-attention and text cross-attention: the part of a block that two experts may share (RepWAM)."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        text: bool,
        rngs: nnx.Rngs,
        output_gain: float,
        image: bool = False,
    ):
        self.self_attention = Projections(width, num_heads, head_dim, rngs, output_gain)
        self.text = text
        if text:
            self.text_norm = LayerNorm(width, ("embed",))
            self.text_attention = CrossAttention(width, num_heads, head_dim, rngs, output_gain, image)


class BridgeAttention(nnx.Module):
    """Cross-attention to another expert's hidden states, through a linear projection of this layer's own (AGRA)."""

    def __init__(self, source: int, width: int, num_heads: int, head_dim: int, rngs: nnx.Rngs, output_gain: float):
        self.project = Linear(source, width, (None, "embed"), rngs)
        self.norm = LayerNorm(width, ("embed",))
        self.attention = Projections(width, num_heads, head_dim, rngs, output_gain)

    def keys_values(self, hidden: Float[Array, "B N S"]) -> tuple[Float[Array, "B N H Dh"], Float[Array, "B N H Dh"]]:
        return self.attention.keys_values(self.project(standardize(hidden)))

    def queries(self, x: Float[Array, "B N D"]) -> Float[Array, "B N H Dh"]:
        return self.attention.queries(self.norm(x))


class DiTBlock(nnx.Module):
    """One layer of one expert. adaLN modulation = a learned offset + the projected noise level."""

    def __init__(
        self,
        width: int,
        ffn_width: int,
        num_heads: int,
        head_dim: int,
        rngs: nnx.Rngs,
        *,
        own_attention: bool = True,
        text: bool = True,
        image: bool = False,
        bridge: int | None = None,
        output_gain: float = 1.0,
    ):
        """``image``: text cross-attention reads an image too; ``bridge``: width of the hidden states read, if any."""
        self.modulation = nnx.Param(initial_modulation(rngs.params(), width), axes=(None, "embed"))
        if own_attention:
            self.attention = SharedAttention(width, num_heads, head_dim, text, rngs, output_gain, image)
        if bridge is not None:
            self.bridge = BridgeAttention(bridge, width, num_heads, head_dim, rngs, output_gain)
        self.ffn = FeedForward(width, ffn_width, rngs, gain=output_gain)

    def project(
        self, x: Float[Array, "B N D"], modulation: Float[Array, "B N|1 6 D"], attention: SharedAttention
    ) -> HeadsTriple:
        """Queries, keys and values of the modulated tokens. ``attention`` is this block's, or that of its owner."""
        shift, scale = (self._modulate(modulation, i, x.dtype) for i in (0, 1))
        y = standardize(x) * (1 + scale) + shift
        projections = attention.self_attention
        return projections.queries(y), *projections.keys_values(y)

    def attend(
        self,
        x: Float[Array, "B N D"],
        attended: Float[Array, "B N H Dh"],
        modulation: Float[Array, "B N|1 6 D"],
        attention: SharedAttention,
        read: Callable[[CrossAttention, Float[Array, "B N D"]], Float[Array, "B N D"]] | None,
    ) -> Float[Array, "B N D"]:
        """The tokens after self-attention and cross-attention: ``read`` applies it to the text that is theirs."""
        x = x + self._modulate(modulation, 2, x.dtype) * attention.self_attention.merge(attended)
        if attention.text and read is not None:
            x = x + read(attention.text_attention, attention.text_norm(x))
        return x

    def read(self, x: Float[Array, "B N D"], attended: Float[Array, "B N H Dh"]) -> Float[Array, "B N D"]:
        """The tokens after the bridge, given what they attended to there."""
        return x + self.bridge.attention.merge(attended)

    def feed_forward(self, x: Float[Array, "B N D"], modulation: Float[Array, "B N|1 6 D"]) -> Float[Array, "B N D"]:
        """The tokens after this layer."""
        shift, scale, gate = (self._modulate(modulation, i, x.dtype) for i in (3, 4, 5))
        return x + gate * self.ffn(standardize(x) * (1 + scale) + shift)

    def _modulate(self, modulation: Array, index: int, dtype: jnp.dtype) -> Array:
        return (modulation[:, :, index] + self.modulation[...][index]).astype(dtype)


def initial_modulation(key: jax.Array, width: int) -> Float[Array, "6 D"]:
    """Gates start open (1), shifts and scales near 0, so that a shallow trunk trained from nothing learns at once."""
    noise = jax.random.normal(key, (6, width)) * 0.02
    return noise.at[jnp.array([2, 5])].add(1.0)
