"""Writes standard RLDS (the layout of tensorflow_datasets, TFRecord) without TensorFlow."""

import json
import os
import pathlib
import shutil
import types
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from jaxtyping import Float, UInt8
from tensorflow_datasets.proto import tf_example_pb2

from data_pipelines.images import encode_jpeg
from data_pipelines.tfrecord import write_record

_FEATURES = "tensorflow_datasets.core.features."


class RldsWriter:
    """Writes episodes of one robot: ``with RldsWriter(...) as writer: writer.add_episode(...)``.

    All goes to a hidden folder beside ``directory``, which takes its name only when the ``with`` block ends well: a
    writer that fails or is killed leaves nothing that looks like a dataset.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        name: str,
        cameras: Mapping[str, tuple[int, int]],
        action_size: int,
        proprio_size: int,
        *,
        splits: Sequence[str] = ("train", "val"),
        extra: Mapping[str, int] | None = None,
        episodes_per_shard: int = 256,
        jpeg_quality: int = 95,
        version: str = "1.0.0",
    ):
        """Declares the dataset.

        Args:
          directory: the folder that will hold ``features.json``; it must not exist.
          name: the dataset's name.
          cameras: camera name to (height, width).
          action_size: ``A``.
          proprio_size: ``P``.
          splits: the splits there may be; those that get no episode are left out.
          extra: further float columns of a step, such as ``observation/target``: name to size.
          episodes_per_shard: episodes a file.
          jpeg_quality: 1 to 100; chroma is never subsampled.
          version: the dataset's version.

        Raises:
          FileExistsError: ``directory`` exists.
        """
        self._directory = pathlib.Path(directory)
        if self._directory.exists():
            raise FileExistsError(f"{self._directory} exists; choose another folder, or delete it first")
        self._name = name
        self._cameras = dict(cameras)
        self._sizes = {"action": action_size, "observation/proprio": proprio_size, **(extra or {})}
        self._extra = tuple(extra or {})
        self._shards = {split: _ShardWriter(split, episodes_per_shard) for split in splits}
        self._jpeg_quality = jpeg_quality
        self._version = version
        self._temporary = self._directory.with_name(f".{self._directory.name}.incomplete")

    def __enter__(self) -> "RldsWriter":
        shutil.rmtree(self._temporary, ignore_errors=True)  # of a writer that was killed
        self._temporary.mkdir(parents=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            for shards in self._shards.values():
                shards.close()
            shutil.rmtree(self._temporary, ignore_errors=True)

    def add_episode(
        self,
        images: Mapping[str, UInt8[np.ndarray, "S H W 3"]],
        action: Float[np.ndarray, "S A"],
        proprio: Float[np.ndarray, "S P"],
        instruction: str,
        reward: Float[np.ndarray, "S"] | None = None,
        *,
        split: str = "train",
        extra: Mapping[str, Float[np.ndarray, "S X"]] | None = None,
    ) -> None:
        """Appends one episode of ``S`` steps to ``split``.

        Without ``reward`` it is 1 at the last step and 0 before. ``extra`` has the columns that were declared.

        Raises:
          ValueError: an array does not have the declared shape, or the split was not declared.
        """
        if split not in self._shards:
            raise ValueError(f"split '{split}' is not in {self._name} (has: {', '.join(self._shards)})")
        steps = len(action)
        columns = {"action": action, "observation/proprio": proprio, **(extra or {})}
        self._check(steps, columns, images)
        last = np.arange(steps) == steps - 1
        example = tf_example_pb2.Example()
        values = example.features.feature
        for camera in self._cameras:
            jpegs = [encode_jpeg(frame, self._jpeg_quality) for frame in images[camera]]
            values[f"steps/observation/{camera}"].bytes_list.value.extend(jpegs)
        columns |= {"reward": last if reward is None else reward, "discount": np.ones(steps)}
        for key, column in columns.items():
            values[f"steps/{key}"].float_list.value.extend(np.asarray(column, np.float32).ravel().tolist())
        for key, flags in {"is_first": np.arange(steps) == 0, "is_last": last, "is_terminal": last}.items():
            values[f"steps/{key}"].int64_list.value.extend(flags.astype(int).tolist())
        values["steps/language_instruction"].bytes_list.value.extend([instruction.encode()] * steps)
        values["episode_metadata/episode_id"].int64_list.value.append(self._shards[split].num_episodes)
        record = example.SerializeToString(deterministic=True)  # else its maps are in any order
        self._shards[split].write(self._temporary, record)

    def _check(self, steps: int, columns: Mapping[str, np.ndarray], images: Mapping[str, np.ndarray]) -> None:
        if not steps:
            raise ValueError("the episode has no steps")
        wanted = {f"camera '{camera}'": (steps, *size, 3) for camera, size in self._cameras.items()}
        wanted |= {f"column '{key}'": (steps, size) for key, size in self._sizes.items()}
        given = {f"camera '{camera}'": np.shape(frames) for camera, frames in images.items()}
        given |= {f"column '{key}'": np.shape(column) for key, column in columns.items()}
        for key in {**wanted, **given}:
            if wanted.get(key) != given.get(key):
                raise ValueError(f"{key} has shape {given.get(key)}; {self._name} was declared with {wanted.get(key)}")

    def _finish(self) -> None:
        splits = []
        for shards in self._shards.values():
            shards.close()
            if shards.lengths:
                splits.append(shards.rename(self._temporary, self._name))
        info = {
            "name": self._name,
            "version": self._version,
            "fileFormat": "tfrecord",
            "moduleName": "data_pipelines.write_rlds",
            "splits": splits,
        }
        features = _features(self._cameras, self._sizes)
        (self._temporary / "features.json").write_text(json.dumps(features, indent=2))
        (self._temporary / "dataset_info.json").write_text(json.dumps(info, indent=2))
        os.rename(self._temporary, self._directory)


class _ShardWriter:
    """The files of one split; how many there are is known, and named, only at the end."""

    def __init__(self, split: str, episodes_per_shard: int):
        self.split = split
        self.lengths: list[int] = []
        self._limit = episodes_per_shard
        self._file: BinaryIO | None = None

    @property
    def num_episodes(self) -> int:
        return sum(self.lengths)

    def write(self, directory: pathlib.Path, payload: bytes) -> None:
        if self._file is None or self.lengths[-1] == self._limit:
            self.close()
            self._file = self._path(directory, len(self.lengths)).open("wb")
            self.lengths.append(0)
        write_record(self._file, payload)
        self.lengths[-1] += 1

    def close(self) -> None:
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def rename(self, directory: pathlib.Path, name: str) -> dict[str, Any]:
        """Gives the files their names; returns the split's entry of ``dataset_info.json``."""
        size = 0
        for shard in range(len(self.lengths)):
            path = self._path(directory, shard)
            size += path.stat().st_size
            path.rename(directory / f"{name}-{self.split}.tfrecord-{shard:05d}-of-{len(self.lengths):05d}")
        return {
            "name": self.split,
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
            "numBytes": str(size),
            "shardLengths": [str(length) for length in self.lengths],
        }

    def _path(self, directory: pathlib.Path, shard: int) -> pathlib.Path:
        return directory / f"{self.split}-{shard}.writing"


