"""A policy that reads one token looks there and depends on it; one that reads none depends on nothing."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from wam_jax.evaluation import grounding
from wam_jax.evaluation.grounding import (
    KINDS,
    TOKEN_KINDS,
    Sensitivity,
    centroid_error,
    coverage,
    diagnose,
    heat,
    intervention,
    mean_grounding,
)
from wam_jax.evaluation.grounding_report import (
    ATTENTION_COLUMNS,
    add_grounding,
    attention_rows,
    heat_film,
    sensitivity_rows,
)
from wam_jax.evaluation.report import Report, read_summary, write_summary
from wam_jax.wam.lens import Lens

SCENES, GRID = 6, (2, 4)
COUNT = 2 * GRID[0] * GRID[1]  # two cameras
TARGET = np.array([0, 3, 5, 9, 12, 15])  # the token that each scene's mask covers


def masks() -> np.ndarray:
    """Two parts: the first is nowhere, the second fills one token of 8 x 8 pixels."""
    found = np.zeros((SCENES, 2, COUNT, 64), bool)
    found[np.arange(SCENES), 1, TARGET] = True
    cells = found.reshape(SCENES, 2, 2, *GRID, 8, 8)
    return cells.transpose(0, 1, 2, 3, 5, 4, 6).reshape(SCENES, 2, 2, GRID[0] * 8, GRID[1] * 8)


def policy(weights: np.ndarray, rounding: float = 0.0):
    """Actions are a weighted sum over tokens' contents, which all differ; ``rounding``: of any change."""
    content = np.random.default_rng(0).normal(size=(SCENES, COUNT, 3))

    def act(lens: Lens):
        read = content if lens.change is None else np.asarray(lens.change) @ content
        actions = 1 + np.einsum("bn,bnk->bk", weights, read)[:, :, None] + rounding * (lens.change is not None)
        attention = jnp.asarray(weights[:, None, None, None]) if lens.attention else None
        return jnp.asarray(actions), attention

    return act


def one_token() -> np.ndarray:
    return np.eye(COUNT)[TARGET]


def test_a_policy_that_reads_one_token_looks_there_and_depends_on_it(tmp_path):
    found = diagnose(policy(one_token()), ("hand", "object"), masks(), GRID)
    assert found.parts == ("hand", "object", "all")
    np.testing.assert_allclose(found.area, [0, 1 / COUNT, 1 / COUNT])
    np.testing.assert_allclose(found.in_mask[1:], 1)
    np.testing.assert_allclose(found.centroid_error, 0, atol=1e-7)
    assert found.to_video == pytest.approx(1)
    for kind in ("zero", "mean", "swap"):
        result = found.sensitivity[kind]
        assert result.outside.max() == 0
        assert result.inside.min() > 0
        assert result.ratio == pytest.approx(result.inside.mean() / result.floor)  # not infinite, not 1e12
    assert not found.sensitivity["shuffle"].moved  # one token has no other order
    write_summary(tmp_path, found.summary())  # which takes no NaN


def test_a_policy_that_reads_all_alike_has_a_ratio_near_one_and_one_that_reads_nothing_none():
    alike = diagnose(policy(np.full((SCENES, COUNT), 1 / COUNT)), ("hand", "object"), masks(), GRID)
    np.testing.assert_allclose(alike.in_mask[2], 1 / COUNT)
    assert 0.5 < alike.sensitivity["zero"].ratio < 2
    low, high = alike.sensitivity["zero"].interval()
    assert low < alike.sensitivity["zero"].ratio < high
    blind = diagnose(policy(np.zeros((SCENES, COUNT))), ("hand", "object"), masks(), GRID)
    assert not any(result.moved for result in blind.sensitivity.values())
    assert all(np.isnan(result.ratio) for result in blind.sensitivity.values())
    assert [row[2] for row in sensitivity_rows({"reach": blind})] == ["–"] * len(KINDS)


def test_attention_spread_evenly_has_as_much_in_a_part_as_its_area_however_few_scenes_show_it():
    sometimes = masks()
    sometimes[::2, 0] = sometimes[::2, 1]  # the hand is seen in half of the scenes
    alike = diagnose(policy(np.full((SCENES, COUNT), 1 / COUNT)), ("hand", "object"), sometimes, GRID)
    assert alike.in_mask is not None
    np.testing.assert_allclose(alike.area, [1 / COUNT] * 3)
    np.testing.assert_allclose(alike.in_mask[:, 0, 0, 0], alike.area)


def test_actions_that_attend_to_no_video_are_said_to():
    def act(lens: Lens):
        return jnp.ones((SCENES, 3, 1)), None

    found = diagnose(act, ("hand", "object"), masks(), GRID)
    assert found.in_mask is None
    assert "attention_in_mask" not in found.summary()
    assert attention_rows({"reach": found})[0][-1] == "actions do not attend to the present frame"


