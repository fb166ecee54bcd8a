"""Runs what `wam train` runs, at a tiny size; dies by SIGKILL at a chosen step. A program of test_resume.py.

Arguments: dataset folder, work folder, the step of the world action model at which to die (0: never).
"""

import os
import signal
import sys
import time
from pathlib import Path

from launch import devices
from launch.config import load_config
from launch.data import open_data
from launch.train import train
from wam_jax.training.metrics import MetricsLog

STEPS, SAVE_EVERY = 10, 4

SIZES = {
    "data.frame_steps": (0, 2), "data.action_horizon": 3, "data.image_size": (16, 16),
    "tokenizer.sizes.width": 16, "tokenizer.sizes.channels": 4, "tokenizer.sizes.encoder_layers": 1,
    "tokenizer.sizes.decoder_layers": 1, "tokenizer.batch_size": 4, "tokenizer.optimizer.steps": 5,
    "model.options.layers": 1, "model.options.heads": 2, "model.options.head_dim": 6, "model.options.unroll": 1,
    "model.options.video": 16, "model.options.action": 16,
    "train.batch_size": 4, "train.optimizer.steps": STEPS, "train.save_every": SAVE_EVERY, "train.log_batches": True,
}  # fmt: skip


def main(dataset: str, workdir: Path, kill_step: int) -> None:
    if kill_step:
        kill_at(kill_step, workdir)
    overrides = [f"--config.{name}={value}" for name, value in SIZES.items()]
    root = Path(__file__).parents[2]
    config = load_config(str(root / "configs" / "common.py"), [*overrides, f"--config.data.datasets=({dataset!r},)"])
    mesh = devices.start(config)
    train(config, open_data(config.data), mesh, workdir)


def kill_at(step: int, workdir: Path) -> None:
    """Kills this process once the model has logged ``step`` and the checkpoint before it is on disk."""
    append, checkpoint = MetricsLog.append, workdir / "checkpoints" / str(step // SAVE_EVERY * SAVE_EVERY)

    def append_and_die(self: MetricsLog, now: int, values: dict) -> None:
        append(self, now, values)
        if now == step and self.path.parent == workdir:
            while not checkpoint.exists():  # it is written in the background
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)

    MetricsLog.append = append_and_die  # type: ignore[method-assign]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
