"""The video autoencoders of Wan 2.1 and 2.2: pixels to latents and back, causal in time, whole or frame by frame.

A latent frame stands for a video's first frame alone, or for 4 frames of those after it. Source:
``AutoencoderKLWan`` of diffusers 0.42 (Apache 2.0); paper: Wan (arXiv 2503.20314), section 4.1.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from wam_jax.nn.module import Definition, define
from wam_jax.tokenizers.wan_vae_blocks import (
    START,
    Conv,
    DownStage,
    Memory,
    Middle,
    Stage,
    State,
    UpStage,
    linear,
    rms_norm,
)

FRAMES_PER_LATENT = 4  # after the first frame
_WIDTHS = (1, 2, 4, 4)  # of the encoder's stages, times the base
_ENCODER_FACTORS = ((1, 2), (2, 2), (2, 2), (1, 1))  # of its stages, in time and in space
_DECODER_FACTORS = ((2, 2), (2, 2), (1, 2), (1, 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class WanVAEConfig:
    """Sizes of an autoencoder.

    Attributes:
      channels: of a latent.
      encoder_width, decoder_width: of the stages next to the pixels.
      patch_size: pixels are folded into channels, so many by so many, before the encoder.
      num_blocks: residual blocks in a stage of the encoder; the decoder has one more.
      shortcuts: each stage has a parameter-free path beside it (Wan 2.2).
      mean, std: of the unnormalised latents, by channel.
    """

    channels: int
    encoder_width: int
    decoder_width: int
    patch_size: int
    shortcuts: bool
    num_blocks: int = 2
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def stride(self) -> int:
        """Pixels along a side of one latent pixel."""
        return self.patch_size * math.prod(space for _, space in _ENCODER_FACTORS)

    @property
    def pixel_channels(self) -> int:
        """Colours of a patch."""
        return 3 * self.patch_size**2

    def encoder_stages(self) -> list[Stage]:
        widths = [self.encoder_width * width for width in (1, *_WIDTHS)]
        return [Stage(widths[i], widths[i + 1], *factors) for i, factors in enumerate(_ENCODER_FACTORS)]

    def decoder_stages(self) -> list[Stage]:
        """Without shortcuts, an upsampling halves the width that enters the next stage."""
        widths = [self.decoder_width * width for width in (_WIDTHS[-1], *reversed(_WIDTHS))]
        halves = [1, 1, 1, 1] if self.shortcuts else [1, 2, 2, 2]
        sizes = zip(widths, halves, widths[1:], _DECODER_FACTORS, strict=False)
        return [Stage(inputs // half, outputs, *factors) for inputs, half, outputs, factors in sizes]


# Statistics: ``vae/config.json`` of Wan-AI/Wan2.1-T2V-1.3B-Diffusers (the defaults of ``AutoencoderKLWan``) and of
# Wan-AI/Wan2.2-TI2V-5B-Diffusers.
WAN21 = WanVAEConfig(
    channels=16,
    encoder_width=96,
    decoder_width=96,
    patch_size=1,
    shortcuts=False,
    mean=(
        *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
        *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
    ),
    std=(
        *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
        *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
    ),
)
WAN22 = WanVAEConfig(
    channels=48,
    encoder_width=160,
    decoder_width=256,
    patch_size=2,
    shortcuts=True,
    mean=(
        *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891),
        *(0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
        *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723),
        *(-0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
    ),
    std=(
        *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901),
        *(0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
        *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944),
        *(0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
    ),
)

WAN21_DEBUG = dataclasses.replace(
    WAN21, channels=4, encoder_width=2, decoder_width=2, num_blocks=1, mean=WAN21.mean[:4], std=WAN21.std[:4]
)
WAN22_DEBUG = dataclasses.replace(
    WAN22, channels=6, encoder_width=2, decoder_width=2, num_blocks=1, mean=WAN22.mean[:6], std=WAN22.std[:6]
)
SIZES = {
    "wan21_vae": WAN21,
    "wan22_vae": WAN22,
    "wan21_vae_debug": WAN21_DEBUG,
    "wan22_vae_debug": WAN22_DEBUG,
}


class Encoder(nnx.Module):
    """Patches of one step's frames to the moments of one latent frame."""

    def __init__(self, config: WanVAEConfig, rngs: nnx.Rngs):
        stages = config.encoder_stages()
        width = stages[-1].outputs
        self.conv_in = Conv(config.pixel_channels, stages[0].inputs, (3, 3, 3), rngs)
        self.stages = nnx.List([DownStage(stage, config.num_blocks, config.shortcuts, rngs) for stage in stages])
        self.middle = Middle(width, rngs)
        self.norm_out = rms_norm(width)
        self.conv_out = Conv(width, 2 * config.channels, (3, 3, 3), rngs)

    def __call__(self, x: Float[Array, "B T r c P"], memory: Memory) -> Float[Array, "B 1 h w 2*C"]:
        x = self.conv_in.causal(x, memory)
        for stage in self.stages:
            x = stage(x, memory)
        x = self.middle(x, memory)
        return self.conv_out.causal(jax.nn.silu(self.norm_out(x)), memory)


