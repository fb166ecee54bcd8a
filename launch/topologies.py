"""The chips that a step can be planned for: their rates, the shapes they come in, and devices to compile for."""

import dataclasses
import difflib
import importlib.util
import math
import os
import re
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import topologies as jax_topologies

GIB = 2**30

# Read when libtpu is loaded.
_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",  # ask no metadata server what this machine is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # another process may plan at the same time
    "TPU_ACCELERATOR_TYPE": "v5p-8",  # any: else it complains that this machine is none; a topology overrules it
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class PlanError(ValueError):
    """This cannot be planned; the message says what to write instead."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """What one chip can do at best.

    Attributes:
      hbm: bytes that a program may use; None sets no limit.
      flops: bf16 matrix operations a second.
      hbm_bandwidth: bytes a second.
      ici_bandwidth: bytes a second that leave the chip over all its links together (half the bidirectional figure).
      shapes: of its slices, as they are offered; the last is the largest.
    """

    name: str
    hbm: int | None = None
    flops: float | None = None
    hbm_bandwidth: float | None = None
    ici_bandwidth: float | None = None
    shapes: tuple[str, ...] = ()


_SQUARES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = (
    "2x2x1", "2x2x2", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16", "16x16x16", "16x16x24",
)  # fmt: skip

# Rates and shapes: the pages "TPU v5e", "TPU v5p" and "TPU v6e" of the Cloud TPU documentation (197, 459, 918 TFLOP/s;
# 819, 2765, 1638 GB/s; 400, 1200, 800 GB/s of bidirectional interconnect a chip). HBM: what libtpu 0.0.42 leaves to a
# program, from its out-of-memory messages (nominally 16, 95, 32 GB). v4 is missing: its topology description has two
# devices a chip, which is not how v4 is used.
CHIPS: Mapping[str, Chip] = {
    chip.name: chip
    for chip in (
        Chip("cpu"),
        Chip("v5e", round(15.75 * GIB), 197e12, 819e9, 200e9, _SQUARES),
        Chip("v5p", round(95.74 * GIB), 459e12, 2765e9, 600e9, _CUBES),
        Chip("v6e", round(31.25 * GIB), 918e12, 1638e9, 400e9, _SQUARES),
    )
}


def find_topology(name: str) -> tuple[Chip, Sequence[jax.Device]]:
    """``v5p:4x4x4`` or ``cpu:8`` -> the chip, and devices to compile for.

    Raises:
      PlanError: for a chip or a shape that is not known, and where libtpu is missing.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, CHIPS, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise PlanError(f"topology {name!r}: chip {kind!r} is unknown (has: {', '.join(CHIPS)}){hint}")
    chip = CHIPS[kind]
    jax.config.update("jax_platforms", "cpu")  # planning takes no accelerator, not even one that is there
    if kind == "cpu":
        return chip, _cpu_devices(name, shape)
    if shape not in chip.shapes:
        known, likely = ", ".join(chip.shapes), nearest_shape(shape, chip.shapes)
        raise PlanError(f"topology {name!r} is unknown ({kind} has: {known}); did you mean {kind}:{likely}?")
    return chip, _tpu_devices(name)


def nearest_shape(shape: str, known: Sequence[str]) -> str:
    """The known shape with the nearest number of chips."""
    wanted = chips_in(shape) or 1
    return min(known, key=lambda other: abs(math.log(chips_in(other) / wanted)))


def chips_in(shape: str) -> int:
    return math.prod(int(size) for size in re.findall(r"\d+", shape))


def _cpu_devices(name: str, count: str) -> list[jax.Device]:
    if not count.isdigit() or int(count) < 1:
        raise PlanError(f"topology {name!r}: give the number of CPU devices, as cpu:8")
    try:
        jax.config.update("jax_num_cpu_devices", int(count))
    except RuntimeError:  # the backend runs already (a notebook, tests): take from what it has
        if len(jax.devices("cpu")) < int(count):
            raise PlanError(f"topology {name!r}: JAX runs with {len(jax.devices('cpu'))} CPU devices") from None
    return jax.devices("cpu")[: int(count)]


def _tpu_devices(name: str) -> Sequence[jax.Device]:
    if importlib.util.find_spec("libtpu") is None:
        raise PlanError(f"topology {name!r} needs libtpu: pip install -e '.[tpu]'; or plan for --topology cpu:COUNT")
    for variable, value in _LIBTPU.items():
        os.environ.setdefault(variable, value)
    try:
        return jax_topologies.get_topology_desc(name, "tpu").devices
    except jax.errors.JaxRuntimeError as error:
        raise PlanError(f"topology {name!r}: libtpu refuses it: {error}") from error
