"""What the Wan video autoencoders are built of: causal convolutions that remember, and the blocks around them.

Features are [B, T, H, W, C]. A video passes in steps, its first frame alone and then a few frames at a time; what a
convolution needs of earlier steps is in a state. Source: ``models/autoencoders/autoencoder_kl_wan.py`` of diffusers
0.42 (Apache 2.0).
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from wam_jax.nn.attention import attend
from wam_jax.nn.module import Linear, RMSNorm, normal

State = tuple[Float[Array, "B t h w c"], ...]  # one array a causal convolution, in the order in which they run
START: State = ()  # before the first frame


class Stage(NamedTuple):
    """Widths of one stage of an encoder or a decoder, and its factors (1 or 2) in time and in space."""

    inputs: int
    outputs: int
    time: int
    space: int


class Memory:
    """The state during one step: each causal convolution takes the frames it saw last and leaves the next ones.

    Attributes:
      first: the step is a video's first frame; whether it is, is known when the step is traced.
    """

    def __init__(self, state: State):
        self.first = not state
        self._before = iter(state)
        self._after: list[Array] = []

    def extend(self, x: Float[Array, "B T H W C"], frames: int) -> Float[Array, "B T+frames H W C"]:
        """``x`` after the ``frames`` frames before it (zeros before the first); remembers the last ``frames``."""
        zeros = jnp.zeros_like(x, shape=(x.shape[0], frames, *x.shape[2:]))
        extended = jnp.concatenate([zeros if self.first else next(self._before), x], axis=1)
        self._after.append(extended[:, -frames:])
        return extended

    def state(self) -> State:
        """The state after the step."""
        return tuple(self._after)


class Conv(nnx.Module):
    """A convolution over frames, rows and columns."""

    def __init__(self, inputs: int, outputs: int, size: tuple[int, int, int], rngs: nnx.Rngs):
        shape = (*size, inputs, outputs)
        self.kernel = nnx.Param(normal(inputs * math.prod(size))(rngs.params(), shape), axes=(None,) * 5)
        self.bias = nnx.Param(jnp.zeros(outputs), axes=(None,))

    def __call__(
        self, x: Float[Array, "B T H W I"], strides: tuple[int, int, int], padding: tuple[int, int]
    ) -> Float[Array, "B t h w O"]:
        """``padding``: zeros before and after rows and columns; there are none before and after frames."""
        return convolve(x, self.kernel[...], strides, padding) + self.bias[...].astype(x.dtype)

    def causal(self, x: Float[Array, "B T H W I"], memory: Memory) -> Float[Array, "B T H W O"]:
        """Each output sees its frame and two before it (kernels of 3 frames); the size stays."""
        kernel, extended = self.kernel[...], memory.extend(x, 2)
        if memory.first:  # zeros come before it, on which two thirds of the work would be lost
            kernel, extended = kernel[-1:], x
        pad = kernel.shape[1] // 2
        return convolve(extended, kernel, (1, 1, 1), (pad, pad)) + self.bias[...].astype(x.dtype)


def convolve(
    x: Float[Array, "B T H W I"],
    kernel: Float[Array, "kt kh kw I O"],
    strides: tuple[int, int, int],
    padding: tuple[int, int],
) -> Float[Array, "B t h w O"]:
    """A convolution in the dtype of ``x``; rows and columns are padded with zeros, frames are not.

    Frames under the kernel are laid side by side as channels of a picture: kernels for pictures are the better ones (on
    two CPU cores, half the time of one for volumes).
    """
    frames = x.shape[1] - kernel.shape[0] + 1
    under = [x[:, i : i + frames : strides[0]] for i in range(kernel.shape[0])]
    pictures = rearrange(jnp.concatenate(under, axis=-1), "b t h w i -> (b t) h w i")
    flat_kernel = rearrange(kernel.astype(x.dtype), "t h w i o -> h w (t i) o")
    y = jax.lax.conv_general_dilated(
        pictures, flat_kernel, strides[1:], [padding, padding], dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return rearrange(y, "(b t) h w o -> b t h w o", b=x.shape[0])


def rms_norm(width: int) -> RMSNorm:
    """Each pixel's features to unit root mean square, times a learned scale.

    The reference divides by max(norm, 1e-12); its limit is below what float32 tells from zero.
    """
    return RMSNorm(width, (None,), epsilon=1e-24)


def linear(inputs: int, outputs: int, rngs: nnx.Rngs) -> Linear:
    """A convolution of size 1."""
    return Linear(inputs, outputs, (None, None), rngs)


class ResidualBlock(nnx.Module):
    """Norm, SiLU and causal convolution, twice, beside the input."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        self.norm1, self.norm2 = rms_norm(inputs), rms_norm(outputs)
        self.conv1 = Conv(inputs, outputs, (3, 3, 3), rngs)
        self.conv2 = Conv(outputs, outputs, (3, 3, 3), rngs)
        self.shortcut = linear(inputs, outputs, rngs) if inputs != outputs else None

    def __call__(self, x: Float[Array, "B T H W I"], memory: Memory) -> Float[Array, "B T H W O"]:
        y = self.conv1.causal(jax.nn.silu(self.norm1(x)), memory)
        y = self.conv2.causal(jax.nn.silu(self.norm2(y)), memory)
        return y + (x if self.shortcut is None else self.shortcut(x))


