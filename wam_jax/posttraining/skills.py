"""Skills: demonstrations cut where the gripper makes or loses contact, and their instructions cut into as many parts.

World2Act (arXiv 2603.10422) trains its world model on these: a video of any length is then imagined skill by skill. A
demonstration whose two cuts disagree in number is discarded; the share that is kept is its rate of synchronisation.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int

from data_pipelines.segments import Segment
from wam_jax import console

Cut = Callable[[Float[np.ndarray, "T ..."]], Int[np.ndarray, "S+1"]]
_OUTLIER = 2  # steps of a sensor's spike, at most; a median wide enough for 9 loses real openings (of GR1 and G1)


class SplitError(ValueError):
    """An instruction could not be split into the skills that were seen; the message is the reason, for counting."""


class Splitter(Protocol):
    """Splits an instruction into one for each skill."""

    def split(self, instruction: str, bounds: Sequence[int]) -> tuple[str, ...]:
        """One instruction for each span between two of ``bounds`` (steps of the demonstration).

        Raises:
          SplitError: it cannot be done.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class GripperCut:
    """Cuts where fingers close on something, and where they let it go.

    Attributes:
      closed_by: metres that the fingers came together since they were widest, by which they hold something (the paper's
        δ = w_0 - w_t ≥ 0.05; its w_0 is the first width, which is the widest where a demonstration begins open).
      open_again: share of ``closed_by`` under which they let go: a hysteresis against noise.
      lasting: steps that a contact, and a gap between two, must last; shorter ones are bounce.
      tail: steps; what follows the last cut and is shorter belongs to the skill before.
    """

    closed_by: float = 0.05
    open_again: float = 0.5
    lasting: int = 3
    tail: int = 8

    def __call__(self, width: Float[np.ndarray, "T"]) -> Int[np.ndarray, "S+1"]:
        """Bounds of the skills, 0 and T among them, from the fingers' distance in metres.

        Raises:
          ValueError: if a width is not a number.
        """
        if not np.isfinite(width).all():
            raise ValueError(f"gripper width at step {int(np.argmin(np.isfinite(width)))} is not a number")
        changes = np.flatnonzero(np.diff(self.contact(width))) + 1
        return _bounds(changes.tolist(), len(width), self.tail)

    def contact(self, width: Float[np.ndarray, "T"]) -> Bool[np.ndarray, "T"]:
        """Whether something is held, step by step."""
        # One spike above the open width would be the maximum for good.
        width = _without_outliers(width, min(_OUTLIER, self.lasting - 1))
        closed = np.maximum.accumulate(width) - width
        found, held = np.zeros(len(width), bool), False
        for step, by in enumerate(closed):
            held = by >= (self.open_again * self.closed_by if held else self.closed_by)
            found[step] = held
        return _steady(found, self.lasting)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PauseCut:
    """Cuts in the middle of pauses: for skills that grasp nothing.

    Attributes:
      speed: metres a step under which the hand pauses.
      lasting: steps that a pause must last.
      tail: see ``GripperCut``; also of what comes before the first cut.
    """

    speed: float = 0.004
    lasting: int = 3
    tail: int = 8

    def __call__(self, position: Float[np.ndarray, "T 3"]) -> Int[np.ndarray, "S+1"]:
        """Bounds of the skills, 0 and T among them, from the hand's position in metres.

        Raises:
          ValueError: if a position is not a number.
        """
        if not np.isfinite(position).all():
            raise ValueError("a position of the hand is not a number")
        moved = np.linalg.norm(np.diff(position, axis=0, prepend=position[:1]), axis=1)
        moved[:1] = np.inf  # it is not known how the hand came there
        starts, stops = _runs(_steady(moved < self.speed, self.lasting))
        middles = [int(a + b) // 2 for a, b in zip(starts, stops, strict=True) if a >= self.tail and b < len(position)]
        return _bounds(middles, len(position), self.tail)


def _without_outliers(width: Float[np.ndarray, "T"], steps: int) -> Float[np.ndarray, "T"]:
    """The median filter that removes spikes of up to so many steps, and keeps longer ones and edges where they are."""
    if steps < 1 or len(width) <= 2 * steps:
        return width
    medians = np.median(np.lib.stride_tricks.sliding_window_view(width, 2 * steps + 1), axis=-1)
    return np.pad(medians, steps, mode="edge")  # the first and last steps have the window nearest to them


def _steady(flags: Bool[np.ndarray, "T"], lasting: int) -> Bool[np.ndarray, "T"]:
    """Without the runs between two others that are shorter than ``lasting``; gaps first, so that bounces are one."""
    for value in (False, True):
        flags = flags.copy()
        for start, stop in zip(*_runs(flags == value), strict=True):
            if stop - start < lasting and start > 0 and stop < len(flags):
                flags[start:stop] = not value
    return flags


def _runs(flags: Bool[np.ndarray, "T"]) -> tuple[Int[np.ndarray, "R"], Int[np.ndarray, "R"]]:
    """Starts and stops (exclusive) of the runs of True."""
    edges = np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8))
    return np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)


def _bounds(cuts: Sequence[int], length: int, tail: int) -> Int[np.ndarray, "S+1"]:
    inner = [int(cut) for cut in cuts]
    while inner and length - inner[-1] < tail:
        inner.pop()
    return np.array([0, *inner, length])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skills:
    """What became of a dataset.

    Attributes:
      segments: of the demonstrations that were kept, in order, one for each skill.
      lengths: steps of every demonstration.
      discarded: how many demonstrations were, by reason.
    """

    segments: tuple[Segment, ...]
    lengths: tuple[int, ...]
    discarded: dict[str, int]

    @property
    def rate(self) -> float:
        """Share of the demonstrations whose two cuts agree."""
        return 1 - sum(self.discarded.values()) / max(len(self.lengths), 1)


def find_skills(
    signals: Sequence[Float[np.ndarray, "T ..."]], instructions: Sequence[str], cut: Cut, splitter: Splitter
) -> Skills:
    """Cuts every demonstration and its instruction; discards, with a count, where that cannot be done.

    Args:
      signals: of each demonstration, what ``cut`` takes.
      instructions: of each.
      cut: ``GripperCut`` or ``PauseCut``.
      splitter: of instructions.
    """
    segments: list[Segment] = []
    discarded: Counter[str] = Counter()
    for episode, (signal, instruction) in enumerate(
        zip(console.progress(signals, "skills"), instructions, strict=True)
    ):
        try:
            bounds = cut(signal).tolist()
        except ValueError:
            discarded["its signal holds no number somewhere"] += 1
            continue
        try:
            parts = splitter.split(instruction, bounds)
            if len(parts) != len(bounds) - 1:
                raise SplitError(f"{len(parts)} by its words, {len(bounds) - 1} by its motion")
        except SplitError as error:
            discarded[str(error)] += 1
            continue
        spans = zip(bounds[:-1], bounds[1:], parts, strict=True)
        segments += [Segment(episode, start, stop, part) for start, stop, part in spans]
    return Skills(segments=tuple(segments), lengths=tuple(map(len, signals)), discarded=dict(discarded))
