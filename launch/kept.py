"""Arrays that take a while to make, kept in a file: made once, by whoever comes first."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from wam_jax.alone import alone_in

Arrays = TypeVar("Arrays", bound=NamedTuple)


def digest(decides: Any) -> str:
    """A short name for all that something depends on, as JSON."""
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:12]


def kept(directory: Path, name: str, decides: Any, kind: Callable[..., Arrays], make: Callable[[], Arrays]) -> Arrays:
    """What ``make`` gives; from the file, if it is there. Written whole, or not at all.

    Args:
      directory: of the file.
      name: it begins with.
      decides: all that the arrays depend on, as JSON; another file for each.
      kind: of ``make``'s arrays.
      make: them.
    """
    path = directory / f"{name}_{digest(decides)}.npz"
    with alone_in(path.with_suffix("")):
        if not path.exists():
            unfinished = path.with_suffix(".unfinished.npz")
            np.savez(unfinished, **make()._asdict())
            os.replace(unfinished, path)
    with np.load(path, allow_pickle=False) as saved:
        return kind(**saved)
