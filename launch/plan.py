"""`wam plan`: compiles the whole train step for a TPU topology, with no TPU and no array, and says what a chip pays.

    wam plan --spec NAME --topology v5p:4x4x4 --mesh fsdp=64
    wam plan --spec NAME --topology cpu:8 --mesh fsdp=8 --batch 16 --set remat=full num_layers=4

Exit code 0: it fits. 1: it does not fit. 2: it cannot be planned (unknown topology, mesh that does not divide, ...).
"""

import argparse
import ast
import dataclasses
import json
import math
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from launch.topologies import GIB, Chip, PlanError, chips_in, find_topology
from launch.zoo import changed
from wam_jax import console
from wam_jax.compiled import KINDS, Memory, OutOfMemory, Traffic, collectives, memory, out_of_memory
from wam_jax.flops import Flops, jaxpr_flops
from wam_jax.nn.module import define
from wam_jax.sharding import MESH_AXES, batch_sharding, make_mesh, placed
from wam_jax.training.losses import wam_loss
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.state import TrainState, count_params
from wam_jax.training.step import StepFn
from wam_jax.training.trainer import Trainer
from wam_jax.wam.fake import abstract_batch
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.spec import Interface, Spec
from wam_jax.zoo import SYSTEMS, published

# -- command ----------------------------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--spec", required=True, help="a system of the zoo")
    parser.add_argument("--size", help="one of its published sizes (default: its first)")
    parser.add_argument("--topology", required=True, help="CHIP:SHAPE, as v5p:4x4x4 or v6e:16x16; or cpu:COUNT")
    parser.add_argument("--mesh", default="fsdp=-1", help="AXIS=SIZE,... with axes data, fsdp, context, tensor")
    parser.add_argument("--batch", type=int, help="samples in a step, over all chips (default: one a data shard)")
    parser.add_argument("--frames", type=int, help="frames of a sample, the present one included")
    parser.add_argument("--set", nargs="+", default=[], metavar="FIELD=VALUE", help="fields of Spec, Size or Interface")
    parser.add_argument("--hbm", type=float, help="GiB that a program may use on a chip, instead of the table's")
    parser.add_argument("--json", type=Path, help="also write the figures here")


def run(args: argparse.Namespace, overrides: Sequence[str] = ()) -> None:
    """Raises: PlanError, and ValueError of the zoo and the mesh; SystemExit(1) if the model does not fit."""
    if overrides:
        raise PlanError(f"argument {overrides[0]!r} is unknown; fields are set with --set FIELD=VALUE")
    chip, devices = find_topology(args.topology)
    if args.hbm is not None:
        chip = dataclasses.replace(chip, hbm=round(args.hbm * GIB))
    mesh = make_mesh(parse_mesh(args.mesh), devices)
    spec, interface = _model(args)
    batch_size = _batch_size(args.batch, mesh)
    step, state, batch = _abstract_step(spec, interface, batch_size, mesh)
    console.log(
        f"{spec.name}: {count_params(state.params) / 1e9:.3f}B parameters, {batch_size} samples a step; "
        f"{args.topology}: {mesh.size} chips, mesh {_mesh_text(mesh)}; compiling"
    )
    plan = plan_step(step, state, None, batch, chip, mesh.size)
    report(plan)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**_request(args, spec, mesh, batch_size), **plan.figures()}, indent=1) + "\n")
        console.log(f"wrote {args.json}")
    print(plan.verdict)
    if not plan.fits:
        for remedy in remedies(plan, spec.remat, batch_size, mesh):
            print(f"  - {remedy}")
        raise SystemExit(1)


# -- the model: all that depends on specs and batches -----------------------------------------------------------------


def _model(args: argparse.Namespace) -> tuple[Spec, Interface]:
    """The zoo's system at a published size, with ``--set`` and ``--frames``."""
    sizes = list(SYSTEMS[args.spec].interfaces) if args.spec in SYSTEMS else []
    size = args.size or (sizes[0] if sizes else "")
    _, interface = published(args.spec, size)
    changes = parse_fields(args.set)
    if args.frames is not None:
        changes["frame_steps"] = _frame_steps(interface.frame_steps, args.frames)
    return changed(args.spec, size, interface, changes)


