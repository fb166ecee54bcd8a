"""Batches for contrastive losses: a share with one instruction, in different episodes."""

import numpy as np

from data_pipelines.mixture import contrasting_order

EPISODE = np.repeat(np.arange(12), 5)
INSTRUCTION = EPISODE % 3


def draw(batches: int, seed: int = 0, share: float = 0.5) -> np.ndarray:
    order = contrasting_order(INSTRUCTION, EPISODE, 8, share, seed)
    return np.array([order[i] for i in range(8 * batches)]).reshape(batches, 8)


def test_a_share_of_every_batch_has_one_instruction_in_as_many_episodes():
    for batch in draw(50):
        most = np.bincount(INSTRUCTION[batch]).argmax()
        assert len(np.unique(EPISODE[batch][INSTRUCTION[batch] == most])) >= 3
        assert max(len(np.unique(EPISODE[batch][INSTRUCTION[batch] == i])) for i in range(3)) >= 4


def test_the_rest_is_drawn_from_all_windows():
    drawn = draw(400)
    counts = np.bincount(drawn.ravel(), minlength=60)
    assert counts.min() > 0.5 * counts.mean()
    assert counts.max() < 1.5 * counts.mean()


def test_position_and_seed_decide_and_too_few_episodes_give_what_there_are():
    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(3, seed=1)).any()
    full = draw(20, share=1.0)  # four episodes have an instruction
    for batch in full:
        assert max(len(np.unique(EPISODE[batch][INSTRUCTION[batch] == i])) for i in range(3)) == 4
