"""Convolutions of pictures, and transposed ones from a grid of tokens to pixels."""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from wam_jax.nn.module import normal
from wam_jax.sharding import ambient_platform

_KERNEL = 3  # neighbouring patches overlap, so that no seams show between them
_LEAST_WIDTH = 16


class Conv(nnx.Module):
    """A convolution of pictures with one row and column of zeros around them, in the dtype of ``x``.

    Args:
      inputs, outputs: channels.
      size: rows and columns of the kernel.
      stride: in both directions.
      bias: whether there is one.
      product: on CPUs, as one product with what is under the kernel. There, a convolution's gradients inside
        ``lax.cond`` or ``lax.scan`` take twelve times as long as outside (jax issue 12868); a product takes half as
        long again anywhere.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        rngs: nnx.Rngs,
        size: int = 3,
        stride: int = 1,
        bias: bool = True,
        product: bool = False,
    ):
        shape = (size, size, inputs, outputs)
        self.kernel = nnx.Param(normal(inputs * size**2)(rngs.params(), shape), axes=(None,) * 4)
        self.bias = nnx.Param(jnp.zeros(outputs), axes=(None,)) if bias else None
        self.stride, self.product = stride, product

    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B h w O"]:
        kernel = self.kernel[...].astype(x.dtype)
        if self.product and ambient_platform() == "cpu":
            y = _patches(x, len(kernel), self.stride) @ rearrange(kernel, "h w i o -> (w h i) o")
        else:
            y = jax.lax.conv_general_dilated(
                x, kernel, (self.stride,) * 2, [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def _patches(x: Float[Array, "B H W I"], size: int, stride: int) -> Float[Array, "B h w P"]:
    """What is under the kernel at each of its places, side by side as channels, column by column."""
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = (extent - size + 1 for extent in x.shape[1:3])
    x = jnp.concatenate([x[:, first : first + rows : stride] for first in range(size)], axis=-1)
    return jnp.concatenate([x[:, :, first : first + columns : stride] for first in range(size)], axis=-1)


class GroupNorm(nnx.Module):
    """Mean 0 and variance 1 of each group of channels over one picture, then a learned scale and bias; in float32."""

    def __init__(self, width: int, groups: int, epsilon: float = 1e-6):
        self.scale = nnx.Param(jnp.ones(width), axes=(None,))
        self.bias = nnx.Param(jnp.zeros(width), axes=(None,))
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        y = rearrange(x.astype(jnp.float32), "b h w (g c) -> b h w g c", g=self.groups)
        y = y - jnp.mean(y, (1, 2, 4), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, (1, 2, 4), keepdims=True) + self.epsilon)
        return (y.reshape(x.shape) * self.scale[...] + self.bias[...]).astype(x.dtype)


class TransposedConv(nnx.Module):
    """Twice as many rows and columns; the channels' number changes.

    As a sub-pixel convolution (Shi et al., arXiv 1609.05158): a plain convolution gives the four pixels of every place.
    A transposed one of stride 2 and kernel 4 is that with a part of its kernel zero; its gradient is not computed fast
    everywhere.
    """

    def __init__(self, inputs: int, outputs: int, rngs: nnx.Rngs):
        shape = (_KERNEL, _KERNEL, inputs, 4 * outputs)
        self.kernel = nnx.Param(normal(inputs * _KERNEL**2)(rngs.params(), shape), axes=(None,) * 4)
        self.bias = nnx.Param(jnp.zeros(outputs), axes=(None,))

    def __call__(self, x: Float[Array, "B r c I"]) -> Float[Array, "B 2*r 2*c O"]:
        kernel, bias = (p[...].astype(x.dtype) for p in (self.kernel, self.bias))
        out = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return rearrange(out, "b r c (p q o) -> b (r p) (c q) o", p=2, q=2) + bias


class Upsampler(nnx.Module):
    """Doubles rows and columns, with GELU between, until every token is ``factor`` by ``factor`` pixels.

    Raises:
      ValueError: if ``factor`` is not a power of two.
    """

    def __init__(self, width: int, factor: int, colours: int, rngs: nnx.Rngs):
        if factor < 2 or factor & (factor - 1):
            raise ValueError(f"transposed convolutions double up to a power of two of 2 or more, got {factor}")
        doublings = int(math.log2(factor))
        widths = [max(_LEAST_WIDTH, width >> (number + 1)) for number in range(doublings - 1)]
        sizes = zip([width, *widths], [*widths, colours], strict=True)
        self.layers = nnx.List([TransposedConv(inputs, outputs, rngs) for inputs, outputs in sizes])

    def __call__(self, x: Float[Array, "B I h w D"]) -> Float[Array, "B I H W 3"]:
        out = x.reshape(-1, *x.shape[2:])
        for number, layer in enumerate(self.layers):
            out = layer(jax.nn.gelu(out) if number else out)
        return out.reshape(*x.shape[:2], *out.shape[1:])


def what_and_where(x: Float[Array, "B h w C"]) -> Float[Array, "B 3C"]:
    """Of each channel its mean, and the mean place where it is high (spatial softmax, Levine et al. 2016)."""
    rows, columns = (jnp.linspace(-1, 1, size) for size in x.shape[1:3])
    weights = jax.nn.softmax(x, axis=(1, 2))
    row, column = (weights.sum(other) for other in (2, 1))
    places = jnp.einsum("bhc,h->bc", row, rows), jnp.einsum("bwc,w->bc", column, columns)
    return jnp.concatenate([x.mean((1, 2)), *places], -1)
