"""How noise levels are drawn, coupled between streams, and weighed while training.

One convention: ``noise_level`` t in [0, 1], 0 = data, 1 = noise, x_t = (1 - t) x + t ε, velocity target ε - x.
"""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Shape = tuple[int, ...]


def interpolate(data: Float[Array, "*S"], noise: Float[Array, "*S"], level: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """x_t = (1 - t) x + t ε."""
    return (1 - level) * data + level * noise


def shift(level: Float[Array, "*S"], factor: float) -> Float[Array, "*S"]:
    """t' = s t / (1 + (s - 1) t): s > 1 moves levels towards noise (Stable Diffusion 3, arXiv 2403.03206 eq. 23)."""
    return factor * level / (1 + (factor - 1) * level)


# -- one stream's distribution ----------------------------------------------------------------------------------------


class Distribution(Protocol):
    """A distribution of noise levels over [0, 1]."""

    def sample(self, key: jax.Array, shape: Shape) -> Float[Array, "..."]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Uniform:
    """Every noise level alike."""

    def sample(self, key: jax.Array, shape: Shape) -> Float[Array, "..."]:
        return jax.random.uniform(key, shape)


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Always the same noise level."""

    level: float

    def sample(self, key: jax.Array, shape: Shape) -> Float[Array, "..."]:
        return jnp.full(shape, self.level)


@dataclasses.dataclass(frozen=True)
class Beta:
    """Beta(a, b), stretched over [minimum, 1]. Beta(1.5, 1) has density ∝ √t: more noise more often."""

    a: float
    b: float
    minimum: float = 0.0

    def sample(self, key: jax.Array, shape: Shape) -> Float[Array, "..."]:
        return self.minimum + (1 - self.minimum) * jax.random.beta(key, self.a, self.b, shape)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogitNormal:
    """sigmoid(N(mean, std²)) (Stable Diffusion 3, arXiv 2403.03206 eq. 19), mixed with a share of uniform draws.

    Positive ``mean`` puts weight on high noise, where an action is decided rather than polished. The uniform share
    keeps both ends of the schedule trained; ``minimum`` keeps levels away from 0, where velocity is
    hardest to tell from data.
    """

    mean: float = 0.0
    std: float = 1.0
    uniform_share: float = 0.0
    minimum: float = 0.0

    def sample(self, key: jax.Array, shape: Shape) -> Float[Array, "..."]:
        normal_key, uniform_key, choice_key = jax.random.split(key, 3)
        level = jax.nn.sigmoid(self.mean + self.std * jax.random.normal(normal_key, shape))
        uniform = jax.random.uniform(uniform_key, shape)
        level = jnp.where(jax.random.uniform(choice_key, shape) < self.uniform_share, uniform, level)
        return self.minimum + (1 - self.minimum) * level


@dataclasses.dataclass(frozen=True, kw_only=True)
class EdmMixture:
    """σ from a log-normal, with a share from U(low, high); as a noise level t = σ / (1 + σ).

    Cosmos Policy's 70% lognormal(1.386, 1.2) + 30% U(1, 85), translated from variance-exploding noise x + σ ε: divided
    by (1 + σ) that is our x_t.
    """

    mean: float = 1.386
    std: float = 1.2
    uniform_share: float = 0.3
    low: float = 1.0
    high: float = 85.0

    def sample(self, key: jax.Array, shape: Shape) -> Float[Array, "..."]:
        normal_key, uniform_key, choice_key = jax.random.split(key, 3)
        sigma = jnp.exp(self.mean + self.std * jax.random.normal(normal_key, shape))
        uniform = jax.random.uniform(uniform_key, shape, minval=self.low, maxval=self.high)
        sigma = jnp.where(jax.random.uniform(choice_key, shape) < self.uniform_share, uniform, sigma)
        return sigma / (1 + sigma)


@dataclasses.dataclass(frozen=True)
class Shifted:
    """Another distribution, moved towards noise (``factor`` > 1)."""

    distribution: Distribution
    factor: float

    def sample(self, key: jax.Array, shape: Shape) -> Float[Array, "..."]:
        return shift(self.distribution.sample(key, shape), self.factor)


@dataclasses.dataclass(frozen=True)
class Bell:
    """Loss weight exp(-rate (t - ½)²): the middle of the schedule counts most (Fast-WAM, rate 2)."""

    rate: float = 2.0

    def __call__(self, level: Float[Array, "*S"]) -> Float[Array, "*S"]:
        return jnp.exp(-self.rate * (level - 0.5) ** 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamNoise:
    """How one stream is noised in training.

    Attributes:
      distribution: of the stream's noise level.
      weighting: of the squared velocity error by noise level; None weighs all alike.
      draws: noise levels drawn for each sample; all of them share one pass over the clean context, and over streams of
        one draw that they see and that do not see them.
      batch_share: the share of the batch on which this stream is trained at all.
      per_block: every block of the future at a level of its own, not all at one.
    """

    distribution: Distribution = Uniform()
    weighting: Bell | None = None
    draws: int = 1
    batch_share: float = 1.0
    per_block: bool = False


# -- several streams' levels together ---------------------------------------------------------------------------------


class Joint(Protocol):
    """Noise levels of all streams that are denoised together."""

    def sample(self, key: jax.Array, noises: Mapping[str, StreamNoise], shapes: Mapping[str, Shape]) -> dict: ...


@dataclasses.dataclass(frozen=True)
class Independent:
    """Each stream draws its own level."""

    def sample(self, key: jax.Array, noises: Mapping[str, StreamNoise], shapes: Mapping[str, Shape]) -> dict:
        keys = jax.random.split(key, len(noises))
        return {
            name: noise.distribution.sample(k, shapes[name])
            for k, (name, noise) in zip(keys, noises.items(), strict=True)
        }


INDEPENDENT = Independent()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Coupled:
    """All streams share the underlying draw: equal distributions give equal levels, shifts act on the same one.

    The stream ``given`` is clean instead for ``given_share`` of the samples.
    """

    given: str | None = None
    given_share: float = 0.0

    def sample(self, key: jax.Array, noises: Mapping[str, StreamNoise], shapes: Mapping[str, Shape]) -> dict:
        draw_key, given_key = jax.random.split(key)
        levels = {name: noise.distribution.sample(draw_key, shapes[name]) for name, noise in noises.items()}
        if self.given in levels:
            level = levels[self.given]
            clean = jax.random.uniform(given_key, (*level.shape[:2], 1)) < self.given_share
            levels[self.given] = jnp.where(clean, 0.0, level)
        return levels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asynchronous:
    """One stream runs ahead of the others (X-WAM): the leader clean with ``clean_share`` and the others at their own
    level, else the others at t = t_leader + Beta(a, b) (1 - t_leader); then all are shifted by ``factor``.
    """

    leader: str
    clean_share: float = 0.5
    a: float = 1.5
    b: float = 1.0
    factor: float = 1.0

    def sample(self, key: jax.Array, noises: Mapping[str, StreamNoise], shapes: Mapping[str, Shape]) -> dict:
        own_key, clean_key, lag_key = jax.random.split(key, 3)
        own = Independent().sample(own_key, noises, shapes)
        if self.leader not in own:
            return own
        leader = own[self.leader]
        clean = jax.random.uniform(clean_key, (*leader.shape[:2], 1)) < self.clean_share
        lag = jax.random.beta(lag_key, self.a, self.b, leader.shape)
        behind = leader + lag * (1 - leader)
        levels = {name: jnp.where(clean, level, behind) for name, level in own.items()}
        levels[self.leader] = jnp.where(clean, 0.0, leader)
        return {name: shift(level, self.factor) for name, level in levels.items()}
