"""A frozen encoder: arrays, what to do with them, and how pictures are prepared for it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from wam_jax.nn.module import Definition, Params


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """From pictures to what a vision encoder was trained on.

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


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrozenEncoder:
    """An encoder that is not trained: no gradient passes, and it belongs to no optimizer and no checkpoint.

    Attributes:
      params: its arrays, in the dtype it computes in.
      definition: its module.
      preprocessing: of its input; None where it takes tokens.
      compute: module, prepared input (and whatever else the encoder takes) -> features.
    """

    params: Params
    definition: Definition[Any] = dataclasses.field(metadata={"static": True})
    preprocessing: Preprocessing | None = dataclasses.field(metadata={"static": True})
    compute: Callable[..., Array] = dataclasses.field(metadata={"static": True})

    def __call__(self, inputs: Array, *more: Array) -> Array:
        """Patch features [B, h, w, D] of uint8 pictures [B, H, W, 3], or features [B, L, D] of tokens and their mask.

        Float32, whatever the encoder computes in.
        """
        if self.preprocessing is not None:
            inputs = self.preprocessing(inputs)
        params = jax.lax.stop_gradient(self.params)
        features = self.compute(self.definition.bind(params), inputs, *more)
        return jax.lax.stop_gradient(features.astype(jnp.float32))
