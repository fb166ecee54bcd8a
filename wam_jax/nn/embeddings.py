"""Embeddings of noise levels, grids and text."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from wam_jax.nn.module import LayerNorm, Linear

SINUSOID_CHANNELS = 256


def sinusoid(noise_level: Float[Array, "*B"]) -> Float[Array, "*B 256"]:
    """Sinusoidal features of a noise level in [0, 1], on the [0, 1000] scale that Wan and DiT use."""
    half = SINUSOID_CHANNELS // 2
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = 1000.0 * noise_level[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


class Conditioning(nnx.Module):
    """What sets adaLN modulation: a noise level, and optionally vectors beside it, as the six vectors of an expert.

    adaLN after DiT (Peebles and Xie, arXiv 2212.09748). All blocks of an expert share this projection, as in Wan; each
    adds a learned offset of its own.
    """

    def __init__(self, width: int, conditions: Mapping[str, int], rngs: nnx.Rngs):
        """``conditions``: the size of each further vector, by name."""
        self.first = Linear(SINUSOID_CHANNELS, width, (None, "embed"), rngs)
        self.second = Linear(width, width, ("embed", None), rngs)
        self.conditions = nnx.Dict(
            {name: Linear(size, width, (None, "embed"), rngs) for name, size in conditions.items()}
        )
        self.project = Linear(width, 6 * width, ("embed", "mlp"), rngs, gain=0.1)

    def __call__(
        self, noise_level: Float[Array, "B S"], conditions: Mapping[str, Float[Array, "B S|1 C"]]
    ) -> tuple[Float[Array, "B S 6 D"], Float[Array, "B S D"]]:
        """The six vectors of the blocks, and the embedding that modulates the head."""
        embedded = self.second(jax.nn.silu(self.first(sinusoid(noise_level))))
        for name, project in self.conditions.items():
            embedded = embedded + project(conditions[name])
        modulation = self.project(jax.nn.silu(embedded))
        return modulation.reshape(*embedded.shape[:-1], 6, embedded.shape[-1]), embedded


class TextProjection(nnx.Module):
    """Frozen text features to an expert's width (Wan's ``text_embedding``)."""

    def __init__(self, text_width: int, width: int, rngs: nnx.Rngs):
        self.first = Linear(text_width, width, (None, "embed"), rngs)
        self.second = Linear(width, width, ("embed", None), rngs)

    def __call__(self, features: Float[Array, "B L C"]) -> Float[Array, "B L D"]:
        return self.second(jax.nn.gelu(self.first(features), approximate=True))


class ImageProjection(nnx.Module):
    """A frozen encoder's image tokens to an expert's width (Wan 2.1's ``MLPProj``)."""

    def __init__(self, image_width: int, width: int, rngs: nnx.Rngs):
        self.norm_in = LayerNorm(image_width, (None,), epsilon=1e-5)
        self.first = Linear(image_width, image_width, (None, "mlp"), rngs)
        self.second = Linear(image_width, width, ("mlp", "embed"), rngs)
        self.norm_out = LayerNorm(width, ("embed",), epsilon=1e-5)

    def __call__(self, tokens: Float[Array, "B I C"]) -> Float[Array, "B I D"]:
        hidden = jax.nn.gelu(self.first(self.norm_in(tokens)), approximate=False)
        return self.norm_out(self.second(hidden))


def grid_positions(key: jax.Array, cameras: int, rows: int, columns: int, width: int) -> Float[Array, "V h w D"]:
    """Initial values for learned positions: random mixtures of smooth functions of (row, column), an offset a camera.

    Starting smooth matters at small scale: neighbouring tokens begin with similar positions.
    """
    y, x = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, columns), indexing="ij")
    waves = [wave(np.pi * speed * axis) for axis in (x, y) for speed in (0.5, 1.0) for wave in (np.sin, np.cos)]
    features = jnp.asarray(np.stack([x, y, *waves], -1), jnp.float32)
    mix_key, camera_key = jax.random.split(key)
    grid = features @ jax.random.normal(mix_key, (features.shape[-1], width)) * 0.3
    return grid + jax.random.normal(camera_key, (cameras, 1, 1, width)) * 0.3
