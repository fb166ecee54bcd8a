"""A user's masks of recorded moments come with what the run's data has of these; what does not fit is said."""

import pathlib
import re
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import common
from data_pipelines.batches import TextTable
from data_pipelines.write_rlds import RldsWriter
from launch import evaluate, grounding
from launch.cli import main
from launch.config import ConfigError
from launch.grounding import read_recorded

SIZE, STEPS, SAID = (8, 12), (5, 3), ("open the drawer", "lift the cube")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Two held-out episodes: every picture is as bright, and proprioception as large, as 20 x episode + step."""
    directory = tmp_path_factory.mktemp("masks") / "toy"
    sizes = {"front": (16, 24), "wrist": (16, 24)}
    with RldsWriter(directory, "toy", sizes, action_size=2, proprio_size=3) as writer:
        for split in ("train", "val"):
            for episode, (steps, said) in enumerate(zip(STEPS, SAID, strict=True)):
                value = 20 * episode + np.arange(steps)
                frames = np.broadcast_to(value[:, None, None, None], (steps, 16, 24, 3)).astype(np.uint8)
                images = {"front": frames, "wrist": frames + np.uint8(100)}
                proprio = np.repeat(value[:, None], 3, 1).astype(np.float32)
                writer.add_episode(images, np.zeros((steps, 2), np.float32), proprio, said, split=split)
    return directory


@pytest.fixture
def data(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ConfigDict:
    """What a run's checkpoint says of its data; text is not encoded, its features are the number of what was said."""

    def encode(said: list[str], encoder: str, tokens: int) -> TextTable:
        features = np.array([SAID.index(text) for text in said], np.float32)[:, None, None]
        return TextTable(features, np.ones((len(said), 1), bool), tuple(said))

    monkeypatch.setattr(grounding, "encode_text", encode)
    config = common.get_config().data
    config.datasets, config.embodiments = ("nowhere", str(folder)), (0, 3)
    config.cameras = ("wrist", "front")
    return config


def write(path: pathlib.Path, **changes) -> pathlib.Path:
    """Three moments of two parts, in another size than the model's; the first part is seen in one picture alone."""
    masks = np.zeros((3, 2, 2, 16, 24), bool)
    masks[0, 0, 1, :8, :12] = True  # an upper left quarter
    arrays = {
        "masks": masks, "parts": ["hand", "cube"], "dataset": 1, "episode": [1, 0, 0], "step": [2, 4, 1], **changes,
    }  # fmt: skip
    np.savez(path / "masks.npz", **{name: value for name, value in arrays.items() if value is not None})
    return path / "masks.npz"


def test_moments_are_those_that_the_file_names_as_the_policy_is_to_see_them(data, tmp_path):
    found = read_recorded(write(tmp_path), data, SIZE)
    assert (found.name, found.parts, found.cameras) == ("masks.npz", ("hand", "cube"), ("wrist", "front"))
    np.testing.assert_array_equal(found.episode, [0, 0, 1])  # by episode and step
    value = np.array([1, 4, 22])
    np.testing.assert_array_equal(found.proprio, np.repeat(value[:, None], 3, 1))  # raw: a policy normalises it
    assert found.images.shape == (3, 2, *SIZE, 3)
    np.testing.assert_allclose(found.images[:, 1].mean((1, 2, 3)), value, atol=1)
    np.testing.assert_allclose(found.images[:, 0].mean((1, 2, 3)), value + 100, atol=1)
    assert found.instructions == (SAID[0], SAID[0], SAID[1])
    np.testing.assert_array_equal(found.text.features[:, 0, 0], [0, 0, 1])
    assert found.embodiment == 3
    assert found.masks.shape == (3, 2, 2, *SIZE)
    assert found.masks[2, 0, 1, :4, :6].all()
    assert found.masks.sum() == 24


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episode": None}, "has no array 'episode' (has: masks, parts, dataset, step); it needs"),
        ({"masks": np.ones((3, 2, 2, 16, 24))}, "masks are float64 (3, 2, 2, 16, 24); save bool [moments, parts"),
        ({"masks": np.ones((3, 2, 4, 16, 24), bool)}, "masks are of 4 cameras, the run has 2; make one for each"),
        ({"parts": ["hand"]}, "parts are <U4 (1,) for masks (3, 2, 2, 16, 24); save 2 names"),
        ({"step": [0.0, 1.0, 2.0]}, "step are float64 (3,) for masks (3, 2, 2, 16, 24); save 3 whole numbers"),
        ({"dataset": 2}, "is of dataset 2; the run has 2, counted from 0"),
        (
            {"episode": [0, 0, 2], "step": [0, 0, 0]},
            "episode 2 is not in toy; its validation split has 2, counted from 0",
        ),
        ({"step": [3, 1, 1]}, "step 3 is not in episode 1 of toy; it has 3 steps, counted from 0"),
        ({"masks": np.zeros((3, 2, 2, 16, 24), bool)}, "masks are False everywhere; mark pixels of some part"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(data, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        read_recorded(write(tmp_path, **changes), data, SIZE)


def test_a_file_that_is_no_npz_is_refused(data, tmp_path):
    for path in (tmp_path / "absent.npz", tmp_path / "masks.npy"):
        if path.suffix == ".npy":
            np.save(path, np.ones(3))
        with pytest.raises(ConfigError, match=r"is no \.npz file; write one with numpy.savez_compressed"):
            read_recorded(path, data, SIZE)


@pytest.mark.parametrize(
    ("arguments", "tasks", "message"),
    [
        (["--masks", "m.npz"], ["reach"], "--masks m.npz is for --grounding; ask for that, too"),
        (["--grounding"], [], "name some with --tasks, or give --grounding --masks FILE alone"),
        (["--grounding", "--masks", "m.npz", "--robustness"], [], "name some with --tasks"),
        (["--robustness", "--config.evaluation.robustness_axes=('wind',)"], ["reach"], "axis 'wind' is unknown (has: "),
    ],
)
def test_what_cannot_be_evaluated_is_said_before_anything_runs(monkeypatch, capsys, arguments, tasks, message):
    loaded = types.SimpleNamespace(policy=None, meta={"config": {"demos": {"tasks": tasks}}})
    monkeypatch.setattr(evaluate.devices, "start", lambda config: None)
    monkeypatch.setattr(evaluate, "load_policy", lambda directory, mesh: loaded)
    assert main(["evaluate", "runs/some", *arguments]) == 2
    assert message in capsys.readouterr().err
