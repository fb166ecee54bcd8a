"""Flow matching over all denoised streams of a world action model.

Lipman et al. (arXiv 2210.02747), in the project's convention: x_t = (1 - t) x + t ε, target ε - x.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wam_jax.types import Batch, Text
from wam_jax.wam.model import Noisy, Prefix, WorldActionModel
from wam_jax.wam.noise import interpolate

Metrics = dict[str, Float[Array, ""]]


def flow_matching_loss(
    model: WorldActionModel, batch: Batch, latents: Float[Array, "B T V h w C"], key: jax.Array
) -> tuple[Float[Array, ""], Metrics]:
    """Weighted sum over the streams of the masked mean squared velocity error.

    Args:
      model: bound to parameters.
      batch: normalised actions and proprioception, masks, text.
      latents: the batch's frames, encoded and normalised; frame 0 is now.
      key: all of the step's randomness.

    Returns:
      the loss, and each stream's own error as ``loss/<stream>``.
    """
    context_key, *part_keys = jax.random.split(key, 1 + len(model.spec.components))
    now = latents[:, 0].astype(jnp.float32)
    now = now + model.spec.context_noise * jax.random.normal(context_key, now.shape)
    prefix = model.prefix(now, batch.proprio * batch.proprio_mask, batch.text)
    targets = {
        "video": (latents[:, 1:].astype(jnp.float32), batch.image_mask[:, 1:, :, None, None, None]),
        "action": (batch.actions * batch.action_mask, batch.action_mask),
    }
    total, metrics = jnp.zeros(()), {}
    for part, part_key in zip(model.spec.components, part_keys, strict=True):
        errors = component_errors(model, prefix, {stream: targets[stream] for stream in part}, part_key)
        for stream, error in errors.items():
            total = total + model.spec.noise(stream).loss_weight * error
            metrics[f"loss/{stream}"] = error
    return total, metrics


def component_errors(
    model: WorldActionModel, prefix: Prefix, targets: dict[str, tuple[Array, Array]], key: jax.Array
) -> dict[str, Float[Array, ""]]:
    """Velocity error of streams that are denoised together: (data, mask) of each -> mean squared error of each."""
    share = model.spec.noise(next(iter(targets))).batch_share
    first = next(iter(targets.values()))[0]
    count = math.ceil(share * first.shape[0])
    prefix = _take_batch(prefix, count)
    noisy, velocity_targets = {}, {}
    for index, (stream, (data, _)) in enumerate(targets.items()):
        level_key, noise_key = jax.random.split(jax.random.fold_in(key, index))
        noise_spec = model.spec.noise(stream)
        shape = (count, noise_spec.draws, *data.shape[1:])
        level = noise_spec.distribution.sample(level_key, shape[:2])
        noise = jax.random.normal(noise_key, shape)
        clean = data[:count, None]
        values = interpolate(clean, noise, level.reshape(*level.shape, *[1] * (data.ndim - 1)))
        noisy[stream] = Noisy(values, level)
        velocity_targets[stream] = noise - clean
    predicted = model.velocity(prefix, noisy)
    return {
        stream: masked_mean((predicted[stream] - velocity_targets[stream]) ** 2, mask[:count, None])
        for stream, (_, mask) in targets.items()
    }


def masked_mean(values: Float[Array, "*S"], mask: Bool[Array, "*S"]) -> Float[Array, ""]:
    """Mean over the entries that ``mask`` (broadcast) keeps; 0 where it keeps none."""
    mask = jnp.broadcast_to(mask, values.shape)
    return jnp.sum(jnp.where(mask, values, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def _take_batch(prefix: Prefix, count: int) -> Prefix:
    """The prefix of the first ``count`` samples."""
    cache = jax.tree.map(lambda x: x[:, :count], prefix.cache)  # layers come first
    text = {name: Text(features=t.features[:count], mask=t.mask[:count]) for name, t in prefix.text.items()}
    return Prefix(cache, text, {name: condition[:count] for name, condition in prefix.conditions.items()})
