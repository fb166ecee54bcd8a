"""One process at a time in a folder: whoever comes second waits, and finds what the first has made."""

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from wam_jax import console

_LOCK = "lock"


@contextlib.contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Waits while another process is in the folder, which is made if need be; a killed one is out of it."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.log(f"waiting for another process that writes {directory}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
