"""DINOv2 with registers: patch features of self-supervised vision transformers.

Oquab et al. 2023 (arXiv:2304.07193); registers: Darcet et al. 2023 (arXiv:2309.16588). Weights as published in
facebook/dinov2-with-registers-* (names of ``transformers`` before 5.0, which are those in the files).
"""

import dataclasses
import functools

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wam_jax.encoders import vit
from wam_jax.encoders.frozen import IMAGENET, FrozenEncoder, Preprocessing, freeze
from wam_jax.nn.module import Definition, LayerNorm, Linear, define, stack
from wam_jax.weights.mapping import Source, Tensors, WeightMap, layer_norm, linear

UNUSED = (r"embeddings\.mask_token",)


@dataclasses.dataclass(frozen=True)
class Config:
    """A model: its layers, and the sizes (pixels) of a patch and of the picture its position table is for."""

    layers: vit.LayersConfig
    patch_size: int = 14
    image_size: int = 518
    num_registers: int = 4


def _size(width: int, num_layers: int, num_heads: int, swiglu: bool = False) -> Config:
    layers = vit.LayersConfig(width, num_layers, num_heads, 4 * width, layer_scale=True)
    # A gated feed-forward has two thirds of the hidden width, for as many parameters.
    return Config(dataclasses.replace(layers, activation="swiglu", mlp_width=width * 8 // 3) if swiglu else layers)


SIZES = {
    "small": _size(384, 12, 6),
    "base": _size(768, 12, 12),
    "large": _size(1024, 24, 16),
    "giant": _size(1536, 40, 24, swiglu=True),
}


class DINOv2(nnx.Module):
    """Class token, registers and patches through pre-norm layers with layer scale."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        width = config.layers.width
        positions = 1 + (config.image_size // config.patch_size) ** 2
        self.patch = Linear(config.patch_size**2 * 3, width, (None, "embed"), rngs)
        self.class_token = nnx.Param(jnp.zeros((1, width)), axes=(None, "embed"))
        self.registers = nnx.Param(jnp.zeros((config.num_registers, width)), axes=(None, "embed"))
        self.positions = nnx.Param(jnp.zeros((positions, width)), axes=(None, "embed"))
        self.layers = stack(lambda rngs: vit.Layer(config.layers, rngs), config.layers.num_layers, rngs)
        self.norm = LayerNorm(width, ("embed",), config.layers.epsilon)
        self.patch_size = config.patch_size

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        """Features of each patch, after the final norm, of normalised pictures of any size."""
        return vit.patch_grid(
            self.tokens(pixels), pixels.shape[1] // self.patch_size, pixels.shape[2] // self.patch_size
        )

    def tokens(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """The same with the class token and the registers before the patches."""
        x = self.patch(vit.patches(pixels, self.patch_size))
        rows, columns = x.shape[1:3]
        table = self.positions[...]
        x = x + vit.resize_positions(table[1:], rows, columns, "bicubic_antialias").astype(x.dtype)
        first = jnp.concatenate([self.class_token[...] + table[:1], self.registers[...]])
        x = vit.prepend(first, rearrange(x, "b h w d -> b (h w) d"))
        return self.norm(vit.run_layers(self.layers, x))


@functools.cache
def definition(config: Config) -> Definition[DINOv2]:
    """The model without its arrays."""
    return define(lambda rngs: DINOv2(config, rngs))


def weight_map(config: Config) -> WeightMap:
    """Our parameters from the tensors of facebook/dinov2-with-registers-*."""
    layer = "encoder.layer.{}"
    if config.layers.activation == "swiglu":
        mlp = {"gate": _half("weights_in", 0), "up": _half("weights_in", 1), "down": linear(f"{layer}.mlp.weights_out")}
    else:
        mlp = {"up": linear(f"{layer}.mlp.fc1"), "down": linear(f"{layer}.mlp.fc2")}
    return {
        "patch": vit.patch_projection("embeddings.patch_embeddings.projection", config.patch_size),
        "class_token": Source("embeddings.cls_token", "1 k d -> k d"),
        "registers": Source("embeddings.register_tokens", "1 k d -> k d"),
        "positions": Source("embeddings.position_embeddings", "1 n d -> n d"),
        "layers": {
            "attention_norm": layer_norm(f"{layer}.norm1"),
            "query": linear(f"{layer}.attention.attention.query"),
            "key": linear(f"{layer}.attention.attention.key"),
            "value": linear(f"{layer}.attention.attention.value"),
            "output": linear(f"{layer}.attention.output.dense"),
            "attention_scale": Source(f"{layer}.layer_scale1.lambda1"),
            "mlp_norm": layer_norm(f"{layer}.norm2"),
            "mlp": mlp,
            "mlp_scale": Source(f"{layer}.layer_scale2.lambda1"),
        },
        "norm": layer_norm("layernorm"),
    }


def _half(name: str, index: int) -> WeightMap:
    """One of the two projections that are fused in the files: the gate, then what it multiplies."""
    tensor = "encoder.layer.{}.mlp." + name
    return {
        "kernel": Source(f"{tensor}.weight", "o i -> i o", part=(index, 2)),
        "bias": Source(f"{tensor}.bias", part=(index, 2)),
    }


def preprocessing(config: Config) -> Preprocessing:
    """As published, but for the centre crop: 224 pixels (16 × 16 patches), though the position table is for 518."""
    side = 16 * config.patch_size
    return Preprocessing((side, side), **IMAGENET, resampling="bicubic")


def frozen(config: Config, checkpoint: Tensors, dtype: DTypeLike = jnp.bfloat16) -> FrozenEncoder:
    """The encoder with a published checkpoint's weights; see ``freeze``."""
    return freeze(definition(config), weight_map(config), checkpoint, UNUSED, preprocessing(config), dtype)
