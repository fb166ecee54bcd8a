"""The tokenizer's loss: pixels come back, latents keep a scale."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from wam_jax.objectives.flow_matching import Metrics
from wam_jax.tokenizers.visual import VisualTokenizer, to_float


def reconstruction_loss(
    tokenizer: VisualTokenizer, images: UInt8[Array, "B H W 3"], key: jax.Array, latent_noise: float = 0.05
) -> tuple[Float[Array, ""], Metrics]:
    """Mean |error| + 2 error² of the decoded image, plus a pull of the latents' root mean square towards 1.

    ``latent_noise`` is added before decoding, so that near latents mean near images: what is generated later is
    never exactly on the encoder's manifold.
    """
    target = to_float(images)
    latents = tokenizer.encode(target)
    scale = jnp.sqrt(jnp.mean(latents**2) + 1e-6)
    error = tokenizer.decode(latents + latent_noise * jax.random.normal(key, latents.shape)) - target
    squared = jnp.mean(error**2)
    loss = jnp.mean(jnp.abs(error)) + 2 * squared + 1e-3 * jnp.log(scale) ** 2
    return loss, {"psnr": 10 * jnp.log10(4 / squared), "latent_scale": scale}
