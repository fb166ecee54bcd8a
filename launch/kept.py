"""Arrays that take a while to make, kept in a file: made once, by whoever comes first."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from wam_jax.alone import alone_in


def kept(path: Path, kind: Callable[..., Any], make: Callable[[], Any]) -> Any:
    """The ``NamedTuple`` of arrays that ``make`` gives; from the file, if it is there. Written whole, or not at all."""
    with alone_in(path.with_suffix("")):
        if not path.exists():
            unfinished = path.with_suffix(".unfinished.npz")
            np.savez(unfinished, **make()._asdict())
            os.replace(unfinished, path)
    with np.load(path, allow_pickle=False) as saved:
        return kind(**saved)
