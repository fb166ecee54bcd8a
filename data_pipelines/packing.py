"""Rows that hold several episodes, one after the other, so that short ones leave no room empty."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from data_pipelines.batches import BatchAssembler, Sample, TaughtLatents
from data_pipelines.episodes import EpisodeStore
from data_pipelines.windows import WindowSpec
from wam_jax.types import Batch, Text

_OPEN = 64  # rows that are filled at the same time
_EPOCHS = 8  # orders that are drawn ahead; after these, rows repeat, in another order


class Piece(NamedTuple):
    """A part of an episode in a row: ``frames`` frames from ``step`` on.

    ``row`` is that of the step in the stores' columns, laid end to end.
    """

    store: int
    episode: int
    step: int
    row: int
    frames: int


def pack(
    stores: Sequence[EpisodeStore], kinds: Sequence[Any], spacing: int, frames: int, seed: int
) -> list[tuple[Piece, ...]]:
    """Rows of at most ``frames`` frames, ``spacing`` control steps apart: first fit, over episodes in random order.

    In every order an episode begins at a random one of its first ``spacing`` steps; longer ones than a row are cut.
    What has fewer than two frames is left out. All episodes of a row are of stores of one kind.

    Raises:
      ValueError: if nothing is left.
    """
    rng = np.random.default_rng(seed)
    rows: list[tuple[Piece, ...]] = []
    first_rows = np.cumsum([0, *(int(store.episode_starts[-1]) for store in stores)])
    every = [(number, episode) for number, store in enumerate(stores) for episode in range(store.num_episodes)]
    for _ in range(_EPOCHS):
        opened: list[list[Piece]] = []
        for index in rng.permutation(len(every)):
            number, episode = every[index]
            store = stores[number]
            begin = int(rng.integers(spacing))
            left = 1 + (store.num_steps(episode) - 1 - begin) // spacing
            while left > 1:
                count = min(left, frames)
                row = int(first_rows[number] + store.episode_starts[episode]) + begin
                _place(opened, Piece(number, episode, begin, row, count), kinds, frames)
                # The last frame of a part is the first of the next: what happens between them is in one of them.
                begin, left = begin + (count - 1) * spacing, left - (count - 1)
            while len(opened) > _OPEN:
                rows.append(tuple(opened.pop(0)))
        rows += [tuple(pieces) for pieces in opened]
    if not rows:
        raise ValueError(f"no episode has two frames {spacing} steps apart; change data.frame_steps")
    return rows


def _place(opened: list[list[Piece]], piece: Piece, kinds: Sequence[Any], frames: int) -> None:
    for pieces in opened:
        alike = kinds[pieces[0].store] == kinds[piece.store]
        if alike and sum(other.frames for other in pieces) + piece.frames <= frames:
            pieces.append(piece)
            return
    opened.append([piece])


class PackedAssembler(BatchAssembler):
    """Like ``BatchAssembler``, of rows instead of windows; of the spec's frames in a row, evenly spaced.

    A row has one embodiment, and actions throughout or none: a model is told of both by the row.
    """

    def __init__(self, stores: Sequence[EpisodeStore], spec: WindowSpec, *more: Any, seed: int, mixed: bool = True):
        """As ``BatchAssembler``; ``mixed``: rows may hold episodes of several stores. Errors beside its own:

        Raises:
          ValueError: frames are not evenly spaced, actions are not those between them, displacements do not start anew
            with every frame, images would have to be merged in time on the fly, or depth or values are asked for.
        """
        if spec.depth_cameras or spec.value_discount:
            raise ValueError("packed rows have neither depth nor values; set data.packed=False")
        spacings = set(np.diff(spec.frame_offsets).tolist())
        self.spacing = spacings.pop() if spacings else 1
        self._seed, self._mixed = seed, mixed
        super().__init__(stores, spec, *more)
        actions = self.spacing * (len(spec.frame_offsets) - 1)
        sums = bool(self._codec.cumulative.any()) and self._codec.block != self.spacing
        if spacings or spec.action_horizon != actions or sums:
            raise ValueError(
                f"packed rows need evenly spaced frames (have {spec.frame_offsets}), the actions between them "
                f"(data.action_horizon={actions}) and data.action_block={self.spacing}"
            )
        if self._latents is not None and any(isinstance(source, TaughtLatents) for source in self._latents):
            raise ValueError("packed rows have no features of a teacher; set data.packed=False or alignment.variant")
        if spec.tubelet > 1 and self._latents is None:
            raise ValueError("packed rows of a tokenizer that merges images need data.precompute_latents=True")
        self._episodes = 1 + max(len(row) for row in self.rows)  # and what is left empty

    @functools.cached_property
    def rows(self) -> list[tuple[Piece, ...]]:
        """The pieces of every row."""
        # Packed when the base's __init__ first looks at a frame: by then it knows what the stores are.
        own = [0] * len(self.stores) if self._mixed else range(len(self.stores))
        kinds = list(zip(self._embodiments, self._labelled_stores, own, strict=True))
        return pack(self.stores, kinds, self.spacing, len(self._spec.frame_offsets), self._seed)

    def __len__(self) -> int:
        return len(self.rows)

    def windows_of(self, store: int) -> Int[np.ndarray, "W"]:
        """The numbers of the rows that begin with a store's episode."""
        return np.flatnonzero([row[0].store == store for row in self.rows])

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Stacks rows to a batch of numpy arrays."""
        spec, rows = self._spec, [self.rows[number] for number, *_ in samples]
        size, frames, actions = len(rows), len(spec.frame_offsets), spec.action_horizon
        frame_row = np.zeros((size, frames), np.int64)
        action_row = np.zeros((size, actions), np.int64)
        episode = np.full((size, frames), -1)
        # A model is told of a whole row whether it has actions: what is hidden must not be in it.
        acts, shown, felt = (np.zeros((size, count), bool) for count in (actions, actions, frames))
        text_row = np.full((size, self._episodes), -1)
        for i, row in enumerate(rows):
            at = 0
            for number, piece in enumerate(row):
                moves = slice(at * self.spacing, (at + piece.frames - 1) * self.spacing)
                frame_row[i, at : at + piece.frames] = piece.row + self.spacing * np.arange(piece.frames)
                action_row[i, moves] = piece.row + np.arange(moves.stop - moves.start)
                acts[i, moves] = True
                shown[i, moves] = felt[i, at : at + piece.frames] = self._labelled_stores[piece.store]
                episode[i, at : at + piece.frames] = number
                text_row[i, number] = self._text_rows[piece.store][piece.episode]
                at += piece.frames
        there = episode >= 0
        raw = np.where(acts[..., None] | ~self._codec.cumulative, self._actions[action_row], 0.0)
        encoded = self._codec.encode(raw).astype(np.float32)
        proprio = np.where(felt[..., None], self._proprio[frame_row], 0.0).astype(np.float32)
        stacked = np.stack([frame for _, frame, _ in samples])
        said = text_row >= 0
        mask = self._text.mask[text_row] & said[..., None]
        mask[..., 0] |= ~said
        latents = self._latents is not None
        features: Any = np.where(said[..., None, None], self._text.features[text_row], 0.0)
        batch: dict[str, Any] = {
            "images": None if latents else stacked,
            "latents": stacked.astype(np.float32) if latents else None,
            "image_mask": np.repeat(there[..., None], len(spec.cameras), -1),
            "actions": np.where(shown[..., None], encoded, 0.0),
            "action_mask": np.repeat(shown[..., None], encoded.shape[-1], -1),
            "proprio": proprio,
            "proprio_mask": np.repeat(felt[..., None], proprio.shape[-1], -1),
            "embodiment": np.array([self._embodiments[row[0].store] for row in rows], np.int32),
            "episode": np.where(there, episode, self._episodes - 1),
        }
        return Batch(text=Text(features=features, mask=mask), **batch)

    def _frames(self, window: int) -> tuple[Shaped[np.ndarray, "T V ..."], None]:
        parts = []
        for piece in self.rows[window]:
            steps = [piece.step + self.spacing * number for number in range(piece.frames)]
            parts.append(self._read(piece.store, piece.episode, steps))
        found = np.concatenate(parts)
        return np.pad(found, [(0, len(self._spec.frame_offsets) - len(found))] + [(0, 0)] * (found.ndim - 1)), None
