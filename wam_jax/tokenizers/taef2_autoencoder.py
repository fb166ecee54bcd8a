"""The autoencoder TAEF2: 8 x 8 pixels to a latent of 32 channels and back, in 1.3M parameters each way.

Source: ``taesd.py`` of madebyollin/taesd, commit 5cccb12d (MIT), its variant "flux_2"; there is no paper.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wam_jax.nn.convolution import Conv, GroupNorm
from wam_jax.nn.module import Definition, Linear, define
from wam_jax.weights import mapping
from wam_jax.weights.mapping import Source, WeightMap

CHANNELS = 32  # of a latent
STRIDE = 8  # pixels along a side of one latent pixel
_WIDTH = 64  # of everything between pixels and latents
_STAGES, _BLOCKS = 3, 3  # a side, and blocks in each
_LIMIT = 3  # the decoder first takes latents to tanh(latents / 3) * 3


class Pool(nnx.Module):
    """A bottleneck of single pixels whose group norm lets each know of the whole picture."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.up = Linear(width, 4 * width, (None, None), rngs, bias=False)
        self.norm = GroupNorm(4 * width, 4, epsilon=1e-5)
        self.down = Linear(4 * width, width, (None, None), rngs, bias=False)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        return self.down(jax.nn.relu(self.norm(self.up(x))))


class Block(nnx.Module):
    """Three convolutions beside their input, which has gone through the pool where there is one."""

    def __init__(self, width: int, pool: bool, rngs: nnx.Rngs):
        self.pool = Pool(width, rngs) if pool else None
        self.convs = nnx.List([Conv(width, width, rngs) for _ in range(3)])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        if self.pool is not None:
            x = x + self.pool(x)
        first, second, third = self.convs
        return jax.nn.relu(third(jax.nn.relu(second(jax.nn.relu(first(x))))) + x)


class Stage(nnx.Module):
    """The blocks of one size, and the convolution that leads to it (encoder) or from it (decoder)."""

    def __init__(self, width: int, pool: bool, stride: int, rngs: nnx.Rngs):
        self.conv = Conv(width, width, rngs, stride=stride, bias=False)
        self.blocks = nnx.List([Block(width, pool, rngs) for _ in range(_BLOCKS)])


class Encoder(nnx.Module):
    """Stages that each begin by halving; those next to the latents have pools."""

    def __init__(self, channels: int, width: int, rngs: nnx.Rngs):
        self.conv_in, self.first = Conv(3, width, rngs), Block(width, False, rngs)
        pools = [index == _STAGES - 1 for index in range(_STAGES)]
        self.stages = nnx.List([Stage(width, pool, 2, rngs) for pool in pools])
        self.conv_out = Conv(width, channels, rngs)

    def __call__(self, x: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        x = self.first(self.conv_in(x))
        for stage in self.stages:
            x = stage.conv(x)
            for block in stage.blocks:
                x = block(x)
        return self.conv_out(x)


class Decoder(nnx.Module):
    """Stages that each end by doubling; those next to the latents have pools."""

    def __init__(self, channels: int, width: int, rngs: nnx.Rngs):
        self.conv_in = Conv(channels, width, rngs)
        self.stages = nnx.List([Stage(width, index == 0, 1, rngs) for index in range(_STAGES)])
        self.last, self.conv_out = Block(width, False, rngs), Conv(width, 3, rngs)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        x = jax.nn.relu(self.conv_in(jnp.tanh(x / _LIMIT) * _LIMIT))
        for stage in self.stages:
            for block in stage.blocks:
                x = block(x)
            x = stage.conv(x.repeat(2, axis=1).repeat(2, axis=2))
        return self.conv_out(self.last(x))


class TAEF2(nnx.Module):
    """Encoder and decoder. Pictures are float in [-1, 1], sizes divide by ``STRIDE``; latents are unnormalised."""

    def __init__(self, channels: int, width: int, rngs: nnx.Rngs):
        self.encoder, self.decoder = Encoder(channels, width, rngs), Decoder(channels, width, rngs)

    def encode(self, pictures: Float[Array, "B H W 3"]) -> Float[Array, "B h w C"]:
        """Latents of pictures."""
        return self.encoder((pictures + 1) / 2)  # the published ones are in [0, 1]

    def decode(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W 3"]:
        """Pictures, which may exceed [-1, 1] by a little."""
        return self.decoder(latents) * 2 - 1


@functools.cache
def definition(channels: int = CHANNELS, width: int = _WIDTH) -> Definition[TAEF2]:
    """The autoencoder's definition, at its published sizes or at others."""
    return define(lambda rngs: TAEF2(channels, width, rngs))


def weight_map() -> WeightMap:
    """Of ``TAEF2``. Each part has a checkpoint of its own, whose layers count through those that have no arrays."""
    return {
        "encoder": {
            "conv_in": _conv(0),
            "first": _block(1),
            "stages": {
                "0": _stage((3, 4, 5), conv=2),
                "1": _stage((7, 8, 9), conv=6),
                "2": _stage((11, 12, 13), conv=10, pool=True),
            },
            "conv_out": _conv(14),
        },
        "decoder": {
            "conv_in": _conv(1),
            "stages": {
                "0": _stage((3, 4, 5), conv=7, pool=True),
                "1": _stage((8, 9, 10), conv=12),
                "2": _stage((13, 14, 15), conv=17),
            },
            "last": _block(18),
            "conv_out": _conv(19),
        },
    }


def _stage(blocks: tuple[int, ...], conv: int, pool: bool = False) -> WeightMap:
    layers = {str(index): _block(layer, pool) for index, layer in enumerate(blocks)}
    return {"blocks": layers, "conv": _conv(conv, bias=False)}


def _conv(name: int | str, bias: bool = True) -> WeightMap:
    kernel = {"kernel": Source(f"{name}.weight", "o i h w -> h w i o")}
    return {**kernel, "bias": Source(f"{name}.bias")} if bias else kernel


def _block(number: int, pool: bool = False) -> WeightMap:
    convs = {str(i): _conv(f"{number}.conv.{2 * i}") for i in range(3)}
    if not pool:
        return {"convs": convs}
    up, norm, down = (f"{number}.pool.{layer}" for layer in (0, 1, 3))
    pixelwise = "o i 1 1 -> i o"
    pools = {
        "up": {"kernel": Source(f"{up}.weight", pixelwise)},
        "norm": mapping.layer_norm(norm),
        "down": {"kernel": Source(f"{down}.weight", pixelwise)},
    }
    return {"convs": convs, "pool": pools}
