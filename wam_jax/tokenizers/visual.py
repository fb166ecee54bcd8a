"""A ViT autoencoder of clips, causal in time: pictures to a grid of latent vectors a frame, and back.

At ``tubelet=4`` and ``patch_size=16`` it is RepViTok, the visual tokenizer of RepWAM (arXiv 2606.13674): the first
picture in patches, later ones in tubelets, attention full within a frame and causal across frames. At its defaults it
is a plain autoencoder of single pictures.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, UInt8

from wam_jax.nn.attention import SelfAttention
from wam_jax.nn.causal_vit import CausalViTBlock, Past
from wam_jax.nn.convolution import Upsampler
from wam_jax.nn.embeddings import grid_positions
from wam_jax.nn.module import Definition, LayerNorm, Linear, Params, define
from wam_jax.tokenizers.tokenizer import Tokenizer, join_cameras, split_cameras, to_float, to_uint8

Layers = tuple[Past, ...]

_CHUNK = 8  # windows that are encoded at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Sizes of the autoencoder.

    Attributes:
      image_size: rows and columns of a picture.
      patch_size: pixels a side of a patch.
      tubelet: pictures of each latent frame after the first.
      window: frames that a token sees, its own the last; 1 tokenises every frame by itself.
      channels: of a latent.
      width, ffn_ratio, num_heads: of the layers.
      encoder_layers, decoder_layers: how many.
      projection: from the encoder to latents: "linear"; or "attention", with a layer norm behind it (RepViTok).
      head: from the decoder to pixels: "linear"; or "convolution", transposed convolutions that double rows and columns
        until they are pixels (RepViTok).

    Raises:
      ValueError: naming the field that does not fit.
    """

    image_size: tuple[int, int] = (64, 64)
    patch_size: int = 8
    tubelet: int = 1
    window: int = 1
    channels: int = 8
    width: int = 128
    ffn_ratio: int = 3
    num_heads: int = 4
    encoder_layers: int = 2
    decoder_layers: int = 2
    projection: str = "linear"
    head: str = "linear"

    def __post_init__(self):
        rows, columns = self.image_size
        if rows % self.patch_size or columns % self.patch_size:
            raise ValueError(f"image of {rows} x {columns} does not divide by tokenizer.patch_size={self.patch_size}")
        for name in ("tubelet", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"tokenizer.{name} must be 1 or more, got {getattr(self, name)}")
        for name, known in (("projection", ("linear", "attention")), ("head", ("linear", "convolution"))):
            if getattr(self, name) not in known:
                raise ValueError(f"tokenizer.{name}={getattr(self, name)!r} is unknown (has: {', '.join(known)})")
        if self.head == "convolution" and self.patch_size & (self.patch_size - 1):
            raise ValueError(
                f"tokenizer.head='convolution' doubles up to a power of two, got patch_size={self.patch_size}"
            )

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Rows, columns, channels."""
        return self.image_size[0] // self.patch_size, self.image_size[1] // self.patch_size, self.channels

    @property
    def temporal(self) -> bool:
        """Whether a latent frame depends on more than its last picture."""
        return self.tubelet > 1 or self.window > 1


class VisualTokenizer(nnx.Module):
    """Encoder and decoder. Pictures are float in [-1, 1]; latents are unnormalised."""

    def __init__(self, config: TokenizerConfig, rngs: nnx.Rngs):
        self.config = config
        rows, columns, channels = config.latent_shape
        pixels, width = 3 * config.patch_size**2, config.width

        def blocks(count: int) -> nnx.List:
            hidden = config.ffn_ratio * width
            return nnx.List(
                [CausalViTBlock(width, hidden, config.num_heads, config.window, rngs) for _ in range(count)]
            )

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
        if config.projection == "attention":
            self.gather = SelfAttention(width, config.num_heads, width // config.num_heads, rngs)
            self.latent_norm = LayerNorm(channels, (None,))
        if config.head == "convolution":
            self.upsampler = Upsampler(width, config.patch_size, 3, rngs)
        else:
            self.patch_out = Linear(width, pixels, ("embed", None), rngs)
        if config.tubelet > 1:
            self.tubelet_in = Linear(config.tubelet * pixels, width, (None, "embed"), rngs)
            spread = config.tubelet * (width if config.head == "convolution" else pixels)
            self.tubelet_out = Linear(width, spread, ("embed", None), rngs)

    def encode(self, clip: Float[Array, "B I H W 3"]) -> Float[Array, "B T h w C"]:
        """Latents of a clip from its first picture on.

        Raises:
          ValueError: the number of pictures is not 1 + n tubelet.
        """
        tubelet = self.config.tubelet
        if (clip.shape[1] - 1) % tubelet:
            raise ValueError(f"clip of {clip.shape[1]} pictures; with tubelet={tubelet} it takes 1 + {tubelet} n")
        x = self._patches(clip[:, :1])
        if clip.shape[1] > 1:
            x = jnp.concatenate([x, self._tubelets(clip[:, 1:])], 1)
        return self._encode(x, None)[0]

    def start(self, picture: Float[Array, "B H W 3"]) -> tuple[Float[Array, "B h w C"], Layers]:
        """The latent frame of a first picture, and what the layers keep of it."""
        latents, past = self._encode(self._patches(picture[:, None]), None)
        return latents[:, 0], past

    def step(self, past: Layers, pictures: Float[Array, "B tubelet H W 3"]) -> tuple[Float[Array, "B h w C"], Layers]:
        """The latent frame of the next pictures."""
        latents, past = self._encode(self._tubelets(pictures), past)
        return latents[:, 0], past

    def decode(self, latents: Float[Array, "B T h w C"]) -> Float[Array, "B I H W 3"]:
        """A clip, from its first picture on."""
        x = self.latent_in(latents) + self.decoder_position[...]
        x = self.decoder_norm(_run(self.decoder, x, None)[0])
        first, rest = x[:, :1], x[:, 1:]
        tubelet = self.config.tubelet
        convolutional = self.config.head == "convolution"
        if tubelet > 1 and rest.shape[1]:
            rest = rearrange(self.tubelet_out(rest), "b t r c (n d) -> b (t n) r c d", n=tubelet)
        elif not convolutional:
            rest = self.patch_out(rest)
        if convolutional:
            return self.upsampler(jnp.concatenate([first, rest], 1))
        p = self.config.patch_size
        patches = jnp.concatenate([self.patch_out(first), rest], 1)
        return rearrange(patches, "b t r c (p q d) -> b t (r p) (c q) d", p=p, q=p)

    def _patches(self, pictures: Float[Array, "B I H W 3"]) -> Float[Array, "B I h w D"]:
        p = self.config.patch_size
        return self.patch_in(rearrange(pictures, "b t (r p) (c q) d -> b t r c (p q d)", p=p, q=p))

    def _tubelets(self, pictures: Float[Array, "B I H W 3"]) -> Float[Array, "B T h w D"]:
        p, n = self.config.patch_size, self.config.tubelet
        if n == 1:
            return self._patches(pictures)
        return self.tubelet_in(rearrange(pictures, "b (t n) (r p) (c q) d -> b t r c (n p q d)", n=n, p=p, q=p))

    def _encode(self, x: Float[Array, "B T h w D"], past: Layers | None) -> tuple[Float[Array, "B T h w C"], Layers]:
        x, past = _run(self.encoder, x + self.encoder_position[...], past)
        x = self.encoder_norm(x)
        if self.config.projection == "linear":
            return self.latent_out(x), past
        gathered = x + self.gather(rearrange(x, "b t r c d -> (b t) (r c) d")).reshape(x.shape)
        return self.latent_norm(self.latent_out(gathered)), past


def _run(blocks: nnx.List, x: Float[Array, "B T h w D"], past: Layers | None) -> tuple[Array, Layers]:
    tokens = rearrange(x, "b t r c d -> b t (r c) d")
    kept = []
    for number, block in enumerate(blocks):
        tokens, layer = block(tokens, past[number] if past else None)
        kept.append(layer)
    return tokens.reshape(x.shape), tuple(kept)


def define_tokenizer(config: TokenizerConfig) -> Definition[VisualTokenizer]:
    """The autoencoder's definition."""
    return define(lambda rngs: VisualTokenizer(config, rngs))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrozenTokenizer:
    """A trained tokenizer and the statistics of its latents (a ``Tokenizer``).

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

    def encode(self, images: UInt8[Array, "B I V H W 3"]) -> Float[Array, "B T V h w C"]:
        """Normalised latents of whole clips, float32."""
        latents = self._module.encode(split_cameras(to_float(images)))
        return join_cameras(self._normalised(latents), images.shape[2])

    def decode(self, latents: Float[Array, "B T V h w C"]) -> UInt8[Array, "B I V H W 3"]:
        """Pixels of normalised latents, from a clip's first on."""
        raw = split_cameras(latents).astype(jnp.float32) * self.std + self.mean
        return join_cameras(to_uint8(self._module.decode(raw)), latents.shape[2])

    def start(self, images: UInt8[Array, "B V H W 3"]) -> tuple[Float[Array, "B V h w C"], Layers]:
        """The first latent frame of clips that go on."""
        latents, past = self._module.start(to_float(images.reshape(-1, *images.shape[2:])))
        return self._normalised(latents).reshape(*images.shape[:2], *latents.shape[1:]), past

    def step(
        self, state: Layers, images: UInt8[Array, "B tubelet V H W 3"]
    ) -> tuple[Float[Array, "B V h w C"], Layers]:
        """Their next latent frame."""
        latents, past = self._module.step(state, split_cameras(to_float(images)))
        return self._normalised(latents).reshape(images.shape[0], images.shape[2], *latents.shape[1:]), past

    @property
    def _module(self) -> VisualTokenizer:
        return define_tokenizer(self.config).bind(self.params)

    def _normalised(self, latents: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
        return (latents - self.mean) / self.std


def latent_statistics(
    config: TokenizerConfig, params: Params, images: UInt8[np.ndarray, "B I V H W 3"]
) -> FrozenTokenizer:
    """Freezes a trained tokenizer with the mean and standard deviation of its latents over clips."""
    as_is = FrozenTokenizer(params, jnp.zeros(config.channels), jnp.ones(config.channels), config)
    latents = encode_in_parts(as_is, images)
    axes = tuple(range(latents.ndim - 1))
    return FrozenTokenizer(params, latents.mean(axes), latents.std(axes) + 1e-6, config)


def encode_in_parts(tokenizer: Tokenizer, images: UInt8[np.ndarray, "B I V H W 3"]) -> Float[Array, "B T V h w C"]:
    """Normalised latents of many clips, a few windows at a time: the attention of all at once would not fit."""
    encode = jax.jit(lambda tokenizer, x: tokenizer.encode(x))
    return jnp.concatenate([encode(tokenizer, images[i : i + _CHUNK]) for i in range(0, len(images), _CHUNK)])
