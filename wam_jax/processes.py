"""Several processes that train together, as on a pod: who reads what, and who writes.

All run the same program, each on its own devices, and share a file system. Each reads its part of every batch; the
first one alone writes metrics and tokenizers, and speaks. What is made once (demonstrations, latents) is made by
whoever comes first, while the others wait.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Int

from wam_jax import console

# As jax.distributed.initialize takes them, where no cluster tells them: beside JAX_COORDINATOR_ADDRESS, which it reads.
_VARIABLES = {"num_processes": "JAX_NUM_PROCESSES", "process_id": "JAX_PROCESS_ID"}


def join() -> None:
    """Meets the other processes; before anything touches a device.

    Raises:
      RuntimeError: nothing says where they are.
    """
    given = {argument: os.environ.get(name) for argument, name in _VARIABLES.items()}
    told: dict[str, Any] = {argument: int(value) for argument, value in given.items() if value is not None}
    try:
        jax.distributed.initialize(**told)
    except ValueError as error:
        raise RuntimeError(
            "config.distributed=True, but neither a cluster that JAX knows (TPU pods, Slurm, Open MPI, Kubernetes) nor "
            f"JAX_COORDINATOR_ADDRESS, {' and '.join(_VARIABLES.values())} say where the other processes are ({error})"
        ) from error
    console.console.quiet = jax.process_index() > 0


def batch_part(mesh: Mesh) -> tuple[int, int]:
    """Which part of every batch this process reads, of how many: (index, count).

    Processes whose devices hold the same samples (arrays are cut along context or tensor, too) read the same part.

    Raises:
      ValueError: parts of different processes overlap.
    """
    places = mesh.devices.reshape(mesh.shape["data"] * mesh.shape["fsdp"], -1)
    return part_of(np.vectorize(lambda device: device.process_index)(places), jax.process_index())


def part_of(owners: Int[np.ndarray, "P D"], process: int) -> tuple[int, int]:
    """The same of the processes that own the ``D`` devices at each of ``P`` places along a batch."""
    held = {int(own): tuple(np.flatnonzero((owners == own).any(1)).tolist()) for own in np.unique(owners)}
    parts = sorted(set(held.values()))
    if sorted(place for part in parts for place in part) != list(range(len(owners))):
        raise ValueError(
            "the devices of a process hold samples that are partly those of another; choose mesh sizes of which data x "
            "fsdp, or context x tensor, divide by the devices of a process"
        )
    return parts.index(held[process]), len(parts)


def gathered(tree: Any) -> Any:
    """Arrays that this process has whole: as they are where it is alone."""
    return tree if jax.process_count() == 1 else multihost_utils.process_allgather(tree, tiled=True)


def by_first(write: Callable[[], None], what: str) -> None:
    """Lets the first process write; the others wait. ``what`` is the same in all of them."""
    if jax.process_index() == 0:
        write()
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)
