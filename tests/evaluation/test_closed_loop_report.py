"""The closed-loop sections say what the outcomes were."""

import numpy as np

from wam_jax.evaluation.closed_loop_report import COLUMNS, add_closed_loop, result_rows, skill_rows
from wam_jax.evaluation.report import Report
from wam_jax.evaluation.success import Controlled, TaskResult
from wam_jax.sim.rollout import Recording

STEPS, EPISODES, EXECUTE, LEAD = 8, 2, 4, 6


def make_result(task: str = "reach", skills: int = 0) -> TaskResult:
    rng = np.random.default_rng(0)
    success = np.arange(10) < 9
    outcomes = {
        "trained": Controlled(success, ~success, np.minimum(np.arange(10), skills)),
        "wrong_instruction": Controlled(~success, success, np.zeros(10, int)),
        "untrained": Controlled(np.zeros(10, bool), np.zeros(10, bool), np.zeros(10, int)),
    }
    recording = Recording(
        frames=rng.integers(0, 255, (STEPS, EPISODES, 2, 16, 16, 3), np.uint8),
        imagined=rng.integers(0, 255, (STEPS // EXECUTE, EPISODES, 1, 2, 16, 16, 3), np.uint8),
        proprio=np.zeros((STEPS, EPISODES, 7)),
        success=np.array([True, False]),
        instruction=np.array([1, 0]),
    )
    speed = {"control_steps_per_s": 812.0, "physics_share": 0.6, "pixels_share": 0.2, "policy_share": 0.2}
    return TaskResult(
        task=task, controllers=outcomes, speed=speed, recording=recording, instructions=("reach red", "reach blue")
    )


def test_summary_puts_the_trained_policy_on_top_and_controls_beneath():
    summary = make_result().summary()
    assert summary["success"] == 0.9
    assert summary["n"] == 10
    low, high = summary["ci95"]
    assert low < 0.9 < high
    assert summary["controls"]["wrong_instruction"]["wrong_object"] == 0.9
    assert summary["controls"]["untrained"]["success"] == 0.0
    assert summary["speed"]["control_steps_per_s"] == 812.0


def test_skills_are_counted_with_all_those_before_them(tmp_path):
    result = make_result("stack_press", skills=2)
    assert result.summary()["skills"] == [0.9, 0.8, 0.0]
    assert result.summary()["controls"]["untrained"]["skills"] == [0.0, 0.0, 0.0]
    assert "skills" not in make_result().summary()
    assert skill_rows([make_result()]) == []
    rows = skill_rows([result])
    assert [row[3][:3] for row in rows] == [".90", ".00", ".00", ".80", ".00", ".00", ".00", ".00", ".00"]
    report = Report("closed loop")
    add_closed_loop(report, [result], ("front", "wrist"), EXECUTE, LEAD)
    assert "press the first button" in report.write(tmp_path).read_text()


def test_report_has_a_row_a_controller_and_a_film_an_episode(tmp_path):
    result = make_result()
    rows = result_rows([result])
    assert len(rows) == 3
    assert all(len(row) == len(COLUMNS) for row in rows)
    report = Report("closed loop")
    add_closed_loop(report, [result], ("front", "wrist"), EXECUTE, LEAD)
    page = report.write(tmp_path).read_text()
    assert "told the wrong object" in page
    assert "reach blue: success" in page
    assert "reach red: failure" in page
