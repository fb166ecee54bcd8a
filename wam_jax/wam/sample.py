"""From noise to data: Euler steps along the predicted velocity, on a cached prefix."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wam_jax.wam.model import Noisy, Prefix, WorldActionModel


def sample(
    model: WorldActionModel, prefix: Prefix, key: jax.Array, streams: Sequence[str], steps: int | None = None
) -> dict[str, Float[Array, "B ..."]]:
    """Denoises ``streams`` and whatever must be denoised with them, synchronously.

    Streams that the asked ones neither see nor are seen by are skipped: with isolated streams, asking for actions
    never touches the video.

    Args:
      model: bound to parameters.
      prefix: from ``model.prefix``.
      key: of the initial noise.
      streams: what is wanted, e.g. ``("action",)``.
      steps: Euler steps; the largest of the streams' own ``sampling_steps`` by default.

    Returns:
      action f32[B, K, A] and video latents f32[B, T-1, V, h, w, C], as asked.
    """
    needed = sorted({name for stream in streams for name in model.spec.component(stream)})
    steps = steps or max(model.spec.stream(name).sampling_steps for name in needed)
    batch = prefix.cache.keys_values[0][0].shape[1]
    start = {
        name: jax.random.normal(jax.random.fold_in(key, index), (batch, 1, *stream_shape(model, name)))
        for index, name in enumerate(needed)
    }

    def euler(values, level):
        states = {name: Noisy(x, jnp.full((batch, 1), level)) for name, x in values.items()}
        velocity = model.velocity(prefix, states)
        return {name: values[name] - velocity[name] / steps for name in values}, None

    final, _ = jax.lax.scan(euler, start, 1 - jnp.arange(steps) / steps)
    return {name: final[name][:, 0] for name in streams}


def stream_shape(model: WorldActionModel, stream: str) -> tuple[int, ...]:
    """The shape of one sample of a stream's data, without batch."""
    interface = model.interface
    if stream == "action":
        return interface.action_horizon, interface.action_size
    return len(interface.frame_steps) - 1, interface.cameras, *interface.latent_shape