def _abstract_step(spec: Spec, interface: Interface, batch_size: int, mesh: Mesh) -> tuple[StepFn, TrainState, Any]:
    """The jitted train step and its state and batch as ``jax.ShapeDtypeStruct`` with shardings; latents are given."""
    definition = define(lambda rngs: WorldActionModel(spec, interface, rngs))
    config = OptimizerConfig(steps=1000)
    trainer = Trainer(definition=definition, loss=wam_loss(definition), config=config, mesh=mesh, seed=0)
    everywhere = batch_sharding(mesh)
    batch = jax.tree.map(lambda x: placed(x, everywhere), abstract_batch(spec, interface, batch_size))
    return trainer.step, trainer.abstract_state(), batch


def _frame_steps(steps: tuple[int, ...], frames: int) -> tuple[int, ...]:
    """So many frames at the spacing of the first two."""
    if frames < 2:
        raise PlanError(f"--frames {frames}: a sample has the present and a future; give 2 or more")
    return tuple(range(0, frames * (steps[1] - steps[0]), steps[1] - steps[0]))


# -- the plan ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What one step costs.

    Attributes:
      chip, chips: on what, and on how many of them.
      parameters: number of scalars.
      held: bytes a chip holds between steps, by what they are.
      flops: of all chips together, recomputation included.
      memory, traffic: of the compiled program on one chip; None where the compiler refused it for memory.
      refusal: what it said then.
      compile_s: seconds.
      compiled: the program; None where it was refused.
    """

    chip: Chip
    chips: int
    parameters: int
    held: dict[str, int]
    flops: Flops
    memory: Memory | None
    traffic: Traffic | None
    refusal: OutOfMemory | None
    compile_s: float
    compiled: Any = None

    @property
    def needed(self) -> int:
        """Bytes at the peak."""
        if self.memory is not None:
            return self.memory.peak
        assert self.refusal is not None
        return self.refusal.needed

    @property
    def available(self) -> int | None:
        return self.refusal.available if self.refusal else self.chip.hbm

    @property
    def fits(self) -> bool:
        return self.refusal is None and (self.chip.hbm is None or self.needed <= self.chip.hbm)

    @property
    def verdict(self) -> str:
        needed = _gib(self.needed)
        if self.available is None:
            return f"compiles: peak {needed} on each of {self.chips} devices; no limit is assumed (set --hbm)"
        over, limit = self.needed - self.available, _gib(self.available)
        if self.fits:
            return f"fits: peak {needed} of {limit} a chip, {_gib(-over)} to spare"
        return f"does not fit: needs {needed} of {limit} a chip, {_gib(over)} ({over:,} bytes) too many"

    def roofline(self) -> dict[str, float | None]:
        """Seconds of a step, at the chip's peak rates.

        ``compute`` shares the operations evenly. ``collectives`` use all links of a chip at once. ``hbm`` is a floor:
        arguments are read and outputs written once; what the layers move in between is not known. ``step`` is the
        largest, as if all three overlapped; ``in_turn`` is their sum, as if none did.
        """
        moved = self.memory.arguments + self.memory.outputs if self.memory else None
        parts = {
            "compute": _ratio(self.flops.total / self.chips, self.chip.flops),
            "collectives": _ratio(self.traffic.sent if self.traffic else None, self.chip.ici_bandwidth),
            "hbm": _ratio(moved, self.chip.hbm_bandwidth),
        }
        known = [seconds for seconds in parts.values() if seconds is not None]
        complete = len(known) == len(parts)
        return {**parts, "step": max(known) if complete else None, "in_turn": sum(known) if complete else None}

    def figures(self) -> dict[str, Any]:
        """All of it, JSON-able; bytes a chip, FLOPs of all chips, seconds."""
        assumed = {field: getattr(self.chip, field) for field in ("hbm", "flops", "hbm_bandwidth", "ici_bandwidth")}
        used = None
        if self.memory:
            used = {**dataclasses.asdict(self.memory), "temporaries": self.memory.temporaries}
        kinds = self.traffic.kinds if self.traffic else {}
        return {
            "fits": self.fits,
            "verdict": self.verdict,
            "needed_bytes": self.needed,
            "available_bytes": self.available,
            "chips": self.chips,
            "parameters": self.parameters,
            "held_bytes": self.held,
            "memory_bytes": used,
            "flops": {**dataclasses.asdict(self.flops), "total": self.flops.total},
            "collectives": {kind: dataclasses.asdict(collective) for kind, collective in kinds.items()},
            "unknown_loops": self.traffic.unknown_loops if self.traffic else None,
            "roofline_s": self.roofline(),
            "assumed": {"chip": self.chip.name, **assumed},
            "compile_s": round(self.compile_s, 1),
        }


def plan_step(step: Any, state: TrainState, frozen: Any, batch: Any, chip: Chip, chips: int) -> Plan:
    """Compiles ``step(state, frozen, batch)``, all three abstract and with shardings, and measures the program.

    Raises:
      jax.errors.JaxRuntimeError: if the compiler refuses for another reason than memory.
    """
    traced = step.trace(state, frozen, batch)
    began = time.monotonic()
    refusal = compiled = None
    try:
        with warnings.catch_warnings():  # a compile cache, where one is on, cannot load a program for absent devices
            warnings.filterwarnings("ignore", "Error reading persistent compilation cache")
            compiled = traced.lower().compile()
    except jax.errors.JaxRuntimeError as error:
        refusal = out_of_memory(error)
        if refusal is None:
            raise
    return Plan(
        chip=chip,
        chips=chips,
        parameters=count_params(state.params),
        held={
            "parameters": bytes_a_chip(state.params),
            "moving average": bytes_a_chip(state.ema),
            "optimizer": bytes_a_chip(state.optimizer),
            "frozen": bytes_a_chip(frozen),
            "batch": bytes_a_chip(batch),
        },
        flops=jaxpr_flops(traced.jaxpr.jaxpr),
        memory=memory(compiled) if compiled else None,
        traffic=collectives(compiled.as_text()) if compiled else None,
        refusal=refusal,
        compile_s=time.monotonic() - began,
        compiled=compiled,
    )


def bytes_a_chip(tree: Any) -> int:
    """What one device holds of abstract arrays with shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def remedies(plan: Plan, remat: str, batch_size: int, mesh: Mesh) -> list[str]:
    """What would save memory, the cheapest in time first."""
    found = []
    shards = _data_shards(mesh)
    if plan.chips > mesh.shape["fsdp"]:
        found.append(
            f"more fsdp: --mesh fsdp={plan.chips} cuts parameters, average and optimizer further (now "
            f"{_gib(sum(plan.held[name] for name in ('parameters', 'moving average', 'optimizer')))} a chip)"
        )
    if batch_size > shards:
        found.append(f"smaller batch: --batch {shards} is one sample a data shard (now {batch_size // shards})")
    if remat != "full":
        found.append(f"--set remat=full recomputes each layer instead of keeping its activations (now {remat})")
    larger = [shape for shape in plan.chip.shapes if chips_in(shape) > plan.chips]
    if larger:
        found.append(f"more chips: --topology {plan.chip.name}:{larger[0]} --mesh fsdp={chips_in(larger[0])}")
    if not found or (remat == "full" and batch_size <= shards):
        found.append("cut each sample: --mesh with tensor=2 or context=2; or fewer --frames")
    return found


