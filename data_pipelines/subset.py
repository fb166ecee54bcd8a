"""Opens a dataset folder, or part of its episodes in tensorflow_datasets' notation: ``train[:80%]``."""

import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from data_pipelines.episodes import EpisodeStore, StoreView
from data_pipelines.lerobot import INFO, LeRobotStore
from data_pipelines.rlds import RldsStore

_SLICE = re.compile(r"^(?P<name>[\w-]+)(\[(?P<first>\d+%?)?:(?P<last>\d+%?)?\])?$")


def open_split(directory: str | os.PathLike[str], split: str) -> EpisodeStore:
    """Opens a split of an RLDS or LeRobot folder, or a slice of one; builds RLDS' index where it is missing or stale.

    Raises:
      ValueError: the notation is not understood, or the slice is empty.
      DatasetError: the dataset is incomplete, or has no such split.
    """
    match = _SLICE.match(split)
    if match is None:
        raise ValueError(f"split {split!r} is not understood; write train, train[:80%] or train[100:]")
    store = _open(pathlib.Path(directory), match["name"])
    first, last = (_position(match[part], store.num_episodes, end) for part, end in (("first", 0), ("last", 1)))
    if not first < last:
        raise ValueError(f"split {split!r} of {store.name} is empty: it has {store.num_episodes} episodes")
    if (first, last) == (0, store.num_episodes):
        return store
    return EpisodeSlice(store, first, last)


def _open(directory: pathlib.Path, split: str) -> EpisodeStore:
    if (directory / INFO).is_file():
        return LeRobotStore(directory, split)
    return RldsStore.open(directory, split, build=True)


def _position(text: str | None, count: int, default: int) -> int:
    if text is None:
        return default * count
    if text.endswith("%"):
        return min(count, round(int(text[:-1]) / 100 * count))
    return min(count, int(text))


class EpisodeSlice(StoreView):
    """Episodes ``first`` to ``last`` (exclusive) of a store, as a store."""

    def __init__(self, store: EpisodeStore, first: int, last: int):
        super().__init__(store)
        self._first, self._last = first, last
        starts = store.episode_starts
        self._rows = slice(int(starts[first]), int(starts[last]))
        self.episode_starts: Int[np.ndarray, "E+1"] = starts[first : last + 1] - starts[first]

    @property
    def fingerprint(self) -> str:
        """The whole dataset's, and which episodes."""
        return f"{self._store.fingerprint}[{self._first}:{self._last}]"

    @property
    def num_episodes(self) -> int:
        """Episodes of the slice."""
        return self._last - self._first

    def num_steps(self, episode: int) -> int:
        """Steps of one episode."""
        return self._store.num_steps(self._first + episode)

    def lowdim(self, key: str) -> Shaped[np.ndarray, "S ..."]:
        """One column, all steps of the slice."""
        return self._store.lowdim(key)[self._rows]

    def instruction(self, episode: int) -> str:
        """What the robot was told."""
        return self._store.instruction(self._first + episode)

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> UInt8[np.ndarray, "T H W 3"]:
        """Frames at ``steps`` of an episode."""
        return self._store.read_frames(self._first + episode, camera, steps)

    def __getstate__(self) -> dict[str, Any]:
        return {"_store": self._store, "_first": self._first, "_last": self._last}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["_store"], state["_first"], state["_last"])  # type: ignore[misc]
