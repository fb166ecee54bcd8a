"""Pretrained weights: where each comes from, whether it is here and intact, and the one command that gets it.

The table is wam_jax/asset_table.py. An asset is looked for in three places, in this order: a folder of the user's
(``$WAM_ASSETS/NAME``), the Python package that ships it, the cache of the model hub. Nothing is ever downloaded here.
"""

import dataclasses
import functools
import hashlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from wam_jax import console
from wam_jax.asset_table import ASSETS, INDEX, Asset, File
from wam_jax.weights.files import shard_paths

_CHUNK = 16 * 2**20  # bytes hashed at a time


class AssetMissing(FileNotFoundError):
    """An asset, or one of its files, is not on this machine; the message says how to get it."""


class AssetCorrupt(ValueError):
    """A file of an asset is not the one that was published."""


@dataclasses.dataclass(frozen=True)
class Status:
    """What is known of one asset.

    Attributes:
      state: "here"; "missing"; "corrupt"; or "not verified", which is here, but nobody told us its hash.
      reason: why it is missing in part, or corrupt.
      size: bytes here, or to be expected; None where neither is known.
      root: the folder it is in.
      install: the one command that gets it.
    """

    name: str
    what: str
    state: str
    reason: str
    size: int | None
    licence: str
    origin: str
    root: str | None
    install: str

    @property
    def present(self) -> bool:
        """Whether its files are here, as far as is known the right ones."""
        return self.state in ("here", "not verified")


@functools.cache
def find(name: str) -> Mapping[str, Path]:
    """Where an asset's files are, by role; ``weights`` is for ``open_weights``.

    Files whose sha256 is registered are hashed at the first call of a process.

    Raises:
      KeyError: for a name that is not registered.
      AssetMissing: the asset, or one of its files, is not here.
      AssetCorrupt: a file does not hash to what is registered.
    """
    asset = _registered(name)
    root = _root(name, asset)
    if root is None:
        raise AssetMissing(f"asset {name!r} is not on this machine; get it with: {asset.command()}")
    for file in asset.files.values():
        if missing := [path for path in _paths(root, file) if not path.is_file()]:
            lacking = missing[0].relative_to(root)
            raise AssetMissing(f"asset {name!r} lacks {lacking}; get it again with: {asset.command(again=True)}")
        if file.sha256 is not None and (problem := _difference(root / file.path, file.sha256)):
            raise AssetCorrupt(f"asset {name!r}: {problem}; get it again with: {asset.command(again=True)}")
    return {role: root / file.path for role, file in asset.files.items()}


def status(names: Sequence[str] = (), verify: bool = False) -> list[Status]:
    """The state of these assets, or of all.

    Args:
      names: of registered assets; empty for all.
      verify: hash every file that has a known hash, with a progress bar. Else sizes are compared, which is instant.

    Raises:
      KeyError: for a name that is not registered.
    """
    return [_status(name, _registered(name), verify) for name in names or sorted(ASSETS)]


def _registered(name: str) -> Asset:
    if name not in ASSETS:
        raise KeyError(f"asset {name!r} is not registered (has: {', '.join(sorted(ASSETS))}); `wam assets` lists them")
    return ASSETS[name]


def _root(name: str, asset: Asset) -> Path | None:
    """The user's own folder first."""
    if folder := os.environ.get("WAM_ASSETS"):
        own = Path(folder).expanduser() / name
        if own.is_dir():
            return own
    return asset.source.root()


def _status(name: str, asset: Asset, verify: bool) -> Status:
    root = _root(name, asset)
    state, reason = ("missing", "") if root is None else _examine(asset, root, verify)
    size = _expected_size(asset)
    if root is not None and state in ("here", "not verified"):
        size = sum(path.stat().st_size for file in asset.files.values() for path in _paths(root, file))
    return Status(
        name=name, what=asset.what, state=state, reason=reason, size=size, licence=asset.licence, origin=asset.origin,
        root=None if root is None else str(root), install=asset.command(again=state == "corrupt"),
    )  # fmt: skip


def _examine(asset: Asset, root: Path, verify: bool) -> tuple[str, str]:
    """State and reason of an asset that is here at least in part."""
    known = True
    for file in asset.files.values():
        try:
            paths = _paths(root, file)
        except ValueError as error:
            return "corrupt", str(error)
        if missing := [path for path in paths if not path.is_file()]:
            return "missing", f"lacks {missing[0].relative_to(root)}"
        if file.size is not None and (size := (root / file.path).stat().st_size) != file.size:
            return "corrupt", f"{file.path} has {size} bytes, expected {file.size}"
        for path in paths:
            expected = file.sha256 or (_blob_hash(path) if verify else None)
            known &= expected is not None or path.name.endswith(INDEX)
            if verify and expected and (problem := _difference(path, expected, show=True)):
                return "corrupt", problem
    return ("here" if known else "not verified"), ""


def _paths(root: Path, file: File) -> list[Path]:
    """The file itself and, where it is an index that is here, its shards."""
    path = root / file.path
    shards = sorted(set(shard_paths(path).values())) if path.name.endswith(INDEX) and path.is_file() else []
    return [path, *shards]


def _blob_hash(path: Path) -> str | None:
    """The hub's cache keeps a large file under its sha256, as the hub sent it; a snapshot only links there."""
    name = path.resolve().name
    return name if path.is_symlink() and re.fullmatch(r"[0-9a-f]{64}", name) else None


def _difference(path: Path, sha256: str, show: bool = False) -> str | None:
    """How a file differs from the one that has this hash, or None."""
    chunks, digest = _chunks(path), hashlib.sha256()
    if show:
        chunks = console.progress(chunks, f"hashing {path.name}", total=math.ceil(path.stat().st_size / _CHUNK))
    for chunk in chunks:
        digest.update(chunk)
    found = digest.hexdigest()
    return None if found == sha256 else f"{path.name} has sha256 {found[:12]}…, expected {sha256[:12]}…"


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _expected_size(asset: Asset) -> int | None:
    sizes = [file.size for file in asset.files.values()]
    if None not in sizes:
        return sum(size for size in sizes if size is not None)
    return None if asset.gigabytes is None else round(asset.gigabytes * 1e9)
