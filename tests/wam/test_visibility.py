"""The attention plan covers exactly what the rules allow, and components are what the rules join."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wam_jax.wam.visibility import (
    COUPLINGS,
    Group,
    attention_plan,
    components,
    sees_clean_past,
    sees_own_stream,
    visibility_matrix,
)

groups = st.lists(
    st.builds(
        Group,
        stream=st.sampled_from(("video", "state", "action")),
        block=st.integers(0, 3),
        clean=st.booleans(),
        size=st.integers(1, 4),
        draw=st.integers(0, 2),
    ),
    min_size=1,
    max_size=8,
)
couplings = st.sampled_from(sorted(COUPLINGS))


@given(groups, couplings)
def test_plan_covers_exactly_the_visible_pairs_and_each_query_once(groups, coupling):
    visible = visibility_matrix(groups, groups, COUPLINGS[coupling])
    plan = attention_plan(visible)
    covered = np.zeros_like(visible)
    for segment in plan:
        covered[np.ix_(segment.queries, segment.keys)] = True
    np.testing.assert_array_equal(covered, visible)
    assert [query for segment in plan for query in segment.queries] == list(range(len(groups)))


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3).filter(any), min_size=1, max_size=8))
def test_neighbours_with_equal_visible_sets_share_a_segment(rows):
    plan = attention_plan(np.array(rows))
    assert len(plan) == 1 + sum(a != b for a, b in itertools.pairwise(rows))
    assert all(a.keys != b.keys for a, b in itertools.pairwise(plan))


@given(groups, couplings)
def test_clean_groups_see_only_clean_groups_of_their_time_and_before(groups, coupling):
    visible = visibility_matrix(groups, groups, COUPLINGS[coupling])
    for query, row in zip(groups, visible, strict=True):
        if query.clean:
            assert row.tolist() == [key.clean and key.block <= query.block for key in groups]


@given(groups, couplings)
def test_noisy_groups_of_different_draws_never_see_each_other(groups, coupling):
    visible = visibility_matrix(groups, groups, COUPLINGS[coupling])
    for (i, query), (j, key) in ((a, b) for a in enumerate(groups) for b in enumerate(groups)):
        if not query.clean and not key.clean and query.draw != key.draw:
            assert not visible[i, j]


def test_group_that_sees_nothing_is_refused():
    action = Group(stream="action", block=1, clean=False, size=2)
    visible = visibility_matrix([action], [action], [sees_clean_past])
    with pytest.raises(ValueError, match="token group 0 sees no group, not even itself; check the visibility rules"):
        attention_plan(visible)


@pytest.mark.parametrize(
    ("coupling", "expected"),
    [
        ("isolated", (("video",), ("action",))),
        ("action_sees_video", (("video", "action"),)),
        ("video_sees_action", (("video", "action"),)),
        ("mutual", (("video", "action"),)),
    ],
)
def test_components_join_streams_that_see_each_other_in_either_direction(coupling, expected):
    assert components(("video", "action"), COUPLINGS[coupling]) == expected


def test_components_join_through_a_third_stream():
    def chain(query: Group, key: Group) -> bool:
        return (query.stream, key.stream) in {("action", "state"), ("state", "video")}

    assert components(("video", "state", "action"), (sees_own_stream, chain)) == (("video", "state", "action"),)
    assert components(("video", "action"), (sees_own_stream, chain)) == (("video",), ("action",))


def test_noise_level_is_shared_by_clean_groups_and_owned_by_each_stream_and_draw():
    def level(stream: str, clean: bool, draw: int) -> str:
        return Group(stream=stream, block=0, clean=clean, size=1, draw=draw).level

    assert level("video", True, 0) == level("state", True, 1) == "clean"
    noisy = {level(stream, False, draw) for stream in ("video", "action") for draw in (0, 1)}
    assert len(noisy) == 4
