"""`wam skills` counts what words and contacts agree on, and training reads the same skills."""

import json
import pathlib

import numpy as np
import pytest

from configs import common
from data_pipelines.batches import TextTable
from data_pipelines.write_rlds import RldsWriter
from launch import data as launch_data
from launch.cli import main
from launch.config import ConfigError

TWO = "pick up the red cube and place it on the plate"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Three demonstrations of 40 steps that close on something at step 10; two of them say two things."""
    directory = tmp_path_factory.mktemp("skills") / "toy"
    width = np.where(np.arange(40) < 10, 1.0, 0.5).astype(np.float32)
    with RldsWriter(directory, "toy", {"front": (8, 8)}, action_size=2, proprio_size=2) as writer:
        for said in (TWO, "lift the red cube", TWO):
            proprio = np.stack([np.zeros(40, np.float32), width], 1)
            writer.add_episode(
                {"front": np.zeros((40, 8, 8, 3), np.uint8)}, np.zeros((40, 2), np.float32), proprio, said
            )
    return directory


def arguments(folder: pathlib.Path, out: pathlib.Path, **fields: str) -> list[str]:
    asked = {"datasets": f"('{folder}',)", "skills.cut": "gripper", "skills.signal": "proprio[1]", **fields}
    return ["skills", "--config", "configs/common.py", "--out", str(out)] + [
        f"--config.data.{name}={value}" for name, value in asked.items()
    ]


def test_the_rate_and_every_discarded_demonstration_are_reported(folder, tmp_path, capsys):
    assert main(arguments(folder, tmp_path)) == 0
    found = json.loads((tmp_path / "summary.json").read_text())["toy"]
    assert found["demonstrations"] == 3
    assert found["synchronised"] == pytest.approx(2 / 3)
    assert found["discarded"] == {"1 by its words, 2 by its motion": 1}
    assert found["segments"][:2] == [[0, 0, 10, "pick up the red cube"], [0, 10, 40, "place the red cube on the plate"]]
    assert "toy: 1 discarded: 1 by its words, 2 by its motion" in capsys.readouterr().err
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"skills.cut": "never"}, "config.data.skills.cut='never' is unknown (has: gripper, pause)"),
        ({"skills.cut": ""}, "config.data.skills.cut is empty; set it to one of: gripper, pause"),
        ({"skills.signal": "width"}, "config.data.skills.signal='width' is not a column of toy"),
        ({"skills.signal": "proprio[5]"}, "config.data.skills.signal='proprio[5]': proprio of toy has 2 numbers"),
        (
            {"skills.cut": "pause"},
            "config.data.skills.signal='proprio[1]' is 1 numbers; pauses are those of the hand's",
        ),
        ({"skills.splitter": "guess"}, "config.data.skills.splitter='guess' is unknown (has: grammar, chat)"),
        ({"skills.splitter": "chat"}, "WAM_CHAT_URL is ''; set it to the address of a chat API"),
    ],
)
def test_mistakes_are_one_line(folder, tmp_path, capsys, monkeypatch, fields, message):
    monkeypatch.delenv("WAM_CHAT_URL", raising=False)
    assert main(arguments(folder, tmp_path, **fields)) == 2
    assert message in capsys.readouterr().err


def test_training_reads_skills_with_their_own_instructions(folder, monkeypatch):
    def no_text(instructions: list[str], encoder: str, tokens: int) -> TextTable:
        count = len(instructions)
        return TextTable(np.zeros((count, 2, 5), np.float32), np.ones((count, 2), bool), tuple(instructions))

    monkeypatch.setattr(launch_data, "encode_text", no_text)
    config = common.get_config().data
    config.update(
        {"datasets": (str(folder),), "validation_split": "train", "cameras": ("front",), "image_size": (8, 8)}
    )
    config.update({"cumulative": (False, False), "unnormalized": ()})
    config.skills.update({"cut": "gripper", "signal": "proprio[1]"})
    data = launch_data.open_data(config)
    assert data.train[0].num_episodes == 4
    assert set(data.text.instructions) == {"pick up the red cube", "place the red cube on the plate"}
    config.skills.closed_by = 0.5  # metres: nothing ever closes so far
    config.split = "train[:1]"
    message = r"no demonstration of toy could be cut \(1 x 2 by its words, 1 by its motion\); wam skills draws where$"
    with pytest.raises(ConfigError, match=message):
        launch_data.open_data(config)
