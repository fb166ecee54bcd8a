"""From a config to datasets, normalisation and text features: what training and validation read."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
from jaxtyping import Float, UInt8
from ml_collections import ConfigDict

from data_pipelines import beside
from data_pipelines.batches import LatentSource, TextTable
from data_pipelines.clip_latents import encode_clips
from data_pipelines.episodes import EpisodeStore
from data_pipelines.latents import Identity, LatentCache
from data_pipelines.loader import fixed_windows, make_loader
from data_pipelines.statistics import Statistics, compute_statistics
from data_pipelines.subset import open_split
from data_pipelines.transforms import ActionCodec, Affine
from data_pipelines.windows import WindowSpec
from launch.config import ConfigError
from launch.skills import with_skills
from wam_jax import console
from wam_jax.encoders.registry import forget_text_encoders, text_encoder
from wam_jax.tokenizers.tokenizer import Tokenizer
from wam_jax.types import Batch

LATENTS = ".wam_latents"  # folder of a dataset


@dataclasses.dataclass(frozen=True)
class Data:
    """Everything that is read in training; ``embodiments`` has one number a training store.

    The last ``unlabelled`` of the training stores are action-free video.
    """

    train: tuple[EpisodeStore, ...]
    validation: tuple[EpisodeStore, ...]
    embodiments: tuple[int, ...]
    windows: WindowSpec
    statistics: Statistics
    codec: ActionCodec
    proprio: Affine
    text: TextTable
    config: ConfigDict
    unlabelled: int = 0

    def batches(
        self,
        batch_size: int,
        seed: int,
        latents: list[LatentSource] | None,
        windows: WindowSpec | None = None,
        alike: float = 0.0,
        part: tuple[int, int] = (0, 1),
    ) -> grain.DatasetIterator[Batch]:
        """Endless shuffled training batches; ``alike``: share of each that has one instruction.

        ``part``: index and number of the parts of which this process reads one (``processes.batch_part``).
        """
        loader = make_loader(
            self.train,
            windows or self.windows,
            self.codec,
            self.proprio,
            self.text,
            batch_size // part[1],
            seed,
            weights=self.config.weights or None,
            shard_index=part[0],
            shard_count=part[1],
            num_threads=self.config.threads,
            latents=latents,
            embodiments=self.embodiments,
            packed=self.config.packed and windows is None,
            alike=alike,
            labelled=[number < len(self.train) - self.unlabelled for number in range(len(self.train))],
        )
        return iter(loader)

    def validation_windows(self, count: int, seed: int, store: int, latents: LatentSource | None = None) -> Batch:
        """One fixed batch of one held-out dataset's windows, as pixels; and as latents, if they are given."""
        return fixed_windows(
            [self.validation[store]],
            self.windows,
            self.codec,
            self.proprio,
            self.text,
            count,
            seed,
            latents=None if latents is None else [latents],
            images=True,
            embodiments=[self.embodiments[store]],
        )


def open_data(config: ConfigDict) -> Data:
    """Opens (and indexes, where need be) the datasets of ``config.data``.

    Raises:
      ConfigError: if there are none, or a field does not fit the data.
    """
    if not config.datasets:
        raise ConfigError("config.data.datasets is empty; name RLDS or LeRobot folders, or make some with: wam demos")
    embodiments = tuple(config.embodiments) or (0,) * len(config.datasets)
    if len(embodiments) != len(config.datasets):
        given = f"{len(embodiments)} embodiments and {len(config.datasets)} datasets"
        raise ConfigError(f"config.data has {given}; give one each, or none")
    train = tuple(_open(config, path, config.split) for path in config.datasets)
    unlabelled = tuple(_open(config, path, config.unlabelled) for path in config.datasets if config.unlabelled)
    validation = tuple(_open(config, path, config.validation_split) for path in config.datasets)
    windows = WindowSpec(
        cameras=tuple(config.cameras),
        depth_cameras=tuple(config.depth_cameras),
        value_discount=config.value_discount,
        frame_offsets=tuple(config.frame_steps),
        action_horizon=config.action_horizon,
        image_size=tuple(config.image_size),
        starts=config.starts or None,
        action_key=config.action_key,
        proprio_key=config.proprio_key,
    )
    block = config.action_block or config.action_horizon
    statistics = compute_statistics(
        train, dataclasses.replace(windows, action_horizon=block), np.array(config.cumulative, bool)
    )
    every = (*train, *unlabelled, *validation)
    instructions = sorted({s.instruction(e) for s in every for e in range(s.num_episodes)})
    data = Data(
        (*train, *unlabelled),
        validation,
        (*embodiments, *embodiments[: len(unlabelled)]),
        windows,
        statistics,
        statistics.action_codec(config.normalization, tuple(config.unnormalized), config.action_block or None),
        statistics.proprio_affine(config.normalization),
        encode_text(instructions, config.text_encoder, config.text_tokens),
        config,
        len(unlabelled),
    )
    forget_text_encoders()  # what trains needs the room
    _describe(data)
    return data


def _open(config: ConfigDict, path: str, split: str) -> EpisodeStore:
    return with_skills(config, open_split(path, split), path)


