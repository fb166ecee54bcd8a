"""Window arithmetic against the obvious loop."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.episodes import CameraError
from data_pipelines.rlds import RldsStore
from data_pipelines.windows import WindowSpec, episode_windows, take, window_table


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6), starts=st.none() | st.integers(1, 12))
def test_every_step_is_the_start_of_one_window(lengths: list[int], starts: int | None) -> None:
    episode, step = episode_windows(np.array(lengths), starts)
    expected = [(e, t) for e, n in enumerate(lengths) for t in range(n if starts is None else min(n, starts))]
    assert list(zip(episode.tolist(), step.tolist(), strict=True)) == expected


@given(
    length=st.integers(1, 9),
    data=st.data(),
    offsets=st.lists(st.integers(0, 12), min_size=1, max_size=5).map(sorted),
)
def test_positions_past_the_end_are_masked_and_hold_the_last(length: int, data, offsets: list[int]) -> None:
    first = data.draw(st.integers(0, length - 1))
    position, valid = take(np.array([first]), np.array([length - 1]), offsets)
    assert valid[0].tolist() == [first + offset < length for offset in offsets]
    assert position[0].tolist() == [min(first + offset, length - 1) for offset in offsets]


def test_table_of_two_stores_is_laid_end_to_end(store: RldsStore, spec: WindowSpec) -> None:
    one, two = window_table([store], spec), window_table([store, store], spec)
    total = int(store.episode_starts[-1])
    assert len(one) == total
    assert len(two) == 2 * total
    np.testing.assert_array_equal(one.row, np.arange(total))
    np.testing.assert_array_equal(one.last_row, store.episode_starts[one.episode + 1] - 1)
    np.testing.assert_array_equal(two.row, np.arange(2 * total))
    np.testing.assert_array_equal(two.last_row[total:], one.last_row + total)
    np.testing.assert_array_equal(two.store, np.repeat([0, 1], total))


def test_missing_camera_lists_what_there_is(store: RldsStore) -> None:
    with pytest.raises(CameraError, match=r"^camera 'left' is not in toy \(has: front, wrist\); set data.cameras$"):
        window_table([store], WindowSpec(cameras=("front", "left")))
    message = r"^camera 'front_depth' is not in toy \(has: front, wrist\); set data.depth_cameras$"
    with pytest.raises(CameraError, match=message):
        window_table([store], WindowSpec(cameras=("front",), depth_cameras=("front_depth",)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"frame_offsets": (1, 2)}, r"frame_offsets must start at 0 and increase; got \(1, 2\)"),
        ({"frame_offsets": (0, 4, 4)}, r"frame_offsets must start at 0 and increase; got \(0, 4, 4\)"),
        ({"action_horizon": 0}, "action_horizon must be at least 1; got 0"),
        ({"starts": 0}, "starts must be at least 1, or None for every step; got 0"),
        ({"value_discount": 1.5}, r"value_discount must be 0 \(no value stream\) to 1; got 1.5"),
    ],
)
def test_nonsense_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WindowSpec(cameras=("front",), **options)
