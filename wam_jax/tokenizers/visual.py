"""A small ViT autoencoder: an image to a grid of latent vectors, and back."""

import dataclasses
from typing import Any, ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, UInt8

from wam_jax.nn.embeddings import grid_positions
from wam_jax.nn.module import Definition, LayerNorm, Linear, Params, define
from wam_jax.nn.vit import ViTBlock


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Sizes of the autoencoder.

    Raises:
      ValueError: if the image does not divide into patches.
    """

    image_size: tuple[int, int] = (64, 64)
    patch_size: int = 8
    channels: int = 8
    width: int = 128
    ffn_ratio: int = 3
    num_heads: int = 4
    encoder_layers: int = 2
    decoder_layers: int = 2

    def __post_init__(self):
        if self.image_size[0] % self.patch_size or self.image_size[1] % self.patch_size:
            raise ValueError(
                f"image of {self.image_size[0]} x {self.image_size[1]} does not divide by "
                f"tokenizer.patch_size={self.patch_size}"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Rows, columns, channels."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size, self.channels


class VisualTokenizer(nnx.Module):
    """Encoder and decoder. Images are float in [-1, 1]; latents are unnormalised."""

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs):
        self.config = config
        rows, columns, channels = config.latent_shape
        pixels, width = 3 * config.patch_size**2, config.width

        def blocks(count: int) -> nnx.List:
            return nnx.List([ViTBlock(width, config.ffn_ratio * width, config.num_heads, rngs) for _ in range(count)])

        def position() -> nnx.Param:
            return nnx.Param(grid_positions(rngs.params(), 1, rows, columns, width)[0], axes=(None, None, "embed"))

        self.patch_in = Linear(pixels, width, (None, "embed"), rngs)
        self.encoder_position, self.decoder_position = position(), position()
        self.encoder = blocks(config.encoder_layers)
        self.encoder_norm = LayerNorm(width, ("embed",))
        self.latent_out = Linear(width, channels, ("embed", None), rngs)
        self.latent_in = Linear(channels, width, (None, "embed"), rngs)
        self.decoder = blocks(config.decoder_layers)
        self.decoder_norm = LayerNorm(width, ("embed",))
        self.patch_out = Linear(width, pixels, ("embed", None), rngs)

    def encode(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        p = self.config.patch_size
        x = self.patch_in(rearrange(images, "b (r p) (c q) d -> b r c (p q d)", p=p, q=p))
        x = self._run(self.encoder, x + self.encoder_position[...])
        return self.latent_out(self.encoder_norm(x))

    def decode(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        p = self.config.patch_size
        x = self._run(self.decoder, self.latent_in(latents) + self.decoder_position[...])
        patches = self.patch_out(self.decoder_norm(x))
        return rearrange(patches, "b r c (p q d) -> b (r p) (c q) d", p=p, q=p)

    @staticmethod
    def _run(blocks: nnx.List, x: Float[Array, "B r c D"]) -> Float[Array, "B r c D"]:
        tokens = rearrange(x, "b r c d -> b (r c) d")
        for block in blocks:
            tokens = block(tokens)
        return tokens.reshape(x.shape)


def define_tokenizer(config: TokenizerConfig) -> Definition[VisualTokenizer]:
    """The autoencoder's definition."""
    return define(lambda rngs: VisualTokenizer(config, rngs))


class Tokenizer(Protocol):
    """A frozen picture tokenizer: a pytree of its arrays.

    Attributes:
      config: static; has ``image_size``, ``latent_shape`` (rows, columns, channels), and its fields as JSON say which
        tokenizer it is.
      saved: its arrays belong to every checkpoint; else they are found by name.
    """

    saved: ClassVar[bool]

    @property
    def config(self) -> Any: ...

    def encode(self, images: UInt8[Array, "*B H W 3"]) -> Float[Array, "*B h w C"]:
        """Normalised latents, float32."""

    def decode(self, latents: Float[Array, "*B h w C"]) -> UInt8[Array, "*B H W 3"]:
        """Pixels of normalised latents."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrozenTokenizer:
    """A trained tokenizer and the statistics of its latents: uint8 pixels to normalised latents and back.

    Attributes:
      params: of ``VisualTokenizer``.
      mean, std: f32[C], of the latents of the training frames.
      config: static.
    """

    params: Params
    mean: Float[Array, "C"]
    std: Float[Array, "C"]
    config: TokenizerConfig = dataclasses.field(metadata={"static": True})
    saved: ClassVar[bool] = True

    def encode(self, images: UInt8[Array, "*B H W 3"]) -> Float[Array, "*B h w C"]:
        """Normalised latents, float32."""
        flat = to_float(images.reshape(-1, *images.shape[-3:]))
        latents = define_tokenizer(self.config).bind(self.params).encode(flat)
        return ((latents - self.mean) / self.std).reshape(*images.shape[:-3], *latents.shape[1:])

    def decode(self, latents: Float[Array, "*B h w C"]) -> UInt8[Array, "*B H W 3"]:
        """Pixels of normalised latents."""
        flat = latents.reshape(-1, *latents.shape[-3:]).astype(jnp.float32) * self.std + self.mean
        images = to_uint8(define_tokenizer(self.config).bind(self.params).decode(flat))
        return images.reshape(*latents.shape[:-3], *images.shape[1:])


def latent_statistics(config: TokenizerConfig, params: Params, images: UInt8[np.ndarray, "B H W 3"]) -> FrozenTokenizer:
    """Freezes a trained tokenizer with the mean and standard deviation of its latents over ``images``."""
    latents = jax.jit(lambda p, x: define_tokenizer(config).bind(p).encode(to_float(x)))(params, images)
    return FrozenTokenizer(params, latents.mean((0, 1, 2)), latents.std((0, 1, 2)) + 1e-6, config)


def to_float(images: UInt8[Array, "*S"]) -> Float[Array, "*S"]:
    """[0, 255] to [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def to_uint8(images: Float[Array, "*S"]) -> UInt8[Array, "*S"]:
    """[-1, 1] to [0, 255], rounded and clipped."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)