# -- what is asked for ------------------------------------------------------------------------------------------------


def parse_mesh(text: str) -> dict[str, int]:
    """``data=2,fsdp=4`` -> sizes by axis."""
    pairs = [part.split("=") for part in text.split(",")]
    if not all(len(pair) == 2 and re.fullmatch(r"-?\d+", pair[1]) for pair in pairs):
        raise PlanError(f"mesh {text!r} is not AXIS=SIZE,... (axes: {', '.join(MESH_AXES)}), as data=2,fsdp=32")
    return {axis: int(size) for axis, size in pairs}


def parse_fields(pairs: Sequence[str]) -> dict[str, Any]:
    """``remat=full num_layers=4`` -> values by field."""
    fields = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise PlanError(f"--set {pair!r} is not FIELD=VALUE")
        try:
            fields[name] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            fields[name] = text
    return fields


def _batch_size(asked: int | None, mesh: Mesh) -> int:
    shards = _data_shards(mesh)
    size = shards if asked is None else asked
    if size < 1 or size % shards:
        near = max(1, round(size / shards)) * shards
        raise PlanError(f"--batch {size} does not divide by data x fsdp = {shards}; set --batch {near}")
    return size


def _data_shards(mesh: Mesh) -> int:
    return mesh.shape["data"] * mesh.shape["fsdp"]


