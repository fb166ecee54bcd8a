"""Means over what counts."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def masked_mean(
    values: Float[Array, "*S"], mask: Bool[Array, "*S"], axis: int | tuple[int, ...] | None = None
) -> Float[Array, "*R"]:
    """Mean over the entries that ``mask`` (broadcast) keeps, over all axes or some; 0 where it keeps none."""
    mask = jnp.broadcast_to(mask, values.shape)
    return jnp.sum(jnp.where(mask, values, 0.0), axis) / jnp.maximum(jnp.sum(mask, axis), 1)
