"""Notebooks run from top to bottom, and what they show is there."""

from pathlib import Path

import nbclient
import nbformat
import pytest

from wam_jax import assets

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"


@pytest.mark.slow
def test_quickstart_notebook_trains_and_evaluates(tmp_path, monkeypatch):
    if not assets.status(["minilm_l6"])[0].present:
        pytest.skip("the text encoder's weights are not installed; see wam doctor")
    monkeypatch.setenv("WAM_NOTEBOOK_DIR", str(tmp_path))
    notebook = nbformat.read(FOLDER / "01_quickstart.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(FOLDER)}}).execute()
    controllers = notebook.cells[-1].outputs[-1]["data"]["text/plain"]
    assert "scripted expert" in controllers
    assert (tmp_path / "checkpoints").is_dir()
