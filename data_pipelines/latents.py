"""Frames tokenised ahead of training: one float16 array on disk, memory-mapped, in the store's step order.

Encoding is most of the work of training on a frozen tokenizer; done once, a window is a copy of a few kilobytes.
"""

import collections
import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, UInt8

from data_pipelines.batches import read_cameras
from data_pipelines.episodes import DecodeError, EpisodeStore, check_cameras
from wam_jax import console
from wam_jax.alone import alone_in

Encode = Callable[[UInt8[np.ndarray, "B H W 3"]], Float[Array, "B h w C"]]

Rows = tuple[int, int]  # first and last + 1 step, counted over all episodes
Block = tuple[Float[np.ndarray, "N V h w C"], list[int]]  # latents of the next rows; those rows that are unreadable

_ARRAY, _PARTIAL, _HEADER, _PROGRESS = "latents.npy", "latents.partial.npy", "latents.json", "progress.json"
_SAVE_INTERVAL_S = 10.0


class LatentCacheError(RuntimeError):
    """The folder holds latents of another tokenizer, dataset or camera set, or none at all."""


class LatentCache:
    """Latents ``float16[S, V, h, w, C]`` of every step and camera of a store."""

    def __init__(self, directory: pathlib.Path, starts: np.ndarray, unreadable: Sequence[int]):
        """Use `build` or `open`."""
        self._directory = directory
        self._starts = starts
        self._unreadable = frozenset(unreadable)
        self._array = _map(directory / _ARRAY)

    def __getstate__(self) -> dict[str, Any]:
        """The memory map stays in the process that made it."""
        return {key: value for key, value in self.__dict__.items() if key != "_array"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _array=_map(state["_directory"] / _ARRAY))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, C)."""
        return self._array.shape[2:]

    @property
    def unreadable(self) -> frozenset[int]:
        """Rows (steps over all episodes) with a frame that could not be read; their latents are zeros."""
        return self._unreadable

    def read(self, episode: int, steps: Sequence[int]) -> Float[np.ndarray, "T V h w C"]:
        """Latents at ``steps`` of an episode; DecodeError where one of the frames could not be read."""
        rows = [int(self._starts[episode]) + step for step in steps]
        if self._unreadable and not self._unreadable.isdisjoint(rows):
            raise DecodeError(f"{self._directory}: episode {episode} steps {list(steps)} hold an unreadable frame")
        return self._array[rows]

    @classmethod
    def build(
        cls,
        store: EpisodeStore,
        cameras: Sequence[str],
        encode: Encode,
        directory: str | os.PathLike[str],
        key: str,
        batch_size: int = 64,
        *,
        image_size: tuple[int, int] | None = None,
        num_threads: int = 2,
    ) -> "LatentCache":
        """Encodes every frame of ``store``, or goes on where an earlier call was stopped, or opens what is complete.

        Args:
          store: the dataset.
          cameras: ``V`` cameras, in the order the model sees them.
          encode: the tokenizer; always called with the same number of frames, at most ``batch_size`` or ``V``.
          directory: where the latents go.
          key: names the tokenizer and its weights.
          batch_size: frames a call of ``encode``.
          image_size: (height, width) to resize frames to first.
          num_threads: threads that decode ahead of the encoder.

        Raises:
          LatentCacheError: the folder holds other latents, or latents overflow float16.
          CameraError: the store lacks a camera.
        """
        check_cameras(store, cameras)
        directory = pathlib.Path(directory)
        identity = Identity(key, store.fingerprint, tuple(cameras), image_size)
        total, steps = int(store.episode_starts[-1]), max(1, batch_size // len(cameras))
        blocks = [(start, min(start + steps, total)) for start in range(0, total, steps)]

        def encoded(blocks: Sequence[Rows]) -> Iterator[Block]:
            for pixels, unreadable in read_ahead(store, identity, blocks, num_threads):
                yield _encode_block(encode, pixels, steps), unreadable

        write_latents(directory, store, identity, blocks, encoded)
        return cls.open(store, identity, directory)

    @classmethod
    def open(cls, store: EpisodeStore, identity: "Identity", directory: pathlib.Path) -> "LatentCache":
        """Opens a complete cache; LatentCacheError where it is absent or was made from something else."""
        if not (directory / _HEADER).exists():
            raise LatentCacheError(f"{directory} has no complete latents of {store.name}; build them first")
        header = json.loads((directory / _HEADER).read_text())
        identity.check(header, directory)
        return cls(directory, store.episode_starts, header["unreadable"])


@dataclasses.dataclass(frozen=True)
class Identity:
    """What latents depend on: tokenizer, dataset, cameras, and of clips the control steps between their frames."""

    key: str
    fingerprint: str
    cameras: tuple[str, ...]
    image_size: tuple[int, int] | None
    spacing: int | None = None

    @property
    def folder(self) -> str:
        """A name that no other latents have."""
        return hashlib.sha256(json.dumps(dataclasses.asdict(self)).encode()).hexdigest()[:16]

    def check(self, header: dict[str, Any], directory: pathlib.Path) -> None:
        for name, wanted in json.loads(json.dumps(dataclasses.asdict(self))).items():
            if header[name] != wanted:
                raise LatentCacheError(
                    f"the latents in {directory} are of {name} {header[name]!r}, not {wanted!r}; "
                    "use another folder, or delete this one"
                )


def write_latents(
    directory: pathlib.Path,
    store: EpisodeStore,
    identity: Identity,
    blocks: Sequence[Rows],
    encode: Callable[[Sequence[Rows]], Iterator[Block]],
) -> None:
    """Fills a folder with latents of every step, unless it is complete; goes on where an earlier call was stopped.

    ``blocks`` cover all rows in order; ``encode`` gives those it is asked for. The header, written last, says that the
    latents are complete.
    """
    if (directory / _HEADER).exists():
        return
    with alone_in(directory):
        if not (directory / _HEADER).exists():  # another process may have finished it meanwhile
            _write(directory, store, identity, blocks, encode)


def _write(
    directory: pathlib.Path,
    store: EpisodeStore,
    identity: Identity,
    blocks: Sequence[Rows],
    encode: Callable[[Sequence[Rows]], Iterator[Block]],
) -> None:
    total = int(store.episode_starts[-1])
    partial = _PartialArray.resume(identity, directory, total)
    todo = [rows for rows in blocks if rows[0] >= partial.done]
    begun = len(blocks) - len(todo)
    try:
        results = console.progress(encode(todo), f"encode {store.name}", total=len(blocks), start=begun)
        for latents, unreadable in results:
            partial.append(_as_float16(latents), unreadable)
    finally:  # an interrupted run keeps what it has done
        partial.save()
    partial.finish()
    if partial.unreadable:
        console.log(f"{len(partial.unreadable)} of {total} steps of {store.name} have an unreadable frame")


@dataclasses.dataclass
class _PartialArray:
    """Latents of the first ``done`` of ``total`` steps, on disk, with what is needed to go on after a kill."""

    identity: Identity
    directory: pathlib.Path
    total: int
    done: int = 0
    unreadable: list[int] = dataclasses.field(default_factory=list)
    _array: np.ndarray | None = None
    _saved: float = dataclasses.field(default_factory=time.monotonic)

    @classmethod
    def resume(cls, identity: Identity, directory: pathlib.Path, total: int) -> "_PartialArray":
        if not ((directory / _PROGRESS).exists() and (directory / _PARTIAL).exists()):
            return cls(identity, directory, total)
        progress = json.loads((directory / _PROGRESS).read_text())
        identity.check(progress, directory)
        array = np.lib.format.open_memmap(directory / _PARTIAL, mode="r+")
        return cls(identity, directory, total, progress["done"], progress["unreadable"], array)

    def append(self, latents: Float[np.ndarray, "N V h w C"], unreadable: list[int]) -> None:
        if self._array is None:
            shape = (self.total, *latents.shape[1:])
            path = self.directory / _PARTIAL
            self._array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        self._array[self.done : self.done + len(latents)] = latents
        self.done += len(latents)
        self.unreadable += unreadable
        if time.monotonic() - self._saved > _SAVE_INTERVAL_S:
            self.save()

    def save(self) -> None:
        if self._array is None:
            return
        self._array.flush()  # type: ignore[attr-defined]
        _write_json(self.directory / _PROGRESS, self._header() | {"done": self.done})
        self._saved = time.monotonic()

    def finish(self) -> None:
        os.replace(self.directory / _PARTIAL, self.directory / _ARRAY)
        _write_json(self.directory / _HEADER, self._header())
        (self.directory / _PROGRESS).unlink()

    def _header(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self.identity), "unreadable": self.unreadable}


def read_ahead(
    store: EpisodeStore, identity: Identity, blocks: Sequence[Rows], num_threads: int
) -> Iterator[tuple[UInt8[np.ndarray, "N V H W 3"], list[int]]]:
    """Decodes blocks of steps in threads, a few blocks ahead; yields frames and the rows that are unreadable."""

    blank = _blank(store, identity)

    def read(rows: Rows) -> tuple[UInt8[np.ndarray, "N V H W 3"], list[int]]:
        frames = [_read_step(store, identity, row) for row in range(*rows)]
        unreadable = [row for row, frame in zip(range(*rows), frames, strict=True) if frame is None]
        return np.stack([blank if frame is None else frame for frame in frames]), unreadable

    with concurrent.futures.ThreadPoolExecutor(max(1, num_threads)) as pool:
        pending: collections.deque[concurrent.futures.Future] = collections.deque()
        for rows in blocks:
            pending.append(pool.submit(read, rows))
            if len(pending) > 2 * num_threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _blank(store: EpisodeStore, identity: Identity) -> UInt8[np.ndarray, "V H W 3"]:
    """Black frames of the store's size, to stand for those that cannot be read."""
    steps = (_read_step(store, identity, row) for row in range(int(store.episode_starts[-1])))
    readable = next((frame for frame in steps if frame is not None), None)
    if readable is None:
        raise DecodeError(f"no frame of {store.name} can be read; check the dataset's files")
    return np.zeros_like(readable)