@pytest.mark.parametrize("everywhere", [False, True])
def test_scenes_without_two_sides_to_compare_leave_a_summary_and_a_report(tmp_path, everywhere):
    found = diagnose(policy(one_token()), ("hand", "object"), np.full_like(masks(), everywhere), GRID, 0, "", ("zero",))
    assert not any(result.moved for result in found.sensitivity.values())
    write_summary(tmp_path, found.summary())  # which takes no NaN
    summary = read_summary(tmp_path)
    nothing = {"ratio": None, "ci95": None, "inside": None, "outside": None, "n": 0}
    assert all(result == nothing for result in summary["sensitivity"].values())
    if not everywhere:
        assert summary["attention_in_mask_best_head"] is None
        assert summary["attention_in_mask_by_step_layer_head"] == [[[None]]]
        assert summary["centroid_error"] == [None]
    assert all(np.isfinite(value) for value in mean_grounding([found]).values())
    looks = {"attention_in_mask", "centroid_error"} if everywhere else set()
    assert set(mean_grounding([found])) == looks | {"mask_area"}
    report = Report("grounding")
    add_grounding(report, {"reach": found}, {})
    assert "no scene has tokens inside and outside" in report.write(tmp_path).read_text()


def test_what_a_change_of_nothing_does_is_no_motion():
    blind = diagnose(policy(np.zeros((SCENES, COUNT)), rounding=0.01), ("hand", "object"), masks(), GRID)
    assert not any(result.moved for result in blind.sensitivity.values())
    found = diagnose(policy(one_token(), rounding=0.01), ("hand", "object"), masks(), GRID).sensitivity["zero"]
    assert found.floor == pytest.approx(3 * 0.01 * np.sqrt(3), rel=1e-4)  # chunks of three numbers
    assert found.outside.max() == pytest.approx(0, abs=1e-6)  # compared with what runs in the same program
    assert found.moved


def test_means_over_tasks_are_of_the_same_tasks_and_geometric_for_ratios():
    looks, blind = (
        diagnose(policy(weights), ("hand", "object"), masks(), GRID) for weights in (one_token(), 0 * one_token())
    )
    assert set(mean_grounding([looks, blind])) == {"attention_in_mask", "centroid_error", "mask_area"}

    def having(ratio: float) -> grounding.Grounding:
        result = Sensitivity(inside=np.full(4, ratio), outside=np.ones(4), floor=1e-6)
        return dataclasses.replace(looks, sensitivity={"zero": result})

    assert mean_grounding([having(4.0), having(0.25)])["sensitivity_zero"] == pytest.approx(1)
    assert mean_grounding([]) == {}


def test_attention_is_shown_by_step_layer_and_head_with_its_centroid_error(tmp_path):
    weights = np.random.default_rng(0).uniform(size=(SCENES, 3, 2, 4, COUNT))  # steps, layers, heads

    def act(lens: Lens):
        return policy(one_token())(lens)[0], jnp.asarray(weights) if lens.attention else None

    found = diagnose(act, ("hand", "object"), masks(), GRID)
    summary = found.summary()
    np.testing.assert_allclose(summary["attention_in_mask_by_step_layer_head"], found.in_mask[-1])
    np.testing.assert_allclose(summary["centroid_error_by_step_layer_head"], found.centroid_error)
    errors = [row[ATTENTION_COLUMNS.index("centroid error")] for row in attention_rows({"reach": found})]
    assert errors == ["–", "", f"{found.centroid_error.mean():.3f}"]  # the first part is nowhere
    report = Report("grounding")
    add_grounding(report, {"reach": found}, {})
    assert report.write(tmp_path).read_text().count("data:image/png") == 2  # layers by heads, steps by layers


@pytest.mark.parametrize("kind", TOKEN_KINDS)
def test_sensitivity_token_by_token_is_where_the_policy_reads(kind):
    warm = heat(policy(one_token()), COUNT, SCENES, kind)
    np.testing.assert_array_equal(warm.argmax(1), TARGET)
    assert (warm > 0).sum() == SCENES
    with pytest.raises(ValueError, match=r"cannot be changed by 'shuffle' \(can be by: zero, mean, swap\)"):
        heat(policy(one_token()), COUNT, SCENES, "shuffle")


