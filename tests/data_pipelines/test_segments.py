"""Segments of episodes are episodes of a store of their own."""

import pickle

import numpy as np
import pytest

from data_pipelines.rlds import RldsStore
from data_pipelines.segments import Segment, SegmentStore


@pytest.fixture(scope="module")
def segments(store: RldsStore) -> list[Segment]:
    """Of the second episode and of the first: out of order, overlapping, not all of it."""
    return [Segment(1, 2, 5, "later"), Segment(0, 0, 3, "first"), Segment(0, 1, store.num_steps(0), "rest")]


def test_a_segment_is_read_where_it_lies_in_its_episode(store, segments):
    part = SegmentStore(store, segments)
    assert part.num_episodes == 3
    assert [part.num_steps(e) for e in range(3)] == [3, 3, store.num_steps(0) - 1]
    np.testing.assert_array_equal(part.episode_starts, [0, 3, 6, 5 + store.num_steps(0)])
    assert [part.instruction(e) for e in range(3)] == ["later", "first", "rest"]
    action, starts = store.lowdim("action"), store.episode_starts
    expected = [action[starts[1] + 2 : starts[1] + 5], action[:3], action[1 : starts[1]]]
    np.testing.assert_array_equal(part.lowdim("action"), np.concatenate(expected))
    np.testing.assert_array_equal(part.read_frames(0, "front", [0, 2]), store.read_frames(1, "front", [2, 4]))
    assert (part.cameras, part.columns, part.name) == (store.cameras, store.columns, store.name)


def test_caches_tell_segments_apart_and_workers_get_them(store, segments):
    part, other = SegmentStore(store, segments), SegmentStore(store, segments[:2])
    assert len({store.fingerprint, part.fingerprint, other.fingerprint}) == 3
    sent = pickle.loads(pickle.dumps(part))
    assert sent.fingerprint == part.fingerprint
    np.testing.assert_array_equal(sent.lowdim("proprio"), part.lowdim("proprio"))


def test_what_lies_outside_and_nothing_at_all_are_refused(store):
    with pytest.raises(ValueError, match="is outside of its episode of"):
        SegmentStore(store, [Segment(0, 0, store.num_steps(0) + 1, "")])
    with pytest.raises(ValueError, match="is outside of its episode of"):
        SegmentStore(store, [Segment(0, 2, 2, "")])
    with pytest.raises(ValueError, match=r"^toy: there is no segment to read$"):
        SegmentStore(store, [])
