"""Transposed convolutions from a grid of tokens to pixels."""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float

from wam_jax.nn.module import normal

_KERNEL = 3  # neighbouring patches overlap, so that no seams show between them
_LEAST_WIDTH = 16


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
