"""Rotary positions over (time, row, column), continuous in time.

Su et al., RoFormer (arXiv 2104.09864); the split of a head over the three axes is Wan's (``rope_params`` in its
reference ``model.py``): rows and columns get 2·⌊Dh/6⌋ channels each, time the rest.
"""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

AnyArray = Array | np.ndarray


def rotary_table(
    positions: Float[AnyArray, "N 3"], head_dim: int, base: float = 10_000.0
) -> tuple[Float[AnyArray, "N Dh/2"], Float[AnyArray, "N Dh/2"]]:
    """Cosines and sines for tokens at (time, row, column); time may be fractional, and known only when it runs.

    Raises:
      ValueError: if ``head_dim`` is odd.
    """
    if head_dim % 2:
        raise ValueError(f"rotary positions need an even head_dim, got {head_dim}")
    xp = np if isinstance(positions, np.ndarray) else jnp
    spatial = 2 * (head_dim // 6)
    channels = (head_dim - 2 * spatial, spatial, spatial)
    angles = xp.concatenate(
        [positions[:, axis, None] * _frequencies(channels[axis], base) for axis in range(3)], axis=-1
    )
    return xp.cos(angles).astype(np.float32), xp.sin(angles).astype(np.float32)


@functools.lru_cache
def _frequencies(channels: int, base: float) -> np.ndarray:
    return (base ** (-np.arange(0, channels, 2, dtype=np.float64) / channels)).astype(np.float32)


def rotate(
    x: Float[Array, "B N H Dh"], table: tuple[Float[AnyArray, "N Dh/2"], Float[AnyArray, "N Dh/2"]]
) -> Float[Array, "B N H Dh"]:
    """Turns channel pairs (i, i + Dh/2) by their token's angle, in float32.

    The reference pairs neighbouring channels (2i, 2i + 1); halves are the same up to a fixed permutation of the query
    and key channels, and spare the interleaving.
    """
    cos, sin = (part[None, :, None, :] for part in table)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)
