"""A codebook: vectors become the nearest of a few learned ones.

VQ-VAE (van den Oord et al., arXiv 1711.00937), straight-through, with its codebook and commitment losses. Against all
vectors becoming one code, vectors and codes lie on one sphere, as in ViT-VQGAN (Yu et al., arXiv 2110.04627), and codes
are rewarded for telling vectors apart, as in MAGVIT-v2 (Yu et al., arXiv 2310.05737).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from wam_jax.nn.module import normal

# Weights beside an error that is a mean over all tokens of a frame, of which one vector tells the change. They are
# small for that: at VQ-VAE's commitment, 0.25, the vectors of a toy world of four motions became one code.
COMMITMENT = 0.005
SHARING = 0.02
TEMPERATURE = 0.2  # of the drawing of codes by their mean squared distance, which is 0 to 4


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantized:
    """Attributes:

    values: the nearest codes' vectors; their gradient is passed on to what was quantised as it is.
    codes: the nearest codes.
    loss: of each vector, mean over its dimensions: the code's pull to it, and ``COMMITMENT`` times its own to the code.
    """

    values: Float[Array, "*B A"]
    codes: Int[Array, "*B"]
    loss: Float[Array, "*B"]


class VectorQuantizer(nnx.Module):
    """``count`` codes of ``size`` dimensions, of root mean square 1 each."""

    def __init__(self, count: int, size: int, rngs: nnx.Rngs):
        self.codebook = nnx.Param(normal(1)(rngs.params(), (count, size)), axes=(None, None))

    def vectors(self) -> Float[Array, "E A"]:
        """The codes' vectors."""
        return on_sphere(self.codebook[...])

    def information(self, x: Float[Array, "B A"], counted: Bool[Array, "B"]) -> Float[Array, ""]:
        """What a code tells of which vector it is from, in nats: 0 where all have the same, at most log(``count``).

        Over the vectors that count. Codes are taken as drawn by softmax(-distance / ``TEMPERATURE``), so that both they
        and the vectors have a gradient.
        """
        distances = jnp.mean((on_sphere(x)[:, None] - self.vectors()) ** 2, -1)
        log_share = jax.nn.log_softmax(-distances / TEMPERATURE, -1)
        weights = counted[:, None] / jnp.maximum(counted.sum(), 1)
        mean = jnp.sum(weights * jnp.exp(log_share), 0)
        entropy = -jnp.sum(mean * jnp.log(jnp.maximum(mean, 1e-12)))
        return entropy + jnp.sum(weights * jnp.exp(log_share) * log_share)

    def __call__(self, x: Float[Array, "*B A"]) -> Quantized:
        x, vectors = on_sphere(x), self.vectors()
        codes = nearest(jax.lax.stop_gradient(x), jax.lax.stop_gradient(vectors))
        chosen = vectors[codes]
        codebook_loss = jnp.mean((chosen - jax.lax.stop_gradient(x)) ** 2, -1)
        commitment_loss = jnp.mean((x - jax.lax.stop_gradient(chosen)) ** 2, -1)
        return Quantized(straight_through(x, chosen), codes, codebook_loss + COMMITMENT * commitment_loss)


def nearest(x: Float[Array, "*B A"], vectors: Float[Array, "E A"]) -> Int[Array, "*B"]:
    """The index of the vector at the least Euclidean distance; the first of equals."""
    return jnp.argmin(jnp.sum(vectors**2, -1) - 2 * x @ vectors.T, -1)


def straight_through(x: Float[Array, "*S"], quantized: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """``quantized``, with the gradient of ``x``: exactly the identity's."""
    return jax.lax.stop_gradient(quantized) + (x - jax.lax.stop_gradient(x))


def on_sphere(x: Float[Array, "*B A"]) -> Float[Array, "*B A"]:
    """``x`` scaled to a root mean square of 1 over its last axis."""
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-12)


def code_counts(codes: Int[Array, "*B"], counted: Bool[Array, "*B"], count: int) -> Float[Array, "E"]:
    """How often each of ``count`` codes occurs where ``counted``."""
    return jnp.zeros(count).at[codes.reshape(-1)].add(counted.reshape(-1).astype(jnp.float32))


def perplexity(counts: Float[Array, "E"]) -> Float[Array, ""]:
    """exp(entropy): so many codes, used equally often, are as hard to guess. 1 where nothing was counted."""
    share = counts / jnp.maximum(counts.sum(), 1)
    return jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.maximum(share, 1e-12)), 0)))
