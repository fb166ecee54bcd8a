"""T5 v1.1 and UMT5 encoders: the frozen text encoders of Wan (UMT5-XXL), FLUX and others.

T5 (Raffel et al. 2019, arXiv:1910.10683) with version 1.1's gated GELU; UMT5 (Chung et al. 2023, arXiv:2304.09151) is
the same but for a position bias of each layer's own and another vocabulary. What is unusual in both: no absolute
positions, no scaling of attention, no biases, no normalisation but by the root mean square.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from wam_jax import assets
from wam_jax.encoders.frozen import FrozenEncoder, freeze
from wam_jax.encoders.text import TextEncoder, open_tokenizer
from wam_jax.nn.module import Definition, Linear, RMSNorm, define, layer_slice, stack
from wam_jax.weights import mapping
from wam_jax.weights.files import open_weights
from wam_jax.weights.mapping import Source, Tensors, WeightMap

_NUM_BUCKETS = 32  # of relative positions
_FARTHEST = 128  # tokens; all that is farther is in the last bucket


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of an encoder.

    Attributes:
      width: of the residual stream.
      ffn_width: of the feed-forward's hidden layer.
      num_layers, num_heads: of the encoder.
      vocabulary: rows of the embedding table.
      bias_per_layer: whether each layer has its own position bias (UMT5), or all share that of the first (T5).
      head_dim: width of a head; all heads together need not be as wide as the stream.
    """

    width: int
    ffn_width: int
    num_layers: int
    num_heads: int
    vocabulary: int = 32_128
    bias_per_layer: bool = False
    head_dim: int = 64


# google-research/t5x: t5x/examples/t5/t5_1_1/*.gin, and t5x/examples/scalable_t5/umt5/*.gin with the mt5/*.gin they
# include.
T5_SIZES: Mapping[str, Config] = {
    "base": Config(768, 2048, num_layers=12, num_heads=12),
    "large": Config(1024, 2816, num_layers=24, num_heads=16),
    "xl": Config(2048, 5120, num_layers=24, num_heads=32),
    "xxl": Config(4096, 10_240, num_layers=24, num_heads=64),
}
UMT5_SIZES: Mapping[str, Config] = {
    name: dataclasses.replace(T5_SIZES[name], vocabulary=256_384, bias_per_layer=True) for name in ("base", "xl", "xxl")
}


def position_buckets(length: int) -> Int[np.ndarray, "L L"]:
    """The bucket of each (query, key): exact up to 7 tokens apart, then ever wider, the upper half for later keys.

    Source: ``_relative_position_bucket`` of Mesh TensorFlow's transformer_layers.py, bidirectional.
    """
    distance = np.arange(length)[None, :] - np.arange(length)[:, None]
    half, exact = _NUM_BUCKETS // 2, _NUM_BUCKETS // 4
    steps = np.log(np.maximum(np.abs(distance), exact) / exact) / np.log(_FARTHEST / exact) * (half - exact)
    # The small number is for distances that lie on a step: their logarithms may come out a little below a whole one.
    wide = np.minimum(exact + np.floor(steps + 1e-9).astype(int), half - 1)
    return half * (distance > 0) + np.where(np.abs(distance) < exact, np.abs(distance), wide)


class PositionBias(nnx.Module):
    """A number for each bucket of relative positions and each head, added to the logits of attention."""

    def __init__(self, num_heads: int):
        self.table = nnx.Param(jnp.zeros((_NUM_BUCKETS, num_heads)), axes=(None, "heads"))

    def __call__(self, length: int) -> Float[Array, "1 H L L"]:
        return rearrange(self.table[...][position_buckets(length)], "q k h -> 1 h q k")


