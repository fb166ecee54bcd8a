"""Episodes tokenised ahead of training by a tokenizer that merges images in time."""

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from data_pipelines.episodes import EpisodeStore, check_cameras
from data_pipelines.latents import Block, Identity, LatentCache, Rows, read_ahead, write_latents

_MAX_ROWS = 1024


class StreamEncoder(Protocol):
    """A tokenizer of clips that come frame by frame (``wam_jax.tokenizers.tokenizer.Tokenizer``)."""

    tubelet: int

    def start(self, images: UInt8[np.ndarray, "B V H W 3"]) -> tuple[Float[Array, "B V h w C"], Any]:
        """The first latent frame of each clip, and what the encoder keeps."""

    def step(self, state: Any, images: UInt8[np.ndarray, "B tubelet V H W 3"]) -> tuple[Array, Any]:
        """The next."""


def encode_clips(
    store: EpisodeStore,
    cameras: Sequence[str],
    encoder: StreamEncoder,
    directory: pathlib.Path,
    key: str,
    spacing: int,
    batch_size: int = 64,
    *,
    remembers: bool,
    image_size: tuple[int, int] | None = None,
    num_threads: int = 2,
) -> "LatentCache | ClipLatents":
    """Latents of every step of a store, each of a clip that began with its episode, ``spacing`` control steps a frame.

    That is what a model that remembers sees when a robot acts: one picture merged into a frame as the episode starts,
    and from then on frames that have seen all before. One without a memory begins a clip whenever it acts: its windows
    take their first frame from latents of single images.

    Encodes, or goes on where an earlier call was stopped, or opens what is complete.

    Args:
      spacing: control steps between two frames.
      batch_size: images of a camera that a call of ``encoder.start`` sees, about.
      remembers: whether the model that reads them does.

    Other arguments and errors are ``LatentCache.build``'s.

    Raises:
      ValueError: ``spacing`` does not divide into ``encoder.tubelet`` images.
    """
    if spacing % encoder.tubelet:
        raise ValueError(
            f"frames {spacing} steps apart do not divide into tubelet={encoder.tubelet} images; change data.frame_steps"
        )
    check_cameras(store, cameras)
    identity = Identity(key, store.fingerprint, tuple(cameras), image_size, spacing)
    together = max(1, batch_size // spacing)
    blocks = _episode_groups(store.episode_starts, together)

    def encoded(blocks: Sequence[Rows]) -> Iterator[Block]:
        images = read_ahead(store, identity, blocks, num_threads)
        for rows, (pixels, unreadable) in zip(blocks, images, strict=True):
            episodes = _Episodes(store.episode_starts, rows, together)
            yield _encode(encoder, spacing, episodes, pixels), episodes.rest_of(unreadable)

    write_latents(directory / "later", store, identity, blocks, encoded)
    later = LatentCache.open(store, identity, directory / "later")
    if remembers:
        return later

    def encode_single(images: UInt8[np.ndarray, "B H W 3"]) -> Array:
        return encoder.start(images[:, None])[0][:, 0]

    first = LatentCache.build(
        store, cameras, encode_single, directory / "first", key, batch_size * len(cameras),
        image_size=image_size, num_threads=num_threads,
    )  # fmt: skip
    return ClipLatents(first, later)


@dataclasses.dataclass(frozen=True)
class ClipLatents:
    """Latents of every step of a store, twice: as a clip's first frame, and as a later one.

    Attributes:
      first, later: float16[S, V, h, w, C] each.
    """

    first: LatentCache
    later: LatentCache

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, C)."""
        return self.first.latent_shape

    @property
    def unreadable(self) -> frozenset[int]:
        """Rows (steps over all episodes) whose latents are not to be had."""
        return self.first.unreadable | self.later.unreadable

    def read(self, episode: int, steps: Sequence[int]) -> Float[np.ndarray, "T V h w C"]:
        """Latents of a window's frames; DecodeError where one of them depends on a frame that could not be read."""
        return np.concatenate([self.first.read(episode, steps[:1]), self.later.read(episode, steps[1:])])


def _episode_groups(starts: Int[np.ndarray, "E+1"], together: int) -> list[Rows]:
    """The rows of every so many episodes; of fewer where they are long, for their pixels are held in memory."""
    groups, begin = [], 0
    for end in range(1, len(starts)):
        full = end - begin == together or end == len(starts) - 1
        if full or starts[end + 1] - starts[begin] > _MAX_ROWS:
            groups.append((int(starts[begin]), int(starts[end])))
            begin = end
    return groups


class _Episodes:
    """Where the episodes of a block lie in it; filled up to ``count`` with copies of the last, which are left out."""

    def __init__(self, starts: Int[np.ndarray, "E+1"], rows: Rows, count: int):
        inside = starts[(starts >= rows[0]) & (starts <= rows[1])]
        self.first_row, self.real = rows[0], len(inside) - 1
        extra = np.minimum(np.arange(count), self.real - 1)
        self.offset, self.length = (inside[:-1] - rows[0])[extra], np.diff(inside)[extra]

    def rest_of(self, unreadable: Sequence[int]) -> list[int]:
        """Rows that follow an unreadable one in its episode, and itself: their latents would depend on it."""
        found: set[int] = set()
        for row in unreadable:
            number = int(np.searchsorted(self.offset[: self.real], row - self.first_row, "right")) - 1
            found.update(range(row, self.first_row + int(self.offset[number] + self.length[number])))
        return sorted(found)


def _encode(
    encoder: StreamEncoder, spacing: int, episodes: _Episodes, pixels: UInt8[np.ndarray, "N V H W 3"]
) -> Float[np.ndarray, "N V h w C"]:
    """Latents of every step: each episode is as many clips as there are steps between two frames, run side by side."""
    distance = spacing // encoder.tubelet
    latents: np.ndarray | None = None
    state: Any = None
    for frame in range(-(-int(episodes.length.max()) // spacing)):
        times = frame * spacing + np.arange(spacing)
        ages = np.arange(0, spacing, distance)[::-1] if frame else np.zeros(1, int)
        steps = np.clip(times[:, None] - ages, 0, episodes.length[:, None, None] - 1)  # [episodes, clips, images]
        seen = pixels[episodes.offset[:, None, None] + steps]
        seen = seen.reshape(-1, *seen.shape[2:])
        encoded, state = encoder.step(state, seen) if frame else encoder.start(seen[:, 0])
        found = np.asarray(encoded).reshape(len(episodes.length), spacing, *encoded.shape[1:])
        if latents is None:
            latents = np.empty((len(pixels), *found.shape[2:]), np.float32)
        for number in range(episodes.real):
            inside = times < episodes.length[number]
            latents[episodes.offset[number] + times[inside]] = found[number][inside]
    assert latents is not None  # no episode is empty
    return latents
