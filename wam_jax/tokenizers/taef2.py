"""TAEF2, a tiny published autoencoder of pictures, as a frozen tokenizer of clips.

It was distilled from the autoencoder of FLUX.2 and has only learned to reconstruct: the plain counterpart of tokenizers
whose latents are aligned to the features of another network. Source: madebyollin/taesd, commit 5cccb12d (MIT).
"""

import dataclasses
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, UInt8

from wam_jax import assets
from wam_jax.nn.module import Params
from wam_jax.tokenizers.taef2_autoencoder import CHANNELS, STRIDE, TAEF2, definition, weight_map
from wam_jax.tokenizers.tokenizer import to_float, to_uint8
from wam_jax.weights import mapping
from wam_jax.weights.files import open_weights
from wam_jax.weights.mapping import Tensors

State = tuple[()]  # nothing of a clip has to be remembered

# Of the unnormalised latents, by channel. None are published; these are of 750 frames of 64 x 64 pixels: all that the
# three working cameras (image_0 to image_2) of our sample of BridgeData V2 (arXiv 2308.12952) saw in 25 episodes.
MEAN = (
    *(0.5394, -0.4230, 0.1347, 0.1106, 0.2306, -0.5810, 0.1072, 0.6783),
    *(0.0600, 0.6222, 0.0257, 0.0258, 0.1928, 0.2659, -0.7087, 0.5627),
    *(-0.6954, 0.5200, -0.1898, 0.5765, 0.2523, 0.0826, 0.4995, -0.5243),
    *(-0.0882, -0.7202, -0.0553, -0.7294, 0.4892, 0.0686, 0.4193, 0.3376),
)
STD = (
    *(0.6346, 0.8863, 0.8702, 0.9758, 0.6421, 0.9354, 0.9158, 0.6394),
    *(1.0232, 0.6236, 0.6211, 1.1783, 0.7814, 0.6887, 0.6448, 0.9529),
    *(0.6387, 0.5985, 0.6414, 0.9422, 0.8184, 0.5868, 0.5696, 0.5798),
    *(0.8297, 0.6381, 0.9943, 0.8344, 0.5744, 0.9406, 0.8048, 1.0450),
)


@dataclasses.dataclass(frozen=True)
class TAEF2Config:
    """Which pictures the tokenizer is for.

    Attributes:
      image_size: rows and columns.
      name: always "taef2": among the fields that are saved, it says which tokenizer they are of.

    Raises:
      ValueError: the image does not divide into latent pixels.
    """

    image_size: tuple[int, int]
    name: str = dataclasses.field(default="taef2", init=False)

    def __post_init__(self):
        rows, columns = self.image_size
        if rows % STRIDE or columns % STRIDE:
            raise ValueError(f"image of {rows} x {columns} does not divide by {STRIDE}, as taef2 needs")

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Rows, columns, channels."""
        return self.image_size[0] // STRIDE, self.image_size[1] // STRIDE, CHANNELS

    @property
    def tubelet(self) -> int:
        """Pictures of each latent frame."""
        return 1

    @property
    def temporal(self) -> bool:
        """A latent frame depends on its own picture alone."""
        return False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FrozenTAEF2:
    """TAEF2 as a ``Tokenizer``.

    Attributes:
      params: of ``TAEF2``, float32.
      config: static.
    """

    params: Params
    config: TAEF2Config = dataclasses.field(metadata={"static": True})
    saved: ClassVar[bool] = False

    def encode(self, images: UInt8[Array, "B I V H W 3"]) -> Float[Array, "B I V h w 32"]:
        """Normalised latents of whole clips, float32.

        Raises:
          ValueError: the images are not of the configured size.
        """
        size = self.config.image_size
        if images.shape[-3:-1] != size:
            found, wanted = ("{} x {}".format(*sizes) for sizes in (images.shape[-3:-1], size))
            raise ValueError(f"images of {found}; this tokenizer is for {wanted}: resize them, or load it for theirs")
        # One picture of every clip at a time, so that what is in memory does not grow with the clips' length.
        latents = jax.lax.map(lambda x: self._module.encode(to_float(x)), _by_time(images))
        return _by_clip((latents - jnp.asarray(MEAN)) / jnp.asarray(STD), images.shape[2])

    def decode(self, latents: Float[Array, "B I V h w 32"]) -> UInt8[Array, "B I V H W 3"]:
        """Pixels of normalised latents, from a clip's first on."""
        raw = latents.astype(jnp.float32) * jnp.asarray(STD) + jnp.asarray(MEAN)
        return _by_clip(jax.lax.map(lambda x: to_uint8(self._module.decode(x)), _by_time(raw)), latents.shape[2])

    def start(self, images: UInt8[Array, "B V H W 3"]) -> tuple[Float[Array, "B V h w 32"], State]:
        """The first latent frame of clips that go on."""
        return self.step((), images[:, None])

    def step(self, state: State, images: UInt8[Array, "B 1 V H W 3"]) -> tuple[Float[Array, "B V h w 32"], State]:
        """Their next latent frame."""
        return self.encode(images)[:, 0], state

    @property
    def _module(self) -> TAEF2:
        return definition().bind(self.params)


def _by_time(clips: Array) -> Array:
    """[B, I, V, ...] to [I, B * V, ...]."""
    return rearrange(clips, "b i v ... -> i (b v) ...")


def _by_clip(pictures: Array, cameras: int) -> Array:
    """The way back."""
    return rearrange(pictures, "i (b v) ... -> b i v ...", v=cameras)


def load_params(encoder: Tensors, decoder: Tensors, like: Params) -> Params:
    """The two published checkpoints as parameters of ``TAEF2``.

    Args:
      encoder, decoder: the checkpoints.
      like: the parameters' shapes, see ``mapping.load``.

    Raises:
      WeightsMismatch: one of them is not that of this autoencoder.
    """
    table, checkpoints = weight_map(), {"encoder": encoder, "decoder": decoder}
    return {part: mapping.load(table[part], like[part], checkpoint) for part, checkpoint in checkpoints.items()}


def load_taef2(image_size: tuple[int, int], path: str | Path | None = None) -> FrozenTAEF2:
    """TAEF2 with its published weights.

    Args:
      image_size: rows and columns of the pictures.
      path: the folder of its two files, where they are not found as the asset ``taef2``.

    Raises:
      ValueError: an image that does not divide by 8.
      assets.AssetMissing, assets.AssetCorrupt: the weights are not here, or not the registered ones.
      FileNotFoundError, UnreadableWeights, WeightsMismatch: ``path`` does not hold checkpoints of this autoencoder.
    """
    config = TAEF2Config(image_size)
    if path is None:
        files = assets.find(config.name)
    else:
        files = {role: Path(path) / file.path for role, file in assets.ASSETS[config.name].files.items()}
    encoder, decoder = open_weights(files["weights"]), open_weights(files["decoder"])
    return FrozenTAEF2(load_params(encoder, decoder, definition().shapes()), config)
