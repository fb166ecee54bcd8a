"""The attention plan covers exactly what the rules allow; rules mean what they are called."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wam_jax.wam.visibility import (
    BIDIRECTIONAL,
    CHUNK_CAUSAL,
    CROSS,
    FIRST_FRAME_CAUSAL,
    FRAME_CAUSAL,
    ISOLATED,
    Group,
    Rule,
    attention_plan,
    components,
    first_frame_only,
    leads,
    reachable,
    sees,
    sees_imagined,
    visibility_matrix,
    visible_pairs,
    window,
)

TIME = (BIDIRECTIONAL, FIRST_FRAME_CAUSAL, FRAME_CAUSAL, CHUNK_CAUSAL)

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
rules = st.builds(lambda time, cross: time & cross, st.sampled_from(TIME), st.sampled_from(list(CROSS.values())))


@given(groups, rules)
def test_plan_covers_exactly_the_visible_pairs_and_each_query_once(groups, rule):
    visible = visibility_matrix(groups, groups, rule)
    plan = attention_plan(visible, may_be_blind=True)
    covered = np.zeros_like(visible)
    for segment in plan:
        covered[np.ix_(segment.queries, segment.keys)] = True
    np.testing.assert_array_equal(covered, visible)
    assert [query for segment in plan for query in segment.queries] == list(range(len(groups)))
    sizes = [group.size for group in groups]
    computed = sum(sum(sizes[q] for q in s.queries) * sum(sizes[k] for k in s.keys) for s in plan)
    assert computed == visible_pairs(groups, visible)


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3).filter(any), min_size=1, max_size=8))
def test_neighbours_with_equal_visible_sets_share_a_segment(rows):
    plan = attention_plan(np.array(rows))
    assert len(plan) == 1 + sum(a != b for a, b in itertools.pairwise(rows))
    assert all(a.keys != b.keys for a, b in itertools.pairwise(plan))


@given(groups, rules)
def test_of_several_draws_only_ones_own_is_seen_and_a_single_one_is_for_all(groups, rule):
    visible = visibility_matrix(groups, groups, rule)
    several = {key.stream for key in groups if key.draw}
    for (i, query), (j, key) in ((a, b) for a in enumerate(groups) for b in enumerate(groups)):
        anothers = not key.clean and query.draw != key.draw and key.stream in several
        assert visible[i, j] == (not anothers and rule(query, key))


@given(groups, st.sampled_from((FIRST_FRAME_CAUSAL, FRAME_CAUSAL, CHUNK_CAUSAL)))
def test_what_is_given_sees_nothing_noisy_and_nothing_later(groups, rule):
    visible = visibility_matrix(groups, groups, rule)
    for query, row in zip(groups, visible, strict=True):
        if query.clean:
            assert all(key.clean and key.block <= query.block for key, seen in zip(groups, row, strict=True) if seen)


def group(stream: str, block: int, clean: bool) -> Group:
    return Group(stream=stream, block=block, clean=clean, size=1)


@pytest.mark.parametrize(
    ("rule", "query", "seen"),
    [
        (BIDIRECTIONAL, ("video", 0, True), "v0 V1 V2 a1"),
        (FIRST_FRAME_CAUSAL, ("video", 0, True), "v0"),
        (FIRST_FRAME_CAUSAL, ("video", 1, False), "v0 V1 V2 a1"),
        (FIRST_FRAME_CAUSAL & ISOLATED, ("video", 1, False), "v0 V1 V2"),
        (FRAME_CAUSAL, ("video", 1, False), "v0 V1 a1"),
        (CHUNK_CAUSAL, ("video", 2, False), "v0 v1 V2"),
        (CHUNK_CAUSAL, ("video", 1, True), "v0 v1"),
        (CHUNK_CAUSAL & window(1), ("video", 2, False), "V2"),
        (FIRST_FRAME_CAUSAL & (ISOLATED | sees("action", "video")), ("action", 1, False), "v0 V1 V2 a1"),
        (FIRST_FRAME_CAUSAL & (ISOLATED | sees("video", "action")), ("action", 1, False), "v0 a1"),
        (FIRST_FRAME_CAUSAL & ISOLATED | sees_imagined("action", "video"), ("action", 1, False), "v0 v1 a1"),
        (CHUNK_CAUSAL & first_frame_only("action"), ("action", 2, False), "v0 V2"),
        (~sees("video", "action") & FIRST_FRAME_CAUSAL, ("video", 1, False), "v0 V1 V2"),
    ],
    ids=lambda x: str(x),
)
def test_rules_mean_what_they_are_called(rule, query, seen):
    names = {"v": ("video", True), "V": ("video", False), "a": ("action", False)}
    every = ["v0", "v1", "V1", "V2", "a1"]
    keys = [group(names[n[0]][0], int(n[1]), names[n[0]][1]) for n in every]
    row = visibility_matrix([group(*query)], keys, rule)[0]
    assert " ".join(n for n, s in zip(every, row, strict=True) if s) == seen


def test_leader_of_a_block_does_not_see_its_follower():
    rule = CHUNK_CAUSAL & leads("video", "action")
    assert not rule(group("video", 1, True), group("action", 1, True))
    assert rule(group("video", 2, True), group("action", 1, True))
    assert rule(group("action", 1, True), group("video", 1, True))


def test_rules_print_and_compare_by_name():
    rule = CHUNK_CAUSAL & (ISOLATED | sees("action", "video")) & ~sees("video", "action")
    assert str(rule) == "chunk-causal & (isolated | action sees video) & ~video sees action"
    assert rule == CHUNK_CAUSAL & (ISOLATED | sees("action", "video")) & ~sees("video", "action")
    assert rule != CHUNK_CAUSAL
    assert Rule("own", lambda q, k: True) == Rule("own", lambda q, k: False)


def test_group_that_sees_nothing_is_refused():
    with pytest.raises(ValueError, match="token group 0 sees no group, not even itself; check the visibility rules"):
        attention_plan(np.zeros((1, 1), bool))


@given(
    st.integers(1, 7).flatmap(
        lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=n, max_size=n)
    )
)
def test_reachable_is_the_transitive_closure(rows):
    visible = np.array(rows)
    reach = reachable(visible)
    for start in range(len(visible)):
        found, frontier = {start}, {start}
        while frontier:
            frontier = {int(j) for i in frontier for j in np.flatnonzero(visible[i])} - found
            found |= frontier
        assert set(np.flatnonzero(reach[start])) == found


def test_components_join_through_a_third():
    chain = np.array([[0, 0, 1], [0, 0, 0], [0, 1, 0]], bool)
    assert components(chain, ("video", "state", "action")) == (("video", "state", "action"),)
    assert components(np.zeros((2, 2), bool), ("video", "action")) == (("video",), ("action",))
