"""SigLIP 2: features of pictures and of sentences, trained to agree.

Tschannen et al. 2025 (arXiv:2502.14786), the variants of fixed resolution, published in google/siglip2-*-patch*-* with
the names of ``transformers.SiglipModel``. The two towers of one file are two encoders here; their pooling heads are
not used.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from wam_jax import assets
from wam_jax.encoders import vit
from wam_jax.encoders.frozen import CENTRED, FrozenEncoder, Preprocessing, freeze
from wam_jax.encoders.text import TextEncoder, open_tokenizer
from wam_jax.nn.module import Definition, LayerNorm, Linear, define, stack
from wam_jax.weights.files import open_weights
from wam_jax.weights.mapping import Source, Tensors, WeightMap, layer_norm, linear

_END = 1  # the token that ends a sentence

VISION_UNUSED = (r"text_model\..*", r"vision_model\.head\..*", r"logit_(scale|bias)")
TEXT_UNUSED = (r"vision_model\..*", r"text_model\.head\..*", r"logit_(scale|bias)")


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """A vision tower: its layers, and the sizes (pixels) of a patch and of the picture its position table is for."""

    layers: vit.LayersConfig
    patch_size: int
    image_size: int


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """A text tower: its layers, the words it knows (Gemma's vocabulary) and the longest sentence."""

    layers: vit.LayersConfig
    vocabulary: int = 256_000
    max_tokens: int = 64


_LAYERS = {
    "base": vit.LayersConfig(768, 12, 12, 3072, activation="gelu_tanh"),
    "large": vit.LayersConfig(1024, 24, 16, 4096, activation="gelu_tanh"),
    "so400m": vit.LayersConfig(1152, 27, 16, 4304, activation="gelu_tanh"),
    "giant_opt": vit.LayersConfig(1536, 40, 16, 6144, activation="gelu_tanh"),
}
_PUBLISHED = {  # (patch, picture) in pixels
    "base": ((16, 224), (16, 256), (16, 384), (16, 512), (32, 256)),
    "large": ((16, 256), (16, 384), (16, 512)),
    "so400m": ((14, 224), (14, 384), (16, 256), (16, 384), (16, 512)),
    "giant_opt": ((16, 256), (16, 384)),
}
VISION_SIZES = {
    f"{name}_patch{patch}_{image}": VisionConfig(_LAYERS[name], patch, image)
    for name, sizes in _PUBLISHED.items()
    for patch, image in sizes
}
# The giant vision tower was trained with the text tower of so400m.
TEXT_SIZES = {
    size: TextConfig(_LAYERS["so400m"] if size.startswith("giant_opt") else config.layers)
    for size, config in VISION_SIZES.items()
}


class SigLIP2Vision(nnx.Module):
    """Patches and learned positions through pre-norm layers; no class token."""

    def __init__(self, config: VisionConfig, rngs: nnx.Rngs):
        width = config.layers.width
        self.patch = Linear(config.patch_size**2 * 3, width, (None, "embed"), rngs)
        positions = (config.image_size // config.patch_size) ** 2
        self.positions = nnx.Param(jnp.zeros((positions, width)), axes=(None, "embed"))
        self.layers = stack(lambda rngs: vit.Layer(config.layers, rngs), config.layers.num_layers, rngs)
        self.norm = LayerNorm(width, ("embed",), config.layers.epsilon)
        self.patch_size = config.patch_size

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        """Features of each patch, after the final norm, of normalised pictures of any size."""
        x = self.patch(vit.patches(pixels, self.patch_size))
        rows, columns = x.shape[1:3]
        x = x + vit.resize_positions(self.positions[...], rows, columns, "bicubic").astype(x.dtype)
        x = vit.run_layers(self.layers, rearrange(x, "b h w d -> b (h w) d"))
        return vit.patch_grid(self.norm(x), rows, columns)


class SigLIP2Text(nnx.Module):
    """Words and learned positions through pre-norm layers; every token sees every other."""

    def __init__(self, config: TextConfig, rngs: nnx.Rngs):
        width = config.layers.width
        self.words = nnx.Param(jnp.zeros((config.vocabulary, width)), axes=(None, "embed"))
        self.positions = nnx.Param(jnp.zeros((config.max_tokens, width)), axes=(None, "embed"))
        self.layers = stack(lambda rngs: vit.Layer(config.layers, rngs), config.layers.num_layers, rngs)
        self.norm = LayerNorm(width, ("embed",), config.layers.epsilon)

    def __call__(self, ids: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        """Features of each token, after the final norm.

        It was trained on lowercase sentences padded to 64 tokens (id 0) that see their padding: pad likewise, and do
        not mask here.

        Raises:
          ValueError: the sentences are longer than the position table.
        """
        positions = self.positions[...]
        if ids.shape[1] > len(positions):
            raise ValueError(f"{ids.shape[1]} tokens a sentence, at most {len(positions)} fit; cut them")
        x = self.words[...][ids] + positions[: ids.shape[1]]
        return self.norm(vit.run_layers(self.layers, x))


@functools.cache
def vision_definition(config: VisionConfig) -> Definition[SigLIP2Vision]:
    """The vision tower without its arrays."""
    return define(lambda rngs: SigLIP2Vision(config, rngs))


@functools.cache
def text_definition(config: TextConfig) -> Definition[SigLIP2Text]:
    """The text tower without its arrays."""
    return define(lambda rngs: SigLIP2Text(config, rngs))


def vision_weight_map(config: VisionConfig) -> WeightMap:
    """The vision tower's parameters from the tensors of google/siglip2-*."""
    return {
        "patch": vit.patch_projection("vision_model.embeddings.patch_embedding", config.patch_size),
        "positions": Source("vision_model.embeddings.position_embedding.weight"),
        "layers": _layer_map("vision_model.encoder.layers.{}"),
        "norm": layer_norm("vision_model.post_layernorm"),
    }


def text_weight_map(config: TextConfig) -> WeightMap:
    """The text tower's parameters from the tensors of google/siglip2-*."""
    return {
        "words": Source("text_model.embeddings.token_embedding.weight"),
        "positions": Source("text_model.embeddings.position_embedding.weight"),
        "layers": _layer_map("text_model.encoder.layers.{}"),
        "norm": layer_norm("text_model.final_layer_norm"),
    }


def _layer_map(layer: str) -> WeightMap:
    return {
        "attention_norm": layer_norm(f"{layer}.layer_norm1"),
        "query": linear(f"{layer}.self_attn.q_proj"),
        "key": linear(f"{layer}.self_attn.k_proj"),
        "value": linear(f"{layer}.self_attn.v_proj"),
        "output": linear(f"{layer}.self_attn.out_proj"),
        "mlp_norm": layer_norm(f"{layer}.layer_norm2"),
        "mlp": {"up": linear(f"{layer}.mlp.fc1"), "down": linear(f"{layer}.mlp.fc2")},
    }


def preprocessing(config: VisionConfig) -> Preprocessing:
    """As published: the size of the position table, bilinear (SigLIP 1 was bicubic)."""
    return Preprocessing((config.image_size, config.image_size), **CENTRED, resampling="bilinear")


def frozen_vision(config: VisionConfig, checkpoint: Tensors, dtype: DTypeLike = jnp.bfloat16) -> FrozenEncoder:
    """The vision tower with a published checkpoint's weights; see ``freeze``."""
    prepare = preprocessing(config)
    return freeze(vision_definition(config), vision_weight_map(config), checkpoint, VISION_UNUSED, prepare, dtype)


def frozen_text(config: TextConfig, checkpoint: Tensors, dtype: DTypeLike = jnp.bfloat16) -> FrozenEncoder:
    """The text tower with a published checkpoint's weights; see ``freeze``."""
    return freeze(text_definition(config), text_weight_map(config), checkpoint, TEXT_UNUSED, dtype=dtype)


@functools.cache
def text_encoder(name: str, dtype: DTypeLike = jnp.bfloat16) -> TextEncoder:
    """A published text tower and its tokenizer, read once a process.

    Args:
      name: one of ``TEXT_SIZES``; its asset is ``siglip2_NAME``, with the files "weights" and "tokenizer".
      dtype: of weights and computation; features are float32.

    Raises:
      KeyError: the name is unknown, or its asset not registered.
      assets.AssetMissing, assets.AssetCorrupt: the files are not here, or not the registered ones.
    """
    config, files = TEXT_SIZES[name], assets.find(f"siglip2_{name}")
    encoder = frozen_text(config, open_weights(files["weights"]), dtype)
    words = open_tokenizer(str(files["tokenizer"]))

    def tokenize(sentences: Sequence[str]) -> list[list[int]]:
        found = words([sentence.lower() for sentence in sentences])
        return [ids if ids[-1:] == [_END] else [*ids, _END] for ids in found]

    return TextEncoder(
        tokenize, functools.partial(_features, encoder), config.layers.width, lengths=(config.max_tokens,)
    )


@jax.jit
def _features(encoder: FrozenEncoder, ids: Int[Array, "B L"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
    """Features of each token, zero outside ``mask``, though padding was seen."""
    return jnp.where(mask[..., None], encoder(ids), 0.0)
