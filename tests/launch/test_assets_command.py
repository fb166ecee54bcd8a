"""`wam assets` says what is here, what is not and how to get it, in a table and as JSON."""

import hashlib
import json

import pytest

from launch.cli import main
from wam_jax import assets
from wam_jax.asset_table import Asset, File, Hub

CONTENT = b"weights"


@pytest.fixture(autouse=True)
def table(tmp_path, monkeypatch):
    """Two assets, one of them in the user's own folder."""
    known = File("model.bin", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    entries = {
        "here": Asset("a toy", Hub("org/here"), {"weights": known}, "MIT", "org/here"),
        "absent": Asset("another", Hub("org/absent"), {"weights": File("model.bin")}, "CC-BY-4.0", "org/absent", 5.68),
    }
    monkeypatch.setattr(assets, "ASSETS", entries)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("WAM_ASSETS", str(tmp_path))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model.bin").write_bytes(CONTENT)


def test_the_table_has_every_asset(capsys):
    assert main(["assets"]) == 0
    rows = {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for cells in (line.split("│") for line in capsys.readouterr().out.splitlines() if line.startswith("│"))
    }
    assert rows["here"][:4] == ["a toy", "here", "0 MB", "MIT"]
    assert rows["absent"] == [
        "another", "missing", "5.68 GB", "CC-BY-4.0", "hf download org/absent --include 'model.bin'"
    ]  # fmt: skip


def test_asked_for_by_name_the_command_stands_alone(capsys):
    assert main(["assets", "absent"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "hf download org/absent --include 'model.bin'"


def test_json_says_the_same(capsys):
    assert main(["assets", "--json", "absent", "here"]) == 0
    absent, here = json.loads(capsys.readouterr().out)
    assert (absent["name"], absent["state"], absent["size"]) == ("absent", "missing", 5_680_000_000)
    assert (here["name"], here["state"], here["size"]) == ("here", "here", len(CONTENT))


def test_verify_reads_the_files_and_fails_on_a_corrupt_one(tmp_path, capsys):
    assert main(["assets", "--verify"]) == 0
    (tmp_path / "here" / "model.bin").write_bytes(CONTENT.upper())
    assert main(["assets"]) == 0
    assert main(["assets", "--verify"]) == 2
    assert "wam assets: here is corrupt (model.bin has sha256 " in capsys.readouterr().err


def test_an_unknown_name_is_refused(capsys):
    assert main(["assets", "clip"]) == 2
    message = "wam assets: asset 'clip' is not registered (has: absent, here); `wam assets` lists them"
    assert capsys.readouterr().err.strip() == message


def test_doctor_lists_the_same_states(capsys):
    assert main(["doctor"]) == 0
    weights = capsys.readouterr().out.split("Pretrained weights")[1]
    assert "here" in weights
    assert "missing" in weights
