"""The training input: shuffled windows of one or more datasets, read by threads, as an endless stream of batches."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import grain
import jax
import numpy as np

from data_pipelines.batches import BatchAssembler, LatentSource, Sample, TextTable
from data_pipelines.episodes import EpisodeStore
from data_pipelines.mixture import contrasting_order, window_order
from data_pipelines.packing import PackedAssembler
from data_pipelines.transforms import ActionCodec, Affine
from data_pipelines.windows import WindowSpec
from wam_jax.types import Batch


@dataclasses.dataclass(frozen=True, eq=False)
class Loader:
    """An endless stream of batches. Each ``iter`` starts anew, and gives the same batches.

    The iterator is grain's: ``next``, ``get_state() -> dict`` and ``set_state``; a restored one goes on with bitwise
    the batches that would have come.
    """

    assembler: BatchAssembler
    order: grain.MapDataset[int]
    batch_size: int
    num_threads: int

    @property
    def num_dropped(self) -> int:
        """Distinct windows met so far in this process that have an unreadable frame, and so are left out."""
        return len(self.assembler.dropped)

    def __iter__(self) -> grain.DatasetIterator[Batch]:
        buffered = 2 * self.batch_size if self.num_threads else 0
        options = grain.ReadOptions(num_threads=self.num_threads, prefetch_buffer_size=buffered)
        samples = self.order.map(self.assembler.sample).to_iter_dataset(options)
        return iter(samples.batch(self.batch_size, drop_remainder=True, batch_fn=self.assembler))


def make_loader(
    stores: Sequence[EpisodeStore],
    spec: WindowSpec,
    codec: ActionCodec,
    proprio_affine: Affine,
    text_table: TextTable,
    batch_size: int,
    seed: int,
    *,
    weights: Sequence[float] | None = None,
    shard_index: int = 0,
    shard_count: int = 1,
    num_threads: int = 2,
    latents: Sequence[LatentSource] | None = None,
    embodiments: Sequence[int] | None = None,
    labelled: Sequence[bool] | None = None,
    packed: bool = False,
    alike: float = 0.0,
) -> Loader:
    """Builds the training input of this host.

    Args:
      stores: the datasets.
      spec: what a window holds.
      codec: encodes action chunks.
      proprio_affine: normalises proprioception.
      text_table: features of every instruction.
      batch_size: windows a batch, on this host.
      seed: of the order; the order is a pure function of (seed, step).
      weights: how often each dataset is drawn; None draws all windows equally often.
      shard_index: which host this is.
      shard_count: how many hosts read disjoint parts.
      num_threads: threads that read and decode; 0 reads when asked.
      latents: pre-encoded frames of the spec's ``image_columns``, one cache a store; batches then hold ``latents``
        instead of ``images``, and depth as latents too.
      embodiments: the embodiment number of each store; None counts them.
      labelled: whether each store's actions may be looked at; None: all. Others are action-free video.
      packed: rows of the spec's frames that hold whole episodes, several where they are short, instead of windows.
      alike: share of every batch whose windows have the same instruction, in different episodes: what a contrastive
        loss finds hard to tell apart. Batches are then drawn at random, whatever the ``weights``.

    Raises:
      CameraError: a store lacks a camera or a depth camera.
      KeyError: a store lacks a column, or an instruction has no text features.
      ValueError: sizes, weights or shards do not fit together.
    """
    arguments = (stores, spec, codec, proprio_affine, text_table, latents, embodiments, labelled)
    if packed:
        assembler: BatchAssembler = PackedAssembler(*arguments, seed=seed, mixed=weights is None)
    else:
        assembler = BatchAssembler(*arguments)
    groups = [assembler.windows_of(number) for number in range(len(stores))]
    order = window_order(groups, weights, seed, shard_index, shard_count)
    if alike:
        order = contrasting_order(*assembler.told(), batch_size, alike, seed + shard_index)
    return Loader(assembler, order, batch_size, num_threads)


def fixed_windows(
    stores: Sequence[EpisodeStore],
    spec: WindowSpec,
    codec: ActionCodec,
    proprio_affine: Affine,
    text_table: TextTable,
    num: int,
    seed: int,
    *,
    latents: Sequence[LatentSource] | None = None,
    images: bool = False,
    embodiments: Sequence[int] | None = None,
) -> Batch:
    """One batch of ``num`` distinct windows, the same at every call: what validation looks at.

    Arguments and errors as in `make_loader`; ValueError where fewer than ``num`` windows can be read.

    Args:
      images: of the same windows, beside ``latents``.
    """
    of_window = [BatchAssembler(stores, spec, codec, proprio_affine, text_table, latents, embodiments)]
    if images and latents is not None:
        of_window.append(BatchAssembler(stores, spec, codec, proprio_affine, text_table, None, embodiments))
    found: list[list[Sample]] = []
    for window in np.random.default_rng(seed).permutation(len(of_window[0])):
        if len(found) == num:
            break
        samples = [sample for assembler in of_window if (sample := assembler.sample(int(window))) is not None]
        if len(samples) == len(of_window):
            found.append(samples)
    if len(found) < num:
        raise ValueError(f"{num} validation windows were asked for; {len(found)} can be read")
    batch, *others = (
        assembler(samples) for assembler, samples in zip(of_window, zip(*found, strict=True), strict=True)
    )
    return dataclasses.replace(batch, images=others[0].images) if others else batch


def endless(count: int, batch_size: int, seed: int, take: Callable[[Any], Any]) -> grain.DatasetIterator:
    """Batches that ``take`` makes of row numbers, in an order of their own every epoch."""
    order = grain.MapDataset.range(count).shuffle(seed).repeat()
    return iter(order.to_iter_dataset(grain.ReadOptions(num_threads=0)).batch(batch_size, batch_fn=take))


class SideBySide(grain.DatasetIterator[Batch]):
    """Batches of which the first rows come from one iterator, the rest from another."""

    def __init__(self, first: grain.DatasetIterator[Batch], second: grain.DatasetIterator[Batch]):
        super().__init__()
        self._both = first, second

    def __next__(self) -> Batch:
        first, second = map(next, self._both)
        return jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second)

    def get_state(self) -> dict[str, Any]:
        """Of both."""
        return {str(number): iterator.get_state() for number, iterator in enumerate(self._both)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Of both."""
        for number, iterator in enumerate(self._both):
            iterator.set_state(state[str(number)])
