"""A small policy that corrects a frozen one (World2Act's second stage, arXiv 2603.10422).

It reads what the base wants to do (through the action adapter), proprioception and the picture, and moves the base's
vectors in the space where video and actions meet; what their decoded actions differ by, within bounds, is added. At its
start it moves them by exactly zero: post-training begins from the base, bit for bit.

The paper's residual is not told the instruction, and knows of it what the base's actions betray. With ``words``, the
instruction scales and shifts the channels of the picture (FiLM, arXiv 1709.07871), so that what is named stands out.
"""

import dataclasses
import itertools
from collections.abc import Sequence

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
from wam_jax.objectives.masked import masked_mean
from wam_jax.posttraining.adapters import MLP, Adapters
from wam_jax.tokenizers.tokenizer import to_float
from wam_jax.types import Text

_GROUPS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResidualConfig:
    """Sizes of the residual policy; the defaults are the paper's, as far as it gives them.

    Attributes:
      width, heads, layers: of the transformer.
      proprio_width: of the layer between proprioception and its token.
      image_widths: of the convolutions (stride 2) between pictures and their token.
      words: whether it reads the instruction.
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
    words: bool = False
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
      text_width: of the instruction's features; of no use without ``config.words``.
    """

    def __init__(
        self,
        config: ResidualConfig,
        vector: int,
        cameras: int,
        proprio_size: int,
        bounds: tuple[float, ...],
        text_width: int,
        rngs: nnx.Rngs,
    ):
        self.bounds, width = bounds, config.width
        self.action_in = Linear(vector, width, (None, None), rngs)
        self.proprio_in = MLP((proprio_size, config.proprio_width, width), rngs)
        self.proprio_norm = LayerNorm(width, (None,))
        sizes = (3 * cameras, *config.image_widths)
        self.convs = nnx.List([Conv(a, b, rngs, stride=2) for a, b in itertools.pairwise(sizes)])
        self.norms = nnx.List([GroupNorm(b, _GROUPS) for b in config.image_widths])
        self.words = config.words
        if self.words:
            self.words_norm = LayerNorm(text_width, (None,))
            self.words_out = Linear(text_width, 2 * sum(config.image_widths), (None, None), rngs)
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
        text: Text,
    ) -> Float[Array, "B K A"]:
        """What to add to the base's (normalised) actions; no gradient reaches base or adapters."""
        adapters = jax.tree.map(jax.lax.stop_gradient, adapters)
        vectors = adapters.of_actions(jax.lax.stop_gradient(base))
        wanted = self.action_in(vectors)
        seen = self.image_out(self._look(images, text))[:, None]
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

    def _look(self, images: UInt8[Array, "B V H W 3"], text: Text) -> Float[Array, "B C"]:
        """What the pictures show, and where."""
        x = rearrange(to_float(images), "b v h w c -> b h w (v c)")
        for conv, norm, film in zip(self.convs, self.norms, self._films(text), strict=True):
            x = norm(conv(x))
            if film is not None:
                scale, shift = jnp.split(film[:, None, None], 2, -1)
                x = x * (1 + scale) + shift
            x = jax.nn.gelu(x)
        return what_and_where(x)

    def _films(self, text: Text) -> Sequence[Float[Array, "B C"] | None]:
        """Of each convolution, what the words make of its channels: a scale less one, and a shift."""
        if not self.words:
            return [None] * len(self.convs)
        said = masked_mean(text.features, text.mask[..., None], 1)
        films, widths = self.words_out(self.words_norm(said)), [2 * conv.kernel.shape[-1] for conv in self.convs]
        return jnp.split(films, np.cumsum(widths)[:-1], -1)

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
    bounds: tuple[float, ...],
    text_width: int = 0,
) -> Definition[ResidualPolicy]:
    """The definition of the residual policy; no parameter is allocated."""
    return define(lambda rngs: ResidualPolicy(config, vector, cameras, proprio_size, bounds, text_width, rngs))
