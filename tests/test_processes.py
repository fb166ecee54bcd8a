"""Processes of a pod read disjoint parts of a batch, train as one, and go on where they were killed."""

import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest

from configs import common
from launch import devices
from launch.devices import DeviceError
from wam_jax.processes import batch_part, gathered, part_of
from wam_jax.sharding import make_mesh


@pytest.mark.parametrize(
    ("owners", "parts"),
    [
        ([[0], [0], [1], [1]], {0: (0, 2), 1: (1, 2)}),
        ([[0], [1], [0], [1]], {0: (0, 2), 1: (1, 2)}),  # neighbours in the mesh, not in a process
        ([[0, 1], [0, 1]], {0: (0, 1), 1: (0, 1)}),  # both hold all samples: cut along context or tensor
        ([[0, 1], [0, 1], [2, 3], [2, 3]], {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}),
    ],
)
def test_processes_that_hold_the_same_samples_read_the_same_part(owners, parts):
    assert {process: part_of(np.array(owners), process) for process in parts} == parts


def test_parts_that_overlap_are_refused():
    with pytest.raises(ValueError, match="hold samples that are partly those of another; choose mesh sizes"):
        part_of(np.array([[0, 0], [0, 1], [1, 1]]), 0)


def test_a_process_alone_has_all():
    tree = {"a": np.ones(2)}
    assert batch_part(make_mesh({"data": -1})) == (0, 1)
    assert gathered(tree) is tree


def test_commands_of_one_process_say_so():
    config = common.get_config()
    config.distributed = True
    with pytest.raises(DeviceError, match="of all commands only `wam train` runs in several processes"):
        devices.start(config)


SHORT = (
    "--config.demos.tasks=('reach',)", "--config.demos.episodes=(24,)", "--config.demos.validation_episodes=8",
    "--config.tokenizer.optimizer.steps=4", "--config.tokenizer.batch_size=16", "--config.train.optimizer.steps=4",
    "--config.train.batch_size=16", "--config.train.save_every=2", "--config.train.log_batches=True",
    "--config.platform=cpu", "--config.cpu_devices=2", "--config.distributed=True",
    "--config.mesh={'data': -1, 'fsdp': 2, 'context': 1, 'tensor': 1}",
)  # fmt: skip


def train(folder: pathlib.Path) -> list[dict]:
    """By two processes of two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    told = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    command = [sys.executable, "-m", "launch.cli", "train", "--config", "configs/common.py", *SHORT]
    command += [f"--config.demos.directory={folder / 'data'}", "--workdir", str(folder / "run")]
    running = [subprocess.Popen(command, env={**told, "JAX_PROCESS_ID": str(number)}) for number in range(2)]
    assert [process.wait(timeout=900) for process in running] == [0, 0]
    rows = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(row).items() if name != "seconds"} for row in rows]


@pytest.mark.slow
def test_two_processes_train_as_one_and_resume_bit_for_bit(tmp_path):
    whole = train(tmp_path)
    assert [row["step"] for row in whole] == [1, 2, 3, 4]
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "4")
    assert train(tmp_path) == whole
