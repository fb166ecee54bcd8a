"""Conditions change what their axis says, by their strength, and results are of the same episodes."""

import dataclasses

import numpy as np
import pytest

from wam_jax.evaluation import robustness
from wam_jax.evaluation.report import Report
from wam_jax.evaluation.robustness import AXES, NOMINAL, Robustness, add_robustness, changed, counted, rows
from wam_jax.evaluation.success import EvaluationConfig
from wam_jax.sim.scene import OBJECT_COLORS
from wam_jax.sim.tasks import instruction_text
from wam_jax.sim.variation import Variation, neutral

STRENGTHS = EvaluationConfig().robustness_strengths

FIELDS = {
    "camera": {"camera_shift", "camera_tilt"},
    "robot": {"arm_joint_shift"},
    "light": {"light_shift", "brightness"},
    "background": {"table_color", "wall_color", "checker"},
    "noise": {"pixel_noise"},
    "layout": {"layout_shift", "distractors"},
    "color": {"object_colors"},
    "shape": {"object_shapes"},
}


def conditions(task, shapes, axes=(), strengths=STRENGTHS):
    return robustness.conditions(task, shapes, axes, strengths)


@pytest.mark.parametrize("axis", FIELDS)
def test_an_axis_changes_its_fields_more_the_stronger_it_is(axis):
    plan, neutral = conditions("pick_lift", ()), Variation()
    strengths = sorted(strength for name, strength in plan if name == axis)
    assert strengths == [1.0] if axis == "shape" else strengths == list(STRENGTHS)
    sizes = []
    for strength in strengths:
        found = plan[axis, strength](200, strength, np.random.default_rng(0))
        assert set(found) == FIELDS[axis]
        for name, values in found.items():
            assert values.shape == (200, *np.shape(getattr(neutral, name)))
        sizes.append(np.mean([np.abs(x - np.asarray(getattr(neutral, n))).mean() for n, x in found.items()]))
    assert sizes == sorted(set(sizes))


def test_wordings_are_numbered_and_the_nominal_changes_nothing():
    plan = conditions("place", ())
    worded = [plan[c](2, 1.0, np.random.default_rng(0)) for c in plan if c[0] == "wording"]
    assert [found["wording"].tolist() for found in worded] == [[1, 1], [2, 2], [3, 3]]
    assert plan[NOMINAL, 0.0](5, 0.0, np.random.default_rng(0)) == {}


def test_shapes_are_unseen_ones_and_combinations_seen_ones_of_other_colours():
    def shapes(axis, seen):
        plan = conditions("pick_lift", seen)
        found = plan[axis, 1.0](400, 1.0, np.random.default_rng(0))["object_shapes"]
        return [set(column) for column in found.T]

    assert shapes("shape", ()) == [{1, 2}] * 3  # cubes were seen
    assert ("combination", 1.0) not in conditions("pick_lift", ())
    seen = ((0,), (0, 1), (1,))  # red cubes, green ones of both kinds, blue cylinders
    assert shapes("combination", seen) == [{1}, {0, 1}, {0}]
    assert shapes("shape", seen) == [{2}] * 3
    assert ("shape", 1.0) not in conditions("pick_lift", ((0, 1, 2), (0,), (0,)))


def test_strengths_of_an_axis_are_grades_of_the_same_draws_whatever_else_is_asked():
    def drawn(axes, strengths, seed=0):
        plan = conditions("pick_lift", (), axes, strengths)
        return {name: changed(neutral(8), change, name, 8, seed) for name, change in plan.items()}

    whole = drawn((), STRENGTHS)
    weak, strong = (whole["camera", strength] for strength in (STRENGTHS[0], 1.0))
    np.testing.assert_allclose(weak.camera_shift, strong.camera_shift * STRENGTHS[0], rtol=1e-5)
    np.testing.assert_allclose(weak.camera_tilt, strong.camera_tilt * STRENGTHS[0], rtol=1e-5)
    joints, weaker = whole["robot", 1.0].arm_joint_shift, whole["robot", STRENGTHS[1]].arm_joint_shift
    np.testing.assert_allclose(weaker, joints * STRENGTHS[1], rtol=1e-5)
    brighter = [np.sign(whole["light", strength].brightness - 1) for strength in STRENGTHS]
    np.testing.assert_array_equal(brighter[0], brighter[-1])
    alone = drawn(("light",), (1.0,))
    assert list(alone) == [(NOMINAL, 0.0), ("light", 1.0)]
    np.testing.assert_array_equal(alone["light", 1.0].light_shift, whole["light", 1.0].light_shift)
    other = drawn(("light",), (1.0,), seed=1)
    assert (other["light", 1.0].light_shift != alone["light", 1.0].light_shift).any()


