"""The loss functions that are trained: definition in, ``loss(params, frozen, batch, key)`` out."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from wam_jax.nn.module import Definition
from wam_jax.objectives.flow_matching import flow_matching_loss, known_from_batch
from wam_jax.objectives.reconstruction import reconstruction_loss
from wam_jax.tokenizers.visual import Tokenizer, VisualTokenizer
from wam_jax.training.step import LossFn
from wam_jax.types import Batch
from wam_jax.wam.model import WorldActionModel


def wam_loss(definition: Definition[WorldActionModel]) -> LossFn:
    """Flow matching on latents; ``frozen`` is the tokenizer."""

    def loss(params: Any, tokenizer: Tokenizer, batch: Batch, key: jax.Array):
        model = definition.bind(params)
        return flow_matching_loss(model, known_from_batch(model, *encode_batch(tokenizer, batch)), key)

    return loss


def tokenizer_loss(definition: Definition[VisualTokenizer]) -> LossFn:
    """Reconstruction of every frame of the batch; nothing is frozen."""

    def loss(params: Any, frozen: None, batch: Batch, key: jax.Array):
        images = batch.images.reshape(-1, *batch.images.shape[-3:])  # type: ignore[union-attr]
        return reconstruction_loss(definition.bind(params), images, key)

    return loss


def encode_batch(tokenizer: Tokenizer, batch: Batch) -> tuple[Batch, Float[Array, "B T V h w C"]]:
    """The batch with all its pictures (further streams', too) as normalised latents: as read, or encoded here."""
    streams = {
        name: dataclasses.replace(data, values=jax.lax.stop_gradient(tokenizer.encode(data.values)))
        if data.values.dtype == jnp.uint8
        else data
        for name, data in batch.streams.items()
    }
    latents = batch.latents
    if latents is None:
        assert batch.images is not None
        latents = jax.lax.stop_gradient(tokenizer.encode(batch.images))
    return dataclasses.replace(batch, streams=streams), latents
