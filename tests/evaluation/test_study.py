"""Arms against each other: known rates, and intervals that hold what they promise."""

import dataclasses

import numpy as np
import pytest

from wam_jax.evaluation.heldout import Heldout
from wam_jax.evaluation.study import (
    arm_result,
    bootstrap_difference,
    metric_differences,
    metric_table,
    study_rows,
    task_rows,
)
from wam_jax.evaluation.study_metrics import heldout_metrics


def test_pooled_and_single_seeds():
    result = arm_result(np.array([[True, True, False, False], [True, True, True, True]]))
    assert (result.pooled.successes, result.pooled.n) == (6, 8)
    assert [rate.rate for rate in result.seeds] == [0.5, 1.0]


def test_an_arm_does_not_differ_from_itself():
    rows = np.random.default_rng(0).random((3, 100)) < 0.5
    found = bootstrap_difference(rows, rows)
    assert (found.difference, found.ci95) == (0.0, (0.0, 0.0))
    assert not found.significant


def test_pairing_narrows_the_interval():
    """The same difference of rates, on the same or on other episodes."""
    rng = np.random.default_rng(0)
    hard = rng.random((3, 400)) < 0.5
    better = hard | (rng.random((3, 400)) < 0.2)
    apart = np.stack([rng.permutation(row) for row in better])
    paired, unpaired = (bootstrap_difference(arm, hard, draws=2000) for arm in (better, apart))
    assert paired.difference == pytest.approx(unpaired.difference)
    assert paired.ci95[1] - paired.ci95[0] < 0.8 * (unpaired.ci95[1] - unpaired.ci95[0])


def test_interval_covers_the_truth_when_seeds_vary():
    """20 studies of 5 seeds whose true success differs between seeds: the interval holds the true mean in most."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(20):
        truth = 0.1
        a = rng.random((5, 100)) < np.clip(0.5 + truth + rng.normal(0, 0.1, (5, 1)), 0, 1)
        b = rng.random((5, 100)) < 0.5
        low, high = bootstrap_difference(a, b, draws=400).ci95
        held += low <= truth <= high
    assert held >= 16


def test_other_episodes_are_refused():
    with pytest.raises(ValueError, match=r"shapes \(1, 3\) and \(1, 4\) are not paired"):
        bootstrap_difference(np.zeros((1, 3), bool), np.zeros((1, 4), bool))


def test_tables():
    outcomes = {"a": np.ones((2, 50), bool), "b": np.zeros((2, 50), bool)}
    arms, differences = study_rows(outcomes, [("a", "b")])
    assert arms[0][::2] == ("a", "1.000, 1.000")
    assert differences == [("a - b", "+1.00 [+1.00, +1.00]", "yes")]


def test_metrics_are_a_row_each_with_their_spread_over_seeds():
    table = metric_table({"a": [{"psnr": 20.0, "ols": 1.0}, {"psnr": 22.0, "ols": 1.0}], "b": [{"psnr": 30.0}]})
    assert table == [("psnr", "21 ± 1.4", "30"), ("ols", "1 ± 0", "–")]


def test_differences_of_metrics_are_between_runs_of_the_same_seed():
    a, b = [{"psnr": 20.0, "p": 1.0}, {"psnr": 22.0, "p": 1.0}], [{"psnr": 19.0, "p": 1.0}, {"psnr": 23.5, "p": 1.0}]
    assert metric_differences({"a": a, "b": b}, [("a", "b")]) == [("psnr", "-0.25 (1 of 2 up)")]
    one = [{}, {"psnr": 23.5}]
    assert metric_differences({"a": a, "b": one}, [("a", "b")]) == [("psnr", "-1.5 (0 of 1 up)")]
    assert metric_table({"a": a, "b": one})[0] == ("psnr", "21 ± 1.4", "23.5 (1 of 2)")


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
