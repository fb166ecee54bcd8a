"""What a dataset must answer for the loader to read it: `EpisodeStore`. Every format is one store behind it."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Int, Shaped, UInt8


class DatasetError(ValueError):
    """The folder is not a usable dataset; the message says what is wrong and what to do."""


class DecodeError(ValueError):
    """An image cannot be read; the message names file, episode, camera and step."""


class CameraError(ValueError):
    """A camera that the dataset does not have was asked for."""


class EpisodeStore(Protocol):
    """Random access to the episodes of one dataset split.

    Low-dimensional columns are flat over all steps of all episodes: step ``t`` of episode ``e`` is row
    ``episode_starts[e] + t``. One instruction an episode: the first step's. Stores are thread-safe and picklable.
    """

    @property
    def name(self) -> str:
        """The dataset's name, as errors and tables show it."""

    @property
    def fingerprint(self) -> str:
        """Changes when the data does; caches made from the data carry it."""

    @property
    def num_episodes(self) -> int:
        """``E``."""

    @property
    def skipped(self) -> int:
        """Episodes that the dataset lists but that cannot be read: damaged, or not downloaded."""

    @property
    def episode_starts(self) -> Int[np.ndarray, "E+1"]:
        """Row of each episode's first step, and the total number of steps at the end."""

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names that `read_frames` knows."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names that `lowdim` knows."""

    def num_steps(self, episode: int) -> int:
        """Steps of one episode."""

    def lowdim(self, key: str) -> Shaped[np.ndarray, "S ..."]:
        """One column, all steps of all episodes; KeyError names the columns there are."""

    def instruction(self, episode: int) -> str:
        """What the robot was told; empty where the dataset has no language."""

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> UInt8[np.ndarray, "T H W 3"]:
        """RGB frames at ``steps`` of an episode; `CameraError` or `DecodeError` where that cannot be."""


class StoreView:
    """What a part of a store has in common with the whole; what a part is, is up to its class."""

    def __init__(self, store: EpisodeStore):
        self._store = store

    @property
    def name(self) -> str:
        """The whole dataset's name."""
        return self._store.name

    @property
    def skipped(self) -> int:
        """The whole dataset's."""
        return self._store.skipped

    @property
    def cameras(self) -> tuple[str, ...]:
        """As the whole dataset's."""
        return self._store.cameras

    @property
    def columns(self) -> tuple[str, ...]:
        """As the whole dataset's."""
        return self._store.columns


def check_cameras(store: EpisodeStore, cameras: Sequence[str], field: str = "data.cameras") -> None:
    """Raises `CameraError` for the first camera that ``store`` does not have; ``field`` of the config names them."""
    for camera in cameras:
        if camera not in store.cameras:
            has = ", ".join(store.cameras) or "no camera"
            raise CameraError(f"camera '{camera}' is not in {store.name} (has: {has}); set {field}")
