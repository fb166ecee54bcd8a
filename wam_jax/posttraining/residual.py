"""A small policy that corrects a frozen one (World2Act's second stage, arXiv 2603.10422).

It reads what the base wants to do (through the action adapter), proprioception and what is seen, and moves the base's
vectors in the space where video and actions meet; what their decoded actions differ by, within bounds, is added. At its
start it moves them by exactly zero: post-training begins from the base, bit for bit.

The paper's residual sees pictures, through convolutions of its own, and has to learn to see from what little a contrast
of episodes tells. It may look through the base's eyes instead: hidden tokens of the present, which know what is where,
and have read the instruction.
"""

import dataclasses
import itertools
from typing import Literal

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
      sees: "pictures", or "base": the base's hidden tokens of them (`posttraining.eyes.present_tokens`).
      image_widths: of the convolutions (stride 2) between pictures and their token.
      bound: of the motion that is added to each step, in raw actions, alike in every direction. It adds up along a
        chunk, but not from one to the next where the base plans anew from where it is.
      command_bound: the same of dimensions that are not normalised, such as a gripper's ±1; 0 leaves them to the base,
        above 1 they can be turned round.

    Raises:
      ValueError: for something else to see; widths that do not divide into heads, or groups of channels.
    """

    width: int = 32
    heads: int = 4
    layers: int = 2
    proprio_width: int = 128
    sees: Literal["pictures", "base"] = "pictures"
    image_widths: tuple[int, ...] = (16, 32, 32)
    bound: float = 0.5
    command_bound: float = 0.0

    def __post_init__(self):
        if self.sees not in ("pictures", "base"):
            raise ValueError(f"residual.sees={self.sees!r} is unknown (has: pictures, base)")
        if self.width % (2 * self.heads):
            raise ValueError(f"residual.width={self.width} does not divide by twice residual.heads={self.heads}")
        if wrong := [width for width in self.image_widths if width % _GROUPS]:
            raise ValueError(f"residual.image_widths has {wrong[0]}, which does not divide by {_GROUPS}")

    def bounds(self, codec: ActionCodec) -> tuple[tuple[float, ...], ...]:
        """Of each step of a chunk and each dimension of the (normalised) actions, ``[M, A]``."""
        affine, steps = codec.affine, np.arange(1, codec.block_steps + 1)[:, None]
        commands = ~codec.cumulative & (affine.scale == 1) & (affine.offset == 0)
        motion = self.bound * np.where(codec.cumulative, steps, 1) / affine.scale  # displacements are sums of steps
        return tuple(map(tuple, np.where(commands, self.command_bound, motion).tolist()))


class Pictures(nnx.Module):
    """Convolutions of pictures, all cameras as channels; of each channel, what it shows and where."""

    def __init__(self, config: ResidualConfig, cameras: int, rngs: nnx.Rngs):
        sizes = (3 * cameras, *config.image_widths)
        self.convs = nnx.List([Conv(a, b, rngs, stride=2) for a, b in itertools.pairwise(sizes)])
        self.norms = nnx.List([GroupNorm(b, _GROUPS) for b in config.image_widths])
        self.out = Linear(3 * sizes[-1], config.width, (None, None), rngs)

    def __call__(self, images: UInt8[Array, "B V H W 3"]) -> Float[Array, "B D"]:
        x = rearrange(to_float(images), "b v h w c -> b h w (v c)")
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = jax.nn.gelu(norm(conv(x)))
        return self.out(what_and_where(x))


class HiddenTokens(nnx.Module):
    """Tokens of a fixed grid, each in its place."""

    def __init__(self, config: ResidualConfig, count: int, token_width: int, rngs: nnx.Rngs):
        self.norm = LayerNorm(token_width, (None,))
        self.each = Linear(token_width, config.width, (None, None), rngs)
        self.out = Linear(count * config.width, config.width, (None, None), rngs)

    def __call__(self, tokens: Float[Array, "B N C"]) -> Float[Array, "B D"]:
        return self.out(rearrange(jax.nn.gelu(self.each(self.norm(tokens))), "b n d -> b (n d)"))


class ResidualPolicy(nnx.Module):
    """A token for each chunk of the base's actions, one for proprioception and one for what is seen.

    Args:
      config: sizes.
      vector: channels of the action adapter's vectors.
      cameras, proprio_size: of the robot.
      bounds: of each step of a chunk and each dimension of its actions.
      tokens: how many hidden tokens the base has of the present, and their width; None: it has none to show.

    Raises:
      ValueError: it is to see what the base has none of.
    """

    def __init__(
        self,
        config: ResidualConfig,
        vector: int,
        cameras: int,
        proprio_size: int,
        bounds: tuple[tuple[float, ...], ...],
        tokens: tuple[int, int] | None,
        rngs: nnx.Rngs,
    ):
        self.bounds, width = bounds, config.width
        self.action_in = Linear(vector, width, (None, None), rngs)
        self.proprio_in = MLP((proprio_size, config.proprio_width, width), rngs)
        self.proprio_norm = LayerNorm(width, (None,))
        self.sight: Pictures | HiddenTokens
        if config.sees == "pictures":
            self.sight = Pictures(config, cameras, rngs)
        elif tokens is None:
            raise ValueError("the policy shows no hidden tokens; set posttrain.residual.options.sees=pictures")
        else:
            self.sight = HiddenTokens(config, *tokens, rngs)
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
        seen: UInt8[Array, "B V H W 3"] | Float[Array, "B N C"],
    ) -> Float[Array, "B K A"]:
        """What to add to the base's (normalised) actions; no gradient reaches base or adapters.

        ``seen``: pictures, or the base's hidden tokens of them (``ResidualConfig.sees``).
        """
        adapters = jax.tree.map(jax.lax.stop_gradient, adapters)
        vectors = adapters.of_actions(jax.lax.stop_gradient(base))
        wanted = self.action_in(vectors)
        looked = self.sight(jax.lax.stop_gradient(seen))[:, None]
        felt = self.proprio_norm(self.proprio_in(proprio))[:, None]
        first, second, third = self.kind[...]
        tokens = jnp.concatenate([wanted + self._times(wanted) + first, felt + second, looked + third], 1)[:, None]
        for block in self.blocks:
            tokens, _ = block(tokens)
        moved = self.out(jax.nn.gelu(self.hidden(tokens[:, 0, : wanted.shape[1]])))
        # A loop, so that both are the same program: of the same vectors the same actions, to the last bit.
        there, here = jax.lax.map(adapters.decode, jnp.stack([vectors + moved, vectors]))
        bounds = jnp.tile(jnp.asarray(self.bounds), (wanted.shape[1], 1))
        return bounds * jnp.tanh((there - here) / jnp.maximum(bounds, 1e-6))

    def _times(self, tokens: Float[Array, "B T D"]) -> Float[Array, "T D"]:
        """Sinusoids that tell the chunks apart."""
        count, width = tokens.shape[1:]
        angles = jnp.arange(count)[:, None] / 10.0 ** (jnp.arange(width // 2) / (width // 2))
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1)


def define_residual(
    config: ResidualConfig,
    vector: int,
    cameras: int,
    proprio_size: int,
    bounds: tuple[tuple[float, ...], ...],
    tokens: tuple[int, int] | None = None,
) -> Definition[ResidualPolicy]:
    """The definition of the residual policy; no parameter is allocated."""
    return define(lambda rngs: ResidualPolicy(config, vector, cameras, proprio_size, bounds, tokens, rngs))
