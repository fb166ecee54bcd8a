"""Statistics equal brute force, pool, and decode no image."""

import json

import numpy as np
import pytest
from toy_rlds import CUMULATIVE, Episode

from data_pipelines import statistics as statistics_module
from data_pipelines.rlds import RldsStore
from data_pipelines.statistics import Statistics, Summary, compute_statistics
from data_pipelines.windows import WindowSpec


def brute_force(episodes: list[Episode], horizon: int) -> np.ndarray:
    """All encoded actions of all windows: float64[N, A]."""
    rows = []
    for episode in episodes:
        for start in range(len(episode.action)):
            chunk = episode.action[start : start + horizon].astype(np.float64)
            rows.append(np.where(CUMULATIVE, np.cumsum(chunk, 0), chunk))
    return np.concatenate(rows)


def assert_summarises(summary: Summary, values: np.ndarray) -> None:
    assert summary.count == len(values)
    np.testing.assert_allclose(summary.mean, values.mean(0), atol=1e-6)
    np.testing.assert_allclose(summary.std, values.std(0), rtol=1e-5)
    np.testing.assert_allclose(summary.q01, np.quantile(values, 0.01, 0), atol=1e-5)
    np.testing.assert_allclose(summary.q99, np.quantile(values, 0.99, 0), atol=1e-5)
    np.testing.assert_allclose(summary.min, values.min(0), atol=1e-6)
    np.testing.assert_allclose(summary.max, values.max(0), atol=1e-6)


def test_equal_brute_force(statistics: Statistics, episodes: list[Episode], spec: WindowSpec) -> None:
    assert_summarises(statistics.action, brute_force(episodes, spec.action_horizon))
    assert_summarises(statistics.proprio, np.concatenate([e.proprio for e in episodes]))


def test_blocks_merge_to_the_same(
    store: RldsStore, spec: WindowSpec, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics_module, "_BLOCK_WINDOWS", 7)
    pooled = compute_statistics([store, store], spec, CUMULATIVE)
    assert_summarises(pooled.action, np.concatenate([brute_force(episodes, spec.action_horizon)] * 2))


def test_no_image_is_decoded(
    store: RldsStore, spec: WindowSpec, statistics: Statistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipelines.rlds.decode_image", None)
    assert compute_statistics([store], spec, CUMULATIVE).to_dict() == statistics.to_dict()


def test_normalisations(statistics: Statistics, episodes: list[Episode], spec: WindowSpec) -> None:
    values = brute_force(episodes, spec.action_horizon).astype(np.float32)
    normal = statistics.action_codec("mean_std").affine.normalise(values)
    np.testing.assert_allclose(normal.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(normal.std(0), 1, atol=1e-5)
    ranged = statistics.action_codec("quantile", leave=[3]).affine.normalise(values)
    np.testing.assert_allclose(np.quantile(ranged, (0.01, 0.99), 0)[:, :3], [[-1] * 3, [1] * 3], atol=1e-5)
    np.testing.assert_array_equal(ranged[:, 3], values[:, 3])
    np.testing.assert_array_equal(statistics.action_codec("none").affine.normalise(values), values)


def test_constant_dimension_gets_scale_one() -> None:
    values = np.stack([np.full(50, 1234.567, np.float32), np.linspace(0, 1, 50, dtype=np.float32)], 1)
    summary = statistics_module._summarise(iter([(values[:20], values[:20]), (values[20:], values[20:])]))
    for kind in ("mean_std", "quantile"):
        affine = summary.affine(kind)
        assert affine.scale[0] == 1
        np.testing.assert_array_equal(affine.normalise(values)[:, 0], 0)


def test_json_round_trip_is_exact(statistics: Statistics) -> None:
    again = Statistics.from_dict(json.loads(json.dumps(statistics.to_dict())))
    assert again.to_dict() == statistics.to_dict()
    assert again.action.count == statistics.action.count
    np.testing.assert_array_equal(again.action_codec("mean_std").affine.scale, statistics.action.std)


def test_unknown_column_kind_and_dimension_are_named(store: RldsStore, statistics: Statistics) -> None:
    with pytest.raises(KeyError, match=r"column 'state' is not in toy \(has: action, discount, is_first"):
        compute_statistics([store], WindowSpec(cameras=(), proprio_key="state"))
    with pytest.raises(ValueError, match=r"unknown normalisation 'minmax' \(has: mean_std, quantile, none\)"):
        statistics.action_codec("minmax")
    with pytest.raises(ValueError, match=r"cannot leave dimensions \(4,\) alone: there are 4"):
        statistics.action_codec("mean_std", leave=[4])
