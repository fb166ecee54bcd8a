"""A small RLDS dataset that the tests write themselves, and the real one where it is at hand."""

import pathlib

import pytest
from toy_rlds import CUMULATIVE, Episode, make_episode, write_dataset

from data_pipelines.rlds import RldsStore
from data_pipelines.statistics import Statistics, compute_statistics
from data_pipelines.windows import WindowSpec

BRIDGE = pathlib.Path(__file__).parents[3] / "shared" / "data" / "bridge_rlds" / "bridge_dataset" / "1.0.0"


@pytest.fixture(scope="session")
def episodes() -> list[Episode]:
    return [make_episode(seed, steps) for seed, steps in enumerate((5, 9, 1, 12, 7))]


@pytest.fixture(scope="session")
def dataset(episodes: list[Episode], tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return write_dataset(tmp_path_factory.mktemp("rlds") / "toy", episodes, episodes_per_shard=2)


@pytest.fixture(scope="session")
def store(dataset: pathlib.Path) -> RldsStore:
    return RldsStore.open(dataset, "train", build=True)


@pytest.fixture(scope="session")
def spec() -> WindowSpec:
    return WindowSpec(cameras=("front", "wrist"), frame_offsets=(0, 3), action_horizon=4)


@pytest.fixture(scope="session")
def statistics(store: RldsStore, spec: WindowSpec) -> Statistics:
    return compute_statistics([store], spec, CUMULATIVE)


@pytest.fixture(scope="session")
def bridge_directory() -> pathlib.Path:
    if not BRIDGE.is_dir():
        pytest.skip("the Bridge sample is not at ../shared/data")
    return BRIDGE
