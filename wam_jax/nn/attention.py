"""Attention over heads, and the learned projections around it."""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float

from wam_jax.nn import backends
from wam_jax.nn.module import Linear, RMSNorm
from wam_jax.sharding import ambient_platform, placement_known

KeysValues = tuple[Float[Array, "*layers B n H Dh"], Float[Array, "*layers B n H Dh"]]


def attend(
    query: Float[Array, "B Nq H Dh"],
    key: Float[Array, "B Nk H Dh"],
    value: Float[Array, "B Nk H Dh"],
    key_mask: Bool[Array, "B Nk"] | None = None,
) -> Float[Array, "B Nq H Dh"]:
    """Scaled dot-product attention; softmax in float32. Every query sees every key that ``key_mask`` keeps.

    A sample of which the mask keeps no key gets zeros.

    The kernel is that of the platform the program is traced for: plain XLA on CPUs, cuDNN on GPUs, splash attention on
    TPUs (see ``backends.choose``). On several devices the last two need the mesh: inside ``sharding.use_mesh`` they are
    used, outside plain XLA is.
    """
    backend: backends.Backend = "xla"
    if placement_known():
        backend = backends.choose(ambient_platform(), query.dtype, query.shape[-1], query.shape[1], key.shape[1])
    attended = backends.BACKENDS[backend](query, key, value, key_mask)
    if key_mask is None:
        return attended
    return jnp.where(jnp.any(key_mask, axis=1)[:, None, None, None], attended, 0)


class Projections(nnx.Module):
    """Query, key, value and output projections with RMS-normalised queries and keys (as in Wan).

    The attention width ``num_heads * head_dim`` need not be the token width: streams of different widths meet in one
    joint attention as long as their heads have the same shape.
    """

    def __init__(self, width: int, num_heads: int, head_dim: int, rngs: nnx.Rngs, output_gain: float = 1.0):
        inner = num_heads * head_dim
        self.query = Linear(width, inner, ("embed", "heads"), rngs)
        self.key = Linear(width, inner, ("embed", "heads"), rngs)
        self.value = Linear(width, inner, ("embed", "heads"), rngs)
        self.output = Linear(inner, width, ("heads", "embed"), rngs, gain=output_gain)
        self.query_norm = RMSNorm(inner, ("heads",))
        self.key_norm = RMSNorm(inner, ("heads",))
        self.num_heads = num_heads

    def queries(self, x: Float[Array, "B N D"]) -> Float[Array, "B N H Dh"]:
        return self._heads(self.query_norm(self.query(x)))

    def keys_values(self, x: Float[Array, "B N D"]) -> tuple[Float[Array, "B N H Dh"], Float[Array, "B N H Dh"]]:
        return self._heads(self.key_norm(self.key(x))), self._heads(self.value(x))

    def merge(self, attended: Float[Array, "B N H Dh"]) -> Float[Array, "B N D"]:
        return self.output(rearrange(attended, "b n h d -> b n (h d)"))

    def _heads(self, x: Float[Array, "B N I"]) -> Float[Array, "B N H Dh"]:
        return rearrange(x, "b n (h d) -> b n h d", h=self.num_heads)


class CrossAttention(nnx.Module):
    """Tokens attend to another sequence (text), without positions.

    With ``image``, the same queries attend to an image's tokens too, by keys and values of their own, and the two
    results add up (Wan 2.1 image to video: ``WanI2VCrossAttention``).
    """

    def __init__(
        self,
        width: int,
        num_heads: int,
        head_dim: int,
        rngs: nnx.Rngs,
        output_gain: float = 1.0,
        image: bool = False,
    ):
        self.projections = Projections(width, num_heads, head_dim, rngs, output_gain)
        if image:
            inner = num_heads * head_dim
            self.image_key = Linear(width, inner, ("embed", "heads"), rngs)
            self.image_value = Linear(width, inner, ("embed", "heads"), rngs)
            self.image_key_norm = RMSNorm(inner, ("heads",))

    def __call__(
        self,
        x: Float[Array, "B N D"],
        context: Float[Array, "B L D"],
        mask: Bool[Array, "B L"],
        image: Float[Array, "B I D"] | None = None,
    ) -> Float[Array, "B N D"]:
        queries = self.projections.queries(x)
        attended = attend(queries, *self.projections.keys_values(context), mask)
        if image is not None:
            keys = self.image_key_norm(self.image_key(image))
            heads = (rearrange(a, "b n (h d) -> b n h d", h=queries.shape[2]) for a in (keys, self.image_value(image)))
            attended = attended + attend(queries, *heads)
        return self.projections.merge(attended)


class SelfAttention(nnx.Module):
    """Full attention within one sequence."""

    def __init__(self, width: int, num_heads: int, head_dim: int, rngs: nnx.Rngs, output_gain: float = 1.0):
        self.projections = Projections(width, num_heads, head_dim, rngs, output_gain)

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        return self.projections.merge(attend(self.projections.queries(x), *self.projections.keys_values(x)))


def concatenate_tokens(parts: list[Array]) -> Array:
    """Joins token blocks along the token axis (axis 1); a single block passes through."""
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts, axis=1)