# -- what is printed --------------------------------------------------------------------------------------------------


def report(plan: Plan) -> None:
    """Three tables on standard output: memory, work, time."""
    console.table(f"Memory of a chip ({plan.chip.name})", ("what", "GiB", "share of HBM"), _memory_rows(plan))
    console.table("Work of a step", ("what", "a chip", "how"), _work_rows(plan))
    console.table("Time of a step at the rates assumed", ("bound", "seconds", "assumed"), _time_rows(plan))


def _memory_rows(plan: Plan) -> list[tuple[str, str, str]]:
    rows = {name: size for name, size in plan.held.items() if size}
    if plan.memory:
        rows["temporaries at the peak"] = plan.memory.temporaries
    rows["peak"] = plan.needed
    limit = plan.available
    shares = {name: "" if limit is None else f"{size / limit:.1%}" for name, size in rows.items()}
    return [(name, f"{size / GIB:.3f}", shares[name]) for name, size in rows.items()]


def _work_rows(plan: Plan) -> list[tuple[str, str, str]]:
    loops = f"; {plan.flops.unbounded_loops} while loops count one turn" if plan.flops.unbounded_loops else ""
    rows = [("FLOPs", f"{plan.flops.total / plan.chips / 1e12:.3f} T", f"{plan.flops.total:.3e} on all chips{loops}")]
    if plan.traffic is None:
        return [*rows, ("collectives", "", "unknown: the program was refused")]
    for kind in KINDS:
        if kind in plan.traffic.kinds:
            found = plan.traffic.kinds[kind]
            rows.append((kind, f"{_gib(found.sent)} sent", f"{found.count} times, payload {_gib(found.payload)}"))
    if plan.traffic.unknown_loops:
        turns = "each counts one turn: bytes are a floor"
        rows.append(("loops of unknown length", str(plan.traffic.unknown_loops), turns))
    return rows


def _time_rows(plan: Plan) -> list[tuple[str, str, str]]:
    seconds, chip = plan.roofline(), plan.chip
    assumed = {
        "compute": _rate(chip.flops, 1e12, "TFLOP/s in bf16"),
        "collectives": _rate(chip.ici_bandwidth, 1e9, "GB/s out of a chip, on all links"),
        "hbm": _rate(chip.hbm_bandwidth, 1e9, "GB/s; a floor: arguments read and outputs written once"),
        "step": "the largest: all overlapped",
        "in_turn": "the sum: nothing overlapped",
    }
    return [(name, "" if value is None else f"{value:.4f}", assumed[name]) for name, value in seconds.items()]


def _request(args: argparse.Namespace, spec: Spec, mesh: Mesh, batch_size: int) -> dict[str, Any]:
    asked = {"spec": args.spec, "size": args.size, "set": args.set, "topology": args.topology}
    return {**asked, "mesh": dict(mesh.shape), "batch": batch_size, "model": spec.name}


def _mesh_text(mesh: Mesh) -> str:
    return ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items() if size > 1) or "one device"


def _rate(value: float | None, unit: float, text: str) -> str:
    return "no rate assumed" if value is None else f"{value / unit:g} {text}"


def _ratio(amount: float | None, rate: float | None) -> float | None:
    return None if amount is None or rate is None else amount / rate


def _gib(size: float) -> str:
    return f"{size / GIB:.3f} GiB" if size >= GIB / 100 else f"{size / 2**20:.3f} MiB"
