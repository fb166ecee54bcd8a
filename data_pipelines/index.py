"""The byte index of an RLDS split: where every image lies in the original TFRecords, and all low-dimensional columns.

Built by one scan, kept as ``{split}.npz`` and ``{split}.json`` in the dataset's ``.wam_index`` folder, or, where that
cannot be written, in a cache folder (``$WAM_CACHE``, by default ``~/.cache/wam_jax``). It remembers the size and
modification time of every file it was made from, and refuses to open when one of them changed.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import uuid
import zipfile
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from data_pipelines import beside
from data_pipelines.episodes import DatasetError
from data_pipelines.features import DatasetInfo, read_dataset_info
from data_pipelines.scan import ScannedEpisode, Skipped, find_instruction_key, scan_shard
from wam_jax import console

FORMAT_VERSION = 1
_FOLDER = ".wam_index"


class MissingIndexError(FileNotFoundError):
    """The split was never indexed."""


class StaleIndexError(RuntimeError):
    """The dataset's files changed after the index was made."""


class MissingShardError(FileNotFoundError):
    """A file that ``dataset_info.json`` lists is not there."""


@dataclasses.dataclass(frozen=True)
class IndexReport:
    """What the scan found: nothing that was skipped goes unsaid."""

    records: int
    episodes: int
    steps: int
    skipped: tuple[Skipped, ...]

    def __str__(self) -> str:
        head = f"{self.episodes} episodes, {self.steps} steps; {len(self.skipped)} of {self.records} records skipped"
        return "\n  ".join([head, *map(str, self.skipped)])


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """An index in memory. ``E`` episodes, ``S`` steps in all; episode ``e`` owns rows ``starts[e]:starts[e + 1]``."""

    directory: pathlib.Path
    split: str
    info: DatasetInfo
    files: tuple[str, ...]
    starts: Int[np.ndarray, "E+1"]
    episode_files: Int[np.ndarray, "E"]
    instructions: tuple[str, ...]
    columns: dict[str, Shaped[np.ndarray, "S ..."]]
    image_offsets: dict[str, Int[np.ndarray, "S"]]
    image_lengths: dict[str, Int[np.ndarray, "S"]]
    report: IndexReport
    fingerprint: str


def build_index(
    directory: str | os.PathLike[str],
    split: str,
    out: str | os.PathLike[str] | None = None,
    instruction_key: str | None = None,
) -> Index:
    """Scans a split and stores its index.

    Args:
      directory: the dataset folder, the one with ``features.json``.
      split: a split of ``dataset_info.json``.
      out: where to store the index; None chooses as this file's first lines say.
      instruction_key: record key of the instruction; None finds ``language_instruction`` and the like.

    Raises:
      DatasetError: the folder or the split is not there, or no record at all could be read.
      MissingShardError: a shard is absent.
    """
    directory = pathlib.Path(directory).resolve()
    info = read_dataset_info(directory)
    stamps = _stamps(directory, info, split)
    key = instruction_key or find_instruction_key(info)
    if key is not None and key not in info.features:
        texts = ", ".join(key for key, spec in info.features.items() if spec.kind == "text")
        raise DatasetError(f"instruction key '{key}' is not in {info.name} (has: {texts})")
    episodes, episode_files, skipped = _scan(directory, info, split, key)
    if not episodes:
        raise DatasetError("\n  ".join([f"{info.name} {split} has no readable episode:", *map(str, skipped[:10])]))
    arrays = _arrays(episodes, episode_files)
    report = IndexReport(len(episodes) + len(skipped), len(episodes), int(arrays["starts"][-1]), tuple(skipped))
    header = {
        "format_version": FORMAT_VERSION,
        "fingerprint": _fingerprint(info, split, key, episodes),
        "stamps": stamps,
        "instruction_key": key,
        "instructions": sorted({episode.instruction for episode in episodes}),
        "report": dataclasses.asdict(report),
    }
    _save(_writable_folder(directory, out), split, header, arrays)
    console.log(f"indexed {info.name} {split}: {report}")
    return open_index(directory, split, out, instruction_key)


def open_index(
    directory: str | os.PathLike[str],
    split: str,
    out: str | os.PathLike[str] | None = None,
    instruction_key: str | None = None,
) -> Index:
    """Opens a stored index; arguments as in `build_index`.

    Raises:
      MissingIndexError: there is none.
      StaleIndexError: a file of the dataset changed since, or the index has another format version or instruction.
    """
    directory = pathlib.Path(directory).resolve()
    info = read_dataset_info(directory)
    stamps = _stamps(directory, info, split)
    stored = [path for folder in _folders(directory, out) if (path := folder / f"{split}.json").is_file()]
    if not stored:
        raise MissingIndexError(f"{info.name} {split} has no index; run: wam index {directory}")
    reasons = []
    for path in stored:
        header = json.loads(path.read_text())
        reason = _staleness(header, stamps, instruction_key)
        if reason is None:
            return _load(path, header, directory, split, info)
        reasons.append(reason)
    raise StaleIndexError(f"the index of {info.name} {split} is stale: {reasons[0]}; run: wam index {directory}")


def ensure_index(
    directory: str | os.PathLike[str],
    split: str,
    out: str | os.PathLike[str] | None = None,
    instruction_key: str | None = None,
) -> Index:
    """Opens the index, and builds it first where it is missing or stale; arguments as in `build_index`."""
    try:
        return open_index(directory, split, out, instruction_key)
    except (MissingIndexError, StaleIndexError) as error:
        console.log(f"building the index: {str(error).partition('; run')[0]}")
        return build_index(directory, split, out, instruction_key)


