"""What a picture or video tokenizer answers, whoever made it."""

from typing import Any, ClassVar, Protocol

import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, UInt8

State = Any  # a pytree: what a tokenizer remembers of a clip that comes piece by piece


class Tokenizer(Protocol):
    """A frozen tokenizer of clips: a pytree of its arrays. Cameras are tokenised apart from each other.

    A clip's first picture is a latent frame; each latent frame after it stands for ``config.tubelet`` pictures, and may
    depend on all pictures before. So T latent frames are I = 1 + (T - 1) tubelet pictures.

    Attributes:
      config: static; has ``image_size``, ``latent_shape`` (rows, columns, channels), ``tubelet``, ``temporal`` (whether
        a latent frame depends on more than its last picture), and its fields as JSON say which tokenizer it is.
      saved: its arrays belong to every checkpoint; else they are found by name.
    """

    saved: ClassVar[bool]

    @property
    def config(self) -> Any: ...

    def encode(self, images: UInt8[Array, "B I V H W 3"]) -> Float[Array, "B T V h w C"]:
        """Normalised latents of whole clips, float32."""

    def decode(self, latents: Float[Array, "B T V h w C"]) -> UInt8[Array, "B I V H W 3"]:
        """Pixels of normalised latents, from a clip's first on."""

    def start(self, images: UInt8[Array, "B V H W 3"]) -> tuple[Float[Array, "B V h w C"], State]:
        """The first latent frame of clips that go on."""

    def step(self, state: State, images: UInt8[Array, "B tubelet V H W 3"]) -> tuple[Float[Array, "B V h w C"], State]:
        """Their next latent frame: what ``encode`` of the whole would give."""


def split_cameras(x: Array) -> Array:
    """[B, T, V, ...] to [B * V, T, ...]."""
    return rearrange(x, "b t v ... -> (b v) t ...")


def join_cameras(x: Array, cameras: int) -> Array:
    """The way back."""
    return rearrange(x, "(b v) t ... -> b t v ...", v=cameras)


def to_float(images: UInt8[Array, "*S"]) -> Float[Array, "*S"]:
    """[0, 255] to [-1, 1]."""
    return images.astype(jnp.float32) / 127.5 - 1


def to_uint8(images: Float[Array, "*S"]) -> UInt8[Array, "*S"]:
    """[-1, 1] to [0, 255], rounded and clipped."""
    return jnp.clip(jnp.round((images + 1) * 127.5), 0, 255).astype(jnp.uint8)
