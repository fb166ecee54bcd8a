"""RLDS TFRecords as an `EpisodeStore`: a frame is one ``pread`` and one decode, whatever the episode's length."""

import os
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from data_pipelines.episodes import DecodeError, check_cameras
from data_pipelines.images import decode_image
from data_pipelines.index import Index, IndexReport, ensure_index, open_index

T = TypeVar("T")
_MAX_OPEN_FILES = 256  # below the usual limit of 1,024 a process, with room for several stores


class RldsStore:
    """An `EpisodeStore` over the original TFRecords of one split."""

    def __init__(self, index: Index, rename: Mapping[str, str] | None = None):
        """Serves ``index``; arguments and errors as in `open`."""
        self._index = index
        self._rename = dict(rename or {})
        has = {*index.columns, *index.image_offsets}
        if unknown := [name for name in self._rename.values() if name not in has]:
            raise KeyError(f"'{unknown[0]}' is not in {index.info.name} (has: {', '.join(sorted(has))})")
        self._columns = self._renamed(index.columns)
        self._cameras = self._renamed({camera: camera for camera in index.image_offsets})
        self._shapes = {camera: index.info.features[key].shape for camera, key in index.info.cameras.items()}
        self._files: dict[int, BinaryIO] = {}
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        directory: str | os.PathLike[str],
        split: str,
        out: str | os.PathLike[str] | None = None,
        *,
        build: bool = False,
        rename: Mapping[str, str] | None = None,
        instruction_key: str | None = None,
    ) -> "RldsStore":
        """Opens a split through its index; ``build`` makes a missing or stale index, otherwise that is an error.

        Args:
          directory: the dataset folder, the one with ``features.json``.
          split: a split of ``dataset_info.json``.
          out: where the index is, if not at its usual places.
          build: scan the records first where need be (`ensure_index`).
          rename: new name to the dataset's, for cameras and columns: ``{"front": "image_0", "proprio": "state"}``.
          instruction_key: record key of the instruction; None finds ``language_instruction`` and the like.

        Raises:
          MissingIndexError, StaleIndexError: the index must be made first, and ``build`` is false.
          MissingShardError, DatasetError: the dataset is incomplete.
          KeyError: a name to be renamed is not there.
        """
        index = (ensure_index if build else open_index)(directory, split, out, instruction_key)
        return cls(index, rename)

    def __getstate__(self) -> dict[str, Any]:
        """Open files stay in the process that opened them."""
        return {"index": self._index, "rename": self._rename}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self._index.info.name

    @property
    def directory(self) -> pathlib.Path:
        """The dataset folder."""
        return self._index.directory

    @property
    def split(self) -> str:
        """The split that was opened."""
        return self._index.split

    @property
    def report(self) -> IndexReport:
        """What the scan found and skipped."""
        return self._index.report

    @property
    def skipped(self) -> int:
        """Records that the scan could not read; ``report`` says why."""
        return len(self._index.report.skipped)

    @property
    def fingerprint(self) -> str:
        """A hash that depends on every indexed byte of the dataset."""
        return self._index.fingerprint

    @property
    def num_episodes(self) -> int:
        """``E``."""
        return len(self._index.starts) - 1

    @property
    def episode_starts(self) -> Int[np.ndarray, "E+1"]:
        """Row of each episode's first step, and the total number of steps at the end."""
        return self._index.starts

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names that `read_frames` knows."""
        return tuple(self._cameras)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names that `lowdim` knows."""
        return tuple(self._columns)

    def num_steps(self, episode: int) -> int:
        """Steps of one episode."""
        return int(self._index.starts[episode + 1] - self._index.starts[episode])

    def lowdim(self, key: str) -> Shaped[np.ndarray, "S ..."]:
        """One column, all steps of all episodes."""
        if key not in self._columns:
            raise KeyError(f"column '{key}' is not in {self.name} (has: {', '.join(self.columns)})")
        return self._columns[key]

    def instruction(self, episode: int) -> str:
        """The instruction of the episode's first step."""
        return self._index.instructions[episode]

    def image_shape(self, camera: str) -> tuple[int, ...]:
        """(height, width, 3), as ``features.json`` says."""
        check_cameras(self, [camera])
        return self._shapes[self._cameras[camera]]

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> UInt8[np.ndarray, "T H W 3"]:
        """Frames at ``steps`` of an episode.

        Raises:
          CameraError: there is no such camera.
          DecodeError: an image is damaged.
        """
        expected = self.image_shape(camera)
        index = self._index
        start = int(index.starts[episode])
        file = int(index.episode_files[episode])
        offsets, lengths = index.image_offsets[self._cameras[camera]], index.image_lengths[self._cameras[camera]]
        frames: list[np.ndarray] = []
        for step in steps:
            data = self._read(file, int(offsets[start + step]), int(lengths[start + step]))
            try:
                frames.append(_decode(data, expected))
            except ValueError as error:
                where = f"{index.files[file]} episode {episode} camera '{camera}' step {step}"
                raise DecodeError(f"{where}: {error}") from error
        return np.stack(frames)

    def _renamed(self, mapping: Mapping[str, T]) -> dict[str, T]:
        old = {original: new for new, original in self._rename.items()}
        return {old.get(name, name): value for name, value in mapping.items()}

    def _read(self, number: int, offset: int, length: int) -> bytes:
        file = self._files.get(number)
        if file is None:
            opened = (self._index.directory / self._index.files[number]).open("rb", buffering=0)
            with self._lock:
                if len(self._files) >= _MAX_OPEN_FILES:  # read without keeping: closing another's file would race
                    with opened:
                        return os.pread(opened.fileno(), length, offset)
                file = self._files.setdefault(number, opened)  # type: ignore[arg-type]
        return os.pread(file.fileno(), length, offset)


def _decode(data: bytes, expected: tuple[int, ...]) -> UInt8[np.ndarray, "H W 3"]:
    frame = decode_image(data)
    if any(size not in (-1, actual) for size, actual in zip(expected, frame.shape, strict=True)):
        raise ValueError(f"it has shape {frame.shape}, features.json says {expected}")
    return frame