class Attention(nnx.Module):
    """Self-attention without scaling: the logits are what the initialisation of the queries makes them."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        inner = config.num_heads * config.head_dim
        self.query = Linear(config.width, inner, ("embed", "heads"), rngs, bias=False)
        self.key = Linear(config.width, inner, ("embed", "heads"), rngs, bias=False)
        self.value = Linear(config.width, inner, ("embed", "heads"), rngs, bias=False)
        self.output = Linear(inner, config.width, ("heads", "embed"), rngs, bias=False)
        self.num_heads = config.num_heads

    def __call__(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"], bias: Float[Array, "1 H L L"] | None
    ) -> Float[Array, "B L D"]:
        query, key, value = (
            rearrange(project(x), "b l (h d) -> b l h d", h=self.num_heads)
            for project in (self.query, self.key, self.value)
        )
        # Plain XLA with softmax in float32: no fused kernel of ours takes a bias, and sentences are short.
        attended = jax.nn.dot_product_attention(
            query, key, value, bias=bias, mask=mask[:, None, None, :], scale=1.0, implementation="xla"
        )
        return self.output(rearrange(attended, "b l h d -> b l (h d)"))


class GatedFeedForward(nnx.Module):
    """A linear layer gated by another with tanh-GELU, then one back (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.gate = Linear(config.width, config.ffn_width, ("embed", "mlp"), rngs, bias=False)
        self.up = Linear(config.width, config.ffn_width, ("embed", "mlp"), rngs, bias=False)
        self.down = Linear(config.ffn_width, config.width, ("mlp", "embed"), rngs, bias=False)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return self.down(jax.nn.gelu(self.gate(x), approximate=True) * self.up(x))


class Layer(nnx.Module):
    """One pre-norm layer: self-attention, then the gated feed-forward."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.position = PositionBias(config.num_heads) if config.bias_per_layer else None
        self.attention_norm = RMSNorm(config.width, ("embed",))
        self.attention = Attention(config, rngs)
        self.ffn_norm = RMSNorm(config.width, ("embed",))
        self.ffn = GatedFeedForward(config, rngs)

    def __call__(
        self, x: Float[Array, "B L D"], mask: Bool[Array, "B L"], bias: Float[Array, "1 H L L"] | None
    ) -> Float[Array, "B L D"]:
        """``bias``: what all layers share, or None where each has its own."""
        if self.position is not None:
            bias = self.position(x.shape[1])
        x = x + self.attention(self.attention_norm(x), mask, bias)
        return x + self.ffn(self.ffn_norm(x))


class T5Encoder(nnx.Module):
    """Word embeddings, the layers, and a last norm. Computes in the dtype of the embeddings."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.word = nnx.Param(jnp.zeros((config.vocabulary, config.width)), axes=(None, "embed"))
        self.position = None if config.bias_per_layer else PositionBias(config.num_heads)
        self.layers = stack(functools.partial(Layer, config), config.num_layers, rngs)
        self.norm = RMSNorm(config.width, ("embed",))

    def __call__(self, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
        """Last hidden state of each token; tokens outside ``mask`` are seen by no other and come out as zero."""
        bias = None if self.position is None else self.position(ids.shape[1])
        graph, params = layer_slice(self.layers)

        def layer(x, layer_params):
            return nnx.merge(graph, layer_params)(x, mask, bias), None

        hidden = self.norm(jax.lax.scan(layer, self.word[...][ids], params)[0])
        return jnp.where(mask[..., None], hidden, 0)


@functools.cache
def definition(config: Config) -> Definition[T5Encoder]:
    """The model without its arrays."""
    return define(functools.partial(T5Encoder, config))


def weight_map(config: Config) -> WeightMap:
    """Names of ``transformers``, as google/t5-v1_1-*, google/umt5-* and Wan's diffusers folders have them.

    The embedding table is ``shared.weight``: that name is in all of them, ``encoder.embed_tokens.weight`` (the same
    table) only in some.
    """
    attention, ffn = "encoder.block.{}.layer.0.SelfAttention", "encoder.block.{}.layer.1.DenseReluDense"
    names = {
        "word": "shared",
        "attention_norm": "encoder.block.{}.layer.0.layer_norm",
        "query": f"{attention}.q",
        "key": f"{attention}.k",
        "value": f"{attention}.v",
        "output": f"{attention}.o",
        "position": f"{attention}.relative_attention_bias",
        "ffn_norm": "encoder.block.{}.layer.1.layer_norm",
        "gate": f"{ffn}.wi_0",
        "up": f"{ffn}.wi_1",
        "down": f"{ffn}.wo",
        "norm": "encoder.final_layer_norm",
    }
    return _weight_map(config, names)


# The decoder's, and the other names of the one embedding table.
UNUSED = (r"decoder\..*", r"lm_head\.weight", r"encoder\.embed_tokens\.weight")


def wan_weight_map(config: Config) -> WeightMap:
    """Names of Wan's own ``models_t5_umt5-xxl-enc-bf16.pth`` (Wan-Video/Wan2.1, wan/modules/t5.py: ``T5Encoder``)."""
    names = {
        "word": "token_embedding",
        "attention_norm": "blocks.{}.norm1",
        "query": "blocks.{}.attn.q",
        "key": "blocks.{}.attn.k",
        "value": "blocks.{}.attn.v",
        "output": "blocks.{}.attn.o",
        "position": "blocks.{}.pos_embedding.embedding",
        "ffn_norm": "blocks.{}.norm2",
        "gate": "blocks.{}.ffn.gate.0",
        "up": "blocks.{}.ffn.fc1",
        "down": "blocks.{}.ffn.fc2",
        "norm": "norm",
    }
    return _weight_map(config, names)


def _weight_map(config: Config, names: Mapping[str, str]) -> WeightMap:
    def kernels(*keys: str) -> WeightMap:
        return {key: mapping.linear(names[key], bias=False) for key in keys}

    layer: WeightMap = {
        "attention_norm": {"scale": Source(f"{names['attention_norm']}.weight")},
        "attention": kernels("query", "key", "value", "output"),
        "ffn_norm": {"scale": Source(f"{names['ffn_norm']}.weight")},
        "ffn": kernels("gate", "up", "down"),
    }
    table: WeightMap = {
        "word": Source(f"{names['word']}.weight"),
        "layers": layer,
        "norm": {"scale": Source(f"{names['norm']}.weight")},
    }
    position = f"{names['position']}.weight"
    if config.bias_per_layer:
        layer["position"] = {"table": Source(position)}
    else:
        table["position"] = {"table": Source(position.format(0))}
    return table


def frozen(config: Config, checkpoint: Tensors, dtype: DTypeLike = jnp.bfloat16) -> FrozenEncoder:
    """The encoder with a published checkpoint's weights, by the names of transformers or by Wan's own; see ``freeze``.

    Not in float16, whose range T5's activations exceed.
    """
    is_wan = "token_embedding.weight" in checkpoint.shapes()
    table, unused = (wan_weight_map(config), ()) if is_wan else (weight_map(config), UNUSED)
    return freeze(definition(config), table, checkpoint, unused, dtype=dtype)


@functools.cache
def text_encoder(name: str, dtype: DTypeLike = jnp.bfloat16) -> TextEncoder:
    """A published encoder and its tokenizer, read once a process.

    Wan feeds its transformer 512 tokens, unmasked, of which those beyond the sentence are zero: ``encode(sentences,
    max_tokens=512)`` without the mask.

    Args:
      name: of the asset, "umt5_xxl" or "t5_v1_1_base": the files "weights" and "tokenizer" (a ``tokenizer.json``).
      dtype: of weights and computation; features are float32.

    Raises:
      KeyError: the name is unknown, or its asset not registered.
      assets.AssetMissing, assets.AssetCorrupt: the files are not here, or not the registered ones.
    """
    published = {f"t5_v1_1_{size}": config for size, config in T5_SIZES.items()}
    published |= {f"umt5_{size}": config for size, config in UMT5_SIZES.items()}
    if name not in published:
        raise KeyError(f"text encoder {name!r} is unknown (has: {', '.join(published)})")
    config, files = published[name], assets.find(name)
    encoder = frozen(config, open_weights(files["weights"]), dtype)
    return TextEncoder(open_tokenizer(str(files["tokenizer"])), functools.partial(_features, encoder), config.width)


@jax.jit
def _features(encoder: FrozenEncoder, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
    return encoder(ids, mask)  # its arrays are arguments of the program, not constants in it
