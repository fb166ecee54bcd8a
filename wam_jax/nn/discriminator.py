"""A patch discriminator: a grid of logits, each of which says how real its part of a picture looks.

PatchGAN (Isola et al. 2017, arXiv 1611.07004) in the sizes of VQGAN (Esser et al. 2021, arXiv 2012.09841;
``NLayerDiscriminator`` of CompVis/taming-transformers, ``taming/modules/discriminator/model.py``), with group norm (Wu
and He 2018, arXiv 1803.08494) where these have batch norm: a batch's statistics would make a logit depend on the other
pictures, on how many there are and on how devices share them, and running ones would be state beside the parameters.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wam_jax.nn.convolution import Conv, GroupNorm
from wam_jax.nn.module import Definition, define

_KERNEL = 4  # rows and columns of every convolution
_WIDEST = 8  # channels of the widest convolution, in units of the first one's
_SLOPE = 0.2  # of the leaky ReLU, below zero


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    """Sizes of a discriminator; the defaults are VQGAN's.

    Attributes:
      width: channels after the first convolution; each further one doubles them, up to eight times as many.
      halvings: convolutions that halve rows and columns. A logit sees 16, 34, 70 pixels a side with 1, 2, 3 of them:
        3 are for pictures of 256 x 256, 2 for 64 x 64.
      groups: of channels, which are normalised together.

    Raises:
      ValueError: if ``halvings`` is none, or the groups do not divide the channels.
    """

    width: int = 64
    halvings: int = 3
    groups: int = 32

    def __post_init__(self):
        if self.halvings < 1:
            raise ValueError(f"discriminator.halvings={self.halvings} is too few; the least is 1")
        if 2 * self.width % self.groups:
            raise ValueError(
                f"discriminator.groups={self.groups} does not divide the {2 * self.width} channels of the second "
                "convolution; change it, or discriminator.width"
            )

    @property
    def smallest(self) -> int:
        """Rows and columns that a picture needs at least for one logit."""
        return 3 * 2**self.halvings

    def channels(self) -> list[int]:
        """Of the pictures, and after every convolution but the last."""
        return [3, *(self.width * min(2**index, _WIDEST) for index in range(self.halvings + 1))]


def _conv(inputs: int, outputs: int, stride: int, rngs: nnx.Rngs) -> Conv:
    return Conv(inputs, outputs, rngs, size=_KERNEL, stride=stride, product=True)  # it is trained in a `lax.cond`


class Discriminator(nnx.Module):
    """Convolutions that halve the picture, one more at its last size, and one to logits; all but two normalised."""

    def __init__(self, config: DiscriminatorConfig, rngs: nnx.Rngs):
        channels = config.channels()
        strides = [2] * config.halvings + [1]
        sizes = zip(channels[:-1], channels[1:], strides, strict=True)
        self.convs = nnx.List([_conv(*each, rngs) for each in sizes])
        self.norms = nnx.List([GroupNorm(width, config.groups) for width in channels[2:]])
        self.logits = _conv(channels[-1], 1, 1, rngs)
        self.config = config

    def __call__(self, pictures: Float[Array, "B H W 3"]) -> Float[Array, "B r c"]:
        """Float32 logits of pictures in [-1, 1], above zero where they look real.

        Of H rows, H // 2^halvings - 2 are left; columns alike.

        Raises:
          ValueError: if the picture is too small for a single logit.
        """
        rows, columns = pictures.shape[1:3]
        if min(rows, columns) < self.config.smallest:
            raise ValueError(
                f"picture of {rows} x {columns} is too small for discriminator.halvings={self.config.halvings}, which "
                f"needs {self.config.smallest} pixels a side; lower it"
            )
        first, *rest = self.convs
        x = jax.nn.leaky_relu(first(pictures), _SLOPE)
        for conv, norm in zip(rest, self.norms, strict=True):
            x = jax.nn.leaky_relu(norm(conv(x)), _SLOPE)
        return self.logits(x)[..., 0].astype(jnp.float32)


def define_discriminator(config: DiscriminatorConfig) -> Definition[Discriminator]:
    """The discriminator's definition."""
    return define(lambda rngs: Discriminator(config, rngs))
