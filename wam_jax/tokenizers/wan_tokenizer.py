"""A Wan video autoencoder as a frozen tokenizer of clips."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from wam_jax import assets
from wam_jax.nn.module import Params
from wam_jax.tokenizers.tokenizer import join_cameras, split_cameras, to_float, to_uint8
from wam_jax.tokenizers.wan_vae import FRAMES_PER_LATENT, SIZES, WanVAE, WanVAEConfig, definition
from wam_jax.tokenizers.wan_vae_blocks import START, State
from wam_jax.tokenizers.wan_vae_weights import weight_map
from wam_jax.weights import mapping
from wam_jax.weights.files import open_weights
from wam_jax.weights.mapping import Tensors


@dataclasses.dataclass(frozen=True)
class WanTokenizerConfig:
    """Which autoencoder encodes pictures of which size.

    Raises:
      ValueError: ``name`` is not one of ``SIZES``, or the image does not divide into latent pixels.
    """

    name: str
    image_size: tuple[int, int]

    def __post_init__(self):
        if self.name not in SIZES:
            raise ValueError(f"video autoencoder {self.name!r} is unknown (has: {', '.join(SIZES)})")
        rows, columns = self.image_size
        if rows % self.vae.stride or columns % self.vae.stride:
            raise ValueError(f"image of {rows} x {columns} does not divide by {self.vae.stride}, as {self.name} needs")

    @property
    def vae(self) -> WanVAEConfig:
        return SIZES[self.name]

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Rows, columns, channels."""
        return self.image_size[0] // self.vae.stride, self.image_size[1] // self.vae.stride, self.vae.channels

    @property
    def tubelet(self) -> int:
        """Pictures of each latent frame after the first."""
        return FRAMES_PER_LATENT

    @property
    def temporal(self) -> bool:
        """A latent frame depends on all pictures before."""
        return True


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrozenWanVAE:
    """A Wan autoencoder as a ``Tokenizer``.

    Attributes:
      params: of ``WanVAE``, in the dtype it computes in.
      config: static.
    """

    params: Params
    config: WanTokenizerConfig = dataclasses.field(metadata={"static": True})
    saved: ClassVar[bool] = False

    def encode(self, images: UInt8[Array, "B I V H W 3"]) -> Float[Array, "B T V h w C"]:
        """Normalised latents of whole clips, float32."""
        return join_cameras(self._vae.encode(split_cameras(to_float(images))), images.shape[2])

    def decode(self, latents: Float[Array, "B T V h w C"]) -> UInt8[Array, "B I V H W 3"]:
        """Pixels of normalised latents, from a clip's first on."""
        return join_cameras(to_uint8(self._vae.decode(split_cameras(latents))), latents.shape[2])

    def start(self, images: UInt8[Array, "B V H W 3"]) -> tuple[Float[Array, "B V h w C"], State]:
        """The first latent frame of clips that go on."""
        return self.step(START, images[:, None])

    def step(self, state: State, images: UInt8[Array, "B tubelet V H W 3"]) -> tuple[Float[Array, "B V h w C"], State]:
        """Their next latent frame."""
        latents, state = self._vae.encode_step(state, split_cameras(to_float(images)))
        return join_cameras(latents, images.shape[2])[:, 0], state

    @property
    def _vae(self) -> WanVAE:
        return definition(self.config.vae).bind(self.params)


def frozen(config: WanTokenizerConfig, checkpoint: Tensors, dtype: Any = jnp.float32) -> FrozenWanVAE:
    """The tokenizer with a checkpoint's weights, kept and computed with in ``dtype``.

    Raises:
      WeightsMismatch: the checkpoint is not that of this autoencoder.
    """
    shapes = definition(config.vae).shapes()
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    return FrozenWanVAE(mapping.load(weight_map(config.vae), like, checkpoint), config)


def load_wan_tokenizer(name: str, image_size: tuple[int, int], dtype: Any = jnp.float32) -> FrozenWanVAE:
    """The published autoencoder of this name, which is that of its asset, too.

    Raises:
      ValueError: an unknown name, or an image that does not divide.
      assets.AssetMissing: its weights are not here; says how to get them.
    """
    config = WanTokenizerConfig(name, image_size)
    return frozen(config, open_weights(assets.find(name)["weights"]), dtype)
