"""How noise levels are drawn while training.

One convention: ``noise_level`` t in [0, 1], 0 = data, 1 = noise, x_t = (1 - t) x + t ε, velocity target ε - x.
"""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Distribution(Protocol):
    """A distribution of noise levels over [0, 1]."""

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "..."]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
    """Every noise level alike."""

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
        return jax.random.uniform(key, shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormal:
    """sigmoid(N(mean, std²)) (Stable Diffusion 3, arXiv 2403.03206 eq. 19), mixed with a share of uniform draws.

    Positive ``mean`` puts weight on high noise, where an action is decided rather than polished. The uniform share
    keeps both ends of the schedule trained; ``minimum`` avoids the division-like steepness at t = 0.
    """

    mean: float = 0.0
    std: float = 1.0
    uniform_share: float = 0.0
    minimum: float = 0.0

    def sample(self, key: jax.Array, shape: tuple[int, ...]) -> Float[Array, "..."]:
        normal_key, uniform_key, choice_key = jax.random.split(key, 3)
        level = jax.nn.sigmoid(self.mean + self.std * jax.random.normal(normal_key, shape))
        uniform = jax.random.uniform(uniform_key, shape)
        level = jnp.where(jax.random.uniform(choice_key, shape) < self.uniform_share, uniform, level)
        return self.minimum + (1 - self.minimum) * level


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamNoise:
    """How one stream is noised and weighed in training.

    Attributes:
      distribution: of the stream's noise level.
      draws: noise levels drawn for each sample; all of them share one pass over the clean context.
      batch_share: the share of the batch on which this stream is trained at all.
      loss_weight: of its velocity error in the sum.
    """

    distribution: Distribution
    draws: int = 1
    batch_share: float = 1.0
    loss_weight: float = 1.0


def interpolate(data: Float[Array, "*S"], noise: Float[Array, "*S"], level: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """x_t = (1 - t) x + t ε."""
    return (1 - level) * data + level * noise
