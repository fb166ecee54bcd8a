"""V-JEPA 2: features of clips, from a video encoder trained to predict its own features.

Assran et al. 2025 (arXiv:2506.09985). Weights as published in facebook/vjepa2-vit*-fpc64-* with the names of
``transformers.VJEPA2Model``; the predictor that they also hold is not used.
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

UNUSED = (r"predictor\..*",)
_ROTARY_BASE = 10_000.0


@dataclasses.dataclass(frozen=True)
class Config:
    """A model: its layers, the frames and pixels of a patch, and the picture size (pixels) it was trained at."""

    layers: vit.LayersConfig
    image_size: int = 256
    patch_size: int = 16
    patch_frames: int = 2


_GIANT = vit.LayersConfig(1408, 40, 22, 6144)
SIZES = {
    "vitl_256": Config(vit.LayersConfig(1024, 24, 16, 4096)),
    "vith_256": Config(vit.LayersConfig(1280, 32, 16, 5120)),
    "vitg_256": Config(_GIANT),
    "vitg_384": Config(_GIANT, image_size=384),
}


class VJEPA2(nnx.Module):
    """Patches of two frames through pre-norm layers with rotary positions over (time, row, column)."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        width = config.layers.width
        self.patch = Linear(config.patch_frames * config.patch_size**2 * 3, width, (None, "embed"), rngs)
        self.layers = stack(lambda rngs: vit.Layer(config.layers, rngs), config.layers.num_layers, rngs)
        self.norm = LayerNorm(width, ("embed",), config.layers.epsilon)
        self.config = config

    def __call__(self, clips: Float[Array, "B T H W 3"]) -> Float[Array, "B t h w D"]:
        """Features of each patch, after the final norm, of normalised clips of any length and size.

        A single frame is shown twice, as the original does; of an odd number the last is left out.
        """
        x = self.patch(_tubes(clips, self.config.patch_frames, self.config.patch_size))
        times, rows, columns = x.shape[1:4]
        rotary = _rotary(times, rows, columns, self.config.layers.head_dim)
        x = self.norm(vit.run_layers(self.layers, rearrange(x, "b t h w d -> b (t h w) d"), rotary))
        return rearrange(x, "b (t h w) d -> b t h w d", t=times, h=rows)


def _tubes(clips: Float[Array, "B T H W 3"], frames: int, size: int) -> Float[Array, "B t h w P"]:
    """Patches of consecutive frames, each as one vector: frame by frame, row by row."""
    if clips.shape[1] < frames:
        clips = jnp.repeat(clips, frames, axis=1)
    times = clips.shape[1] // frames
    flat = vit.patches(rearrange(clips[:, : times * frames], "b t h w c -> (b t) h w c"), size)
    return rearrange(flat, "(b t f) h w p -> b t h w (f p)", t=times, f=frames)


def _rotary(times: int, rows: int, columns: int, head_dim: int) -> vit.Rotary:
    """Angles from patch numbers: equal parts of the channels for time, row and column; the few that remain stay.

    Neighbouring channels turn together, yet by angles of frequencies that are laid out in two halves: so does the
    original (``rotate_queries_or_keys``), and so were the weights trained.
    """
    channels = 2 * (head_dim // 3 // 2)
    positions = np.indices((times, rows, columns)).reshape(3, -1).T
    angles = positions[:, :, None] * np.tile(vit.frequencies(channels // 2, _ROTARY_BASE), 2)
    still = np.zeros((len(positions), head_dim - 3 * channels))
    return vit.Rotary.of(np.concatenate([angles.reshape(len(positions), -1), still], -1), "neighbours")


@functools.cache
def definition(config: Config) -> Definition[VJEPA2]:
    """The encoder without its arrays."""
    return define(lambda rngs: VJEPA2(config, rngs))


def weight_map(config: Config) -> WeightMap:
    """Our parameters from the tensors of facebook/vjepa2-vit*-fpc64-*."""
    layer = "encoder.layer.{}"
    patch = "encoder.embeddings.patch_embeddings.proj"
    sizes = {"f": config.patch_frames, "p": config.patch_size, "q": config.patch_size}
    return {
        "patch": {
            "kernel": Source(f"{patch}.weight", "o c f p q -> (f p q c) o", sizes),
            "bias": Source(f"{patch}.bias"),
        },
        "layers": {
            "attention_norm": layer_norm(f"{layer}.norm1"),
            "query": linear(f"{layer}.attention.query"),
            "key": linear(f"{layer}.attention.key"),
            "value": linear(f"{layer}.attention.value"),
            "output": linear(f"{layer}.attention.proj"),
            "mlp_norm": layer_norm(f"{layer}.norm2"),
            "mlp": {"up": linear(f"{layer}.mlp.fc1"), "down": linear(f"{layer}.mlp.fc2")},
        },
        "norm": layer_norm("encoder.layernorm"),
    }


def preprocessing(config: Config) -> Preprocessing:
    """As published, but for the centre crop."""
    return Preprocessing((config.image_size, config.image_size), **IMAGENET, resampling="bilinear")


def frozen(config: Config, checkpoint: Tensors, dtype: DTypeLike = jnp.bfloat16) -> FrozenEncoder:
    """The encoder with a published checkpoint's weights; see ``freeze``."""
    return freeze(definition(config), weight_map(config), checkpoint, UNUSED, preprocessing(config), dtype)
