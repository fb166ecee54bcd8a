"""A plain pre-norm vision transformer layer: full attention within one image, no conditioning."""

from flax import nnx
from jaxtyping import Array, Float

from wam_jax.nn.attention import SelfAttention
from wam_jax.nn.module import FeedForward, LayerNorm


class ViTBlock(nnx.Module):
    """Attention and feed-forward, each on normalised tokens with a residual around it."""

    def __init__(self, width: int, ffn_width: int, num_heads: int, rngs: nnx.Rngs):
        self.attention_norm = LayerNorm(width, ("embed",))
        self.attention = SelfAttention(width, num_heads, width // num_heads, rngs, output_gain=0.5)
        self.ffn_norm = LayerNorm(width, ("embed",))
        self.ffn = FeedForward(width, ffn_width, rngs, gain=0.5)

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        x = x + self.attention(self.attention_norm(x))
        return x + self.ffn(self.ffn_norm(x))