def _scan(
    directory: pathlib.Path, info: DatasetInfo, split: str, key: str | None
) -> tuple[list[ScannedEpisode], list[int], list[Skipped]]:
    """All episodes of a split, the number of each one's file, and what was skipped."""
    episodes: list[ScannedEpisode] = []
    episode_files: list[int] = []
    skipped: list[Skipped] = []
    shards = enumerate(info.shards[split])
    for number, (file, length) in console.progress(shards, f"index {info.name} {split}", len(info.shards[split])):
        for item in scan_shard(directory / file, length, info, key):
            if isinstance(item, Skipped):
                skipped.append(item)
            else:
                episodes.append(item)
                episode_files.append(number)
    return episodes, episode_files, skipped


def _stamps(directory: pathlib.Path, info: DatasetInfo, split: str) -> dict[str, list[int]]:
    """File name to (bytes, modification time in ns), of everything the index depends on."""
    if split not in info.shards:
        raise DatasetError(f"split '{split}' is not in {info.name} (has: {', '.join(info.shards)})")
    shards = [file for file, _ in info.shards[split]]
    for file in shards:
        if not (directory / file).is_file():
            raise MissingShardError(
                f"shard {file} is missing in {directory} (dataset_info.json lists {len(shards)} for split "
                f"'{split}'); copy it there, or correct dataset_info.json"
            )
    stats = {file: (directory / file).stat() for file in ("features.json", "dataset_info.json", *shards)}
    return {file: [stat.st_size, stat.st_mtime_ns] for file, stat in stats.items()}


def _staleness(header: dict[str, Any], stamps: dict[str, list[int]], instruction_key: str | None) -> str | None:
    if header["format_version"] != FORMAT_VERSION:
        return f"it has format version {header['format_version']}, this program writes {FORMAT_VERSION}"
    if set(header["stamps"]) != set(stamps):
        return f"files came or went: {', '.join(sorted(set(header['stamps']) ^ set(stamps)))}"
    if instruction_key not in (None, header["instruction_key"]):
        return f"it has the instructions of {header['instruction_key']}, not of {instruction_key}"
    changed = [file for file, stamp in stamps.items() if header["stamps"][file] != stamp]
    return f"{changed[0]} changed" if changed else None


def _folders(directory: pathlib.Path, out: str | os.PathLike[str] | None) -> list[pathlib.Path]:
    return beside.candidates(directory, _FOLDER) if out is None else [pathlib.Path(out)]


def _writable_folder(directory: pathlib.Path, out: str | os.PathLike[str] | None) -> pathlib.Path:
    return beside.writable(directory, _FOLDER) if out is None else pathlib.Path(out)


def _fingerprint(info: DatasetInfo, split: str, key: str | None, episodes: list[ScannedEpisode]) -> str:
    """Depends on every byte that was indexed (by the records' checksums), not on where or when it was copied."""
    checksums = [episode.checksum for episode in episodes]
    return hashlib.sha256(json.dumps([FORMAT_VERSION, info.name, split, key, checksums]).encode()).hexdigest()


def _arrays(episodes: list[ScannedEpisode], episode_files: list[int]) -> dict[str, Shaped[np.ndarray, "..."]]:
    texts = {text: i for i, text in enumerate(sorted({episode.instruction for episode in episodes}))}
    arrays: dict[str, np.ndarray] = {
        "starts": np.cumsum([0, *(episode.num_steps for episode in episodes)], dtype=np.int64),
        "episode_files": np.array(episode_files, np.int32),
        "episode_instructions": np.array([texts[episode.instruction] for episode in episodes], np.int32),
    }
    for group in ("columns", "image_offsets", "image_lengths"):
        for name in getattr(episodes[0], group):
            arrays[f"{group}:{name}"] = np.concatenate([getattr(episode, group)[name] for episode in episodes])
    return arrays


def _save(
    folder: pathlib.Path, split: str, header: dict[str, Any], arrays: dict[str, Shaped[np.ndarray, "..."]]
) -> None:
    """Writes both files atomically; the json, last, names the fingerprint that the npz carries: no torn pair opens."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{split}.{uuid.uuid4().hex}.npz"  # of hosts that share a disk, process numbers may be equal
    np.savez(temporary, fingerprint=np.array(header["fingerprint"]), **arrays)  # type: ignore[arg-type]
    os.replace(temporary, folder / f"{split}.npz")
    temporary = temporary.with_suffix(".json")
    temporary.write_text(json.dumps(header))
    os.replace(temporary, folder / f"{split}.json")


def _load(path: pathlib.Path, header: dict[str, Any], directory: pathlib.Path, split: str, info: DatasetInfo) -> Index:
    try:
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise StaleIndexError(
            f"{path.with_suffix('.npz')} is unreadable ({error}); run: wam index {directory}"
        ) from error
    if str(arrays["fingerprint"]) != header["fingerprint"]:
        raise StaleIndexError(f"{path} and its .npz are of different scans; run: wam index {directory}")
    groups: dict[str, dict[str, np.ndarray]] = {"columns": {}, "image_offsets": {}, "image_lengths": {}}
    for key in arrays:
        group, _, name = key.partition(":")
        if group in groups:
            groups[group][name] = arrays[key]
    report = header["report"]
    skipped = tuple(Skipped(**item) for item in report.pop("skipped"))
    return Index(
        directory=directory,
        split=split,
        info=info,
        files=tuple(file for file, _ in info.shards[split]),
        starts=arrays["starts"],
        episode_files=arrays["episode_files"],
        instructions=tuple(header["instructions"][i] for i in arrays["episode_instructions"]),
        report=IndexReport(**report, skipped=skipped),
        fingerprint=header["fingerprint"],
        **groups,
    )
