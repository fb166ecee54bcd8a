"""DINOv3: patch features of self-supervised vision transformers with rotary positions.

Siméoni et al. 2025 (arXiv:2508.10104). Weights as published in facebook/dinov3-vit*16-pretrain-lvd1689m (the names in
the files; ``transformers`` from 5.0 on says ``model.layer`` for ``layer`` in memory).
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wam_jax.encoders import vit
from wam_jax.encoders.frozen import IMAGENET, FrozenEncoder, Preprocessing, freeze
from wam_jax.nn.module import Definition, LayerNorm, Linear, define, stack
from wam_jax.weights.mapping import Source, Tensors, WeightMap, layer_norm, linear

UNUSED = (r"embeddings\.mask_token",)
_ROTARY_BASE = 100.0


@dataclasses.dataclass(frozen=True)
class Config:
    """A model: its layers, and the size of a patch in pixels. It has no position table: any picture size is native."""

    layers: vit.LayersConfig
    patch_size: int = 16
    num_registers: int = 4


def _size(width: int, num_layers: int, num_heads: int, mlp_width: int, gated: bool, biases: tuple[str, ...]) -> Config:
    layers = vit.LayersConfig(
        width, num_layers, num_heads, mlp_width, epsilon=1e-5, activation="swiglu" if gated else "gelu",
        layer_scale=True, biases=frozenset(biases),
    )  # fmt: skip
    return Config(layers)


_BIASES = ("query", "value")
SIZES = {
    "vits16": _size(384, 12, 6, 1536, False, _BIASES),
    "vits16plus": _size(384, 12, 6, 1536, True, _BIASES),
    "vitb16": _size(768, 12, 12, 3072, False, _BIASES),
    "vitl16": _size(1024, 24, 16, 4096, False, _BIASES),
    "vith16plus": _size(1280, 32, 20, 5120, True, _BIASES),
    "vit7b16": _size(4096, 40, 32, 8192, True, ()),
}


class DINOv3(nnx.Module):
    """Class token, registers and patches through pre-norm layers with layer scale; patches turn by their position."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        width = config.layers.width
        self.patch = Linear(config.patch_size**2 * 3, width, (None, "embed"), rngs)
        self.class_token = nnx.Param(jnp.zeros((1, width)), axes=(None, "embed"))
        self.registers = nnx.Param(jnp.zeros((config.num_registers, width)), axes=(None, "embed"))
        self.layers = stack(lambda rngs: vit.Layer(config.layers, rngs), config.layers.num_layers, rngs)
        self.norm = LayerNorm(width, ("embed",), config.layers.epsilon)
        self.config = config

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        """Features of each patch, after the final norm, of normalised pictures of any size."""
        size = self.config.patch_size
        return vit.patch_grid(self.tokens(pixels), pixels.shape[1] // size, pixels.shape[2] // size)

    def tokens(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """The same with the class token and the registers before the patches."""
        x = self.patch(vit.patches(pixels, self.config.patch_size))
        rows, columns = x.shape[1:3]
        rotary = _rotary(rows, columns, self.config.layers.head_dim, 1 + self.config.num_registers)
        first = jnp.concatenate([self.class_token[...], self.registers[...]])
        x = vit.prepend(first, rearrange(x, "b h w d -> b (h w) d"))
        return self.norm(vit.run_layers(self.layers, x, rotary))


def _rotary(rows: int, columns: int, head_dim: int, num_first: int) -> vit.Rotary:
    """Angles from patch centres in [-1, 1], whatever the grid: rows, then columns, in each half of the channels."""
    y, x = ((np.arange(count) + 0.5) / count * 2 - 1 for count in (rows, columns))
    centres = np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
    angles = 2 * np.pi * centres[:, :, None] * vit.frequencies(head_dim // 4, _ROTARY_BASE)
    angles = np.tile(angles.reshape(len(centres), -1), 2)
    return vit.Rotary.of(np.concatenate([np.zeros((num_first, head_dim)), angles]), "halves")


@functools.cache
def definition(config: Config) -> Definition[DINOv3]:
    """The model without its arrays."""
    return define(lambda rngs: DINOv3(config, rngs))


def weight_map(config: Config) -> WeightMap:
    """Our parameters from the tensors of facebook/dinov3-vit*16-pretrain-lvd1689m."""
    layer = "layer.{}"
    names = {"gate": "gate_proj"} if config.layers.activation == "swiglu" else {}
    names |= {"up": "up_proj", "down": "down_proj"}
    projections = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
    return {
        "patch": vit.patch_projection("embeddings.patch_embeddings", config.patch_size),
        "class_token": Source("embeddings.cls_token", "1 k d -> k d"),
        "registers": Source("embeddings.register_tokens", "1 k d -> k d"),
        "layers": {
            "attention_norm": layer_norm(f"{layer}.norm1"),
            **{
                ours: linear(f"{layer}.attention.{theirs}", bias=ours in config.layers.biases)
                for ours, theirs in projections.items()
            },
            "output": linear(f"{layer}.attention.o_proj"),
            "attention_scale": Source(f"{layer}.layer_scale1.lambda1"),
            "mlp_norm": layer_norm(f"{layer}.norm2"),
            "mlp": {ours: linear(f"{layer}.mlp.{theirs}") for ours, theirs in names.items()},
            "mlp_scale": Source(f"{layer}.layer_scale2.lambda1"),
        },
        "norm": layer_norm("norm"),
    }


def preprocessing(config: Config) -> Preprocessing:
    """As published: 224 pixels, whatever the size of the model."""
    return Preprocessing((224, 224), **IMAGENET, resampling="bilinear")


def frozen(config: Config, checkpoint: Tensors, dtype: DTypeLike = jnp.bfloat16) -> FrozenEncoder:
    """The encoder with a published checkpoint's weights; see ``freeze``."""
    return freeze(definition(config), weight_map(config), checkpoint, UNUSED, preprocessing(config), dtype)
