"""One pass over the records of a split: what each episode holds, where its images lie, and what had to be skipped."""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import Int, Shaped

from data_pipelines import protowire
from data_pipelines.features import DatasetInfo
from data_pipelines.tfrecord import BadRecord, Record, read_records

_INSTRUCTION_NAMES = ("language_instruction", "natural_language_instruction")


class EpisodeError(ValueError):
    """A record parses but its episode cannot be used."""


@dataclasses.dataclass(frozen=True)
class ScannedEpisode:
    """An episode's numbers, and where in its file each image lies."""

    checksum: int
    num_steps: int
    instruction: str
    columns: dict[str, Shaped[np.ndarray, "S ..."]]
    image_offsets: dict[str, Int[np.ndarray, "S"]]
    image_lengths: dict[str, Int[np.ndarray, "S"]]


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A record (or several, where a file ends early) that is not in the index."""

    file: str
    record: int
    byte: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file} record {self.record} at byte {self.byte}: {self.reason}"


def scan_shard(
    path: pathlib.Path, expected_records: int, info: DatasetInfo, instruction_key: str | None
) -> Iterator[ScannedEpisode | Skipped]:
    """Yields an episode or the reason for its absence, for each record of a TFRecord file.

    Args:
      path: the file.
      expected_records: how many records ``dataset_info.json`` promises; each that is missing is one `Skipped`.
      info: the dataset's features.
      instruction_key: record key of the instruction; None finds the usual ones.
    """
    seen = 0
    size = path.stat().st_size
    for record in read_records(path):
        seen += 1
        if isinstance(record, BadRecord):
            yield Skipped(path.name, record.number, record.start, record.reason)
            continue
        try:
            yield scan_episode(record, info, instruction_key)
        except (EpisodeError, protowire.WireError) as error:
            yield Skipped(path.name, record.number, record.start, str(error))
    for number in range(seen, expected_records):
        yield Skipped(path.name, number, size, f"missing: dataset_info.json promises {expected_records} records")


def scan_episode(record: Record, info: DatasetInfo, instruction_key: str | None = None) -> ScannedEpisode:
    """Reads one record.

    Raises:
      EpisodeError: a feature is absent, has another size than ``features.json`` says, or is not finite.
      WireError: the record is not a ``tf.train.Example``.
    """
    values = protowire.parse_example(record.payload)
    num_steps = _num_steps(values, info)
    columns = {name: _column(values, key, num_steps, info) for name, key in info.columns.items()}
    spans = {name: _images(values, key, num_steps) for name, key in info.cameras.items()}
    return ScannedEpisode(
        record.checksum,
        num_steps,
        _instruction(record.payload, values, instruction_key or find_instruction_key(info)),
        columns,
        {name: record.payload_start + span.offsets for name, span in spans.items()},
        {name: span.lengths.astype(np.int32) for name, span in spans.items()},
    )


def find_instruction_key(info: DatasetInfo) -> str | None:
    """The record key of the instruction under its usual names, or None where the dataset has no language."""
    texts = [key for key, spec in info.features.items() if spec.kind == "text"]
    return next((key for name in _INSTRUCTION_NAMES for key in texts if key.rsplit("/", 1)[-1] == name), None)


def _num_steps(values: dict[str, protowire.Feature], info: DatasetInfo) -> int:
    """Every feature lists all steps: their number is what most features agree on."""
    counts = [_length(values[key]) for key in info.cameras.values() if key in values]
    for key in info.columns.values():
        spec = info.features[key]
        if key in values and spec.size:
            counts.append(_length(values[key]) // spec.size)
    num_steps = max(set(counts), key=counts.count, default=0)
    if not num_steps:
        raise EpisodeError("the episode has no steps")
    return num_steps


def _length(value: protowire.Feature) -> int:
    return len(value.offsets if isinstance(value, protowire.ByteStrings) else value)


def _column(
    values: dict[str, protowire.Feature], key: str, num_steps: int, info: DatasetInfo
) -> Shaped[np.ndarray, "S ..."]:
    spec = info.features[key]
    value = values.get(key)
    if not isinstance(value, np.ndarray):
        raise EpisodeError(f"{key} is absent or not numeric")
    if len(value) != num_steps * spec.size:
        raise EpisodeError(
            f"{key} has {len(value)} values; features.json says {spec.size} a step, and there are {num_steps} steps"
        )
    if ("action" in key or "/observation/" in key) and not np.isfinite(value).all():
        step = int(np.flatnonzero(~np.isfinite(value))[0]) // max(spec.size, 1)
        raise EpisodeError(f"{key} is not finite at step {step}")
    return value.reshape(num_steps, *spec.shape).astype(spec.dtype)


def _images(values: dict[str, protowire.Feature], key: str, num_steps: int) -> protowire.ByteStrings:
    value = values.get(key)
    if not isinstance(value, protowire.ByteStrings) or len(value.offsets) != num_steps:
        count = len(value.offsets) if isinstance(value, protowire.ByteStrings) else 0
        raise EpisodeError(f"{key} has {count} images for {num_steps} steps")
    return value


def _instruction(payload: bytes, values: dict[str, protowire.Feature], key: str | None) -> str:
    text = values.get(key) if key else None
    if not isinstance(text, protowire.ByteStrings) or not len(text.offsets):
        return ""
    start = int(text.offsets[0])
    return payload[start : start + int(text.lengths[0])].decode("utf-8", errors="replace")
