"""What a compiled program costs one chip: its memory, and the bytes that its collectives send.

Memory is the compiler's own account. Collectives are read from the compiled program's text (HLO), because no public
interface tells them: every collective instruction, times the turns of the loops around it.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import jax

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


# -- memory -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on one chip.

    Attributes:
      arguments: held when the program starts.
      outputs: held when it ends, those in donated arguments included.
      aliased: of the outputs, what lies in donated arguments.
      peak: the most that is held at once, arguments and outputs included.
    """

    arguments: int
    outputs: int
    aliased: int
    peak: int

    @property
    def temporaries(self) -> int:
        """What the peak holds beside arguments and fresh outputs."""
        return max(0, self.peak - self.arguments - self.outputs + self.aliased)


def memory(compiled: Any) -> Memory:
    """The compiler's account of a ``jax.stages.Compiled``.

    The two figures that XLA gives for temporaries are each right on one side only (measured, JAX 0.10.2). On TPU the
    peak is: libtpu 0.0.42 reports 19.1 GB in ``temp_size_in_bytes`` for a program that it accepts for the 16.9 GB of a
    v5e. On CPU the peak leaves temporaries out, and ``temp_size_in_bytes`` is the arena that is really allocated.
    """
    stats = compiled.memory_analysis()
    held = stats.argument_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes
    peak = stats.peak_memory_in_bytes if _platform(compiled) == "tpu" else held + stats.temp_size_in_bytes
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        peak=peak,
    )


def _platform(compiled: Any) -> str:
    shardings = jax.tree.leaves((compiled.input_shardings, compiled.output_shardings))
    return next(iter(shardings[0].device_set)).platform


@dataclasses.dataclass(frozen=True)
class OutOfMemory:
    """What a refused program would hold at its peak, and what a chip has; bytes, as precise as the message."""

    needed: int
    available: int


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_SIZE = r"([\d.]+)([KMGT]?)"
_REFUSALS = (
    rf"total memory required for HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)",
    rf"Used {_SIZE} of {_SIZE} hbm",
)


def out_of_memory(error: BaseException) -> OutOfMemory | None:
    """What the TPU compiler says when a program does not fit; None if this error says something else.

    Its "HLO temporaries" include arguments and outputs (five arguments of 4 GiB and no work: 20.00G).
    """
    for pattern in _REFUSALS:
        if found := re.search(pattern, str(error)):
            needed, needed_unit, available, available_unit = found.groups()
            return OutOfMemory(
                round(float(needed) * _UNITS[needed_unit]), round(float(available) * _UNITS[available_unit])
            )
    return None


# -- collectives ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Collective:
    """All collectives of one kind in one run of a program, on one chip.

    Attributes:
      count: how many run.
      payload: bytes of the whole array: an all-gather's result, the operand of the others.
      sent: bytes that leave the chip with bandwidth-optimal (ring) algorithms in a group of n chips: payload *
        (n - 1) / n; twice that for an all-reduce; the payload for a collective-permute.
    """

    count: int = 0
    payload: int = 0
    sent: int = 0

    def __add__(self, other: "Collective") -> "Collective":
        return Collective(self.count + other.count, self.payload + other.payload, self.sent + other.sent)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """A program's collectives.

    Attributes:
      kinds: by kind; only those that occur.
      unknown_loops: loops with collectives whose number of turns the text does not tell; each counts as one turn.
    """

    kinds: dict[str, Collective]
    unknown_loops: int = 0

    @property
    def sent(self) -> int:
        """Bytes that leave a chip in one run."""
        return sum(collective.sent for collective in self.kinds.values())


def collectives(text: str) -> Traffic:
    """Reads the collectives from ``compiled.as_text()``.

    An asynchronous collective counts where it starts. The TPU compiler repeats one in the fusions that start, continue
    and end it, with the same channel; it counts once. Its reduce-scatter is a fusion named all-reduce-scatter.
    """
    return _Program(text).traffic


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found.group(1) if found else None


@dataclasses.dataclass
class _Computation:
    name: str
    instructions: dict[str, _Instruction] = dataclasses.field(default_factory=dict)
    root: _Instruction | None = None


