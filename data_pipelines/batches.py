"""From window numbers to a `Batch`: pixels or latents are read a window at a time, the rest a batch at a time."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from data_pipelines.episodes import DecodeError, EpisodeStore
from data_pipelines.images import resize
from data_pipelines.statistics import stack_columns
from data_pipelines.transforms import ActionCodec, Affine
from data_pipelines.windows import WindowSpec, take, window_table
from wam_jax import console
from wam_jax.types import TEACHER, Batch, StreamData, Text

_MAX_DROPPED = 0.5  # beyond this share of unreadable windows the dataset is not what it seems

# A window's number; its images, or its frames' latents; of these the features beside them, if any.
Sample = tuple[int, Shaped[np.ndarray, "T V ..."], Float[np.ndarray, "T V h w D"] | None]


class LatentSource(Protocol):
    """Frames that were tokenised ahead of training (`latents.LatentCache`, `clip_latents.ClipLatents`)."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, C)."""

    @property
    def unreadable(self) -> frozenset[int]:
        """Rows (steps over all episodes) whose latents are not to be had."""

    def read(self, episode: int, steps: Sequence[int]) -> Float[np.ndarray, "T V h w C"]:
        """Latents of a window's frames in all `WindowSpec.image_columns`; DecodeError where one could not be read."""


@dataclasses.dataclass(frozen=True)
class TaughtLatents:
    """Latents, and a frozen vision encoder's features of the same frames, as a ``LatentSource``."""

    latents: LatentSource
    features: LatentSource

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, C) of the latents."""
        return self.latents.latent_shape

    @property
    def unreadable(self) -> frozenset[int]:
        """Rows of which either is not to be had."""
        return self.latents.unreadable | self.features.unreadable

    def read(self, episode: int, steps: Sequence[int]) -> Float[np.ndarray, "T V h w C"]:
        """Latents of a window's frames."""
        return self.latents.read(episode, steps)


@dataclasses.dataclass(frozen=True, eq=False)
class TextTable:
    """Token features of every instruction, from a frozen text encoder."""

    features: Float[np.ndarray, "I L C"]
    mask: Bool[np.ndarray, "I L"]
    instructions: tuple[str, ...]

    def rows(self, store: EpisodeStore) -> Int[np.ndarray, "E"]:
        """The table's row for each episode of ``store``.

        Raises:
          KeyError: an instruction has no features.
        """
        number = {text: row for row, text in enumerate(self.instructions)}
        texts = [store.instruction(episode) for episode in range(store.num_episodes)]
        missing = sorted(set(texts) - set(number))
        if missing:
            raise KeyError(
                f"instruction '{missing[0]}' of {store.name} has no text features ({len(missing)} have none, the "
                f"table has {len(self.instructions)}); encode the dataset's instructions into the text table"
            )
        return np.array([number[text] for text in texts], np.int64)