def _read_step(store: EpisodeStore, identity: Identity, row: int) -> UInt8[np.ndarray, "V H W 3"] | None:
    episode = int(np.searchsorted(store.episode_starts, row, side="right")) - 1
    step = row - int(store.episode_starts[episode])
    try:
        return read_cameras(store, episode, [step], identity.cameras, identity.image_size)[0]
    except DecodeError:
        return None


def _encode_block(encode: Encode, pixels: UInt8[np.ndarray, "N V H W 3"], block: int) -> Float[np.ndarray, "N V h w C"]:
    """Encodes one block, padded to ``block`` steps so that a compiled encoder sees one shape."""
    steps, cameras = pixels.shape[:2]
    padded = np.concatenate([pixels, np.repeat(pixels[-1:], block - steps, 0)])
    encoded = np.asarray(encode(padded.reshape(-1, *pixels.shape[2:])))
    return encoded.reshape(block, cameras, *encoded.shape[1:])[:steps]


def _as_float16(encoded: Float[np.ndarray, "N V h w C"]) -> Float[np.ndarray, "N V h w C"]:
    with np.errstate(over="ignore"):
        latents = encoded.astype(np.float16)
    if not np.isfinite(latents).all():
        raise LatentCacheError(f"latents up to {np.abs(encoded).max():.3g} do not fit float16; normalise them first")
    return latents


def _map(path: pathlib.Path) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _write_json(path: pathlib.Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content))
    os.replace(temporary, path)