@dataclasses.dataclass(frozen=True)
class _Transfer:
    kind: str
    cost: Collective
    channel: str | None


class _Program:
    """The computations of an HLO text, and a walk over the calls between them."""

    def __init__(self, text: str):
        self.devices = int(_first(r"num_partitions=(\d+)", text, "1")) * int(_first(r"replica_count=(\d+)", text, "1"))
        self.computations, self.entry = _parse(text)
        self.unknown_loops = 0

    @property
    def traffic(self) -> Traffic:
        kinds: dict[str, Collective] = {}
        for transfer in self._transfers(self.entry):
            kinds[transfer.kind] = kinds.get(transfer.kind, Collective()) + transfer.cost
        return Traffic({kind: kinds[kind] for kind in KINDS if kind in kinds}, self.unknown_loops)

    def _transfers(self, name: str) -> list[_Transfer]:
        computation = self.computations[name]
        found: list[_Transfer] = []
        fused_channels: set[str | None] = set()
        for instruction in computation.instructions.values():
            opcode = instruction.opcode.removesuffix("-start")
            if opcode in KINDS:
                found.append(self._transfer(computation, instruction, opcode))
            elif opcode == "while":
                found += self._loop(computation, instruction)
            elif opcode == "conditional":
                branches = [self._transfers(branch) for branch in _branches(instruction)]
                found += max(branches, key=lambda transfers: sum(t.cost.sent for t in transfers), default=[])
            elif opcode in ("fusion", "call", "async"):
                for callee in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", instruction.attributes):
                    inner = [t for t in self._transfers(callee) if t.channel is None or t.channel not in fused_channels]
                    found += inner
                    if opcode == "fusion":
                        fused_channels |= {t.channel for t in inner}
        return found

    def _transfer(self, computation: _Computation, instruction: _Instruction, kind: str) -> _Transfer:
        if kind == "all-reduce" and computation.name.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        operands = sum(_shape_bytes(computation.instructions[name].shape) for name in instruction.operands)
        payload, sent = _ring_bytes(kind, operands, _group_size(instruction.attributes, self.devices))
        return _Transfer(kind, Collective(1, payload, sent), instruction.attribute(r"channel_id=(\d+)"))

    def _loop(self, computation: _Computation, loop: _Instruction) -> list[_Transfer]:
        inner = self._transfers(_called(loop, "body"))
        if not inner:
            return []
        turns = self._turns(computation, loop)
        if turns is None:
            self.unknown_loops += 1
            turns = 1
        return [dataclasses.replace(t, cost=_times(t.cost, turns), channel=None) for t in inner]

    # -- turns of a loop ----------------------------------------------------------------------------------------------

    def _turns(self, computation: _Computation, loop: _Instruction) -> int | None:
        """As the compiler notes it (CPU, GPU), or from the loop's counter (TPU drops the note)."""
        if known := loop.attribute(r'"known_trip_count":\{"n":"(\d+)"'):
            return int(known)
        condition, body = (self.computations[_called(loop, part)] for part in ("condition", "body"))
        compare = condition.root
        if compare is None or compare.opcode != "compare" or compare.attribute(r"direction=(\w+)") != "LT":
            return None
        counter = _source(condition, compare.operands[0])
        if counter.opcode != "get-tuple-element":
            return None
        index = int(counter.attribute(r"index=(\d+)") or 0)
        limit = _constant(condition, compare.operands[1])
        start = _constant(computation, _element(computation, loop.operands[0], index))
        step = _increment(body, index)
        if limit is None or start is None or not step:
            return None
        return max(0, math.ceil((limit - start) / step))


def _element(computation: _Computation, name: str, index: int) -> str:
    made = computation.instructions[name]
    return made.operands[index] if made.opcode == "tuple" else name


def _source(computation: _Computation, name: str) -> _Instruction:
    """Where a value comes from, past copies."""
    instruction = computation.instructions[name]
    while instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation.instructions[instruction.operands[0]]
    return instruction


def _constant(computation: _Computation, name: str) -> int | None:
    source = _source(computation, name)
    found = re.fullmatch(r"-?\d+", source.operands[0]) if source.opcode == "constant" and source.operands else None
    return int(found.group()) if found else None


