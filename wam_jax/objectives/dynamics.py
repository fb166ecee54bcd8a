"""The loss of a latent action tokenizer: each frame is predicted from the one before it and what happened between.

RepWAM (arXiv 2606.13674): L_fwd = ‖ẑ' - z'‖², and for its transport L_cons, the same on the reversed pair: what is
inferred from (after, before) leads back. LAPA and AdaWorld have L_fwd and their bottleneck's own loss. Here all squared
errors are means over what is there, so that they compare across grids and cameras.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float

from wam_jax.objectives.flow_matching import Metrics
from wam_jax.objectives.masked import masked_mean
from wam_jax.tokenizers.latent_action import LatentActionTokenizer, consecutive_pairs


def dynamics_loss(
    model: LatentActionTokenizer,
    latents: Float[Array, "B T V h w C"],
    mask: Bool[Array, "B T V"],
    key: jax.Array,
) -> tuple[Float[Array, ""], Metrics]:
    """Of all consecutive pairs of a window; a camera counts in a pair where both of its frames are there.

    Args:
      model: bound to parameters.
      latents: normalised, of a frozen visual tokenizer.
      mask: which of them are there; the others are not looked at.
      key: of the "vae" kind's samples.

    Returns:
      the loss, and metrics: ``loss/forward``; ``loss/consistency`` ("transport"); ``repeat_error``, that of predicting
      that nothing changes, and ``error_ratio``, the forward loss over it: below 1, something was learned;
      ``residual_ratio``, the norm of what the forward model adds over the norm of what it moves: near 0, all is
      transport; and the bottleneck's: ``codebook_perplexity`` and ``codes_used``, a share ("vq"); ``kl``, in nats and
      summed over dimensions, and ``active_units``, how many dimensions' means vary ("vae").

    Raises:
      ValueError: if the latents are not those of the model's config, or have one frame only.
    """
    before, after, there = (x.reshape(-1, *x.shape[2:]) for x in consecutive_pairs(model.config, latents, mask))
    latent_action, bottleneck_loss, metrics = model.sample(before, after, there.any(-1), key)
    moved, residual = model.change(before, latent_action)
    error = squared_error(moved + residual, after, there)
    repeat = squared_error(before, after, there)
    norms = [squared_error(x, jnp.zeros_like(x), there) for x in (residual, moved)]
    loss = error + bottleneck_loss
    metrics = {
        "loss/forward": error,
        "repeat_error": repeat,
        "error_ratio": error / jnp.maximum(repeat, 1e-12),
        "residual_ratio": jnp.sqrt(norms[0] / jnp.maximum(norms[1], 1e-12)),
        **metrics,
    }
    if model.config.kind == "transport":
        back = model.predict(after, model.infer(after, before))
        metrics["loss/consistency"] = squared_error(back, before, there)
        loss = loss + metrics["loss/consistency"]
    return loss, metrics


def squared_error(
    predicted: Float[Array, "B N C"], true: Float[Array, "B N C"], there: Bool[Array, "B V"]
) -> Float[Array, ""]:
    """Mean over pairs, tokens and channels of the cameras that are there; 0 where none is."""
    squared = rearrange((predicted - true) ** 2, "b (v n) c -> b v n c", v=there.shape[-1])
    return masked_mean(squared, there[..., None, None])
