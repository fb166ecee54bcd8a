"""What a study says of its finished runs, and which of them it takes for its own."""

import json

import numpy as np
import pytest

from configs.studies import agra, agra_layers
from launch.config import ConfigError, to_plain
from launch.study import ArmRun, _Measure, _run_arm, arm_config, report_study
from wam_jax.evaluation.report import read_summary


def finished(success: float, changed: float, ratio: float) -> list[ArmRun]:
    """Two seeds of two tasks, ten episodes each."""
    rows = np.arange(20) % 10 < 10 * success
    axes = {"nominal": rows[::2] + 0.0, "combination": np.arange(6) < 6 * changed}
    return [ArmRun(rows, axes, {"sensitivity_zero": ratio, "probe": 0.5}) for _ in range(2)]


def test_success_changed_conditions_and_ratios_are_told_by_arm_and_by_pair(tmp_path):
    study = agra.get_config()
    del study.arms["frozen"], study.arms["shared"], study.arms["video"]
    study.compare = (("action_condition", "none"),)
    runs = {"action_condition": finished(0.8, 0.5, 6.0), "none": finished(0.3, 0.0, 2.0)}
    report_study(study, runs, tmp_path, 1.0)
    summary = read_summary(tmp_path)
    assert summary["arms"]["none"]["mean"] == 0.3
    assert summary["seeds"] == [0, 1]
    (pair,) = summary["differences"]
    assert pair == "action_condition - none"
    assert summary["differences"][pair]["difference"] == 0.5
    combination = summary["changed"]["combination"]
    assert (combination["arms"]["action_condition"]["mean"], combination["differences"][pair]["difference"]) == (
        0.5,
        0.5,
    )
    page = (tmp_path / "report.html").read_text()
    assert "×3 (2 of 2 up)" in page
    assert {path.name for path in tmp_path.glob("*.png")} == {"success.png", "changed.png"}


def test_runs_that_another_study_measured_more_of_are_read_back(tmp_path):
    config = arm_config(agra.get_config(), "none")
    assert to_plain(config) == to_plain(arm_config(agra_layers.get_config(), "none"))
    saved = {"config": to_plain(config), "measured": [True, True], "success": [True, False]}
    path = tmp_path / "outcomes.json"
    path.write_text(json.dumps({**saved, "changed": {"camera": [0.5]}, "metrics": {"probe": 0.5}}))

    def read(robustness: bool, grounding: bool) -> ArmRun:
        measure = _Measure(robustness, grounding)
        return _run_arm(config, 0, None, tmp_path, tmp_path, {}, measure)  # trains nothing, so needs no devices

    assert read(True, True).changed["camera"] == [0.5]
    assert read(False, True).changed == {}
    np.testing.assert_array_equal(read(False, True).success, [True, False])
    path.write_text(json.dumps({**saved, "measured": [False, True], "changed": {}, "metrics": {}}))
    with pytest.raises(ConfigError, match="is of another configuration"):
        read(True, True)
