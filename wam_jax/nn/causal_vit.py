"""A pre-norm vision transformer layer over clips: full within a frame, causal across frames."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import repeat
from flax import nnx
from jaxtyping import Array, Float, Int

from wam_jax.nn.attention import SelfAttention, attend
from wam_jax.nn.module import FeedForward, LayerNorm
from wam_jax.nn.rotary import rotary_table, rotate


class Past(NamedTuple):
    """What a layer keeps of a clip that comes frame by frame: keys and values of its last ``window - 1`` frames.

    ``seen`` counts the frames so far; slots older than the clip hold zeros, and are not looked at.
    """

    keys: Float[Array, "B W-1 N H Dh"]
    values: Float[Array, "B W-1 N H Dh"]
    seen: Int[Array, ""]


class CausalViTBlock(nnx.Module):
    """Attention and feed-forward, each on normalised tokens with a residual around it.

    A token sees all tokens of its own frame and of the ``window - 1`` frames before; rotary positions tell how long
    ago those were, so that a clip of any length is like one of the lengths seen in training.
    """

    def __init__(self, width: int, ffn_width: int, num_heads: int, window: int, rngs: nnx.Rngs):
        self.attention_norm = LayerNorm(width, ("embed",))
        self.attention = SelfAttention(width, num_heads, width // num_heads, rngs, output_gain=0.5)
        self.ffn_norm = LayerNorm(width, ("embed",))
        self.ffn = FeedForward(width, ffn_width, rngs, gain=0.5)
        self.window = window

    def __call__(self, x: Float[Array, "B T N D"], past: Past | None = None) -> tuple[Float[Array, "B T N D"], Past]:
        """The next T frames of a clip (its first, without a ``past``), and what the frames after them need."""
        batch, frames, count, width = x.shape
        tokens = self.attention_norm(x.reshape(batch, frames * count, width))
        projections = self.attention.projections
        query, (key, value) = projections.queries(tokens), projections.keys_values(tokens)
        past = past or self._nothing(key, count)
        if self.window > 1:
            times = repeat(past.seen + jnp.arange(frames, dtype=jnp.float32), "t -> (t n)", n=count)
            zeros = jnp.zeros_like(times)
            table = rotary_table(jnp.stack([times, zeros, zeros], -1), query.shape[-1])
            query, key = rotate(query, table), rotate(key, table)
        shape = (batch, frames, count, *query.shape[2:])
        keys = jnp.concatenate([past.keys, key.reshape(shape)], 1)
        values = jnp.concatenate([past.values, value.reshape(shape)], 1)
        attended = self._attend(query.reshape(shape), keys, values, past.seen)
        x = x + projections.merge(attended.reshape(batch, frames * count, *query.shape[2:])).reshape(x.shape)
        x = x + self.ffn(self.ffn_norm(x))
        kept = slice(frames, None)  # the last window - 1 of window - 1 + frames
        return x, Past(keys[:, kept], values[:, kept], past.seen + frames)

    def _attend(
        self,
        query: Float[Array, "B T N H Dh"],
        keys: Float[Array, "B W-1+T N H Dh"],
        values: Float[Array, "B W-1+T N H Dh"],
        seen: Int[Array, ""],
    ) -> Float[Array, "B T N H Dh"]:
        """Every frame to its window, as one call with the frames among the batch."""
        batch, frames, count, *heads = query.shape
        flat = query.reshape(batch * frames, count, *heads)

        def windows(x: Array) -> Array:
            shifted = jnp.stack([x[:, i : i + frames] for i in range(self.window)], 2)
            return shifted.reshape(batch * frames, self.window * count, *heads)

        mask = None
        if self.window > 1:
            time = np.arange(frames)[:, None] + np.arange(self.window) - (self.window - 1)
            there = repeat(seen + time >= 0, "t w -> (b t) (w n)", b=batch, n=count)
            mask = jnp.asarray(there)
        return attend(flat, windows(keys), windows(values), mask).reshape(query.shape)

    def _nothing(self, key: Float[Array, "B N H Dh"], count: int) -> Past:
        """Before the first frame."""
        blank = jnp.zeros((key.shape[0], self.window - 1, count, *key.shape[2:]), key.dtype)
        return Past(blank, blank, jnp.zeros((), jnp.int32))
