"""Imagined videos as windows: frames beside the actions that lead on, nothing of what nobody imagined."""

import numpy as np

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.posttraining.pseudo_actions import PseudoDemonstrations
from wam_jax.types import Text

EPISODES, FRAMES, CHUNK, HORIZON = 3, 2, 2, 3
CODEC = ActionCodec(np.array([True, False]), Affine.identity(2))


def test_windows_hold_two_frames_and_the_actions_after_the_first():
    latents = np.arange(EPISODES * (FRAMES + 1), dtype=np.float32).reshape(EPISODES, FRAMES + 1, 1, 1, 1, 1)
    actions = np.arange(EPISODES * FRAMES * CHUNK * 2, dtype=np.float32).reshape(EPISODES, FRAMES * CHUNK, 2)
    text = Text(features=np.arange(3.0).reshape(3, 1, 1), mask=np.ones((3, 1), bool))
    episodes = PseudoDemonstrations(
        latents=latents, actions=actions, text=text, embodiment=1, proprio=np.full((3, 5), 2.0)
    )
    assert len(episodes) == EPISODES * FRAMES
    batch = episodes.batch([0, 3], CODEC, HORIZON)
    assert batch.latents[:, :, 0, 0, 0, 0].tolist() == [[0, 1], [4, 5]]  # episode 0 from 0 on, episode 1 from 1 on
    assert batch.text.features[:, 0, 0].tolist() == [0, 1]
    # Deltas are summed; past the end the arm stands, the gripper keeps its last value, and neither counts.
    assert batch.actions[0].tolist() == [[0, 1], [2, 3], [6, 5]]
    assert batch.actions[1].tolist() == [[12, 13], [26, 15], [26, 15]]
    assert batch.action_mask[:, :, 0].tolist() == [[True, True, True], [True, True, False]]
    # Proprioception is known at the start alone.
    assert batch.proprio_mask[:, :, 0].tolist() == [[True, False], [False, False]]
    assert batch.proprio[:, :, 0].tolist() == [[2, 0], [0, 0]]
    assert batch.embodiment.tolist() == [1, 1]
