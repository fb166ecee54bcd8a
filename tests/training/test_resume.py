"""A training that is killed and resumed ends bitwise where an uninterrupted one does."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from interrupted_training import SAVE_EVERY, STEPS

from data_pipelines.write_rlds import RldsWriter
from wam_jax import assets
from wam_jax.encoders import minilm
from wam_jax.training.metrics import read_metrics

pytestmark = pytest.mark.slow  # three processes; test_checkpoint.py resumes within one
ROOT = Path(__file__).parents[2]
CAMERAS = {"front": (16, 16), "wrist": (16, 16)}


def write_demonstrations(directory: Path) -> Path:
    rng = np.random.default_rng(0)
    with RldsWriter(directory, "noise", CAMERAS, 4, 3) as writer:
        for number in range(4):
            steps = 6 + number
            images = {camera: rng.integers(0, 256, (steps, *size, 3), np.uint8) for camera, size in CAMERAS.items()}
            action, proprio = (rng.normal(size=(steps, width)).astype(np.float32) for width in (4, 3))
            text = ("reach the red ball", "lift the blue cube")[number % 2]
            writer.add_episode(images, action, proprio, text, split="val" if number == 3 else "train")
    return directory


def run(dataset: Path, workdir: Path, kill_step: int = 0) -> subprocess.CompletedProcess:
    command = [sys.executable, str(Path(__file__).with_name("interrupted_training.py"))]
    quickly = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"  # of 10 steps, most is compiling
    environment = {**os.environ, "WAM_CACHE": str(ROOT / ".cache" / "wam"), "XLA_FLAGS": quickly}
    return subprocess.run(
        [*command, str(dataset), str(workdir), str(kill_step)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path, str]:
    """Work folders of an uninterrupted and of a resumed run, and what the resumed one printed."""
    try:
        assets.find(minilm.ASSET)
    except assets.AssetMissing as missing:
        pytest.skip(str(missing))
    folder = tmp_path_factory.mktemp("resume")
    dataset = write_demonstrations(folder / "noise")
    straight = run(dataset, folder / "straight")
    assert straight.returncode == 0, straight.stderr
    kill_step = random.randint(SAVE_EVERY + 1, 2 * SAVE_EVERY - 1)
    killed = run(dataset, folder / "resumed", kill_step)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [row["step"] for row in read_metrics(folder / "resumed" / "metrics.jsonl")][-1] == kill_step
    resumed = run(dataset, folder / "resumed")
    assert resumed.returncode == 0, resumed.stderr
    return folder / "straight", folder / "resumed", resumed.stderr


def item(workdir: Path, name: str) -> dict[str, np.ndarray]:
    """The arrays of one item of the last checkpoint, by path."""
    tree = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(STEPS) / name)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def test_the_run_went_on_from_the_checkpoint_before_the_kill(runs):
    assert f"world action model: resuming from step {SAVE_EVERY}" in runs[2]


def test_parameters_moving_average_and_moments_are_bitwise_equal(runs):
    straight, resumed = (item(workdir, "state") for workdir in runs[:2])
    assert straight.keys() == resumed.keys()
    assert {part for part in ("params", "ema", "optimizer") if any(part in path for path in straight)} == {
        "params", "ema", "optimizer",
    }  # fmt: skip
    for path, value in straight.items():
        np.testing.assert_array_equal(resumed[path], value, err_msg=path)
    moved = [
        path
        for path, x in straight.items()
        if "params" in path and np.any(x != straight[path.replace("params", "ema")])
    ]
    assert moved  # otherwise nothing was trained, and equality says nothing


def test_frozen_tokenizer_is_bitwise_equal(runs):
    straight, resumed = (item(workdir, "tokenizer") for workdir in runs[:2])
    for path, value in straight.items():
        np.testing.assert_array_equal(resumed[path], value, err_msg=path)


def test_every_step_saw_the_same_batch_and_had_the_same_loss(runs):
    straight, resumed = (
        [{k: v for k, v in row.items() if k != "seconds"} for row in read_metrics(workdir / "metrics.jsonl")]
        for workdir in runs[:2]
    )
    assert [row["step"] for row in straight] == list(range(1, STEPS + 1))
    assert len({row["batch"] for row in straight}) == STEPS
    assert resumed == straight
