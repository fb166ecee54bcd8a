"""What a config asks of the data reaches training batches, validation windows and pre-encoded latents alike."""

import dataclasses
import pathlib
import types

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from toy_rlds import CAMERAS

from configs import common
from data_pipelines.batches import TextTable
from data_pipelines.rlds import RldsStore
from launch import data as launch_data
from launch.config import ConfigError

NUM_WINDOWS = 20


@pytest.fixture
def config(dataset: pathlib.Path, store: RldsStore, monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
    """The toy dataset twice, its wrist camera as depth; text is not encoded."""
    monkeypatch.setattr(launch_data, "encode_text", _no_text)
    config = common.get_config().data
    config.datasets = (str(dataset), str(dataset))
    config.validation_split = "train"
    config.cameras = ("front",)
    config.image_size = CAMERAS["front"]
    config.frame_steps = (0, 3)
    config.threads = 0
    return config


def _no_text(instructions: list[str], encoder: str, tokens: int) -> TextTable:
    count = len(instructions)
    return TextTable(np.zeros((count, 2, 5), np.float32), np.ones((count, 2), bool), tuple(instructions))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EveryEighth:
    """A tokenizer of single images."""

    config = types.SimpleNamespace(tubelet=1, temporal=False)

    def start(self, images):
        return images[..., ::8, ::8, :].astype(np.float32), ()


def test_action_free_video_comes_beside_demonstrations(config: ConfigDict) -> None:
    config.update({"split": "train[:2]", "unlabelled": "train[2:]"})
    data = launch_data.open_data(config)
    assert [store.num_episodes for store in data.train] == [2, 2, 3, 3]
    batch = next(data.batches(NUM_WINDOWS * 2, 0, None))
    labelled = batch.action_mask.any((1, 2))
    assert 0 < labelled.sum() < len(labelled)
    np.testing.assert_array_equal(batch.proprio_mask.any((1, 2)), labelled)  # of the others, only pictures count
    assert batch.image_mask[:, 0].all()
    only_labelled = config.copy_and_resolve_references()
    only_labelled.unlabelled = ""
    statistics = launch_data.open_data(only_labelled).statistics
    np.testing.assert_array_equal(data.statistics.action.mean, statistics.action.mean)  # nothing is looked at


def test_nothing_further_is_the_default(config: ConfigDict) -> None:
    batch = next(launch_data.open_data(config).batches(NUM_WINDOWS, 0, None))
    assert batch.streams == {}
    assert (batch.embodiment == 0).all()


def test_streams_and_embodiments_are_those_of_the_config(config: ConfigDict, tmp_path: pathlib.Path) -> None:
    config.update({"depth_cameras": ("wrist",), "value_discount": 0.9, "embodiments": (3, 5)})
    data = launch_data.open_data(config)
    latents = launch_data.build_latents(data, EveryEighth(), "key")
    pixels, encoded = (next(data.batches(NUM_WINDOWS, 0, source)) for source in (None, latents))
    assert set(pixels.embodiment.tolist()) == {3, 5}
    np.testing.assert_array_equal(encoded.latents, pixels.images[:, :, :, ::8, ::8])
    depth = pixels.streams["depth"].values
    np.testing.assert_array_equal(encoded.streams["depth"].values, depth[:, :, :, ::8, ::8])
    np.testing.assert_array_equal(encoded.streams["value"].values, pixels.streams["value"].values)
    held_out = data.validation_windows(NUM_WINDOWS, 0, store=1)
    assert (held_out.embodiment == 5).all()
    assert held_out.streams["depth"].values.shape == (NUM_WINDOWS, 2, 1, *CAMERAS["front"], 3)
    assert held_out.streams["value"].values.max() == 1


def test_embodiments_are_one_a_dataset(config: ConfigDict) -> None:
    config.embodiments = (0, 1, 2)
    message = "config.data has 3 embodiments and 2 datasets; give one each, or none"
    with pytest.raises(ConfigError, match=message):
        launch_data.open_data(config)
