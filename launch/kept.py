"""Arrays that take a while to make, kept in a file: made once, by whoever comes first."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from wam_jax.alone import alone_in

Arrays = TypeVar("Arrays", bound=NamedTuple)


def kept(path: Path, kind: Callable[..., Arrays], make: Callable[[], Arrays]) -> Arrays:
    """What ``make`` gives; from the file, if it is there. Written whole, or not at all."""
    with alone_in(path.with_suffix("")):
        if not path.exists():
            unfinished = path.with_suffix(".unfinished.npz")
            np.savez(unfinished, **make()._asdict())
            os.replace(unfinished, path)
    with np.load(path, allow_pickle=False) as saved:
        return kind(**saved)
