"""The loss functions that are trained: definition in, ``loss(params, frozen, batch, key)`` out."""

from typing import Any

import jax
from jaxtyping import Array, Float

from wam_jax.nn.module import Definition
from wam_jax.objectives.flow_matching import flow_matching_loss
from wam_jax.objectives.reconstruction import reconstruction_loss
from wam_jax.tokenizers.visual import FrozenTokenizer, VisualTokenizer
from wam_jax.training.step import LossFn
from wam_jax.types import Batch
from wam_jax.wam.model import WorldActionModel


def wam_loss(definition: Definition[WorldActionModel]) -> LossFn:
    """Flow matching on latents; ``frozen`` is the tokenizer."""

    def loss(params: Any, tokenizer: FrozenTokenizer, batch: Batch, key: jax.Array):
        return flow_matching_loss(definition.bind(params), batch, batch_latents(tokenizer, batch), key)

    return loss


def tokenizer_loss(definition: Definition[VisualTokenizer]) -> LossFn:
    """Reconstruction of every frame of the batch; nothing is frozen."""

    def loss(params: Any, frozen: None, batch: Batch, key: jax.Array):
        images = batch.images.reshape(-1, *batch.images.shape[-3:])  # type: ignore[union-attr]
        return reconstruction_loss(definition.bind(params), images, key)

    return loss


def batch_latents(tokenizer: FrozenTokenizer, batch: Batch) -> Float[Array, "B T V h w C"]:
    """The batch's frames as normalised latents: as read, or encoded here."""
    if batch.latents is not None:
        return batch.latents
    assert batch.images is not None
    return jax.lax.stop_gradient(tokenizer.encode(batch.images))
