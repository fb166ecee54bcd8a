"""What a training will hold, said before anything is allocated, and what would help where it does not fit."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from launch.plan import Plan, plan_step
from launch.topologies import GIB, Chip
from wam_jax import console
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.trainer import Trainer


class DoesNotFit(RuntimeError):
    """A training needs more memory than there is; the message says what would help, and how much."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Remedy:
    """A change that saves memory: how to ask for it, and the trainer with it."""

    text: str
    trainer: Trainer


def check_memory(
    trainer: Trainer, further: Any, batch: Any, remedies: Callable[[], list[Remedy]], enforce: bool = True
) -> Any:
    """Compiles the step, prints what one device will hold, and returns the compiled step.

    Args:
      trainer: what is trained.
      further: what the loss needs beside parameters, as ``jax.ShapeDtypeStruct`` with shardings.
      batch: one batch, likewise.
      remedies: changes to try where it does not fit; each is compiled, which takes a while.
      enforce: raise where it does not fit.

    Raises:
      DoesNotFit: more is needed than there is.
    """
    own = trainer.mesh.local_devices  # of several processes, each knows its own devices, and has a host of its own
    chip = Chip(name=own[0].device_kind, hbm=_available(own[0], len(own)))
    plan = _plan(trainer, further, batch, chip)
    _print(plan)
    if plan.fits or not enforce:
        return plan.compiled
    raise DoesNotFit(f"{plan.verdict}; what would help:\n{_advice(plan, further, batch, remedies())}")


def state_remedies(trainer: Trainer, batch_size: int) -> list[Remedy]:
    """What saves memory between steps: shorter moments, no moving average; half as much of a batch at a time."""
    config, found = trainer.config, []

    def changed(text: str, change: OptimizerConfig) -> None:
        found.append(Remedy(text=text, trainer=dataclasses.replace(trainer, config=change)))

    if config.method == "adamw" and config.moments == "float32":
        for moments in ("bfloat16", "float8"):
            field = f"--config.train.optimizer.moments={moments}"
            changed(field, dataclasses.replace(config, moments=moments))  # type: ignore[arg-type]
    if config.ema:
        changed("--config.train.optimizer.ema=0.0", dataclasses.replace(config, ema=0.0))
    twice, shards = 2 * trainer.accumulate, trainer.mesh.shape["data"] * trainer.mesh.shape["fsdp"]
    if batch_size % (twice * shards) == 0:
        again = dataclasses.replace(trainer, accumulate=twice)
        found.append(Remedy(text=f"--config.train.accumulate={twice}", trainer=again))
    return found


def _plan(trainer: Trainer, further: Any, batch: Any, chip: Chip) -> Plan:
    frozen = trainer.frozen_argument(trainer.abstract_frozen_part(), further)
    return plan_step(trainer.step, trainer.abstract_state(), frozen, batch, chip, trainer.mesh.size)


def _advice(plan: Plan, further: Any, batch: Any, remedies: list[Remedy]) -> str:
    lines = []
    for remedy in console.progress(remedies, "looking for memory", len(remedies)):
        tried = _plan(remedy.trainer, further, batch, plan.chip)
        saved = plan.needed - tried.needed
        if saved > 0:
            fits = "; it then fits" if tried.fits else ""
            lines.append((saved, f"  {remedy.text} saves {saved / GIB:.2f} GiB ({saved:,} bytes){fits}"))
    lines.append((0, "  more devices: config.mesh.fsdp cuts parameters, average and moments"))
    return "\n".join(text for _, text in sorted(lines, reverse=True))


def _available(device: jax.Device, count: int) -> int | None:
    """Bytes that one device may hold; None where nothing tells."""
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    limits = [_meminfo(), *(int(text) for text in _read("/sys/fs/cgroup/memory.max") if text.isdigit())]
    return min(limit for limit in limits if limit is not None) // count if any(limits) else None


def _meminfo() -> int | None:
    """Bytes that Linux can give without swapping; its page cache counts as free."""
    found = [line.split() for line in _read("/proc/meminfo") if line.startswith("MemAvailable:")]
    return 1024 * int(found[0][1]) if found else None


def _read(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).is_file() else []


def _print(plan: Plan) -> None:
    parts = {name: size for name, size in plan.held.items() if size}
    if plan.memory:
        parts["the step itself"] = plan.memory.temporaries
    text = ", ".join(f"{name} {_size(size)}" for name, size in parts.items())
    limit = "" if plan.available is None else f" of {_size(plan.available)}"
    each = "" if plan.chips == 1 else " each"
    console.log(f"memory{each}: {text}; {_size(plan.needed)}{limit} at the peak")


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"
