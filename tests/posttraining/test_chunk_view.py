"""Chunks seen by where they go: the same for the same path, however it is cut, and blind to what is hidden."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.posttraining.chunk_view import ChunkView

UNIT, CHUNK = 0.025, 4
CODEC = ActionCodec(
    np.array([True, True, False]),
    Affine(np.zeros(3, np.float32), np.array([2.0, 3.0, 1.0], np.float32)),
    block=CHUNK,
)
PROPRIO = Affine(np.array([0.0, 0.5, -0.2, 9.0], np.float32), np.ones(4, np.float32))


def test_what_is_seen_is_where_each_action_leads():
    random = np.random.default_rng(0)
    raw = random.uniform(-1, 1, (5, 2 * CHUNK, 3)).astype(np.float32)
    path = np.array([0.4, -0.1]) + UNIT * np.cumsum(raw[..., :2], 1)  # metres, after each action
    starts = np.zeros((5, 2, 4), np.float32)
    starts[:, 0, 1:3], starts[:, 1, 1:3] = (0.4, -0.1), path[:, CHUNK - 1]
    seen = ChunkView.make(CODEC, PROPRIO, (1, 2), UNIT)(CODEC.encode(raw), starts)
    reached = (path - PROPRIO.offset[1:3]) / (UNIT * CODEC.affine.scale[:2])
    np.testing.assert_allclose(seen[..., :2], reached, atol=1e-4)
    np.testing.assert_array_equal(seen[..., 2], raw[..., 2])


def test_displacements_are_seen_as_they_are_and_what_is_hidden_not_at_all():
    actions = np.random.default_rng(1).normal(size=(2, CHUNK, 3)).astype(np.float32)
    starts = np.ones((2, 1, 4), np.float32)
    np.testing.assert_array_equal(ChunkView.make(CODEC, PROPRIO)(actions, starts), actions)
    np.testing.assert_array_equal(ChunkView.make(CODEC, PROPRIO, hidden=(2,))(actions, starts)[..., 2], 0)


def test_elsewhere_is_as_far_as_said_in_what_is_seen_and_alike_throughout_a_chunk():
    view = ChunkView.make(CODEC, PROPRIO, (1, 2), UNIT, (2,))
    actions = np.zeros((6, 2 * CHUNK, 3), np.float32)
    moved = np.asarray(view.elsewhere(actions, 2, 3, 0.05, jax.random.key(0)))
    assert moved.shape == (3, *actions.shape)
    assert not moved[..., 2].any()
    chunks = moved.reshape(3, 6, 2, CHUNK, 3)
    np.testing.assert_array_equal(chunks, np.broadcast_to(chunks[..., :1, :], chunks.shape))
    far = np.linalg.norm(chunks[..., 0, :2] * view.scale[:2], axis=-1)  # metres
    assert 0.01 <= far.min() < 0.02 < 0.04 < far.max() <= 0.05
    with pytest.raises(ValueError, match=r"moves places; set posttrain\.adapters\.position"):
        ChunkView.make(CODEC, PROPRIO).elsewhere(actions, 2, 3, 0.05, jax.random.key(0))


def test_a_view_is_saved_and_read_back_exactly():
    view = ChunkView.make(CODEC, PROPRIO, (1, 2), UNIT, (2,))
    again = ChunkView.from_dict(json.loads(json.dumps(view.to_dict())))
    for field in dataclasses.fields(view):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(view, field.name))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position": (1,)}, r"position=\(1,\): give 2 columns of proprioception, 0 to 3"),
        ({"position": (1, 4)}, r"position=\(1, 4\): give 2 columns of proprioception, 0 to 3"),
        ({"hidden": (3,)}, r"hidden=\(3,\) dimensions 0 to 2"),
        ({"unit": 0.0}, r"unit=0.0 must be positive"),
    ],
)
def test_a_view_that_does_not_fit_the_data_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ChunkView.make(CODEC, PROPRIO, **changes)
