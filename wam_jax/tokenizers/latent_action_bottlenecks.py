"""What lies between inverse and forward dynamics, so that a latent action can hold little: one class a kind."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from wam_jax.nn.vector_quantizer import SHARING, VectorQuantizer, code_counts, perplexity

Metrics = dict[str, Float[Array, ""]]
Sampled = tuple[Float[Array, "B A"], Float[Array, ""]]  # what is predicted from in training, and a loss of its own

ACTIVE_VARIANCE = 0.01  # above it, a dimension's mean varies from pair to pair (Burda et al., arXiv 1509.00519)


class Narrow(nnx.Module):
    """RepWAM's bottleneck: a latent action is too small to hold what the tokens show. Nothing else."""

    def __init__(self, size: int):
        self.inputs = size

    def __call__(self, x: Float[Array, "B A"]) -> Float[Array, "B A"]:
        return x

    def sample(self, x: Float[Array, "B A"], counted: Bool[Array, "B"], key: jax.Array) -> Sampled:
        return x, jnp.zeros(())

    def metrics(self, x: Float[Array, "B A"], counted: Bool[Array, "B"]) -> Metrics:
        return {}


class Codes(nnx.Module):
    """LAPA's bottleneck (arXiv 2410.11758): a latent action is one of a few codes.

    LAPA quantises by noise substitution (NSVQ): in training it adds noise as large as the quantisation error, and
    every so often it puts copies of used codes in place of unused ones. Here it is straight-through, with a loss
    that makes codes share the work: a step remains a pure function of its parameters, without counts beside them, and
    what is trained is what is used. LAPA has four codes of eight a pair; here it is one of ``count``.
    """

    def __init__(self, size: int, count: int, rngs: nnx.Rngs):
        self.inputs, self.count = size, count
        self.quantizer = VectorQuantizer(count, size, rngs)

    def __call__(self, x: Float[Array, "B A"]) -> Float[Array, "B A"]:
        return self.quantizer(x).values

    def sample(self, x: Float[Array, "B A"], counted: Bool[Array, "B"], key: jax.Array) -> Sampled:
        quantized = self.quantizer(x)
        loss = mean_of(quantized.loss, counted) - SHARING * self.quantizer.information(x, counted)
        return quantized.values, loss

    def metrics(self, x: Float[Array, "B A"], counted: Bool[Array, "B"]) -> Metrics:
        counts = code_counts(self.quantizer(x).codes, counted, self.count)
        return {"codebook_perplexity": perplexity(counts), "codes_used": jnp.mean(counts > 0)}


class Gaussian(nnx.Module):
    """AdaWorld's bottleneck (arXiv 2503.18938): a normal distribution, held near the standard one by β times its KL.

    In use the latent action is the mean.
    """

    def __init__(self, size: int, beta: float):
        self.inputs, self.beta = 2 * size, beta

    def __call__(self, x: Float[Array, "B 2A"]) -> Float[Array, "B A"]:
        return jnp.split(x, 2, -1)[0]

    def sample(self, x: Float[Array, "B 2A"], counted: Bool[Array, "B"], key: jax.Array) -> Sampled:
        mean, log_variance = jnp.split(x, 2, -1)
        noise = jax.random.normal(key, mean.shape, mean.dtype)
        return mean + jnp.exp(log_variance / 2) * noise, self.beta * mean_of(kl(mean, log_variance).sum(-1), counted)

    def metrics(self, x: Float[Array, "B 2A"], counted: Bool[Array, "B"]) -> Metrics:
        mean, log_variance = jnp.split(x, 2, -1)
        active = jnp.var(mean, 0, where=counted[:, None]) > ACTIVE_VARIANCE
        return {"kl": mean_of(kl(mean, log_variance).sum(-1), counted), "active_units": active.sum()}


def kl(mean: Float[Array, "*S"], log_variance: Float[Array, "*S"]) -> Float[Array, "*S"]:
    """KL divergence of N(mean, exp(log_variance)) from N(0, 1), in nats, a dimension each."""
    return 0.5 * (mean**2 + jnp.exp(log_variance) - 1 - log_variance)


def mean_of(values: Float[Array, "B"], counted: Bool[Array, "B"]) -> Float[Array, ""]:
    """Mean over the pairs that count; 0 where none does."""
    return jnp.sum(values, where=counted) / jnp.maximum(counted.sum(), 1)