def encode_text(instructions: list[str], encoder: str, tokens: int) -> TextTable:
    """Token features of each instruction.

    Raises:
      assets.AssetMissing: the encoder's weights are not here; says how to get them.
    """
    features, mask = text_encoder(encoder).encode(instructions, tokens)
    return TextTable(features, mask, tuple(instructions))


def _describe(data: Data) -> None:
    for store in data.train[len(data.validation) :]:
        console.log(f"{store.name}: {store.num_episodes} episodes more, whose actions are not looked at")
    for store, held_out in zip(data.train, data.validation, strict=False):
        steps = int(store.episode_starts[-1])
        console.log(
            f"{store.name}: {store.num_episodes} episodes, {steps} steps, {held_out.num_episodes} held out; "
            f"cameras {', '.join(store.cameras)}"
            + (f"; {store.skipped} more are damaged or not here" if store.skipped else "")
        )
    action = data.statistics.action
    ranges = ", ".join(f"{low:.2g}..{high:.2g}" for low, high in zip(action.q01, action.q99, strict=True))
    console.log(f"actions: {len(action.mean)} dimensions, 1% to 99%: {ranges} ({data.config.normalization})")
    if depth := data.windows.depth_cameras:
        console.log(f"depth: {', '.join(depth)}")
    if discount := data.windows.value_discount:
        console.log(f"value: {discount} to the power of the steps left")
    console.log(f"text: {len(data.text.instructions)} instructions, {data.text.features.shape[1]} tokens at most")


def interface_sizes(data: Data, latent_shape: tuple[int, int, int]) -> dict[str, Any]:
    """The fields of ``Interface`` that this data decides."""
    return {
        "latent_shape": list(latent_shape),
        "cameras": len(data.windows.cameras),
        "frame_steps": list(data.windows.frame_offsets),
        "action_horizon": data.windows.action_horizon,
        "action_size": len(data.statistics.action.mean),
        "proprio_size": len(data.statistics.proprio.mean),
        "text_width": data.text.features.shape[-1],
        "text_tokens": data.text.features.shape[1],
        "embodiments": 1 + max(data.config.embodiments, default=0),
    }


def build_latents(data: Data, tokenizer: Tokenizer, key: str) -> list[LatentSource]:
    """Every training frame, depth included, encoded once, beside the dataset; opened if that was done before.

    Latents are in a folder of their own for every tokenizer, split, size and set of cameras.

    Raises:
      ConfigError: the tokenizer merges images in time, and frames are not evenly spaced.
    """
    windows = data.windows
    spacing = set(np.diff(windows.frame_offsets).tolist())
    if tokenizer.config.temporal and len(spacing) != 1:
        raise ConfigError(
            f"frames at steps {windows.frame_offsets} are not evenly spaced, as tokens of clips must be to be "
            "computed ahead; change data.frame_steps, or set data.precompute_latents=False"
        )
    encoder = _Encoder(tokenizer)
    return [_encode_store(data, number, store, encoder, key) for number, store in enumerate(data.train)]


def held_out_latents(data: Data, number: int, tokenizer: Tokenizer, key: str) -> LatentSource | None:
    """Of a held-out dataset, if a model that remembers reads what a tokenizer of clips makes of whole episodes.

    Else None: all that the model is given can be made of a window's images.
    """
    if not (tokenizer.config.temporal and _remembers(data)):
        return None
    return _encode_store(data, number, data.validation[number], _Encoder(tokenizer), key)


def _encode_store(data: Data, number: int, store: EpisodeStore, encoder: "_Encoder", key: str) -> LatentSource:
    windows, columns = data.windows, data.windows.image_columns
    spacing = set(np.diff(windows.frame_offsets).tolist()) if encoder.temporal else set()
    identity = Identity(key, store.fingerprint, columns, windows.image_size, next(iter(spacing), None))
    where = latents_folder(data, number, identity)
    options = {"image_size": windows.image_size, "num_threads": data.config.threads}
    if not encoder.temporal:
        return LatentCache.build(store, columns, encoder.single, where, key, batch_size=512, **options)
    return encode_clips(
        store, columns, encoder, where, key, *spacing, batch_size=256, remembers=_remembers(data), **options
    )


def _remembers(data: Data) -> bool:
    """Whether the model does: only such models act in blocks (`launch.train.check_blocks`)."""
    return bool(data.config.action_block)


def latents_folder(data: Data, number: int, identity: Identity) -> Path:
    """Where what was computed of the frames of a store is kept: beside its dataset."""
    dataset = Path(data.config.datasets[number % len(data.config.datasets)])  # splits of the datasets come in turn
    return beside.writable(dataset, LATENTS) / identity.folder


class _Encoder:
    """A tokenizer, compiled once for whatever shapes it meets."""

    def __init__(self, tokenizer: Tokenizer):
        self.tubelet, self.temporal = tokenizer.config.tubelet, tokenizer.config.temporal
        start = jax.jit(lambda frozen, images: frozen.start(images))
        step = jax.jit(lambda frozen, state, images: frozen.step(state, images))
        self.start, self.step = functools.partial(start, tokenizer), functools.partial(step, tokenizer)

    def single(self, images: UInt8[np.ndarray, "B H W 3"]) -> Float[jax.Array, "B h w C"]:
        """Of images by themselves."""
        return self.start(images[:, None])[0][:, 0]
