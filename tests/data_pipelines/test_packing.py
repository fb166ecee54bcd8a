"""Packed rows hold each step of an episode once an order, and say which actions and instructions belong to which."""

import itertools

import numpy as np
import pytest
from toy_rlds import text_table

from data_pipelines.loader import make_loader
from data_pipelines.packing import pack
from data_pipelines.rlds import RldsStore
from data_pipelines.transforms import ActionCodec, Affine
from data_pipelines.windows import WindowSpec

SPACING, FRAMES = 2, 5


def loader(stores, spec=None, **changes):
    spec = spec or WindowSpec(
        cameras=("front", "wrist"),
        frame_offsets=tuple(range(0, SPACING * FRAMES, SPACING)),
        action_horizon=SPACING * (FRAMES - 1),
    )
    codec = ActionCodec(np.zeros(4, bool), Affine.identity(4))
    return make_loader(stores, spec, codec, Affine.identity(3), text_table(stores), 4, 0, packed=True, **changes)


def test_no_row_is_longer_than_asked_and_little_is_empty(store: RldsStore):
    rows = pack([store], [0], SPACING, FRAMES, seed=0)
    lengths = [sum(piece.frames for piece in row) for row in rows]
    assert max(lengths) <= FRAMES
    assert np.mean(lengths) > 0.7 * FRAMES
    assert max(len(row) for row in rows) > 1


def test_every_transition_is_in_one_row_of_an_order(store: RldsStore):
    """What is between two frames is in exactly one of the pieces that a long episode is cut into."""
    long = int(np.argmax([store.num_steps(episode) for episode in range(store.num_episodes)]))
    rows = pack([store], [0], SPACING, FRAMES, seed=0)
    pieces = sorted(piece for row in rows for piece in row if piece.episode == long)
    by_phase: dict[int, list] = {}
    for piece in pieces:
        by_phase.setdefault(piece.step % SPACING, []).append(piece)
    for phase, found in by_phase.items():
        starts = [range(p.step, p.step + SPACING * (p.frames - 1), SPACING) for p in found]
        moves = sorted(itertools.chain(*starts))
        expected = list(range(phase, store.num_steps(long) - SPACING, SPACING))
        orders = len(moves) // len(expected)
        assert moves == sorted(expected * orders)


def test_a_batch_holds_what_the_episodes_hold(store: RldsStore):
    source = loader([store])
    samples = [source.assembler.sample(number) for number in range(6)]
    batch = source.assembler(samples)
    for i, row in enumerate(source.assembler.rows[:6]):
        at = 0
        for number, piece in enumerate(row):
            frames = slice(at, at + piece.frames)
            assert (batch.episode[i, frames] == number).all()
            steps = piece.step + SPACING * np.arange(piece.frames)
            np.testing.assert_array_equal(batch.images[i, frames, 0], store.read_frames(piece.episode, "front", steps))
            rows = piece.row + SPACING * np.arange(piece.frames)
            np.testing.assert_allclose(batch.proprio[i, frames], store.lowdim("proprio")[rows], rtol=1e-6)
            moves = slice(SPACING * at, SPACING * (at + piece.frames - 1))
            first, last = piece.row, piece.row + SPACING * (piece.frames - 1)
            np.testing.assert_allclose(batch.actions[i, moves], store.lowdim("action")[first:last], rtol=1e-6)
            assert batch.action_mask[i, moves].all()
            at += piece.frames
            between = slice(moves.stop, SPACING * at)
            assert not batch.action_mask[i, between].any()
        assert not batch.image_mask[i, at:].any()
        assert (batch.episode[i, at:] == batch.text.mask.shape[1] - 1).all()


def test_a_row_holds_episodes_of_the_robot_it_is_told_to_be(store: RldsStore):
    source = loader([store] * 3, embodiments=(1, 0, 1))
    rows = source.assembler.rows
    robots = [{(1, 0, 1)[piece.store] for piece in row} for row in rows]
    assert set(map(len, robots)) == {1}
    assert any({piece.store for piece in row} == {0, 2} for row in rows)  # stores of one robot share rows
    batch = source.assembler([source.assembler.sample(number) for number in range(len(rows))])
    assert [{robot} for robot in batch.embodiment] == robots


def test_actions_that_may_not_be_looked_at_are_in_no_row(store: RldsStore):
    """And a row has them throughout or not at all: a model is told which."""
    source = loader([store, store], embodiments=(0, 0), labelled=(True, False))
    rows = source.assembler.rows
    assert {frozenset(piece.store for piece in row) for row in rows} == {frozenset({0}), frozenset({1})}
    batch = source.assembler([source.assembler.sample(number) for number in range(len(rows))])
    labelled = [sum(SPACING * (p.frames - 1) for p in row if p.store == 0) for row in rows]
    np.testing.assert_array_equal(batch.action_mask.all(-1).sum(1), labelled)
    assert batch.actions[batch.action_mask].any()
    assert not batch.actions[~batch.action_mask].any()


def test_stores_that_are_weighed_have_rows_of_their_own(store: RldsStore):
    source = loader([store] * 2, embodiments=(0, 0), weights=(1.0, 3.0))
    assert {len({piece.store for piece in row}) for row in source.assembler.rows} == {1}


def test_batches_are_the_same_again_and_go_on_after_a_restore(store: RldsStore):
    first = iter(loader([store]))
    taken = [next(first) for _ in range(2)]
    state = first.get_state()
    third = next(first)
    again = iter(loader([store]))
    np.testing.assert_array_equal(next(again).actions, taken[0].actions)
    again.set_state(state)
    np.testing.assert_array_equal(next(again).actions, third.actions)


def test_what_cannot_be_packed_is_said(store: RldsStore):
    uneven = WindowSpec(cameras=("front", "wrist"), frame_offsets=(0, 2, 3), action_horizon=3)
    with pytest.raises(ValueError, match=r"packed rows need evenly spaced frames \(have \(0, 2, 3\)\)"):
        loader([store], uneven)
    deep = WindowSpec(cameras=("front",), depth_cameras=("front",), frame_offsets=(0, 2), action_horizon=2)
    with pytest.raises(ValueError, match=r"packed rows have neither depth nor values; set data\.packed=False"):
        loader([store], deep)
    merged = WindowSpec(cameras=("front", "wrist"), frame_offsets=(0, 2, 4), action_horizon=4, tubelet=2)
    with pytest.raises(ValueError, match=r"that merges images need data\.precompute_latents=True"):
        loader([store], merged)