def test_token_by_token_compares_single_tokens_of_both_sides():
    weights = one_token() + 0.5 * np.roll(one_token(), 1, axis=1)  # and, half as much, one outside
    found = diagnose(policy(weights), ("hand", "object"), masks(), GRID, token_kinds=TOKEN_KINDS)
    single = found.sensitivity["zero, token by token"]
    warm = heat(policy(weights), COUNT, SCENES)
    inside = np.eye(COUNT, dtype=bool)[TARGET]
    same_camera = np.repeat(inside.reshape(SCENES, 2, -1).any(2), COUNT // 2, 1)
    outside = warm[same_camera & ~inside].reshape(SCENES, -1).mean(1)
    np.testing.assert_allclose(single.inside, warm[inside])
    np.testing.assert_allclose(single.outside, outside)
    assert single.ratio == pytest.approx(warm[inside].mean() / outside.mean())
    assert "mean, token by token" in found.summary()["sensitivity"]
    assert not any("token by token" in kind for kind in diagnose(policy(weights), (), masks(), GRID).sensitivity)


@pytest.mark.parametrize("kind", KINDS)
def test_interventions_change_the_chosen_tokens_as_they_say(kind):
    rng = np.random.default_rng(0)
    content = rng.normal(size=(1, 6, 2))
    chosen = np.array([[True, True, True, False, False, False]])
    after = intervention(kind, chosen, ~chosen, rng) @ content
    if kind == "zero":
        np.testing.assert_array_equal(after[:, :3], 0)
    elif kind == "mean":
        np.testing.assert_allclose(after[:, :3], np.broadcast_to(content.mean(1, keepdims=True), (1, 3, 2)), rtol=1e-6)
    elif kind == "shuffle":
        np.testing.assert_allclose(np.sort(after[:, :3], 1), np.sort(content[:, :3], 1))
    else:
        np.testing.assert_allclose(np.sort(after[:, :3], 1), np.sort(content[:, 3:], 1))
    np.testing.assert_array_equal(after[:, 3:], content[:, 3:])
    with pytest.raises(ValueError, match=r"intervention 'blur' is unknown \(has: zero, mean, shuffle, swap\)"):
        intervention("blur", chosen, ~chosen, rng)


def test_both_sides_of_a_comparison_have_equally_many_tokens():
    inside = np.array([[True] * 5 + [False] * 3, [True] + [False] * 7])
    mine, theirs = grounding.matched(inside, np.random.default_rng(0))
    np.testing.assert_array_equal(mine.sum(1), [3, 1])
    np.testing.assert_array_equal(theirs.sum(1), [3, 1])
    assert not (mine & ~inside).any()
    assert not (theirs & inside).any()
    mine, theirs = grounding.matched(inside, np.random.default_rng(0), spare=True)
    np.testing.assert_array_equal(mine.sum(1), [1, 1])  # of three outside, one can change places with one
    np.testing.assert_array_equal(theirs.sum(1), [1, 1])


def test_a_camera_that_counts_for_more_is_not_taken_for_grounding():
    """All tokens of a camera weigh alike, and one camera shows more of the mask: the ratio is about 1."""
    weights = np.tile(np.repeat([10.0, 1.0], COUNT // 2), (SCENES, 1))
    seen = np.zeros((SCENES, 1, COUNT, 64), bool)
    seen[:, :, :6] = seen[:, :, COUNT // 2] = True  # six tokens of the first camera, one of the second
    cells = seen.reshape(SCENES, 1, 2, *GRID, 8, 8).transpose(0, 1, 2, 3, 5, 4, 6)
    found = diagnose(policy(weights), ("object",), cells.reshape(SCENES, 1, 2, 16, 32), GRID, token_kinds=("zero",))
    for kind in ("zero", "zero, token by token"):
        assert 0.6 < found.sensitivity[kind].ratio < 1.7, kind


def test_coverage_is_the_share_of_a_tokens_pixels():
    mask = np.zeros((1, 1, 1, 4, 8), bool)
    mask[..., :2, :2] = True  # the first of 2 x 2 tokens is 2 x 4 pixels
    np.testing.assert_array_equal(coverage(mask, (2, 2)), [[[0.5, 0, 0, 0]]])
    with pytest.raises(ValueError, match="pictures of 4 x 8 do not divide into 3 x 2 tokens"):
        coverage(mask, (3, 2))


def test_centres_are_as_far_apart_as_they_are_in_the_picture():
    attention, share = np.zeros((1, 2 * 16)), np.zeros((1, 2 * 16))
    attention[0, 0], share[0, 10] = 1, 1  # of 4 x 4 tokens: (0, 0) and (2, 2); the second camera sees nothing
    found = centroid_error(attention, share, (4, 4))
    np.testing.assert_allclose(found, np.hypot(0.5, 0.5))


def test_a_film_shows_every_camera_beside_its_maps():
    frames = np.zeros((8, 2, 16, 16, 3), np.uint8)
    heats = {"attention": np.random.default_rng(0).uniform(size=(2, COUNT))}
    film, label = heat_film(frames, heats, GRID, ("front", "wrist"), 4, "reach the red ball")
    assert label == "reach the red ball"
    assert film[:4] == b"RIFF"
