"""Several episodes in one row are each as they would be alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.nn.module import define
from wam_jax.objectives.flow_matching import flow_matching_loss, known_from_batch
from wam_jax.types import Batch, Text
from wam_jax.wam.model import Noisy, WorldActionModel

LENGTHS = (4, 2, 3)  # frames of the episodes that are packed into one row
STEP = 2  # control steps, and actions, between two frames
ROWS = 3


def model_of(tiny, frames: int, name: str = "repwam", **changes) -> WorldActionModel:
    """With windows of so many frames; parameters do not depend on that."""
    steps = tuple(range(0, STEP * frames, STEP))
    interface = dataclasses.replace(tiny.interface, frame_steps=steps, action_horizon=STEP * (frames - 1))
    spec = tiny.spec(name, **changes)
    definition = define(lambda rngs: WorldActionModel(spec, interface, rngs))
    return definition.bind(tiny.params(definition))


@pytest.fixture(scope="module")
def packed(tiny) -> Batch:
    rng, interface, frames = np.random.default_rng(0), tiny.interface, sum(LENGTHS)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=(ROWS, *shape)).astype(np.float32)

    actions = STEP * (frames - 1)
    text_mask = np.ones((ROWS, len(LENGTHS), 4), bool)
    text_mask[:, 1, 2:] = False
    return Batch(
        images=None,
        latents=normal(frames, interface.cameras, *interface.latent_shape),
        image_mask=np.ones((ROWS, frames, interface.cameras), bool),
        actions=normal(actions, interface.action_size),
        action_mask=np.ones((ROWS, actions, interface.action_size), bool),
        proprio=normal(frames, interface.proprio_size),
        proprio_mask=np.ones((ROWS, frames, interface.proprio_size), bool),
        text=Text(features=normal(len(LENGTHS), 4, interface.text_width), mask=text_mask),
        embodiment=np.arange(ROWS, dtype=np.int32) % 2,
        episode=np.broadcast_to(np.repeat(np.arange(len(LENGTHS)), LENGTHS), (ROWS, frames)),
    )


def alone(batch: Batch, number: int) -> Batch:
    """One of the episodes, in a row of its own."""
    first = sum(LENGTHS[:number])
    frames, steps = slice(first, first + LENGTHS[number]), slice(STEP * first, STEP * (first + LENGTHS[number] - 1))
    over_frames = {
        name: getattr(batch, name)[:, frames] for name in ("latents", "image_mask", "proprio", "proprio_mask")
    }
    over_steps = {name: getattr(batch, name)[:, steps] for name in ("actions", "action_mask")}
    text = Text(features=batch.text.features[:, number], mask=batch.text.mask[:, number])
    return dataclasses.replace(batch, **over_frames, **over_steps, text=text, episode=None)


def predict(model: WorldActionModel, batch: Batch, noise: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Velocities of every block at one noise level."""
    noisy = {
        name: Noisy(values=jnp.asarray(x)[:, None], level=jnp.full((ROWS, 1, 1), 0.6)) for name, x in noise.items()
    }

    @jax.jit
    def run():
        known = known_from_batch(model, batch, jnp.asarray(batch.latents))
        context = model.extend(model.begin(known), model.layout.context, known)
        groups = [g for g in model.layout.needed(model.spec.generated) if g not in context.cache.groups]
        return model.predict(context, groups, known, noisy, model.spec.generated)[0]

    return {name: np.asarray(x)[:, 0] for name, x in run().items()}


@pytest.mark.parametrize("name", ["repwam", pytest.param("dreamzero", marks=pytest.mark.slow)])
def test_packed_episodes_are_predicted_as_each_alone(tiny, packed, name):
    rng, model = np.random.default_rng(1), model_of(tiny, sum(LENGTHS), name)
    noise = {s.name: rng.normal(size=(ROWS, *model.layout.future_shape(s))).astype(np.float32)
             for s in model.spec.streams if s.role == "denoised"}  # fmt: skip
    together = predict(model, packed, noise)
    for number, frames in enumerate(LENGTHS):
        first = sum(LENGTHS[:number])
        spans = {"video": slice(first, first + frames - 1), "action": slice(STEP * first, STEP * (first + frames - 1))}
        own = {stream: values[:, spans[stream]] for stream, values in noise.items()}
        for stream, expected in predict(model_of(tiny, frames, name), alone(packed, number), own).items():
            found = together[stream][:, spans[stream]]
            np.testing.assert_allclose(found, expected, atol=2e-4, rtol=1e-3, err_msg=f"{stream} of {number}")


def test_what_leads_from_one_episode_to_the_next_does_not_count(tiny, packed):
    model = model_of(tiny, sum(LENGTHS))

    @jax.jit
    def loss(batch: Batch):
        return flow_matching_loss(model, known_from_batch(model, batch, jnp.asarray(batch.latents)), jax.random.key(0))[
            0
        ]

    between = [STEP * (sum(LENGTHS[:n]) - 1) for n in (1, 2)]  # the first action after each episode's last frame
    changed = packed.actions.copy()
    for step in between:
        changed[:, step : step + STEP] += 5
    assert float(loss(packed)) == float(loss(dataclasses.replace(packed, actions=changed)))
    changed[:, 0] += 5
    assert float(loss(packed)) != float(loss(dataclasses.replace(packed, actions=changed)))


def test_other_systems_refuse_packed_rows(tiny, packed):
    model = model_of(tiny, sum(LENGTHS), "fast_wam")
    with pytest.raises(
        ValueError, match="fast_wam: packed rows need a causal model with one frame a block; set chunk_fr"
    ):
        model.begin(known_from_batch(model, packed, jnp.asarray(packed.latents)))
