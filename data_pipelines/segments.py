"""Parts of episodes, each with an instruction of its own, as a store."""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from data_pipelines.episodes import EpisodeStore, StoreView


class Segment(NamedTuple):
    """Steps ``start`` to ``stop`` (exclusive) of an episode, and what they do in words."""

    episode: int
    start: int
    stop: int
    instruction: str


class SegmentStore(StoreView):
    """Segments of a store's episodes, each an episode by itself: windows do not look beyond it."""

    def __init__(self, store: EpisodeStore, segments: Sequence[Segment]):
        """Raises: ValueError, if there are none, or one lies outside of its episode."""
        if not segments:
            raise ValueError(f"{store.name}: there is no segment to read")
        for segment in segments:
            if not 0 <= segment.start < segment.stop <= store.num_steps(segment.episode):
                steps = store.num_steps(segment.episode)
                raise ValueError(f"{store.name}: {segment} is outside of its episode of {steps} steps")
        super().__init__(store)
        self._segments = tuple(segments)
        lengths = [segment.stop - segment.start for segment in segments]
        self.episode_starts: Int[np.ndarray, "E+1"] = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        first = [store.episode_starts[segment.episode] + segment.start for segment in segments]
        within = np.arange(self.episode_starts[-1]) - np.repeat(self.episode_starts[:-1], lengths)
        self._rows = np.repeat(first, lengths) + within

    @property
    def fingerprint(self) -> str:
        """The whole dataset's, and which segments."""
        return f"{self._store.fingerprint}/{hashlib.sha256(repr(self._segments).encode()).hexdigest()[:16]}"

    @property
    def num_episodes(self) -> int:
        """Segments."""
        return len(self._segments)

    def num_steps(self, episode: int) -> int:
        """Steps of one segment."""
        return self._segments[episode].stop - self._segments[episode].start

    def lowdim(self, key: str) -> Shaped[np.ndarray, "S ..."]:
        """One column, all steps of all segments."""
        return self._store.lowdim(key)[self._rows]

    def instruction(self, episode: int) -> str:
        """Of the segment."""
        return self._segments[episode].instruction

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> UInt8[np.ndarray, "T H W 3"]:
        """Frames at ``steps`` of a segment."""
        segment = self._segments[episode]
        return self._store.read_frames(segment.episode, camera, [segment.start + step for step in steps])

    def __getstate__(self) -> dict[str, Any]:
        return {"store": self._store, "segments": self._segments}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["store"], state["segments"])  # type: ignore[misc]
