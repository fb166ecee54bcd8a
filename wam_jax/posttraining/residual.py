"""A small policy that corrects a frozen one (World2Act's second stage, arXiv 2603.10422).

It reads what the base wants to do (through the action adapter), proprioception and the picture, and moves the base's
vectors in the space where video and actions meet; what their decoded actions differ by, within bounds, is added. At its
start it moves them by exactly zero: post-training begins from the base, bit for bit.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, UInt8

from data_pipelines.transforms import ActionCodec
from wam_jax.nn.causal_vit import CausalViTBlock
from wam_jax.nn.convolution import Conv, GroupNorm, what_and_where
from wam_jax.nn.module import Definition, LayerNorm, Linear, define
from wam_jax.posttraining.adapters import MLP, Adapters
from wam_jax.tokenizers.tokenizer import to_float

_GROUPS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """Sizes of the residual policy; the defaults are the paper's, as far as it gives them.

    Attributes:
      width, heads, layers: of the transformer.
      proprio_width: of the layer between proprioception and its token.
      image_widths: of the convolutions (stride 2) between pictures and their token.
      bound: of the motion that is added, in raw actions: as far as one of so much goes, alike in every direction.
      command_bound: the same of dimensions that are not normalised, such as a gripper's ±1; 0 leaves them to the base,
        above 1 they can be turned round.

    Raises:
      ValueError: widths that do not divide into heads, or groups of channels.
    """

    width: int = 32
    heads: int = 4
    layers: int = 2
    proprio_width: int = 128
    image_widths: tuple[int, ...] = (16, 32, 32)
    bound: float = 0.5
    command_bound: float = 0.0

    def __post_init__(self):
        if self.width % (2 * self.heads):
            raise ValueError(f"residual.width={self.width} does not divide by twice residual.heads={self.heads}")
        if wrong := [width for width in self.image_widths if width % _GROUPS]:
            raise ValueError(f"residual.image_widths has {wrong[0]}, which does not divide by {_GROUPS}")

    def bounds(self, codec: ActionCodec) -> tuple[float, ...]:
        """Of each dimension of the (normalised) actions."""
        affine = codec.affine
        commands = ~codec.cumulative & (affine.scale == 1) & (affine.offset == 0)
        return tuple(np.where(commands, self.command_bound, self.bound / affine.scale).tolist())


class ResidualPolicy(nnx.Module):
    """A token for each chunk of the base's actions, one for proprioception and one for the pictures.

    Args:
      config: sizes.
      vector: channels of the action adapter's vectors.
      cameras, proprio_size: of the robot.
      bounds: of each dimension of its actions.
    """

    def __init__(
        self,
        config: ResidualConfig,
        vector: int,
        cameras: int,
        proprio_size: int,
        bounds: tuple[float, ...],
        rngs: nnx.Rngs,
    ):
        self.bounds, width = bounds, config.width
        self.action_in = Linear(vector, width, (None, None), rngs)
        self.proprio_in = MLP((proprio_size, config.proprio_width, width), rngs)
        self.proprio_norm = LayerNorm(width, (None,))
        sizes = (3 * cameras, *config.image_widths)
        self.convs = nnx.List([Conv(a, b, rngs, stride=2) for a, b in itertools.pairwise(sizes)])
        self.norms = nnx.List([GroupNorm(b, _GROUPS) for b in config.image_widths])
        self.image_out = Linear(3 * sizes[-1], width, (None, None), rngs)
        self.kind = nnx.Param(0.02 * jax.random.normal(rngs.params(), (3, width)), axes=(None, None))
        # One frame and a window of one: full attention among all tokens.
        self.blocks = nnx.List([CausalViTBlock(width, 2 * width, config.heads, 1, rngs) for _ in range(config.layers)])
        self.hidden = Linear(width, width, (None, None), rngs)
        self.out = Linear(width, vector, (None, None), rngs, gain=0.0)

    def __call__(
        self,
        adapters: Adapters,
        base: Float[Array, "B K A"],
        proprio: Float[Array, "B P"],
        images: UInt8[Array, "B V H W 3"],
    ) -> Float[Array, "B K A"]:
        """What to add to the base's (normalised) actions; no gradient reaches base or adapters."""
        adapters = jax.tree.map(jax.lax.stop_gradient, adapters)
        vectors = adapters.of_actions(jax.lax.stop_gradient(base))
        wanted = self.action_in(vectors)
        x = rearrange(to_float(images), "b v h w c -> b h w (v c)")
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.gelu(norm(conv(x)))
        seen = self.image_out(what_and_where(x))[:, None]
        felt = self.proprio_norm(self.proprio_in(proprio))[:, None]
        first, second, third = self.kind[...]
        tokens = jnp.concatenate([wanted + self._times(wanted) + first, felt + second, seen + third], 1)[:, None]
        for block in self.blocks:
            tokens, _ = block(tokens)
        moved = self.out(jax.nn.gelu(self.hidden(tokens[:, 0, : wanted.shape[1]])))
        # A loop, so that both are the same program: of the same vectors the same actions, to the last bit.
        there, here = jax.lax.map(adapters.decode, jnp.stack([vectors + moved, vectors]))
        bounds = jnp.asarray(self.bounds)
        return bounds * jnp.tanh((there - here) / jnp.maximum(bounds, 1e-6))

    def _times(self, tokens: Float[Array, "B T D"]) -> Float[Array, "T D"]:
        """Sinusoids that tell the chunks apart."""
        count, width = tokens.shape[1:]
        angles = jnp.arange(count)[:, None] / 10.0 ** (jnp.arange(width // 2) / (width // 2))
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def define_residual(
    config: ResidualConfig, vector: int, cameras: int, proprio_size: int, bounds: tuple[float, ...]
) -> Definition[ResidualPolicy]:
    """The definition of the residual policy; no parameter is allocated."""
    return define(lambda rngs: ResidualPolicy(config, vector, cameras, proprio_size, bounds, rngs))