def _features(cameras: Mapping[str, tuple[int, int]], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The dataset's ``features.json``."""
    step: dict[str, Any] = {key: _scalar("float32") for key in ("reward", "discount")}
    step |= {key: _scalar("bool") for key in ("is_first", "is_last", "is_terminal")}
    step["language_instruction"] = {"pythonClassName": f"{_FEATURES}text_feature.Text", "text": {}}
    step |= {f"observation/{camera}": _image(size) for camera, size in cameras.items()}
    step |= {key: _tensor([size], "float32") for key, size in sizes.items()}
    steps = {
        "pythonClassName": f"{_FEATURES}dataset_feature.Dataset",
        "sequence": {"feature": _nested(step), "length": "-1"},
    }
    return _features_dict({"steps": steps, "episode_metadata": _features_dict({"episode_id": _scalar("int64")})})


def _nested(flat: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """``{"a/b": f}`` -> a features dict of a features dict."""
    groups: dict[str, dict[str, Any]] = {}
    leaves: dict[str, Any] = {}
    for key, feature in flat.items():
        head, _, rest = key.partition("/")
        if rest:
            groups.setdefault(head, {})[rest] = feature
        else:
            leaves[head] = feature
    return _features_dict({**leaves, **{head: _nested(group) for head, group in groups.items()}})


def _features_dict(features: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "pythonClassName": f"{_FEATURES}features_dict.FeaturesDict",
        "featuresDict": {"features": dict(features)},
    }


def _tensor(shape: Sequence[int], dtype: str) -> dict[str, Any]:
    dimensions = {"dimensions": [str(size) for size in shape]}
    return {
        "pythonClassName": f"{_FEATURES}tensor_feature.Tensor",
        "tensor": {"shape": dimensions, "dtype": dtype, "encoding": "none"},
    }


def _scalar(dtype: str) -> dict[str, Any]:
    return {
        "pythonClassName": f"{_FEATURES}scalar.Scalar",
        "tensor": {"shape": {}, "dtype": dtype, "encoding": "none"},
    }


def _image(size: tuple[int, int]) -> dict[str, Any]:
    dimensions = [str(size[0]), str(size[1]), "3"]
    return {
        "pythonClassName": f"{_FEATURES}image_feature.Image",
        "image": {"shape": {"dimensions": dimensions}, "dtype": "uint8", "encodingFormat": "jpeg"},
    }
