"""Training windows as arithmetic on (episode, step): which frames and actions one takes, which lie past the end."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int

from data_pipelines.episodes import EpisodeStore, check_cameras


@dataclasses.dataclass(frozen=True)
class WindowSpec:
    """What one training sample holds.

    Attributes:
      frame_offsets: steps from the window's start to each frame; the first is 0 (now), the rest the future.
      tubelet: images of each future frame, evenly spread over the steps that lead to it; a tokenizer merges them.
      action_horizon: actions in a chunk, ``K``, from the window's start on.
      cameras: ``V`` cameras, in the order the model sees them.
      depth_cameras: image columns that hold depth as grey; where there are any, batches have the stream ``depth``.
      value_discount: where it is not 0, batches have the stream ``value``: this, to the power of the steps left.
      image_size: (height, width) to resize to; None keeps the dataset's.
      starts: windows start at steps 0 … starts-1 of an episode only; None at all of them.
      action_key: column of the actions.
      proprio_key: column of the proprioception.
    """

    cameras: tuple[str, ...]
    depth_cameras: tuple[str, ...] = ()
    value_discount: float = 0.0
    frame_offsets: tuple[int, ...] = (0, 8)
    tubelet: int = 1
    action_horizon: int = 12
    image_size: tuple[int, int] | None = None
    starts: int | None = None
    action_key: str = "action"
    proprio_key: str = "proprio"

    def __post_init__(self) -> None:
        offsets = self.frame_offsets
        if not offsets or offsets[0] != 0 or any(a >= b for a, b in itertools.pairwise(offsets)):
            raise ValueError(f"frame_offsets must start at 0 and increase; got {offsets}")
        for before, after in itertools.pairwise(offsets):
            if self.tubelet < 1 or (after - before) % self.tubelet:
                raise ValueError(
                    f"frames at steps {before} and {after} do not have tubelet={self.tubelet} images at even distances "
                    "between them; change data.frame_steps"
                )
        if self.action_horizon < 1:
            raise ValueError(f"action_horizon must be at least 1; got {self.action_horizon}")
        if self.starts is not None and self.starts < 1:
            raise ValueError(f"starts must be at least 1, or None for every step; got {self.starts}")
        if not 0 <= self.value_discount <= 1:
            raise ValueError(f"value_discount must be 0 (no value stream) to 1; got {self.value_discount}")

    @property
    def image_offsets(self) -> tuple[int, ...]:
        """Steps from the window's start to each image: of its first frame, then ``tubelet`` for each frame after."""
        pairs = itertools.pairwise(self.frame_offsets)
        return (0, *(a + (b - a) * (i + 1) // self.tubelet for a, b in pairs for i in range(self.tubelet)))

    @property
    def image_columns(self) -> tuple[str, ...]:
        """All that is read as images, in one go: cameras, then depth cameras."""
        return self.cameras + self.depth_cameras


@dataclasses.dataclass(frozen=True, eq=False)
class WindowTable:
    """All windows of one or more stores, one a row: ``W`` windows.

    ``row`` and ``last_row`` are rows of the stores' columns laid end to end: the window's first step and its
    episode's last.
    """

    store: Int[np.ndarray, "W"]
    episode: Int[np.ndarray, "W"]
    step: Int[np.ndarray, "W"]
    row: Int[np.ndarray, "W"]
    last_row: Int[np.ndarray, "W"]

    def __len__(self) -> int:
        return len(self.step)


def window_table(stores: Sequence[EpisodeStore], spec: WindowSpec) -> WindowTable:
    """Lists the windows of ``stores``, store by store, episode by episode, step by step.

    Raises:
      CameraError: a store lacks a camera or a depth camera of the spec.
      ValueError: a store has no episode.
    """
    parts = []
    first_row = 0
    for number, store in enumerate(stores):
        check_cameras(store, spec.cameras)
        check_cameras(store, spec.depth_cameras, field="data.depth_cameras")
        starts = store.episode_starts
        if len(starts) < 2:
            raise ValueError(f"{store.name} has no episode")
        episode, step = episode_windows(np.diff(starts), spec.starts)
        row = first_row + starts[episode] + step
        parts.append((np.full(len(step), number), episode, step, row, first_row + starts[episode + 1] - 1))
        first_row += int(starts[-1])
    return WindowTable(*(np.concatenate(columns).astype(np.int64) for columns in zip(*parts, strict=True)))


def episode_windows(
    num_steps: Int[np.ndarray, "E"], starts: int | None
) -> tuple[Int[np.ndarray, "W"], Int[np.ndarray, "W"]]:
    """(episode, step) of every window of episodes of ``num_steps``; ``starts`` as in `WindowSpec`."""
    windows = num_steps if starts is None else np.minimum(num_steps, starts)
    ends = np.cumsum(windows)
    episode = np.repeat(np.arange(len(windows)), windows)
    return episode, np.arange(int(ends[-1])) - np.repeat(ends - windows, windows)


def take(
    first: Int[np.ndarray, "*B"], last: Int[np.ndarray, "*B"], offsets: Sequence[int] | Int[np.ndarray, "T"]
) -> tuple[Int[np.ndarray, "*B T"], Bool[np.ndarray, "*B T"]]:
    """Positions ``first + offsets``, held at ``last``, and whether each is within the episode."""
    wanted = np.asarray(first)[..., None] + np.asarray(offsets)
    limit = np.asarray(last)[..., None]
    return np.minimum(wanted, limit), wanted <= limit