class Decoder(nnx.Module):
    """One latent frame to the patches of one step's frames."""

    def __init__(self, config: WanVAEConfig, rngs: nnx.Rngs):
        stages = config.decoder_stages()
        self.conv_in = Conv(config.channels, stages[0].inputs, (3, 3, 3), rngs)
        self.middle = Middle(stages[0].inputs, rngs)
        self.stages = nnx.List([UpStage(stage, config.num_blocks + 1, config.shortcuts, rngs) for stage in stages])
        self.norm_out = rms_norm(stages[-1].outputs)
        self.conv_out = Conv(stages[-1].outputs, config.pixel_channels, (3, 3, 3), rngs)

    def __call__(self, x: Float[Array, "B 1 h w C"], memory: Memory) -> Float[Array, "B T r c P"]:
        x = self.middle(self.conv_in.causal(x, memory), memory)
        for stage in self.stages:
            x = stage(x, memory)
        return self.conv_out.causal(jax.nn.silu(self.norm_out(x)), memory)


class Posterior(NamedTuple):
    """Moments of latents, as published: not normalised."""

    mean: Float[Array, "B n h w C"]
    log_variance: Float[Array, "B n h w C"]


class WanVAE(nnx.Module):
    """Frames are float in [-1, 1]; latents are normalised, float32. Computes in the dtype of its parameters.

    A video may come whole, or step by step: start with ``START``, and hand each step the state that the one before
    gave. The first step is one frame, every further one is 4 (one latent frame either way). Encoder and decoder each
    have a state of their own. Further steps may run in ``jax.lax.scan``; the first may not, for it makes the state.
    """

    def __init__(self, config: WanVAEConfig, rngs: nnx.Rngs):
        self.config = config
        self.encoder, self.decoder = Encoder(config, rngs), Decoder(config, rngs)
        self.quant = linear(2 * config.channels, 2 * config.channels, rngs)
        self.post_quant = linear(config.channels, config.channels, rngs)

    def encode(self, clip: Float[Array, "B 1+4*n H W 3"]) -> Float[Array, "B 1+n h w C"]:
        """Normalised latents (the posterior's mean). Memory grows with n by the clip and its latents alone.

        Raises:
          ValueError: the number of frames is not 1 + 4 n, or rows and columns do not divide by ``config.stride``.
        """
        return _whole(self.encode_step, *self._groups(clip))

    def posterior(self, clip: Float[Array, "B 1+4*n H W 3"]) -> Posterior:
        """Moments of the 1 + n latent frames; errors as ``encode``."""
        return _whole(self.posterior_step, *self._groups(clip))

    def decode(self, latents: Float[Array, "B 1+n h w C"]) -> Float[Array, "B 1+4*n H W 3"]:
        """Frames in [-1, 1] of normalised latents.

        Raises:
          ValueError: the latents' channels are not this autoencoder's.
        """
        return _whole(self.decode_step, latents[:, :1], rearrange(latents[:, 1:], "b n h w c -> n b 1 h w c"))

    def encode_step(self, state: State, frames: Float[Array, "B T H W 3"]) -> tuple[Float[Array, "B 1 h w C"], State]:
        """The normalised latent frame of the next frames: T is 1 at first, then 4.

        Raises:
          ValueError: T is another number, or rows and columns do not divide by ``config.stride``.
        """
        posterior, state = self.posterior_step(state, frames)
        return (posterior.mean - jnp.asarray(self.config.mean)) / jnp.asarray(self.config.std), state

    def posterior_step(self, state: State, frames: Float[Array, "B T H W 3"]) -> tuple[Posterior, State]:
        """Moments of the next latent frame, log-variances within [-30, 20]; errors as ``encode_step``."""
        memory = Memory(state)
        self._check_frames(frames, memory.first)
        p = self.config.patch_size
        patches = rearrange(frames.astype(self._dtype), "b t (r p) (c q) d -> b t r c (d q p)", p=p, q=p)
        moments = self.quant(self.encoder(patches, memory)).astype(jnp.float32)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -30, 20)), memory.state()

    def decode_step(self, state: State, latent: Float[Array, "B 1 h w C"]) -> tuple[Float[Array, "B T H W 3"], State]:
        """The frames (T is 1 at first, then 4) of the next normalised latent frame.

        Raises:
          ValueError: the latents' channels are not this autoencoder's, or they are not one frame.
        """
        if latent.shape[1] != 1:
            raise ValueError(f"a step of {latent.shape[1]} latent frames; give it one, or all of them to decode")
        if latent.shape[-1] != self.config.channels:
            raise ValueError(
                f"latents of {latent.shape[-1]} channels; this autoencoder has {self.config.channels}: "
                "16 belong to Wan 2.1, 48 to Wan 2.2"
            )
        p, memory = self.config.patch_size, Memory(state)
        latent = latent.astype(jnp.float32) * jnp.asarray(self.config.std) + jnp.asarray(self.config.mean)
        patches = self.decoder(self.post_quant(latent.astype(self._dtype)), memory)
        frames = rearrange(patches, "b t r c (d q p) -> b t (r p) (c q) d", p=p, q=p)
        return jnp.clip(frames.astype(jnp.float32), -1, 1), memory.state()

    @property
    def _dtype(self) -> Any:
        return self.quant.kernel[...].dtype

    def _groups(self, clip: Float[Array, "B 1+4*n H W 3"]) -> tuple[Array, Array]:
        """The first frame, and the others in groups of 4, the groups leading."""
        if clip.shape[1] % FRAMES_PER_LATENT != 1:
            raise ValueError(
                f"clip of {clip.shape[1]} frames; the first frame and groups of 4 make 1 + 4 n (1, 5, 9, ...): "
                "cut the clip, or repeat its last frame"
            )
        return clip[:, :1], rearrange(clip[:, 1:], "b (n t) h w c -> n b t h w c", t=FRAMES_PER_LATENT)

    def _check_frames(self, frames: Float[Array, "B T H W 3"], first: bool) -> None:
        _, count, rows, columns, _ = frames.shape
        if count != (1 if first else FRAMES_PER_LATENT):
            raise ValueError(f"a step of {count} frames; the first step takes 1, each further one {FRAMES_PER_LATENT}")
        stride = self.config.stride
        if rows % stride or columns % stride:
            raise ValueError(f"frames of {rows} x {columns} do not divide by {stride}; resize or crop them")


def _whole(step: Callable[[State, Array], tuple[Any, State]], first: Array, rest: Array) -> Any:
    """A video's first step and all further ones, outputs joined along time."""
    head, state = step(START, first)
    if not len(rest):
        return head
    _, tail = jax.lax.scan(lambda state, group: step(state, group)[::-1], state, rest)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, rearrange(b, "n b t ... -> b (n t) ...")], 1), head, tail)


@functools.cache
def definition(config: WanVAEConfig) -> Definition[WanVAE]:
    """The autoencoder's definition."""
    return define(lambda rngs: WanVAE(config, rngs))
