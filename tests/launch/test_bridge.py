"""The real Bridge set goes the whole way: index, train, held-out report. Skipped where the set is not at hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from launch.cli import main
from wam_jax import assets

ROOT = Path(__file__).resolve().parents[2]
BRIDGE = ROOT.parent / "shared" / "data" / "bridge_rlds" / "bridge_dataset" / "1.0.0"


@pytest.mark.slow
@pytest.mark.skipif(not BRIDGE.is_dir(), reason="the Bridge sample is not beside the repository")
def test_bridge_trains_and_reports_that_it_is_small(tmp_path, monkeypatch):
    if assets.status(["minilm_l6"])[0].state != "here":
        pytest.skip("the text encoder's weights are not installed; see wam doctor")
    monkeypatch.setenv("WAM_CACHE", str(tmp_path / "cache"))
    arguments = [
        "train", "--config", str(ROOT / "configs" / "bridge.py"), "--workdir", str(tmp_path / "run"),
        f"--config.data.datasets=('{BRIDGE}',)",
        "--config.platform=cpu", "--config.tokenizer.optimizer.steps=3",
        "--config.train.optimizer.steps=3", "--config.train.batch_size=32", "--config.tokenizer.batch_size=8",
        "--config.tokenizer.sizes.width=32", "--config.model.options.layers=1", "--config.model.options.video=64",
        "--config.train.validation_windows=16", "--config.train.log_every=1",
    ]  # fmt: skip
    assert main(arguments) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    heldout = summary["heldout"]["bridge_dataset"]
    assert heldout["n"] == 16
    assert set(heldout["image_error"]) == {"imagined", "repeat_present", "tokenizer"}
    assert heldout["action_error"] > 0
    assert "Too little data to mean much" in (tmp_path / "run" / "report.html").read_text()
    masks = np.zeros((3, 2, 2, 128, 128), bool)
    masks[:, 0, :, 40:60, 40:60] = masks[:, 1, :, 80:100, 30:60] = True
    np.savez(tmp_path / "masks.npz", masks=masks, parts=["hand", "object"], episode=[0, 0, 4], step=[0, 5, 9])
    arguments = ["--grounding", "--masks", str(tmp_path / "masks.npz"), "--config.platform=cpu"]
    assert main(["evaluate", str(tmp_path / "run"), *arguments, "--out", str(tmp_path / "evaluation")]) == 0
    summary = json.loads((tmp_path / "evaluation" / "summary.json").read_text())
    assert summary["tasks"] == {}  # there is no closed loop
    assert set(summary["grounding"]) == {"masks.npz"}
    assert set(summary["grounding"]["masks.npz"]["area"]) == {"hand", "object", "all"}
    assert summary["grounding"]["masks.npz"]["sensitivity"]["zero, token by token"]["n"] == 3