class BatchAssembler:
    """Reads windows of one or more stores and stacks them.

    `sample` is thread-safe and is where the time goes; calling the assembler makes a `Batch` of samples. Windows with
    an unreadable frame are remembered in ``dropped``, by number.
    """

    def __init__(
        self,
        stores: Sequence[EpisodeStore],
        spec: WindowSpec,
        codec: ActionCodec,
        proprio_affine: Affine,
        text_table: TextTable,
        latents: Sequence[LatentSource] | None = None,
        embodiments: Sequence[int] | None = None,
        labelled: Sequence[bool] | None = None,
    ):
        """Checks all that can be checked before training; see `loader.make_loader` for arguments and errors."""
        if not stores:
            raise ValueError("no dataset to load; set data.datasets")
        if latents is not None and len(latents) != len(stores):
            raise ValueError(f"{len(latents)} latent caches for {len(stores)} datasets; give one each")
        embodiments = range(len(stores)) if embodiments is None else embodiments
        if len(embodiments) != len(stores):
            raise ValueError(f"{len(embodiments)} embodiments for {len(stores)} datasets; give one each")
        self.stores = tuple(stores)
        self.table = window_table(stores, spec)
        self.dropped: set[int] = set()
        self._spec = spec
        self._codec = codec
        self._latents = latents
        self._text = text_table
        self._actions = stack_columns(stores, spec.action_key)
        _check_size(spec.action_key, self._actions.shape[1], codec.action_size)
        proprio = stack_columns(stores, spec.proprio_key)
        _check_size(spec.proprio_key, proprio.shape[1], len(proprio_affine.offset))
        self._proprio = proprio_affine.normalise(proprio).astype(np.float32)
        self._text_rows = [text_table.rows(store) for store in stores]
        first_episode = np.cumsum([0, *(len(rows) for rows in self._text_rows)])[self.table.store]
        self._episode = first_episode + self.table.episode
        self._text_row = np.concatenate(self._text_rows)[self._episode]
        self._embodiment = np.array(embodiments, np.int32)[self.table.store]
        self._embodiments = tuple(embodiments)
        self._labelled_stores = np.array([True] * len(stores) if labelled is None else labelled)
        self._labelled = self._labelled_stores[self.table.store]
        self._check_frame_shapes()

    def __len__(self) -> int:
        return len(self.table)

    def windows_of(self, store: int) -> Int[np.ndarray, "W"]:
        """The numbers of a store's windows."""
        return np.flatnonzero(self.table.store == store)

    def told(self) -> tuple[Int[np.ndarray, "W"], Int[np.ndarray, "W"]]:
        """Of every window: its instruction's row in the text table, and its episode among those of all stores."""
        return self._text_row, self._episode

    def sample(self, window: int) -> Sample | None:
        """The frames of one window; None where one of them cannot be read.

        Raises:
          DecodeError: more than half of all windows cannot be read.
        """
        try:
            return window, *self._frames(window)
        except DecodeError as error:
            if not self.dropped:
                console.log(f"dropping windows with unreadable frames, the first: {error}")
            self.dropped.add(window)
            if len(self.dropped) > _MAX_DROPPED * len(self):
                share = f"{len(self.dropped)} of {len(self)} windows cannot be read"
                raise DecodeError(f"{share}, the last: {error}; check the dataset's files") from error
            return None

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Stacks samples to a batch of numpy arrays."""
        windows = np.array([window for window, *_ in samples])
        frames = np.stack([frame for _, frame, _ in samples])
        spec, first, last = self._spec, self.table.row[windows], self.table.last_row[windows]
        frame_rows, frame_mask = take(first, last, spec.frame_offsets)
        action_rows, action_mask = take(first, last, np.arange(spec.action_horizon))
        labelled = self._labelled[windows][:, None]  # of what else is recorded, only the pictures are looked at
        acts = action_mask & labelled
        # Past the end the robot holds still: displacements stay, everything else keeps its last value.
        raw = np.where(action_mask[..., None] | ~self._codec.cumulative, self._actions[action_rows], 0.0)
        actions = self._codec.encode(raw).astype(np.float32)
        proprio = self._proprio[frame_rows]
        frames = frames if self._latents is None else frames.astype(np.float32)
        rgb, depth = np.split(frames, [len(spec.cameras)], axis=2)
        text_row = self._text_row[windows]
        batch = {
            "images": rgb if self._latents is None else None,
            "latents": None if self._latents is None else rgb,
            "image_mask": np.repeat(frame_mask[..., None], len(spec.cameras), -1),
            "actions": actions,
            "action_mask": np.repeat(acts[..., None], actions.shape[-1], -1),
            "proprio": proprio,
            "proprio_mask": np.repeat((frame_mask & labelled)[..., None], proprio.shape[-1], -1),
            "embodiment": self._embodiment[windows],
            "streams": self._streams(depth, last[:, None] - frame_rows, frame_mask),
        }
        if samples[0][2] is not None:
            features: Any = np.stack([features for *_, features in samples])[:, :, : len(spec.cameras)]
            batch["streams"][TEACHER] = StreamData(values=features, mask=batch["image_mask"])
        return Batch(text=Text(features=self._text.features[text_row], mask=self._text.mask[text_row]), **batch)

    def _streams(
        self, depth: Shaped[np.ndarray, "B T V ..."], steps_left: Int[np.ndarray, "B T"], mask: Bool[np.ndarray, "B T"]
    ) -> dict[str, StreamData]:
        """The further streams that the spec asks for."""
        streams: dict[str, tuple[Any, Any]] = {}  # values and mask
        if self._spec.depth_cameras:
            streams["depth"] = depth, np.repeat(mask[..., None], depth.shape[2], -1)
        if self._spec.value_discount:
            value = np.power(self._spec.value_discount, steps_left).astype(np.float32)
            streams["value"] = value[..., None], mask
        return {name: StreamData(values=values, mask=mask) for name, (values, mask) in streams.items()}

    def _frames(self, window: int) -> tuple[Shaped[np.ndarray, "T V ..."], Float[np.ndarray, "T V h w D"] | None]:
        """Images or latents of a window, and features beside latents."""
        table = self.table
        number, episode, step = int(table.store[window]), int(table.episode[window]), int(table.step[window])
        last = step + int(table.last_row[window] - table.row[window])
        spec = self._spec
        offsets = spec.image_offsets if self._latents is None else spec.frame_offsets
        steps = [min(step + offset, last) for offset in offsets]
        source = self._latents[number] if self._latents is not None else None
        features = source.features.read(episode, steps) if isinstance(source, TaughtLatents) else None
        return self._read(number, episode, steps), features

    def _read(self, store: int, episode: int, steps: Sequence[int]) -> Shaped[np.ndarray, "T V ..."]:
        if self._latents is not None:
            return self._latents[store].read(episode, steps)
        return read_cameras(self.stores[store], episode, steps, self._spec.image_columns, self._spec.image_size)

    def _check_frame_shapes(self) -> None:
        """Reads one window a store, so that frames that cannot be stacked or split are an error before training."""
        shapes = {}
        for number, store in enumerate(self.stores):
            sample = next(
                (s for window in self.windows_of(number) if (s := self.sample(int(window))) is not None), None
            )
            if sample is not None:
                shapes[f"{number}:{store.name}"] = sample[1].shape[1:]
        if len(set(shapes.values())) > 1:
            raise ValueError(f"datasets have frames (cameras, height, width, …) {shapes}; set data.image_size")
        columns = self._spec.image_columns
        for name, (views, *_) in shapes.items():
            if views != len(columns):
                wanted = f"windows ask for {len(columns)} ({', '.join(columns)})"
                raise ValueError(f"latents of {name} are of {views} cameras, {wanted}; encode them anew")


def read_cameras(
    store: EpisodeStore,
    episode: int,
    steps: Sequence[int],
    cameras: Sequence[str],
    image_size: tuple[int, int] | None = None,
) -> Shaped[np.ndarray, "T V H W 3"]:
    """Frames of several cameras, resized to (height, width) if given.

    Raises:
      DecodeError: an image is damaged.
      ValueError: the cameras' sizes differ and there is no ``image_size``.
    """
    views = [store.read_frames(episode, camera, steps) for camera in cameras]
    if image_size is not None:
        views = [resize(view, image_size) for view in views]
    if len({view.shape for view in views}) > 1:
        sizes = {camera: view.shape[1:3] for camera, view in zip(cameras, views, strict=True)}
        raise ValueError(f"cameras of {store.name} have different sizes {sizes}; set data.image_size")
    return np.stack(views, 1)


def _check_size(column: str, size: int, expected: int) -> None:
    if size != expected:
        raise ValueError(f"column '{column}' has {size} dimensions, its normalisation {expected}; compute it anew")