class FrameAttention(nnx.Module):
    """One head of attention among the pixels of each frame, beside the input."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm = rms_norm(width)
        self.query_key_value = linear(width, 3 * width, rngs)
        self.output = linear(width, width, rngs)

    def __call__(self, x: Float[Array, "B T H W C"]) -> Float[Array, "B T H W C"]:
        pixels = rearrange(self.norm(x), "b t h w c -> (b t) (h w) 1 c")
        query, key, value = jnp.split(self.query_key_value(pixels), 3, axis=-1)
        return x + self.output(attend(query, key, value)).reshape(x.shape)


class Middle(nnx.Module):
    """Between encoder or decoder stages and the latents: residual block, attention, residual block."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.before, self.after = ResidualBlock(width, width, rngs), ResidualBlock(width, width, rngs)
        self.attention = FrameAttention(width, rngs)

    def __call__(self, x: Float[Array, "B T H W C"], memory: Memory) -> Float[Array, "B T H W C"]:
        return self.after(self.attention(self.before(x, memory)), memory)


class Downsample(nnx.Module):
    """Halves rows and columns, then (``time=2``) frames: the first frame stays, 4 become 2, 2 become 1."""

    def __init__(self, width: int, time: int, rngs: nnx.Rngs):
        self.space = Conv(width, width, (1, 3, 3), rngs)
        self.time = Conv(width, width, (3, 1, 1), rngs) if time == 2 else None

    def __call__(self, x: Float[Array, "B T H W C"], memory: Memory) -> Float[Array, "B t h w C"]:
        x = self.space(x, (1, 2, 2), (0, 1))
        if self.time is None:
            return x
        extended = memory.extend(x, 1)
        return x if memory.first else self.time(extended, (2, 1, 1), (0, 0))


class Upsample(nnx.Module):
    """Doubles (``time=2``) frames, all but the first, then rows and columns."""

    def __init__(self, inputs: int, outputs: int, time: int, rngs: nnx.Rngs):
        self.time = Conv(inputs, 2 * inputs, (3, 1, 1), rngs) if time == 2 else None
        self.space = Conv(inputs, outputs, (1, 3, 3), rngs)

    def __call__(self, x: Float[Array, "B t h w I"], memory: Memory) -> Float[Array, "B T H W O"]:
        if self.time is not None:
            if memory.first:
                memory.extend(jnp.zeros_like(x), 2)  # as trained: later frames see zeros in the first one's place
            else:
                x = rearrange(self.time.causal(x, memory), "b t h w (r c) -> b (t r) h w c", r=2)
        return self.space(x.repeat(2, axis=2).repeat(2, axis=3), (1, 1, 1), (1, 1))


def residual_blocks(size: Stage, count: int, rngs: nnx.Rngs) -> nnx.List:
    """So many blocks, of which the first goes to the stage's width."""
    widths = [size.inputs] + count * [size.outputs]
    return nnx.List([ResidualBlock(widths[i], widths[i + 1], rngs) for i in range(count)])


class DownStage(nnx.Module):
    """Residual blocks and, unless both factors are 1, a downsampling; ``shortcut``: beside an average of the input."""

    def __init__(self, size: Stage, num_blocks: int, shortcut: bool, rngs: nnx.Rngs):
        self.size, self.shortcut = size, shortcut
        self.blocks = residual_blocks(size, num_blocks, rngs)
        self.resample = Downsample(size.outputs, size.time, rngs) if size.space == 2 else None

    def __call__(self, x: Float[Array, "B T H W I"], memory: Memory) -> Float[Array, "B t h w O"]:
        y = x
        for block in self.blocks:
            y = block(y, memory)
        if self.resample is not None:
            y = self.resample(y, memory)
        return y + average_down(x, *self.size[1:]) if self.shortcut else y


class UpStage(nnx.Module):
    """Residual blocks and, unless both factors are 1, an upsampling; ``shortcut``: beside copies of the input."""

    def __init__(self, size: Stage, num_blocks: int, shortcut: bool, rngs: nnx.Rngs):
        self.size, self.shortcut = size, shortcut
        self.blocks = residual_blocks(size, num_blocks, rngs)
        narrow = size.outputs if shortcut else size.outputs // 2
        self.resample = Upsample(size.outputs, narrow, size.time, rngs) if size.space == 2 else None

    def __call__(self, x: Float[Array, "B t h w I"], memory: Memory) -> Float[Array, "B T H W O"]:
        y = x
        for block in self.blocks:
            y = block(y, memory)
        if self.resample is None:
            return y
        y = self.resample(y, memory)
        if self.shortcut:
            y = y + duplicate_up(x, *self.size[1:])[:, -y.shape[1] :]  # of the first frame, the last copy
        return y


def average_down(x: Float[Array, "B T H W I"], outputs: int, time: int, space: int) -> Float[Array, "B t h w O"]:
    """Blocks of ``time`` x ``space`` x ``space`` pixels to one; of their values, equal groups are averaged.

    Zeros stand before the first frame where T does not divide.
    """
    x = jnp.pad(x, ((0, 0), (-x.shape[1] % time, 0), (0, 0), (0, 0), (0, 0)))
    x = rearrange(x, "b (t r) (h p) (w q) c -> b t h w (c r p q)", r=time, p=space, q=space)
    return x.reshape(*x.shape[:-1], outputs, -1).mean(-1)


def duplicate_up(x: Float[Array, "B t h w I"], outputs: int, time: int, space: int) -> Float[Array, "B T H W O"]:
    """Each pixel to a block of ``time`` x ``space`` x ``space``, filled with copies of its values in order."""
    x = x.repeat(outputs * time * space * space // x.shape[-1], axis=-1)
    return rearrange(x, "b t h w (c r p q) -> b (t r) (h p) (w q) c", r=time, p=space, q=space)
