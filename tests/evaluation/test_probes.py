"""Probes read what is linear in latents, report it on other samples, and say what a constant would reach."""

import numpy as np
import pytest

from wam_jax.evaluation import probes

RNG = np.random.default_rng


def linear_data(count: int, noise: float, seed: int, width: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Features and positions (metres) that are linear in them, up to noise."""
    scale = np.tile([1.0, 1e3, 1e-3], width // 3)
    features = RNG(seed).normal(3 * scale, scale, size=(count, width))
    weights = RNG(99).normal(size=(width, 2)) / scale[:, None]
    return features, features @ weights + noise * RNG(seed + 1).normal(size=(count, 2))


def test_positions_that_are_linear_in_the_features_are_read_exactly():
    result = probes.probe_positions(*linear_data(200, 0, 0), *linear_data(50, 0, 2))
    assert result.r2 == pytest.approx(1, abs=1e-6)
    assert result.mean_error < 1e-3 * result.mean_error_of_constant
    assert (result.penalty, result.n_fit, result.n_test) == (probes.PENALTIES[0], 200, 50)


def test_the_fit_is_that_of_the_normal_equations():
    features, positions = linear_data(60, 0.3, 0)
    test_features, test_positions = linear_data(40, 0.3, 5)
    result = probes.probe_positions(features, positions, test_features, test_positions)
    z, other = ((x - features.mean(0)) / features.std(0) for x in (features, test_features))
    weights = np.linalg.solve(
        z.T @ z + len(z) * result.penalty * np.eye(12), z.T @ (positions - positions.mean(0))
    )  # intercept apart, not penalised
    error = other @ weights + positions.mean(0) - test_positions
    total = np.sum((test_positions - test_positions.mean(0)) ** 2)
    assert result.r2 == pytest.approx(1 - np.sum(error**2) / total, rel=1e-9)
    assert result.mean_error == pytest.approx(np.mean(np.hypot(*error.T)), rel=1e-9)
    assert result.mean_error_of_constant == pytest.approx(np.mean(np.hypot(*(test_positions - positions.mean(0)).T)))


def test_units_of_features_do_not_matter_and_those_of_targets_are_reported():
    (x, y), (test_x, test_y) = linear_data(60, 0.3, 0), linear_data(40, 0.3, 5)
    metres = probes.probe_positions(x, y, test_x, test_y)
    millimetres = probes.probe_positions(x * 7 - 5, y * 1000, test_x * 7 - 5, test_y * 1000)
    assert millimetres.r2 == pytest.approx(metres.r2)
    assert millimetres.mean_error == pytest.approx(1000 * metres.mean_error)


def test_features_that_say_nothing_read_nothing_even_if_there_are_more_of_them_than_samples():
    x, test_x = RNG(0).normal(size=(80, 300)), RNG(1).normal(size=(200, 300))
    result = probes.probe_positions(x, RNG(2).normal(size=(80, 2)), test_x, RNG(3).normal(size=(200, 2)))
    assert -0.2 < result.r2 < 0.05
    assert result.penalty >= 1  # without one, r2 would be far below 0
    assert result.mean_error == pytest.approx(result.mean_error_of_constant, rel=0.1)


def test_a_feature_that_is_constant_where_it_is_fitted_is_not_looked_at():
    (x, y), (test_x, test_y) = linear_data(60, 0.3, 0), linear_data(40, 0.3, 5)
    plain = probes.probe_positions(x, y, test_x, test_y)
    x, test_x = np.c_[x, np.full(60, 0.1)], np.c_[test_x, RNG(0).normal(size=40)]
    assert probes.probe_positions(x, y, test_x, test_y).as_dict() == pytest.approx(plain.as_dict())


def test_samples_of_a_group_stay_together_when_the_penalty_is_chosen():
    """Ten noisy copies of each of 30 scenes: one that is divided tells its copies' target, and no penalty is needed."""
    scene = np.repeat(np.arange(30), 10)
    x = RNG(0).normal(size=(30, 200))[scene] + 1e-3 * RNG(1).normal(size=(300, 200))
    y, test_x, test_y = RNG(2).normal(size=(30, 1))[scene], RNG(3).normal(size=(50, 200)), RNG(4).normal(size=(50, 1))
    alone = probes.probe_positions(x, y, test_x, test_y)
    together = probes.probe_positions(x, y, test_x, test_y, groups=scene)
    assert alone.penalty < 1e-2
    assert together.penalty > 1
    assert together.r2 > alone.r2


def blobs(count: int, seed: int, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Features of four classes, of which the first is half of all."""
    labels = RNG(seed).choice(["red", "green", "blue", "grey"], size=count, p=[0.5, 0.2, 0.2, 0.1])
    place = {"red": 0, "green": 1, "blue": 2, "grey": 3}
    centers = np.eye(4, 6)[[place[label] for label in labels]]
    return distance * centers + RNG(seed + 1).normal(size=(count, 6)), labels


def test_classes_that_lie_apart_are_read_and_those_that_do_not_are_named_by_the_majority():
    apart = probes.probe_classes(*blobs(300, 0, 12), *blobs(200, 2, 12))
    assert apart.accuracy > 0.99
    assert apart.majority_accuracy == pytest.approx(0.5, abs=0.1)
    assert (apart.classes, apart.n_fit, apart.n_test) == (4, 300, 200)
    test_labels = blobs(200, 2, 0)[1]
    nothing = probes.probe_classes(*blobs(300, 0, 0), *blobs(200, 2, 0))
    assert nothing.majority_accuracy == np.mean(test_labels == "red")
    assert nothing.accuracy == pytest.approx(nothing.majority_accuracy, abs=0.06)


def test_a_class_that_was_not_fitted_is_read_wrong():
    (x, labels), (test_x, test_labels) = blobs(300, 0, 12), blobs(200, 2, 12)
    result = probes.probe_classes(x, labels, test_x, np.where(test_labels == "red", "black", test_labels))
    assert result.accuracy == pytest.approx(np.mean(test_labels != "red"), abs=0.01)
    assert result.majority_accuracy == 0


def test_the_same_samples_give_the_same_numbers():
    data = (*linear_data(60, 0.3, 0), *linear_data(40, 0.3, 5))
    assert probes.probe_positions(*data) == probes.probe_positions(*data)


def test_pooling_forgets_where_and_flattening_does_not():
    """A bright cell that wanders over a grid of 4 x 5: its place is a linear map of the grid, not of its mean."""
    rows, columns = RNG(0).integers(0, 4, 240), RNG(1).integers(0, 5, 240)
    latents = 0.01 * RNG(2).normal(size=(240, 1, 4, 5, 3))
    latents[np.arange(240), 0, rows, columns] += 1
    assert probes.flattened(latents).shape == (240, 60)
    assert probes.pooled(latents).shape == (240, 3)
    np.testing.assert_allclose(probes.pooled(latents), latents.mean((2, 3))[:, 0])
    places = np.stack([rows, columns], -1).astype(float)
    r2 = {}
    for view in (probes.flattened, probes.pooled):
        x = view(latents)
        r2[view.__name__] = probes.probe_positions(x[:200], places[:200], x[200:], places[200:]).r2
    assert r2["flattened"] > 0.99
    assert r2["pooled"] < 0.2


def test_what_cannot_be_probed_is_refused():
    x, y = np.ones((4, 2)), np.arange(4.0)[:, None]
    with pytest.raises(ValueError, match=r"^fitted features \(4, 2\) and targets \(3, 1\) do not match; give \[N, D\]"):
        probes.probe_positions(x, y[:3], x, y)
    with pytest.raises(ValueError, match=r"are not of one kind; take both from one model$"):
        probes.probe_positions(x, y, np.ones((4, 3)), y)
    with pytest.raises(ValueError, match=r"^groups \(3,\) are not one a sample; give \[4\]$"):
        probes.probe_positions(x, y, x, y, groups=np.arange(3))
    with pytest.raises(ValueError, match=r"^1 group cannot be divided to choose a penalty; give two or more$"):
        probes.probe_positions(x, y, x, y, groups=np.zeros(4, int))
    with pytest.raises(ValueError, match=r"^all 4 test targets are equal: there is no variance to explain$"):
        probes.probe_positions(x, y, x, np.ones((4, 1)))
    with pytest.raises(ValueError, match=r"^all 4 labels are 'a': there is nothing to tell apart$"):
        probes.probe_classes(x, np.array(["a"] * 4), x, np.array(["a"] * 4))