def _increment(body: _Computation, index: int) -> int | None:
    """What one turn adds to a loop's counter."""
    if body.root is None or body.root.opcode != "tuple":
        return None
    added = _source(body, body.root.operands[index])
    if added.opcode not in ("add", "fusion") or len(added.operands) != 2:
        return None
    constants = [value for value in (_constant(body, name) for name in added.operands) if value is not None]
    return constants[0] if len(constants) == 1 else None


# -- reading the text -------------------------------------------------------------------------------------------------


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """All computations by name, and the name of the entry."""
    computations: dict[str, _Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            current = computations[header.group(2)] = _Computation(header.group(2))
            entry = header.group(2) if header.group(1) else entry
        elif current is not None and line.startswith("  "):
            instruction = _instruction(line)
            if instruction is not None:
                current.instructions[instruction.name] = instruction
                current.root = instruction if line.lstrip().startswith("ROOT") else current.root
    if not entry:
        raise ValueError("no ENTRY computation in this text; pass compiled.as_text()")
    return computations, entry


def _instruction(line: str) -> _Instruction | None:
    """``%name = shape opcode(operands), attributes``."""
    head = re.match(r"\s+(?:ROOT )?%?([\w.\-]+) = ", line)
    if head is None:
        return None
    rest = line[head.end() :]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, opening, _ = rest.partition("(")
    if not opening:
        return None
    close = len(opcode) + _closing(rest[len(opcode) :])
    inside = rest[len(opcode) + 1 : close]
    operands = (inside,) if opcode == "constant" else tuple(re.findall(r"%([\w.\-]+)", inside))
    return _Instruction(head.group(1), shape, opcode, operands, rest[close + 1 :])


def _closing(text: str) -> int:
    """Where the parenthesis that opens at the start closes."""
    depth = 0
    for parenthesis in re.finditer(r"[()]", text):
        depth += 1 if parenthesis.group() == "(" else -1
        if depth == 0:
            return parenthesis.start()
    return len(text)


def _called(instruction: _Instruction, role: str) -> str:
    name = instruction.attribute(rf"\b{role}=%?([\w.\-]+)")
    assert name is not None, f"{instruction.opcode} {instruction.name} has no {role}"
    return name


def _branches(conditional: _Instruction) -> list[str]:
    listed = conditional.attribute(r"branch_computations=\{([^}]*)\}")
    pair = re.findall(r"(?:true|false)_computation=%?([\w.\-]+)", conditional.attributes)
    return re.findall(r"[\w.\-]+", listed) if listed else pair


def _group_size(attributes: str, devices: int) -> int:
    """Chips that take part in a collective together, from any of the forms of ``replica_groups``."""
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return listed.group(1).count(",") + 1
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
        return int(iota.group(2))
    if mesh := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh.group(1)))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", mesh.group(2))  # 'axis', or a part of it: 'axis':(before)size
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return devices


def _ring_bytes(kind: str, operands: int, group: int) -> tuple[int, int]:
    """(payload, sent) of a collective with operands of so many bytes on each chip."""
    if kind == "collective-permute":
        return operands, operands
    payload = operands * group if kind == "all-gather" else operands
    sent = payload * (group - 1) // group
    return payload, 2 * sent if kind == "all-reduce" else sent


_BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}


def _shape_bytes(shape: str) -> int:
    return sum(_array_bytes(dtype, sizes) for dtype, sizes in re.findall(r"([a-z]\w*)\[([\d,<=]*)\]", shape))


def _array_bytes(dtype: str, sizes: str) -> int:
    count = math.prod(int(size.lstrip("<=")) for size in sizes.split(",") if size)
    return math.ceil(count * _dtype_bits(dtype) / 8)


@functools.cache
def _dtype_bits(dtype: str) -> int:
    """``bf16`` -> 16, ``f8e4m3fn`` -> 8."""
    return _BITS[dtype] if dtype in _BITS else int(_first(r"(\d+)", dtype, "0"))


def _times(cost: Collective, turns: int) -> Collective:
    return Collective(cost.count * turns, cost.payload * turns, cost.sent * turns)


def _first(pattern: str, text: str, default: str) -> str:
    found = re.search(pattern, text)
    return found.group(1) if found else default
