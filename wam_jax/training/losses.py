"""The loss functions that are trained: what decides them in, ``loss(params, frozen, batch, key, step)`` out."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wam_jax.encoders.frozen import FrozenEncoder
from wam_jax.nn.module import Definition
from wam_jax.objectives.dynamics import dynamics_loss
from wam_jax.objectives.flow_matching import flow_matching_loss, known_from_batch
from wam_jax.objectives.hidden_alignment import AlignedModel
from wam_jax.objectives.reconstruction import Judges, ReconstructionConfig, reconstruction_loss
from wam_jax.tokenizers.latent_action import FrozenLatentActions, LatentActionTokenizer
from wam_jax.tokenizers.tokenizer import Tokenizer, split_cameras
from wam_jax.tokenizers.visual import TokenizerConfig
from wam_jax.training.step import LossFn
from wam_jax.types import TEACHER, Batch, StreamData
from wam_jax.wam.model import Known, WorldActionModel


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Tokenizers:
    """What a world action model's data go through first.

    Attributes:
      visual: images to latents.
      latent_actions: latents to latent actions, for a stream of that name; None: there is none.
      teacher: a vision encoder, for features that were not computed ahead; None: none are needed.
    """

    visual: Tokenizer
    latent_actions: FrozenLatentActions | None = None
    teacher: FrozenEncoder | None = None


def wam_loss(definition: Definition[WorldActionModel]) -> LossFn:
    """Flow matching on latents, and alignment of an ``AlignedModel``; ``frozen`` is ``Tokenizers``."""

    def loss(params: Any, frozen: Tokenizers, batch: Batch, key: jax.Array, step: Array):
        model = definition.bind(params)
        batch, latents = encode_batch(frozen, batch)
        known = known_from_batch(model, batch, latents)

        def of(model: WorldActionModel, known: Known, key: jax.Array):
            if not isinstance(model, AlignedModel):
                return flow_matching_loss(model, known, key)
            teacher = batch.streams[TEACHER]
            return flow_matching_loss(model, known, key, model.auxiliary(teacher.values, jnp.asarray(teacher.mask)))

        if not model.spec.chunk_draws:
            return of(model, known, key)
        chunk_key, key = jax.random.split(key)
        choices = [model.with_chunks(frames) for frames in model.spec.chunk_draws]
        # One branch runs; all of them are compiled.
        branches = [functools.partial(of, model) for model in choices]
        return jax.lax.switch(jax.random.randint(chunk_key, (), 0, len(branches)), branches, known, key)

    return loss


def tokenizer_loss(config: TokenizerConfig, weights: ReconstructionConfig) -> LossFn:
    """Of every clip of the batch; ``frozen`` is ``Judges``."""

    def loss(params: Any, frozen: Judges, batch: Batch, key: jax.Array, step: Array):
        assert batch.images is not None
        return reconstruction_loss(config, weights, params, frozen, split_cameras(batch.images), key, step)

    return loss


def latent_action_loss(definition: Definition[LatentActionTokenizer]) -> LossFn:
    """Dynamics between consecutive frames; ``frozen`` is ``Tokenizers``, of which the visual one is used."""

    def loss(params: Any, frozen: Tokenizers, batch: Batch, key: jax.Array, step: Array):
        batch, latents = encode_batch(frozen, batch)
        windows, mask = within_episodes(latents, jnp.asarray(batch.image_mask), batch.episode)
        return dynamics_loss(definition.bind(params), windows, mask, key)

    return loss


def within_episodes(
    latents: Float[Array, "B T V h w C"], mask: Bool[Array, "B T V"], episode: Int[Array, "B T"] | None
) -> tuple[Float[Array, "W t V h w C"], Bool[Array, "W t V"]]:
    """Windows, and which of their frames are there, none of which leads from one episode to another.

    Without ``episode`` they are as given. Packed rows become their pairs of consecutive frames, W = B (T-1) and t = 2;
    of a pair that leads from one episode to the next, nothing is there.
    """
    if episode is None:
        return latents, mask
    pairs = [jnp.stack([x[:, :-1], x[:, 1:]], 2) for x in (latents, mask)]
    latents, mask = (x.reshape(-1, *x.shape[2:]) for x in pairs)
    return latents, mask & jnp.asarray(episode[:, 1:] == episode[:, :-1]).reshape(-1, 1, 1)


def encode_batch(frozen: Tokenizers, batch: Batch) -> tuple[Batch, Float[Array, "B T V h w C"]]:
    """The batch with all its images (further streams', too) as normalised latents: as read, or encoded here.

    With latent actions, they are the stream ``latent_action``; with a teacher, its features are the stream ``teacher``.
    """
    encode = frozen.visual.encode if frozen is not None else None
    streams = {
        name: dataclasses.replace(data, values=jax.lax.stop_gradient(encode(data.values)))
        if data.values.dtype == jnp.uint8
        else data
        for name, data in batch.streams.items()
    }
    latents = batch.latents
    if frozen is not None and frozen.teacher is not None:
        assert batch.images is not None
        closing = jnp.asarray(batch.images)[:, :: frozen.visual.config.tubelet]
        features = frozen.teacher(closing.reshape(-1, *closing.shape[3:]))
        features = features.reshape(*closing.shape[:3], *features.shape[1:])
        streams[TEACHER] = StreamData(values=features, mask=batch.image_mask)
    if latents is None:
        assert batch.images is not None
        latents = jax.lax.stop_gradient(encode(batch.images))
    if frozen is not None and frozen.latent_actions is not None:
        windows, mask = within_episodes(latents, jnp.asarray(batch.image_mask), batch.episode)
        found = frozen.latent_actions.encode(windows, mask)
        there = (mask[:, :-1] & mask[:, 1:]).any(-1)
        found, there = (x.reshape(len(latents), -1, *x.shape[2:]) for x in (found, there))
        streams["latent_action"] = StreamData(values=found, mask=there)
    return dataclasses.replace(batch, streams=streams), latents
