"""MiniLM-L6: the frozen text encoder that turns an instruction into token features.

BERT with 6 layers, width 384 and 12 heads (Wang et al. 2020, arXiv:2002.10957), as published in
sentence-transformers/all-MiniLM-L6-v2. A WAM is conditioned on *token* features: pooled sentences such as "open the top
drawer" and "close the top drawer" are nearly parallel, their tokens are not.
"""

import functools
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Bool, Float, Float32, Int

from wam_jax import assets, console
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
# An instruction runs at the first of these lengths that holds it and in batches of one size, whatever its neighbours:
# three compiled programs, and features that do not depend on what else is encoded.
_LENGTHS = (16, 32, MAX_TOKENS)
_BATCH = 8
_REMEMBERED = 4096  # instructions; about 15 KB each


class EncodedText(NamedTuple):
    """Token features of several instructions, padded to one length; padding is zero and masked out."""

    features: Float32[np.ndarray, "I L 384"]
    mask: Bool[np.ndarray, "I L"]


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


def token_ids(instructions: Sequence[str]) -> list[list[int]]:
    """Word-piece ids of each instruction, lowercased, with [CLS] first and [SEP] last; neither padded nor cut."""
    return [encoding.ids for encoding in _tokenizer().encode_batch(list(instructions))]


def encode(instructions: Sequence[str], max_tokens: int = 16) -> EncodedText:
    """Token features of instructions, for conditioning a model. Deterministic, and remembered within the process.

    An instruction's features do not depend on the others or on the padding.

    Args:
      instructions: I sentences.
      max_tokens: the length L to pad to. A longer instruction is not cut: L grows to 32 or 64, and a line says so.

    Raises:
      ValueError: an instruction is longer than 64 tokens.
      assets.AssetMissing, assets.AssetCorrupt: the weights are not here, or not the registered ones.
    """
    with _memory_lock:
        found = _remember(instructions)
    longest = max((len(tokens) for tokens in found.values()), default=0)
    length = max_tokens
    if longest > max_tokens:
        length = _fitting_length(longest)
        _log_growth(max_tokens, length)
    features = np.zeros((len(instructions), length, WIDTH), np.float32)
    mask = np.zeros((len(instructions), length), bool)
    for row, instruction in enumerate(instructions):
        tokens = len(found[instruction])
        features[row, :tokens], mask[row, :tokens] = found[instruction], True
    return EncodedText(features, mask)


def pooled(instructions: Sequence[str]) -> Float32[np.ndarray, "I 384"]:
    """Sentence embeddings of unit length: the mean over tokens, normalised (the published recipe).

    Their inner products are cosine similarities. For comparing sentences, not for conditioning a policy.
    """
    features, mask = encode(instructions)
    mean = features.sum(1) / mask.sum(1, keepdims=True)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


_memory: OrderedDict[str, Float32[np.ndarray, "l 384"]] = OrderedDict()
_memory_lock = threading.Lock()  # a loader's threads share the memory


def _remember(instructions: Sequence[str]) -> dict[str, Float32[np.ndarray, "l 384"]]:
    """Unpadded features of each distinct instruction, from memory where they are there."""
    distinct = list(dict.fromkeys(instructions))
    found = {instruction: _memory[instruction] for instruction in distinct if instruction in _memory}
    found |= _encode_anew([instruction for instruction in distinct if instruction not in found])
    for instruction, features in found.items():
        _memory[instruction] = features
        _memory.move_to_end(instruction)
    while len(_memory) > _REMEMBERED:
        _memory.popitem(last=False)
    return found


def _encode_anew(instructions: Sequence[str]) -> dict[str, Float32[np.ndarray, "l 384"]]:
    if not instructions:
        return {}
    ids = dict(zip(instructions, token_ids(instructions), strict=True))
    for instruction, tokens in ids.items():
        if len(tokens) > MAX_TOKENS:
            raise ValueError(
                f"instruction {instruction[:60]!r}… has {len(tokens)} tokens, at most {MAX_TOKENS} fit; shorten it"
            )
    features: dict[str, np.ndarray] = {}
    for length, batch in _batches(ids):
        padded = np.zeros((_BATCH, length), np.int32)
        mask = np.zeros((_BATCH, length), bool)
        mask[:, 0] = True  # rows that stay empty attend to themselves, not to nothing
        for row, instruction in enumerate(batch):
            padded[row, : len(ids[instruction])], mask[row, : len(ids[instruction])] = ids[instruction], True
        hidden = np.asarray(apply(load(), padded, mask))
        features |= {name: hidden[row, : len(ids[name])].copy() for row, name in enumerate(batch)}
    return features


def _batches(ids: Mapping[str, Sequence[int]]) -> Iterator[tuple[int, list[str]]]:
    """Instructions in batches of one padded length."""
    for length in _LENGTHS:
        members = [instruction for instruction, tokens in ids.items() if _fitting_length(len(tokens)) == length]
        for start in range(0, len(members), _BATCH):
            yield length, members[start : start + _BATCH]


def _fitting_length(tokens: int) -> int:
    return next(length for length in _LENGTHS if length >= tokens)


@functools.cache
def _log_growth(max_tokens: int, length: int) -> None:
    """Said once a process: a new length means that whatever consumes the features compiles again."""
    console.log(
        f"text: an instruction exceeds {max_tokens} tokens; padding to {length} (max_tokens={length} keeps one length)"
    )


@functools.cache
def _tokenizer() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(assets.find(ASSET)["tokenizer"]))
    tokenizer.no_truncation()  # the file asks for 128 tokens, cut or padded
    tokenizer.no_padding()
    return tokenizer
