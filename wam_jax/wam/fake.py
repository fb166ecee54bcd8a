"""Batches of the right shape for any spec: abstract ones to plan with, random ones to measure and to try things on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from wam_jax.types import Batch, StreamData, Text
from wam_jax.wam.layout import Layout
from wam_jax.wam.spec import KINDS, Interface, Spec


def abstract_batch(spec: Spec, interface: Interface, batch_size: int) -> Batch:
    """What the loader would yield, tokenised ahead, as ``jax.ShapeDtypeStruct``."""

    def array(*shape: int, dtype: Any = jnp.float32) -> Any:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype)

    frames, cameras = len(interface.frame_steps), interface.cameras
    actions, proprio = (interface.action_horizon, interface.action_size), (frames, interface.proprio_size)
    layout, streams = Layout(spec, interface), {}
    for stream in spec.streams:
        if stream.kind not in ("video", "action", "state") and KINDS[stream.kind] not in ("features", "learned"):
            shape = layout.data_shape(stream)
            masked = shape[:2] if KINDS[stream.kind] == "patches" else shape[:1]
            streams[stream.data_of or stream.name] = StreamData(values=array(*shape), mask=array(*masked, dtype=bool))
    return Batch(
        images=None,
        latents=array(frames, cameras, *interface.latent_shape),
        image_mask=array(frames, cameras, dtype=bool),
        actions=array(*actions),
        action_mask=array(*actions, dtype=bool),
        proprio=array(*proprio),
        proprio_mask=array(*proprio, dtype=bool),
        text=Text(
            features=array(interface.text_tokens, interface.text_width), mask=array(interface.text_tokens, dtype=bool)
        ),
        embodiment=array(dtype=jnp.int32),
        streams=streams,
    )


def random_batch(spec: Spec, interface: Interface, batch_size: int, seed: int = 0) -> Batch:
    """The same as numpy arrays: normal values, nothing masked, embodiment 0."""
    rng = np.random.default_rng(seed)

    def fill(array: jax.ShapeDtypeStruct) -> np.ndarray:
        if array.dtype == np.bool_:
            return np.ones(array.shape, bool)
        if array.dtype == np.int32:
            return np.zeros(array.shape, np.int32)
        return rng.normal(size=array.shape).astype(np.float32)

    return jax.tree.map(fill, abstract_batch(spec, interface, batch_size))
