"""Slices of a split are stores of their own."""

import numpy as np
import pytest

from data_pipelines.subset import open_split
from data_pipelines.write_rlds import RldsWriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("slices") / "toy" / "1.0.0"
    directory.parent.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with RldsWriter(directory, "toy", {"front": (8, 8)}, action_size=2, proprio_size=1) as writer:
        for episode in range(10):
            steps = 3 + episode
            writer.add_episode(
                {"front": rng.integers(0, 255, (steps, 8, 8, 3), np.uint8)},
                np.full((steps, 2), episode, np.float32),
                np.zeros((steps, 1), np.float32),
                f"instruction {episode}",
            )
    return directory


def test_two_slices_partition_the_episodes(folder):
    whole, first, rest = (open_split(folder, split) for split in ("train", "train[:80%]", "train[80%:]"))
    assert (first.num_episodes, rest.num_episodes) == (8, 2)
    np.testing.assert_array_equal(
        np.concatenate([first.lowdim("action"), rest.lowdim("action")]), whole.lowdim("action")
    )
    assert rest.instruction(0) == whole.instruction(8)
    assert [rest.num_steps(e) for e in range(2)] == [whole.num_steps(e) for e in (8, 9)]
    np.testing.assert_array_equal(rest.episode_starts, [0, 11, 23])
    np.testing.assert_array_equal(rest.read_frames(1, "front", [2]), whole.read_frames(9, "front", [2]))
    assert first.fingerprint != rest.fingerprint


def test_empty_or_unreadable_slice_is_an_error(folder):
    with pytest.raises(ValueError, match=r"split 'train\[20:\]' of toy is empty: it has 10 episodes"):
        open_split(folder, "train[20:]")
    with pytest.raises(ValueError, match=r"split 'train\[a:\]' is not understood; write train"):
        open_split(folder, "train[a:]")
