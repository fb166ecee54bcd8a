"""Batches for contrastive losses: a share with one instruction, in different episodes."""

import numpy as np

from data_pipelines.mixture import contrasting_order

EPISODE = np.repeat(np.arange(12), 5)
INSTRUCTION = EPISODE % 3


def draw(batches: int, seed: int = 0, share: float = 0.5) -> np.ndarray:
    order = contrasting_order(INSTRUCTION, EPISODE, 8, share, seed)
    return np.array([order[i] for i in range(8 * batches)]).reshape(batches, 8)


def test_a_batch_has_windows_of_different_episodes_and_a_share_one_instruction():
    for batch in draw(50):
        assert len(np.unique(EPISODE[batch])) == 8
        assert np.bincount(INSTRUCTION[batch]).max() >= 4


def test_all_windows_are_drawn_alike():
    counts = np.bincount(draw(400).ravel(), minlength=60)
    assert counts.min() > 0.5 * counts.mean()
    assert counts.max() < 1.5 * counts.mean()


def test_position_and_seed_decide_and_too_few_episodes_give_what_there_are():
    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(3, seed=1)).any()
    full = draw(20, share=1.0)  # four episodes have an instruction
    for batch in full:
        assert max(len(np.unique(EPISODE[batch][INSTRUCTION[batch] == i])) for i in range(3)) == 4
