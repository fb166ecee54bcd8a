"""Converted weights hold what the file held, and the same tensors give the same bytes."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from wam_jax.weights.convert import convert
from wam_jax.weights.files import open_weights

TORCH_FILE = Path(__file__).parents[1] / "parity" / "torch_files" / "zip.pth"


def test_names_types_and_values_are_those_of_the_file(tmp_path):
    before, after = open_weights(TORCH_FILE), open_weights(convert(TORCH_FILE, tmp_path / "made"))
    assert after.shapes() == before.shapes()
    for name in before.shapes():
        np.testing.assert_array_equal(after.read(name), before.read(name))
        assert after.read(name).dtype == before.read(name).dtype
    types = {before.read(name).dtype for name in before.shapes()}
    assert {np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)} <= types


def test_the_same_tensors_give_the_same_bytes_whatever_their_order(tmp_path):
    tensors = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.ones(2, np.float32)}
    made = []
    for index, order in enumerate((tensors, dict(reversed(tensors.items())))):
        file = tmp_path / f"{index}" / "model.safetensors"
        file.parent.mkdir()
        save_file(order, file, {"metadata": "is left out"})
        made.append(convert(file, tmp_path / f"made_{index}").read_bytes())
    assert made[0] == made[1]


def test_what_is_there_is_not_written_over(tmp_path):
    there = convert(TORCH_FILE, tmp_path)
    with pytest.raises(FileExistsError, match=r"zip\.safetensors is there; remove it first, or name another folder$"):
        convert(TORCH_FILE, tmp_path)
    assert open_weights(there).shapes() == open_weights(TORCH_FILE).shapes()
