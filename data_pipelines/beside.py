"""Where files that belong to a dataset are kept: beside it, or in the cache where it is read-only."""

import hashlib
import os
import pathlib


def candidates(dataset: pathlib.Path, folder: str) -> list[pathlib.Path]:
    """Where they may be: ``folder`` in the dataset's own, then one of the cache (``WAM_CACHE``)."""
    cache = pathlib.Path(os.environ.get("WAM_CACHE") or pathlib.Path.home() / ".cache" / "wam_jax")
    key = hashlib.sha256(str(dataset.resolve()).encode()).hexdigest()[:16]
    return [dataset / folder, cache / folder.lstrip(".") / key]


def writable(dataset: pathlib.Path, folder: str) -> pathlib.Path:
    """The first of them that can be written."""
    here, cached = candidates(dataset, folder)
    # A folder without write bits is meant to stay as it is, even where the user (root) could write to it.
    return here if dataset.stat().st_mode & 0o222 and os.access(dataset, os.W_OK) else cached
