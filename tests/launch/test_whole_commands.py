"""Commands from end to end on one tiny run: nothing is learned, everything is written."""

import json
import pathlib
import re
import subprocess
import sys

import pytest

from launch.cli import main
from launch.world2act import METHODS
from wam_jax.posttraining.restore import load_policy
from wam_jax.sharding import make_mesh
from wam_jax.training.checkpoint import CheckpointError

pytestmark = pytest.mark.slow

# Everything cut short: nothing is learned. Batches divide over the eight devices that tests have.
SHORT = (
    "--config.demos.tasks=('reach',)", "--config.demos.validation_episodes=8",
    "--config.tokenizer.optimizer.steps=20", "--config.train.optimizer.steps=10", "--config.train.batch_size=32",
    "--config.train.validation_windows=16", "--config.data.split=train",
)  # fmt: skip
STAGES = (
    "--config.posttrain.world=", "--config.posttrain.trajectories=16", "--config.posttrain.batch_size=8",
    "--config.posttrain.windows=2", "--config.posttrain.adapters.batch_size=8",
    "--config.posttrain.adapters.own_episodes=8",
    "--config.posttrain.adapters.optimizer.steps=10", "--config.posttrain.optimizer.steps=4",
    "--config.train.lora.rank=2", "--config.train.score.every=4", "--config.train.score.episodes=8",
    "--config.evaluation.episodes=8", "--config.evaluation.batch_size=8",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("world2act")
    data = f"--config.demos.directory={folder / 'data'}"
    arguments = ["--config", "configs/world2act/base.py", "--config.tokenizer.init=", "--config.demos.episodes=(24,)"]
    assert main(["train", *arguments, *SHORT, data, "--workdir", str(folder / "base")]) == 0
    return folder / "base"


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
    if method == "residual":  # what acts, as a server would describe it
        interface = load_policy(tmp_path / "run", make_mesh({"data": -1})).meta["identity"]["interface"]
        assert interface["action_horizon"] == 7
    (imagined,) = (tmp_path / "run").glob("imagined_*.npz")
    made = [path.stat().st_mtime_ns for path in (imagined, *(tmp_path / "run").rglob("commit_success.txt"))]
    assert main(whole) == 0  # all of it is found
    assert made == [path.stat().st_mtime_ns for path in (imagined, *(tmp_path / "run").rglob("commit_success.txt"))]
    with pytest.raises(CheckpointError, match=r"seed=5000, this run has 6000"):
        main(["--debug", *whole, "--config.posttrain.seed=6000"])
    out = ["--out", str(tmp_path / "evaluation"), "--config.evaluation.episodes=8", "--config.evaluation.batch_size=8"]
    assert main(["evaluate", str(tmp_path / "run"), *out, "--config.evaluation.films=1"]) == 0
    found = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert found["step"] == 4
    best = ["evaluate", str(tmp_path / "run" / "best"), "--out", str(tmp_path / "best"), "--config.evaluation.films=0"]
    assert main([*best, "--config.evaluation.episodes=8", "--config.evaluation.batch_size=8"]) == 0


def test_a_policy_elsewhere_is_evaluated_and_corrected(base, tmp_path):
    command = [sys.executable, "-m", "launch.cli", "serve", str(base), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        address = next(found[0] for line in server.stderr if (found := re.search(r"ws://\S+", line)))
        few = ["--config.evaluation.episodes=8", "--config.evaluation.batch_size=8", "--config.evaluation.films=1"]
        assert main(["evaluate", address, *few, "--out", str(tmp_path / "evaluation")]) == 0
        arguments = ["--config", "configs/world2act/posttrain.py", f"--config.init={address}"]
        arguments.append("--config.posttrain.residual.options.sees=pictures")
        arguments += ["--config.demos.episodes=(24,)", f"--config.demos.directory={base.parent / 'data'}"]
        world = f"--config.posttrain.world={base}"  # the last word counts
        run = str(tmp_path / "run")
        assert main(["posttrain", *arguments, *SHORT, *STAGES, world, "--workdir", run]) == 0
        assert main(["evaluate", run, *few, "--out", str(tmp_path / "corrected")]) == 0
        server.terminate()
    assert set(json.loads((tmp_path / "evaluation" / "summary.json").read_text())["tasks"]) == {"reach"}
    assert json.loads((tmp_path / "corrected" / "summary.json").read_text())["step"] == 4


def test_what_actions_look_at_and_changed_conditions(base, tmp_path):
    numbers = {"episodes": 8, "batch_size": 8, "robustness_episodes": 2, "grounding_scenes": 8, "films": 1}
    fields = [f"--config.evaluation.{name}={value}" for name, value in numbers.items()]
    arguments = ["evaluate", str(base), "--grounding", "--robustness", "--out", str(tmp_path)]
    assert main([*arguments, *fields]) == 0
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found.keys() >= {"tasks", "grounding", "robustness"}
    assert found["grounding"]["reach"]["sensitivity"].keys() >= {"zero", "swap", "mean, token by token"}
    assert set(found["robustness"]["reach"]["axes"]) >= {"camera", "light", "wording"}
    assert (tmp_path / "report.html").stat().st_size > 10_000


def test_imagination_is_compared_with_the_simulator_and_hears_other_words(base, tmp_path):
    few = ["--episodes", "2", "--films", "1", "--windows", "2"]
    assert main(["imagine", str(base), "--task", "reach", *few, "--out", str(tmp_path / "drift")]) == 0
    drift = json.loads((tmp_path / "drift" / "summary.json").read_text())["drift"]
    assert set(drift) == {"by skills", "nothing moves", "what happened, tokenised"}
    assert all(len(values) == 2 for metrics in drift.values() for values in metrics.values())
    said = ["--skills", "reach the red sphere", "reach the blue sphere"]
    assert main(["imagine", str(base), "--task", "reach", *few, *said, "--out", str(tmp_path / "said")]) == 0
    assert json.loads((tmp_path / "said" / "summary.json").read_text())["windows"] == {"said": 4}


STUDY = """
from configs.studies import world2act

def get_config():
    config = world2act.get_config()
    for name in set(config.arms) - {"base", "residual", "own_eyes", "pixels"}:
        del config.arms[name]
    for name, arm in config.arms.items():
        arm.before["train.optimizer.steps"] = 10
        arm.before["data.split"] = "train"
    config.compare = (("residual", "base"), ("pixels", "base"))
    return config
"""


def test_a_study_of_post_trained_arms_shares_their_base_and_is_found_again(base, tmp_path, capsys):
    (tmp_path / "tiny.py").write_text(STUDY)
    told = [field for field in (*SHORT, *STAGES) if "lora" not in field]  # an arm's, not what arms begin from
    fields = [field.replace("--config.", "--config.base.") for field in told]
    fields += [f"--config.base.posttrain.world={base}", f"--config.base.tokenizer.init={base}"]
    fields += [f"--config.base.demos.directory={base.parent / 'data'}", "--config.base.demos.episodes=(24,)"]
    fields += ["--config.base.evaluation.execute=7", "--config.seeds=(0,)"]
    study = ["study", str(tmp_path / "tiny.py"), "--workdir", str(tmp_path / "study"), *fields]
    assert main(study) == 0
    summary = json.loads((tmp_path / "study" / "summary.json").read_text())
    assert set(summary["arms"]) == {"base", "residual", "own_eyes", "pixels"}
    assert len(list((tmp_path / "study" / "before").glob("*/seed_0"))) == 1
    assert {"online_similarity", "adapters_retrieval"} <= summary["metrics"]["residual"][0].keys()
    assert "adapters_reconstruction" in summary["metrics"]["pixels"][0]
    assert all("wrong_object" in arms[0] for arms in summary["metrics"].values())
    assert len(list((tmp_path / "study" / "shared").glob("imagined_*.npz"))) == 1
    assert len(list((tmp_path / "study" / "shared").glob("adapters_*/checkpoints"))) == 2  # contrastive, and pixels'
    capsys.readouterr()
    assert main(study) == 0
    assert "post-training" not in capsys.readouterr().err  # all of it is read back
