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


def kept(directory: Path, name: str, decides: Any, kind: Callable[..., Arrays], make: Callable[[], Arrays]) -> Arrays:
    """What ``make`` gives; from the file, if it is there. Written whole, or not at all.

    Args:
      directory: of the file.
      name: it begins with.
      decides: all that the arrays depend on, as JSON; another file for each.
      kind: of ``make``'s arrays.
      make: them.
    """
    key = hashlib.sha256(json.dumps(decides).encode()).hexdigest()
    path = directory / f"{name}_{key[:12]}.npz"
    with alone_in(path.with_suffix("")):
        if not path.exists():
            unfinished = path.with_suffix(".unfinished.npz")
            np.savez(unfinished, **make()._asdict())
            os.replace(unfinished, path)
    with np.load(path, allow_pickle=False) as saved:
        return kind(**saved)
