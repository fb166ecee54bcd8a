"""Demonstrations are cut where a gripper holds and lets go, whatever noise and bounce say."""

import numpy as np
import pytest

from wam_jax.posttraining.instructions import GrammarSplitter
from wam_jax.posttraining.skills import GripperCut, PauseCut, find_skills

OPEN, HELD = 0.08, 0.02


def trace(*spans: tuple[float, int], ramp: int = 4) -> np.ndarray:
    """Gripper width that goes to each value over ``ramp`` steps and stays."""
    values = [spans[0][0]]
    for width, steps in spans:
        values += list(np.linspace(values[-1], width, ramp + 1)[1:]) + [width] * steps
    return np.array(values)


PICK_AND_PLACE_TWICE = trace((OPEN, 20), (HELD, 20), (OPEN, 20), (HELD, 20), (OPEN, 20))


def test_contacts_and_releases_are_where_skills_meet():
    bounds = GripperCut()(PICK_AND_PLACE_TWICE)
    assert len(bounds) == 6  # to the cube, to the plate, to the other cube, to its plate, and away
    assert bounds[0] == 0
    assert bounds[-1] == len(PICK_AND_PLACE_TWICE)
    closed = OPEN - PICK_AND_PLACE_TWICE
    assert (closed[bounds[1:5:2]] >= 0.05).all()
    assert (closed[bounds[1:5:2] - 1] < 0.05).all()
    assert (closed[bounds[2:5:2]] < 0.025).all()


@pytest.mark.parametrize("seed", range(5))
def test_noise_and_bounce_move_no_cut_by_more_than_they_last(seed):
    rng = np.random.default_rng(seed)
    noisy = PICK_AND_PLACE_TWICE + rng.normal(0, 0.002, len(PICK_AND_PLACE_TWICE))
    clean = GripperCut()(PICK_AND_PLACE_TWICE)
    noisy[clean[1] + 6 : clean[1] + 8] = OPEN  # the fingers bounce off for two steps
    noisy[clean[2] + 10 : clean[2] + 12] = HELD  # and close on nothing for two
    found = GripperCut()(noisy)
    assert len(found) == len(clean)
    assert np.abs(found - clean).max() <= 2


def test_hysteresis_a_width_at_the_threshold_is_one_contact():
    rng = np.random.default_rng(0)
    width = trace((OPEN, 20), (OPEN - 0.051, 60), (OPEN, 20))
    width[28:85] += rng.normal(0, 0.004, 57)
    assert len(GripperCut()(width)) == 4
    assert len(GripperCut(open_again=1.0, lasting=1)(width)) > 6  # what it prevents


@pytest.mark.parametrize("step", [0, 1, 5, 18, 30, 50, 77, 78])
@pytest.mark.parametrize("spike", [0.03, 0.015, -0.03])
def test_an_outlier_moves_no_cut_by_more_than_it_lasts(step, spike):
    width = np.repeat([OPEN, HELD, OPEN], [20, 20, 40])
    cut = GripperCut(closed_by=0.02, tail=16)
    assert cut(width).tolist() == [0, 20, 40, 80]
    for lasts in (1, 2):
        spiky = width.copy()
        spiky[step : step + lasts] += spike
        assert cut(spiky).tolist() == pytest.approx([0, 20, 40, 80], abs=lasts)


def test_an_outlier_of_half_closed_fingers_is_no_contact():
    width = np.repeat([OPEN, OPEN - 0.03, HELD, OPEN], [20, 20, 20, 20])
    clean = GripperCut()(width).tolist()
    assert clean == [0, 40, 60, 80]
    width[25] -= 0.03  # the hysteresis would hold it until the fingers open
    assert GripperCut()(width).tolist() == clean


@pytest.mark.parametrize("lasting", [1, 3, 10])
def test_a_contact_that_lasts_long_enough_is_kept_where_it_is(lasting):
    width = np.repeat([OPEN, HELD, OPEN], [lasting, lasting, 20])
    assert GripperCut(lasting=lasting)(width).tolist() == [0, lasting, 2 * lasting, 2 * lasting + 20]


def test_a_short_tail_belongs_to_the_skill_before():
    width = trace((OPEN, 20), (HELD, 20), (OPEN, 3))
    assert len(GripperCut()(width)) == 3
    assert len(GripperCut(tail=1)(width)) == 4


def test_a_width_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match=r"^gripper width at step 2 is not a number$"):
        GripperCut()(np.array([0.08, 0.08, np.nan, 0.08]))


def test_pauses_are_where_skills_meet_that_grasp_nothing():
    legs = [
        np.linspace(0, 0.3, 20),
        np.full(6, 0.3),
        np.linspace(0.3, 0.0, 20),
        np.full(6, 0.0),
        np.linspace(0, 0.2, 15),
    ]
    position = np.stack([np.concatenate(legs), np.zeros(67), np.zeros(67)], -1)
    bounds = PauseCut()(position)
    assert bounds.tolist()[0::3] == [0, 67]
    assert 20 <= bounds[1] <= 26
    assert 46 <= bounds[2] <= 52
    still = np.zeros((30, 3))
    assert PauseCut()(still).tolist() == [0, 30]  # nothing ever moved, so nothing paused


def test_what_cannot_be_cut_is_discarded_with_a_count():
    short = trace((OPEN, 20), (HELD, 20))
    broken = short.copy()
    broken[5] = np.nan
    two = "pick up the red cube and place it on the yellow plate"
    found = find_skills(
        [short, short, broken, short], [two, "pick up the red cube", two, ""], GripperCut(), GrammarSplitter()
    )
    assert [(s.episode, s.instruction) for s in found.segments] == [
        (0, "pick up the red cube"),
        (0, "place the red cube on the yellow plate"),
    ]
    assert found.segments[0].stop == found.segments[1].start
    assert found.discarded == {
        "1 by its words, 2 by its motion": 1,
        "its signal holds no number somewhere": 1,
        "it has no instruction": 1,
    }
    assert found.rate == 1 / 4
    assert found.lengths == (len(short),) * 4
