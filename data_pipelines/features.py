"""What an RLDS dataset says of itself: ``features.json`` (shapes and types) and ``dataset_info.json`` (splits, shards).

Both are the JSON forms of protocol buffers of tensorflow_datasets (``proto/feature.proto``, ``dataset_info.proto``).
"""

import dataclasses
import json
import math
import pathlib
from typing import Any

from data_pipelines.episodes import DatasetError

_STEPS = "steps/"
_OBSERVATION = "observation/"


@dataclasses.dataclass(frozen=True)
class FeatureSpec:
    """One flat feature of the records: its kind (``image``, ``text`` or ``tensor``), shape and element type."""

    kind: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Elements a step."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """A dataset folder: name, features by record key, and for each split its shard files and their record counts."""

    name: str
    features: dict[str, FeatureSpec]
    shards: dict[str, tuple[tuple[str, int], ...]]

    @property
    def cameras(self) -> dict[str, str]:
        """Camera name to record key, for every RGB image of a step."""
        return short_names(
            [
                key
                for key, spec in self.features.items()
                if key.startswith(_STEPS) and spec.kind == "image" and spec.dtype == "uint8" and spec.shape[-1:] == (3,)
            ]
        )

    @property
    def columns(self) -> dict[str, str]:
        """Column name to record key, for every numeric feature of a step.

        Embeddings of the instruction are left out: they repeat hundreds of numbers at every step, more than all other
        columns together, and our text features come from our own encoder.
        """
        return short_names(
            [
                key
                for key, spec in self.features.items()
                if key.startswith(_STEPS) and spec.kind == "tensor" and "language_embedding" not in key
            ]
        )


def short_names(keys: list[str]) -> dict[str, str]:
    """``steps/observation/state`` -> ``state``, ``steps/action`` -> ``action``; a clash keeps ``observation/``."""
    plain = [key.removeprefix(_STEPS) for key in keys]
    short = [name.removeprefix(_OBSERVATION) for name in plain]
    return {
        (s if short.count(s) == 1 or s == p else p): key for key, p, s in sorted(zip(keys, plain, short, strict=True))
    }


def read_dataset_info(directory: pathlib.Path) -> DatasetInfo:
    """Reads ``features.json`` and ``dataset_info.json`` of a dataset folder (the one named after the version).

    Raises:
      DatasetError: a file is missing, or the records are in a format other than TFRecord.
    """
    for name in ("features.json", "dataset_info.json"):
        if not (directory / name).is_file():
            versions = sorted(path.parent.name for path in directory.glob(f"*/{name}")) if directory.is_dir() else []
            hint = f"give one of its versions: {', '.join(versions)}" if versions else "is it an RLDS dataset folder?"
            raise DatasetError(f"{directory} has no {name}; {hint}")
    info = json.loads((directory / "dataset_info.json").read_text())
    if info.get("fileFormat", "tfrecord") != "tfrecord":
        raise DatasetError(f"{directory} holds {info['fileFormat']} files; only tfrecord can be indexed")
    features: dict[str, FeatureSpec] = {}
    _flatten(json.loads((directory / "features.json").read_text()), "", features)
    return DatasetInfo(info["name"], features, {split["name"]: _shards(info, split) for split in info["splits"]})


def _shards(info: dict[str, Any], split: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    lengths = [int(length) for length in split.get("shardLengths", [])]
    fields = {"DATASET": info["name"], "SPLIT": split["name"], "FILEFORMAT": "tfrecord"}
    return tuple(
        (template.format(**fields, SHARD_X_OF_Y=f"{shard:05d}-of-{len(lengths):05d}"), length)
        for shard, length in enumerate(lengths)
    )


def _flatten(node: dict[str, Any], key: str, out: dict[str, FeatureSpec]) -> None:
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            _flatten(child, f"{key}/{name}" if key else name, out)
    elif "sequence" in node and key == _STEPS[:-1]:  # lists within a step have no fixed size: not indexed
        _flatten(node["sequence"]["feature"], key, out)
    elif "image" in node:
        out[key] = FeatureSpec("image", _shape(node["image"]), node["image"].get("dtype") or "uint8")
    elif "text" in node:
        out[key] = FeatureSpec("text", (), "string")
    elif "tensor" in node and node["tensor"].get("encoding", "none") == "none":
        dtype = node["tensor"]["dtype"]
        out[key] = FeatureSpec("text" if dtype in ("string", "object") else "tensor", _shape(node["tensor"]), dtype)


def _shape(node: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in node.get("shape", {}).get("dimensions", []))
