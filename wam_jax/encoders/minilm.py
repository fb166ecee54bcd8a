"""MiniLM-L6: the frozen text encoder that turns an instruction into token features.

BERT with 6 layers, width 384 and 12 heads (Wang et al. 2020, arXiv:2002.10957), as published in
sentence-transformers/all-MiniLM-L6-v2. A WAM is conditioned on *token* features: pooled sentences such as "open the top
drawer" and "close the top drawer" are nearly parallel, their tokens are not.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from wam_jax import assets
from wam_jax.encoders.text import TextEncoder, open_tokenizer
from wam_jax.nn.attention import attend
from wam_jax.nn.module import Definition, LayerNorm, Linear, Params, define, layer_slice, stack
from wam_jax.weights import mapping
from wam_jax.weights.files import open_weights
from wam_jax.weights.mapping import Source, WeightMap, layer_norm, linear

ASSET = "minilm_l6"
WIDTH = 384
_NUM_LAYERS = 6
_NUM_HEADS = 12
_FFN_WIDTH = 1536
_VOCABULARY = 30_522
_POSITIONS = 512
_SEGMENTS = 2
_EPSILON = 1e-12
UNUSED = (r"pooler\.dense\.(weight|bias)", r"embeddings\.position_ids")  # the pooler was not trained

MAX_TOKENS = 64


class Layer(nnx.Module):
    """One post-norm BERT layer: self-attention, then a feed-forward with exact GELU."""

    def __init__(self, rngs: nnx.Rngs):
        self.query = Linear(WIDTH, WIDTH, ("embed", "heads"), rngs)
        self.key = Linear(WIDTH, WIDTH, ("embed", "heads"), rngs)
        self.value = Linear(WIDTH, WIDTH, ("embed", "heads"), rngs)
        self.output = Linear(WIDTH, WIDTH, ("heads", "embed"), rngs)
        self.attention_norm = LayerNorm(WIDTH, ("embed",), _EPSILON)
        self.up = Linear(WIDTH, _FFN_WIDTH, ("embed", "mlp"), rngs)
        self.down = Linear(_FFN_WIDTH, WIDTH, ("mlp", "embed"), rngs)
        self.ffn_norm = LayerNorm(WIDTH, ("embed",), _EPSILON)

    def __call__(self, x: Float[Array, "B L 384"], mask: Bool[Array, "B L"]) -> Float[Array, "B L 384"]:
        query, key, value = (
            rearrange(project(x), "b l (h d) -> b l h d", h=_NUM_HEADS)
            for project in (self.query, self.key, self.value)
        )
        attended = rearrange(attend(query, key, value, mask), "b l h d -> b l (h d)")
        x = self.attention_norm(x + self.output(attended))
        return self.ffn_norm(x + self.down(jax.nn.gelu(self.up(x), approximate=False)))


class MiniLM(nnx.Module):
    """Embeddings of word, position and (constant) segment, then six layers."""

    def __init__(self, rngs: nnx.Rngs):
        self.word = nnx.Param(jnp.zeros((_VOCABULARY, WIDTH)), axes=(None, "embed"))
        self.position = nnx.Param(jnp.zeros((_POSITIONS, WIDTH)), axes=(None, "embed"))
        self.segment = nnx.Param(jnp.zeros((_SEGMENTS, WIDTH)), axes=(None, "embed"))
        self.norm = LayerNorm(WIDTH, ("embed",), _EPSILON)
        self.layers = stack(Layer, _NUM_LAYERS, rngs)

    def __call__(self, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L 384"]:
        embedded = self.word[...][ids] + self.position[...][: ids.shape[1]] + self.segment[...][0]
        graph, params = layer_slice(self.layers)

        def layer(x, layer_params):
            return nnx.merge(graph, layer_params)(x, mask), None

        return jax.lax.scan(layer, self.norm(embedded), params)[0]


@functools.cache
def definition() -> Definition[MiniLM]:
    """The model without its arrays."""
    return define(MiniLM)


def weight_map() -> WeightMap:
    """Where each parameter is in the published checkpoint (names of ``transformers.BertModel``)."""
    layer = "encoder.layer.{}"
    return {
        "word": Source("embeddings.word_embeddings.weight"),
        "position": Source("embeddings.position_embeddings.weight"),
        "segment": Source("embeddings.token_type_embeddings.weight"),
        "norm": layer_norm("embeddings.LayerNorm"),
        "layers": {
            "query": linear(f"{layer}.attention.self.query"),
            "key": linear(f"{layer}.attention.self.key"),
            "value": linear(f"{layer}.attention.self.value"),
            "output": linear(f"{layer}.attention.output.dense"),
            "attention_norm": layer_norm(f"{layer}.attention.output.LayerNorm"),
            "up": linear(f"{layer}.intermediate.dense"),
            "down": linear(f"{layer}.output.dense"),
            "ffn_norm": layer_norm(f"{layer}.output.LayerNorm"),
        },
    }


@functools.cache
def load() -> Params:
    """The published weights as float32 device arrays (87 MiB), read once a process.

    Raises:
      assets.AssetMissing, assets.AssetCorrupt: the weights are not here, or not the registered ones.
    """
    checkpoint = open_weights(assets.find(ASSET)["weights"])
    return mapping.load(weight_map(), definition().shapes(), checkpoint, UNUSED)


@jax.jit
def apply(params: Params, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L 384"]:
    """Last hidden state of each token; tokens outside ``mask`` are seen by no other and come out as zero.

    Matrix products run in full float32 on every platform, so that features agree between training and serving.
    """
    with jax.default_matmul_precision("highest"):
        return jnp.where(mask[..., None], definition().bind(params)(ids, mask), 0.0)


@functools.cache
def text_encoder() -> TextEncoder:
    """The published encoder and its tokenizer, read once a process.

    Raises:
      assets.AssetMissing, assets.AssetCorrupt: the weights are not here, or not the registered ones.
    """
    tokenize = open_tokenizer(str(assets.find(ASSET)["tokenizer"]))
    return TextEncoder(tokenize, functools.partial(apply, load()), WIDTH, lengths=(16, 32, MAX_TOKENS))


def pooled(instructions: Sequence[str]) -> Float32[np.ndarray, "I 384"]:
    """Sentence embeddings of unit length: the mean over tokens, normalised (the published recipe).

    Their inner products are cosine similarities. For comparing sentences, not for conditioning a policy.
    """
    features, mask = text_encoder().encode(instructions)
    mean = features.sum(1) / mask.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)
