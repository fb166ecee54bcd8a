"""Conditions change what their axis says, by their strength, and results are of the same episodes."""

import dataclasses

import numpy as np
import pytest

from wam_jax.evaluation.report import Report
from wam_jax.evaluation.robustness import NOMINAL, STRENGTHS, Robustness, add_robustness, conditions, rows
from wam_jax.sim.variation import Variation

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
    assert [plan[c] for c in plan if c[0] == "wording"] == [1, 2, 3]
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