def test_axes_and_strengths_are_those_that_are_asked_for():
    plan = conditions("pick_lift", (), ("wording", "noise"), (0.5,))
    assert list(plan) == [(NOMINAL, 0.0), ("noise", 0.5), ("wording", 1 / 3), ("wording", 2 / 3), ("wording", 1.0)]
    assert {axis for axis, _ in conditions("pick_lift", ((0,), (0, 1), (1,)))} == {NOMINAL, *AXES}
    with pytest.raises(ValueError, match=r"robustness axis 'wind' is unknown.*camera.*wording, shape, combination"):
        conditions("pick_lift", (), ("wind",))
    with pytest.raises(ValueError, match=r"axis 'combination': pick_lift has none that its demonstrations"):
        conditions("pick_lift", (), ("combination",))
    for strength in (0, 1.5):
        with pytest.raises(ValueError, match=rf"robustness strength {strength} is not in \(0, 1\]"):
            conditions("pick_lift", (), (), (strength,))


def test_unseen_looks_are_those_that_every_task_has():
    assert robustness.unseen_axes([("pick_lift", ()), ("reach", ())]) == ["color", "shape"]
    assert robustness.unseen_axes([("pick_lift", ((0,), (0, 1), (1,)))]) == ["color", "shape", "combination"]


def test_only_episodes_whose_named_objects_look_unseen_count_as_that():
    seen = ((0,), (0, 1), (1,))  # green objects had every shape that any had
    for task in ("pick_lift", "stack_press"):
        words = [text.split() for text in instruction_text(task)]
        everything = np.arange(len(words))
        judged = counted("combination", task, seen, everything)
        np.testing.assert_array_equal(judged, ["green" not in text for text in words])
        for axis in ("shape", "camera", NOMINAL):
            assert counted(axis, task, seen, everything).all()
    order = np.array([2, 0, 1, 1])
    np.testing.assert_array_equal(counted("combination", "pick_lift", seen, order), [True, True, False, False])
    # Those that count do look unseen.
    plan = conditions("pick_lift", seen, ("combination",))
    looks = changed(neutral(50), plan["combination", 1.0], ("combination", 1.0), 50, 0).object_shapes
    for color, own in enumerate(seen):
        if counted("combination", "pick_lift", seen, np.array([color]))[0]:
            assert not set(looks[:, color]) & set(own), list(OBJECT_COLORS)[color]


def test_an_axis_may_judge_fewer_episodes_or_none(tmp_path):
    success = {(NOMINAL, 0.0): np.ones(4, bool), ("combination", 1.0): np.array([True, False, False])}
    found = Robustness(task="reach", success=success)
    assert found.axes["combination"].n == 3
    none = dataclasses.replace(found, success={**success, ("combination", 1.0): np.zeros(0, bool)})
    assert none.by_axis["combination"].shape == (0,)  # of a study's tasks, others may have some
    assert "combination" not in none.axes
    assert list(none.summary()["conditions"]) == ["nominal 0.00"]
    assert [row[1] for row in rows([found, none])] == [NOMINAL, "combination", NOMINAL]


def test_results_are_rates_by_condition_and_by_axis(tmp_path):
    success = {(NOMINAL, 0.0): np.array([1, 1, 1, 0], bool), ("light", 0.5): np.array([1, 0, 0, 0], bool)}
    success["light", 1.0] = np.zeros(4, bool)
    found = Robustness(task="reach", success=success)
    np.testing.assert_array_equal(found.by_axis["light"], [0.5, 0, 0, 0])  # each episode counts once
    light = found.axes["light"]
    assert light.mean == pytest.approx(1 / 8)
    assert light.ci95[0] <= light.mean <= light.ci95[1]
    assert found.summary()["conditions"]["light 0.50"]["rate"] == 0.25
    assert [row[:2] for row in rows([found])] == [("reach", NOMINAL), ("reach", "light")]
    report = Report("robustness")
    add_robustness(report, [found, dataclasses.replace(found, task="place")])
    assert "The same episodes under every condition" in report.write(tmp_path).read_text()
