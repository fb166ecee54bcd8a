"""A frozen encoder: arrays, what to do with them, and how pictures are prepared for it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from wam_jax.nn.module import Definition, Params, standardize
from wam_jax.weights import mapping
from wam_jax.weights.mapping import Tensors, WeightMap


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From pictures to what a vision encoder was trained on.

    The whole picture is resized, whatever its shape: where a published recipe cuts out the centre, a robot would lose
    what is at the border.

    Attributes:
      size: rows and columns it is resized to.
      mean, std: of each colour, in [0, 1].
      resampling: "bilinear" or "bicubic", antialiased.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resampling: str = "bicubic"

    def __call__(self, images: UInt8[Array, "*B H W 3"]) -> Float[Array, "*B h w 3"]:
        shape = (*images.shape[:-3], *self.size, 3)
        method = {"bilinear": "linear", "bicubic": "cubic"}[self.resampling]
        pixels = images.astype(jnp.float32)
        if images.shape[-3:-1] != self.size:
            pixels = jnp.clip(jax.image.resize(pixels, shape, method, antialias=True), 0, 255)
        return (pixels / 255 - jnp.asarray(self.mean)) / jnp.asarray(self.std)


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}  # of ImageNet's pictures
CENTRED = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # to [-1, 1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """An encoder that is not trained: no gradient passes, and it belongs to no optimizer and no checkpoint.

    It is a pytree of its arrays: pass it to a jitted function as an argument, beside the training state. Closing over
    it would make its arrays constants of the program.

    Attributes:
      params: its arrays, in the dtype it computes in.
      definition: its module, which takes prepared input (and whatever else it needs) to features.
      preprocessing: of its input; None where it takes tokens.
      standardized: features have mean 0 and variance 1 over their channels, as after the last norm of a transformer.
    """

    params: Params
    definition: Definition[Any] = dataclasses.field(metadata={"static": True})
    preprocessing: Preprocessing | None = dataclasses.field(metadata={"static": True})
    standardized: bool = dataclasses.field(default=False, metadata={"static": True})

    @property
    def dtype(self) -> jnp.dtype:
        return jax.tree.leaves(self.params)[0].dtype

    def __call__(self, inputs: Array, *more: Array) -> Array:
        """Features of the input, in float32 whatever the encoder computes in.

        [B, h, w, D] of uint8 pictures [B, H, W, 3]; [B, t, h, w, D] of clips [B, T, H, W, 3]; [B, L, D] of tokens
        [B, L] (and their mask).
        """
        if self.preprocessing is not None:
            inputs = self.preprocessing(inputs).astype(self.dtype)
        model = self.definition.bind(jax.lax.stop_gradient(self.params))
        # Where the arrays are float32, products are too, on every platform: training and serving see the same features.
        with jax.default_matmul_precision("highest"):
            features = model(inputs, *more).astype(jnp.float32)
        return jax.lax.stop_gradient(standardize(features) if self.standardized else features)


def freeze(
    definition: Definition[Any],
    weight_map: WeightMap,
    checkpoint: Tensors,
    unused: Sequence[str] = (),
    preprocessing: Preprocessing | None = None,
    dtype: DTypeLike = jnp.bfloat16,
) -> FrozenEncoder:
    """An encoder with a checkpoint's weights, read tensor by tensor onto the device.

    Args:
      definition, preprocessing: see ``FrozenEncoder``.
      weight_map, checkpoint, unused: see ``mapping.load``.
      dtype: that weights are stored in, and that it computes in: bfloat16 or float32.

    Raises:
      WeightsMismatch: the checkpoint is not of this model, or not of this size.
    """
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), definition.shapes())
    return FrozenEncoder(mapping.load(weight_map, like, checkpoint, unused), definition, preprocessing)
