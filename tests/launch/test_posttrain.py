"""`wam posttrain` says what is wrong before it does any work; slow: both stages, each method, a policy that acts."""

import json
import pathlib

import pytest

from configs.world2act import posttrain as config_file
from launch.cli import main
from launch.config import ConfigError, set_field
from launch.world2act import METHODS, check_posttrain

# Everything cut short: nothing is learned.
SHORT = (
    "--config.demos.tasks=('reach',)", "--config.demos.validation_episodes=8",
    "--config.tokenizer.optimizer.steps=20", "--config.train.optimizer.steps=10", "--config.train.batch_size=16",
    "--config.train.validation_windows=16", "--config.data.split=train",
)  # fmt: skip
STAGES = (
    "--config.posttrain.world=", "--config.posttrain.trajectories=8", "--config.posttrain.batch_size=4",
    "--config.posttrain.windows=(2,)", "--config.posttrain.adapters.batch_size=8",
    "--config.posttrain.adapters.optimizer.steps=10", "--config.posttrain.optimizer.steps=4",
    "--config.train.lora.rank=2", "--config.train.score.every=4", "--config.train.score.episodes=4",
    "--config.evaluation.episodes=8", "--config.evaluation.batch_size=8",
)  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"posttrain.method": "best"}, "config.posttrain.method='best' is unknown (has: residual, lora, pixels)"),
        ({"init": ""}, "config.init is empty; name the run whose policy is to be improved"),
        ({"demos.tasks": ("reach", "push")}, "config.demos.tasks is ('reach', 'push'); post-training is for one task"),
        ({"posttrain.seed": 1000}, "config.posttrain.seed is config.evaluation.seed; choose other starts"),
        ({"posttrain.seed": 77}, "config.posttrain.seed is config.train.score.seed; choose other starts"),
        ({"posttrain.trajectories": 33}, "config.posttrain.trajectories=33 is no multiple of"),
        ({"posttrain.method": "lora"}, "config.posttrain.method='lora' needs config.train.lora.rank"),
    ],
)
def test_what_is_wrong_is_said_at_once(fields, message):
    config = config_file.get_config()
    for name, value in fields.items():
        set_field(config, name, value)
    with pytest.raises(ConfigError) as error:
        check_posttrain(config)
    assert message in str(error.value)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("world2act")
    data = f"--config.demos.directory={folder / 'data'}"
    arguments = ["--config", "configs/world2act/base.py", "--config.tokenizer.init=", "--config.demos.episodes=(24,)"]
    assert main(["train", *arguments, *SHORT, data, "--workdir", str(folder / "base")]) == 0
    return folder / "base"


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_both_stages_and_a_policy_that_acts(base, tmp_path, method):
    arguments = ["--config", "configs/world2act/posttrain.py", f"--config.init={base}", "--config.demos.episodes=(24,)"]
    data = [f"--config.demos.directory={base.parent / 'data'}", f"--config.posttrain.method={method}"]
    whole = ["posttrain", *arguments, *SHORT, *STAGES, *data, "--workdir", str(tmp_path / "run")]
    assert main(whole) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {name: found["n"] for name, found in summary["success"].items()} == {"before": 8, "after": 8}
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 4
    assert main(whole) == 0  # all of it is found
    out = ["--out", str(tmp_path / "evaluation"), "--config.evaluation.episodes=8", "--config.evaluation.batch_size=8"]
    assert main(["evaluate", str(tmp_path / "run"), *out, "--config.evaluation.films=1"]) == 0
    found = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert found["step"] == 4
