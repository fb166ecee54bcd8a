"""What the vision encoders share: patches, pre-norm transformer layers, rotary positions, resized position tables.

Each encoder (dinov2.py, dinov3.py, siglip2.py, perception.py, vjepa2.py) arranges these parts in its own way.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from flax import nnx
from jaxtyping import Array, Float

from wam_jax.nn.attention import attend
from wam_jax.nn.module import LayerNorm, Linear, layer_slice
from wam_jax.weights.mapping import Source, WeightMap


@dataclasses.dataclass(frozen=True)
class LayersConfig:
    """A stack of pre-norm transformer layers.

    Attributes:
      width: of a token.
      num_layers, num_heads: how many.
      mlp_width: hidden width of the feed-forward.
      epsilon: of the layer norms.
      activation: of the feed-forward; "swiglu" is gated with SiLU.
      layer_scale: whether each branch is scaled by a learned vector.
      biases: those of the query, key and value projections that have a bias.
    """

    width: int
    num_layers: int
    num_heads: int
    mlp_width: int
    epsilon: float = 1e-6
    activation: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu"
    layer_scale: bool = False
    biases: frozenset[str] = frozenset({"query", "key", "value"})

    @property
    def head_dim(self) -> int:
        return self.width // self.num_heads


class MLP(nnx.Module):
    """Linear, activation, linear; "swiglu" multiplies by a second, SiLU-activated projection."""

    def __init__(self, config: LayersConfig, rngs: nnx.Rngs):
        width, hidden = config.width, config.mlp_width
        self.gate = Linear(width, hidden, ("embed", "mlp"), rngs) if config.activation == "swiglu" else None
        self.up = Linear(width, hidden, ("embed", "mlp"), rngs)
        self.down = Linear(hidden, width, ("mlp", "embed"), rngs)
        self.approximate = config.activation == "gelu_tanh"

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        if self.gate is not None:
            return self.down(jax.nn.silu(self.gate(x)) * self.up(x))
        return self.down(jax.nn.gelu(self.up(x), approximate=self.approximate))


@dataclasses.dataclass(frozen=True)
class Rotary:
    """Rotary positions of N tokens, as the encoders' own code applies them: ``x cos + turned(x) sin``.

    Attributes:
      cos, sin: of each channel's angle, float32. A channel of angle 0 stays as it is.
      pairs: which channels turn together: i and i + Dh/2 ("halves"), or 2i and 2i + 1 ("neighbours").
    """

    cos: Float[np.ndarray, "N Dh"]
    sin: Float[np.ndarray, "N Dh"]
    pairs: Literal["halves", "neighbours"]

    @classmethod
    def of(cls, angles: Float[np.ndarray, "N Dh"], pairs: Literal["halves", "neighbours"]) -> "Rotary":
        """From angles in radians."""
        return cls(np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32), pairs)

    def __call__(self, x: Float[Array, "B N H Dh"]) -> Float[Array, "B N H Dh"]:
        y = x.astype(jnp.float32)
        if self.pairs == "halves":
            first, second = jnp.split(y, 2, axis=-1)
            turned = jnp.concatenate([-second, first], axis=-1)
        else:
            turned = jnp.stack([-y[..., 1::2], y[..., 0::2]], axis=-1).reshape(y.shape)
        return (y * self.cos[:, None] + turned * self.sin[:, None]).astype(x.dtype)


def frequencies(count: int, base: float) -> Float[np.ndarray, " count"]:
    """Rotary frequencies from 1 down to nearly 1 / base, in radians a position."""
    return base ** (-np.arange(count) / count)


class Layer(nnx.Module):
    """Attention and feed-forward, each on normalised tokens, scaled where the model has it, with a residual around."""

    def __init__(self, config: LayersConfig, rngs: nnx.Rngs):
        width, axes = config.width, ("embed", "heads")
        self.attention_norm = LayerNorm(width, ("embed",), config.epsilon)
        self.query = Linear(width, width, axes, rngs, bias="query" in config.biases)
        self.key = Linear(width, width, axes, rngs, bias="key" in config.biases)
        self.value = Linear(width, width, axes, rngs, bias="value" in config.biases)
        self.output = Linear(width, width, ("heads", "embed"), rngs)
        self.attention_scale = nnx.Param(jnp.ones(width), axes=("embed",)) if config.layer_scale else None
        self.mlp_norm = LayerNorm(width, ("embed",), config.epsilon)
        self.mlp = MLP(config, rngs)
        self.mlp_scale = nnx.Param(jnp.ones(width), axes=("embed",)) if config.layer_scale else None
        self.num_heads = config.num_heads

    def __call__(self, x: Float[Array, "B N D"], rotary: Rotary | None = None) -> Float[Array, "B N D"]:
        x = x + _scaled(self._attention(self.attention_norm(x), rotary), self.attention_scale)
        return x + _scaled(self.mlp(self.mlp_norm(x)), self.mlp_scale)

    def _attention(self, x: Float[Array, "B N D"], rotary: Rotary | None) -> Float[Array, "B N D"]:
        query, key, value = (
            rearrange(project(x), "b n (h d) -> b n h d", h=self.num_heads)
            for project in (self.query, self.key, self.value)
        )
        if rotary is not None:
            query, key = rotary(query), rotary(key)
        return self.output(rearrange(attend(query, key, value), "b n h d -> b n (h d)"))


def _scaled(x: Float[Array, "B N D"], scale: nnx.Param | None) -> Float[Array, "B N D"]:
    return x if scale is None else x * scale[...].astype(x.dtype)


def run_layers(layers: Layer, x: Float[Array, "B N D"], rotary: Rotary | None = None) -> Float[Array, "B N D"]:
    """Tokens through a stack of layers, one after another."""
    graph, params = layer_slice(layers)

    def step(x, layer_params):
        return nnx.merge(graph, layer_params)(x, rotary), None

    return jax.lax.scan(step, x, params)[0]


def patches(images: Float[Array, "B H W C"], size: int) -> Float[Array, "B h w P"]:
    """Pictures cut into squares, each as one vector. What is beyond the last whole patch is left out, as a strided
    convolution does.

    Raises:
      ValueError: a picture is smaller than one patch.
    """
    height, width = images.shape[1] // size * size, images.shape[2] // size * size
    if not height or not width:
        raise ValueError(f"pictures of {images.shape[1]}×{images.shape[2]} pixels hold no patch of {size}×{size}")
    return rearrange(images[:, :height, :width], "b (h p) (w q) c -> b h w (p q c)", p=size, q=size)


def patch_projection(name: str, size: int, bias: bool = True) -> WeightMap:
    """A ``torch.nn.Conv2d`` whose stride is its kernel, as our ``Linear`` on ``patches``."""
    kernel = {"kernel": Source(f"{name}.weight", "o c p q -> (p q c) o", {"p": size, "q": size})}
    return {**kernel, "bias": Source(f"{name}.bias")} if bias else kernel


def prepend(tokens: Float[Array, "K D"], x: Float[Array, "B N D"]) -> Float[Array, "B K+N D"]:
    """The same tokens before those of every sample."""
    return jnp.concatenate([repeat(tokens.astype(x.dtype), "k d -> b k d", b=len(x)), x], axis=1)


def patch_grid(tokens: Float[Array, "B N D"], rows: int, columns: int) -> Float[Array, "B h w D"]:
    """The last tokens, which are the patches, as a grid."""
    return rearrange(tokens[:, -rows * columns :], "b (h w) d -> b h w d", h=rows)


def resize_positions(
    table: Float[Array, "n D"], rows: int, columns: int, method: Literal["bilinear", "bicubic", "bicubic_antialias"]
) -> Float[Array, "h w D"]:
    """The learned positions of a square grid on another grid, in float32.

    Methods are those of ``torch.nn.functional.interpolate`` with ``align_corners=False``. Its bicubic kernel has
    parameter -0.75 without antialiasing and -0.5 with it; jax.image has the latter.
    """
    side = round(len(table) ** 0.5)
    grid = rearrange(table.astype(jnp.float32), "(h w) d -> h w d", h=side)
    if (rows, columns) == (side, side):
        return grid
    if method == "bicubic_antialias":
        return jax.image.resize(grid, (rows, columns, grid.shape[-1]), "cubic", antialias=True)
    kernel = _triangle if method == "bilinear" else _cubic
    by_row, by_column = _interpolation(kernel, side, rows), _interpolation(kernel, side, columns)
    return jnp.einsum("Hh,Ww,hwd->HWd", by_row, by_column, grid, precision="highest")


def _interpolation(kernel, source: int, target: int) -> Float[np.ndarray, "target source"]:
    """Weights of each source position in each target position; the edge repeats itself outwards."""
    taps = np.arange(-2, source + 2)
    centres = (np.arange(target) + 0.5) * source / target - 0.5
    weights = np.zeros((target, source), np.float32)
    np.add.at(weights.T, np.clip(taps, 0, source - 1), kernel(np.abs(centres - taps[:, None])))
    return weights


def _triangle(distance: np.ndarray) -> np.ndarray:
    return np.maximum(1 - distance, 0)


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    """Keys' cubic convolution kernel."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * a - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0))
