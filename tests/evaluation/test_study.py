"""Arms against each other: known rates, and intervals that hold what they promise."""

import dataclasses

import numpy as np

from wam_jax.evaluation.heldout import Heldout
from wam_jax.evaluation.study import (
    arm_differences,
    arm_result,
    arm_rows,
    difference_rows,
    metric_differences,
    metric_table,
    task_rows,
)
from wam_jax.evaluation.study_metrics import heldout_metrics


def test_all_seeds_and_single_seeds():
    result = arm_result(np.array([[True, True, False, False], [True, True, True, True]]))
    assert (result.success.mean, result.success.n) == (0.75, 8)
    assert [rate.rate for rate in result.seeds] == [0.5, 1.0]


def test_tables():
    outcomes = {"a": np.ones((2, 50), bool), "b": np.zeros((2, 50), bool)}
    assert arm_rows({"a": arm_result(outcomes["a"])})[0][::2] == ("a", "1.000, 1.000")
    differences = arm_differences(outcomes, [("a", "b")])
    assert difference_rows(differences) == [("a - b", "+1.00 [+1.00, +1.00]", "yes")]


def test_metrics_are_a_row_each_with_their_spread_over_seeds():
    table = metric_table({"a": [{"psnr": 20.0, "ols": 1.0}, {"psnr": 22.0, "ols": 1.0}], "b": [{"psnr": 30.0}]})
    assert table == [("psnr", "21 ± 1.4", "30"), ("ols", "1 ± 0", "–")]


def test_differences_of_metrics_are_between_runs_of_the_same_seed():
    a, b = [{"psnr": 20.0, "p": 1.0}, {"psnr": 22.0, "p": 1.0}], [{"psnr": 19.0, "p": 1.0}, {"psnr": 23.5, "p": 1.0}]
    assert metric_differences({"a": a, "b": b}, [("a", "b")]) == [("psnr", "-0.25 (1 of 2 up)")]
    one = [{}, {"psnr": 23.5}]
    assert metric_differences({"a": a, "b": one}, [("a", "b")]) == [("psnr", "-1.5 (0 of 1 up)")]
    assert metric_table({"a": a, "b": one})[0] == ("psnr", "21 ± 1.4", "23.5 (1 of 2)")


def test_ratios_are_multiplied():
    a, b = (
        [{"sensitivity_zero": 2.0}, {"sensitivity_zero": 8.0}],
        [{"sensitivity_zero": 1.0}, {"sensitivity_zero": 9.0}],
    )
    assert metric_table({"a": a}) == [("sensitivity_zero", "4 ×÷ 2.7")]
    assert metric_differences({"a": a, "b": b}, [("a", "b")]) == [("sensitivity_zero", "×1.33 (1 of 2 up)")]
    nothing = [{"sensitivity_zero": 0.0}, {"sensitivity_zero": 4.0}]
    assert metric_table({"a": nothing}) == [("sensitivity_zero", "4 (1 of 2)")]
    assert metric_differences({"a": a, "b": nothing}, [("a", "b")]) == [("sensitivity_zero", "×2 (1 of 1 up)")]


def test_tasks_have_columns_of_their_own():
    outcomes = {"a": np.array([[True, True, False, False]] * 2), "b": np.zeros((2, 4), bool)}
    arms, differences = task_rows(outcomes, [("a", "b")], 2)
    assert [cell.split()[0] for cell in arms[0]] == ["a", "1.00", ".00"]
    assert differences == [("a - b", "+1.00 [+1.00, +1.00]", "+.00 [+.00, +.00]")]


def test_pictures_are_compared_at_the_moments_that_frames_end_in():
    """Where a tokenizer merges two images, the first of them is nearer to the present, and so easier."""
    future, shape = np.zeros((1, 4, 1, 16, 16, 3), np.uint8), (1, 3, 4)
    easy = future.copy()
    easy[:, ::2] = 255  # wrong where it does not count
    result = Heldout(
        present=future[:, 0], future=future, imagined=easy, reconstructed=future,
        future_mask=np.ones((1, 4, 1), bool), actions=np.zeros(shape), predicted_actions=None,
        action_mask=np.ones(shape, bool), tubelet=2,
    )  # fmt: skip
    found = heldout_metrics({"some": result}, None)
    assert found["imagined_psnr"] == found["tokenizer_psnr"] > 50
    other = dataclasses.replace(result, tubelet=1)
    assert heldout_metrics({"some": other}, None)["imagined_psnr"] < 50
