"""Perception Encoder, spatial: patch features aligned to localisation.

Bolya et al. 2025 (arXiv:2504.13181). Weights as published in facebook/PE-Spatial-* (``.pt``), names and arithmetic of
``core/vision_encoder/pe.py`` and ``rope.py`` in facebookresearch/perception_models.
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
from wam_jax.encoders.frozen import CENTRED, FrozenEncoder, Preprocessing, freeze
from wam_jax.nn.module import Definition, LayerNorm, Linear, define, stack
from wam_jax.weights.mapping import Source, Tensors, WeightMap, layer_norm, linear

UNUSED: tuple[str, ...] = ()
_ROTARY_BASE = 10_000.0


@dataclasses.dataclass(frozen=True)
class Config:
    """A model: its layers, and the sizes (pixels) of a patch and of the picture its position table is for."""

    layers: vit.LayersConfig
    patch_size: int
    image_size: int
    class_token: bool = True


def _size(width: int, num_layers: int, num_heads: int, patch_size: int, image_size: int) -> Config:
    return Config(vit.LayersConfig(width, num_layers, num_heads, 4 * width, epsilon=1e-5), patch_size, image_size)


SIZES = {
    "t16_512": _size(192, 12, 3, 16, 512),
    "s16_512": _size(384, 12, 6, 16, 512),
    "b16_512": _size(768, 12, 12, 16, 512),
    "l14_448": _size(1024, 24, 16, 14, 448),
    "g14_448": Config(vit.LayersConfig(1536, 50, 16, 8960, epsilon=1e-5, layer_scale=True), 14, 448, class_token=False),
}


class PerceptionEncoder(nnx.Module):
    """Patches with learned positions, normalised, through pre-norm layers with rotary positions; no final norm."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        width = config.layers.width
        positions = (config.image_size // config.patch_size) ** 2 + config.class_token
        self.patch = Linear(config.patch_size**2 * 3, width, (None, "embed"), rngs, bias=False)
        self.class_token = nnx.Param(jnp.zeros(width), axes=("embed",)) if config.class_token else None
        self.positions = nnx.Param(jnp.zeros((positions, width)), axes=(None, "embed"))
        self.norm = LayerNorm(width, ("embed",), config.layers.epsilon)
        self.layers = stack(lambda rngs: vit.Layer(config.layers, rngs), config.layers.num_layers, rngs)
        self.config = config

    def __call__(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        """Features of each patch, of normalised pictures of any size."""
        size = self.config.patch_size
        return vit.patch_grid(self.tokens(pixels), pixels.shape[1] // size, pixels.shape[2] // size)

    def tokens(self, pixels: Float[Array, "B H W 3"]) -> Float[Array, "B N D"]:
        """The same with the class token, where the model has one, before the patches."""
        x = self.patch(vit.patches(pixels, self.config.patch_size))
        rows, columns = x.shape[1:3]
        first = int(self.config.class_token)
        table = self.positions[...]
        x = x + vit.resize_positions(table[first:], rows, columns, "bilinear").astype(x.dtype)
        x = rearrange(x, "b h w d -> b (h w) d")
        if self.class_token is not None:
            x = vit.prepend(self.class_token[...] + table[:1], x)
        return vit.run_layers(self.layers, self.norm(x), _rotary(rows, columns, self.config.layers.head_dim, first))


def _rotary(rows: int, columns: int, head_dim: int, first: int) -> vit.Rotary:
    """Angles from patch numbers: columns in the first half of the channels, rows in the second.

    Patches count from one where a class token (position zero) is first.
    """
    y, x = np.indices((rows, columns)).reshape(2, -1) + first
    angles = np.stack([x, y], -1)[:, :, None] * vit.frequencies(head_dim // 4, _ROTARY_BASE)
    angles = np.repeat(angles.reshape(rows * columns, -1), 2, axis=-1)
    return vit.Rotary.of(np.concatenate([np.zeros((first, head_dim)), angles]), "neighbours")


@functools.cache
def definition(config: Config) -> Definition[PerceptionEncoder]:
    """The model without its arrays."""
    return define(lambda rngs: PerceptionEncoder(config, rngs))


def weight_map(config: Config) -> WeightMap:
    """Our parameters from the tensors of facebook/PE-Spatial-*."""
    layer = "transformer.resblocks.{}"
    layers: WeightMap = {
        "attention_norm": layer_norm(f"{layer}.ln_1"),
        **{name: _third(f"{layer}.attn.in_proj", index) for index, name in enumerate(("query", "key", "value"))},
        "output": linear(f"{layer}.attn.out_proj"),
        "mlp_norm": layer_norm(f"{layer}.ln_2"),
        "mlp": {"up": linear(f"{layer}.mlp.c_fc"), "down": linear(f"{layer}.mlp.c_proj")},
    }
    if config.layers.layer_scale:
        layers |= {
            "attention_scale": Source(f"{layer}.ls_1.gamma"),
            "mlp_scale": Source(f"{layer}.ls_2.gamma"),
        }
    return {
        "patch": vit.patch_projection("conv1", config.patch_size, bias=False),
        **({"class_token": Source("class_embedding")} if config.class_token else {}),
        "positions": Source("positional_embedding"),
        "norm": layer_norm("ln_pre"),
        "layers": layers,
    }


def _third(name: str, index: int) -> WeightMap:
    """One of the three projections that are fused in the files."""
    return {
        "kernel": Source(f"{name}_weight", "o i -> i o", part=(index, 3)),
        "bias": Source(f"{name}_bias", part=(index, 3)),
    }


def preprocessing(config: Config) -> Preprocessing:
    """As published: the size of the position table, bilinear."""
    return Preprocessing((config.image_size, config.image_size), **CENTRED, resampling="bilinear")


def frozen(config: Config, checkpoint: Tensors, dtype: DTypeLike = jnp.bfloat16) -> FrozenEncoder:
    """The encoder with a published checkpoint's weights; see ``freeze``."""
    return freeze(definition(config), weight_map(config), checkpoint, UNUSED, preprocessing(config), dtype)
