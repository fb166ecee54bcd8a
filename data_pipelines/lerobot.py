"""LeRobot datasets (v2.0, v2.1, v3.0) as an `EpisodeStore`: columns from Parquet, frames from MP4, nothing converted.

The format is LeRobot's (https://github.com/huggingface/lerobot): ``meta/info.json`` has the features and the templates
of paths; v2 keeps one Parquet file and one video a camera for each episode, v3 puts many episodes into a file.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.parquet
from jaxtyping import Int, Shaped, UInt8

from data_pipelines.episodes import DatasetError, DecodeError, check_cameras
from data_pipelines.video import read_video

INFO = pathlib.PurePath("meta", "info.json")
VERSIONS = ("v2.0", "v2.1", "v3.0")

# Where files are. ``info.json`` has templates as well, but those of some datasets name folders that they do not have.
_STANDARD = {
    "v2": {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    },
    "v3": {
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    },
}


@dataclasses.dataclass(frozen=True)
class _Episode:
    """Where an episode is: its Parquet file and first row there; a camera's video and its first frame's seconds."""

    index: int
    length: int
    instruction: str
    table: pathlib.Path
    first_row: int
    videos: dict[str, tuple[pathlib.Path, float]]


class LeRobotStore:
    """An `EpisodeStore` over the files of one split.

    Columns keep their names (``action``, ``observation.state``); a camera is what follows ``observation.images.``. The
    instruction is the first of an episode's tasks. Episodes without all their files are left out and listed in
    ``absent``, and so are cameras without any file, in ``absent_cameras``: downloads are often partial.
    """

    def __init__(self, directory: str | os.PathLike[str], split: str = "train"):
        """Opens ``split`` of the dataset folder (the one with ``meta``).

        Raises:
          DatasetError: not a LeRobot dataset of a known version, no such split, or none of its episodes is here.
        """
        self._directory, self._split = pathlib.Path(directory), split
        self._info = _read_info(self._directory)
        version = str(self._info["codebase_version"])
        if version not in VERSIONS:
            raise DatasetError(f"{directory} is LeRobot {version}; can be read: {', '.join(VERSIONS)}")
        first, last = _split_range(self._info, split, self.name)
        videos = [key for key, feature in self._info["features"].items() if feature["dtype"] == "video"]
        read = _episodes_v3 if version == "v3.0" else _episodes_v2
        listed = [e for e in read(self._directory, self._info, videos) if first <= e.index < last]
        there = {path for e in listed for path in (e.table, *(v for v, _ in e.videos.values())) if path.is_file()}
        present = [key for key in videos if any(e.videos[key][0] in there for e in listed)]
        self._keys = {key.removeprefix("observation.images."): key for key in present}
        self._episodes = [e for e in listed if e.table in there and all(e.videos[key][0] in there for key in present)]
        if not self._episodes:
            raise DatasetError(f"{directory} lists {len(listed)} episodes in '{split}', but has the files of none")
        kept = {e.index for e in self._episodes}
        self.absent: tuple[int, ...] = tuple(e.index for e in listed if e.index not in kept)
        self.absent_cameras: tuple[str, ...] = tuple(key for key in videos if key not in present)
        self.fingerprint: str = _fingerprint(self._directory, self._episodes)
        self.episode_starts: Int[np.ndarray, "E+1"] = np.cumsum([0, *(e.length for e in self._episodes)])
        self.cameras: tuple[str, ...] = tuple(self._keys)
        self.columns: tuple[str, ...] = _numeric(self._episodes[0].table)

    def __getstate__(self) -> dict[str, Any]:
        """Columns that were read stay here; another process reads its own."""
        return {key: value for key, value in self.__dict__.items() if key != "_tables"}

    @property
    def name(self) -> str:
        """The folder's name."""
        return self._directory.resolve().name

    @property
    def skipped(self) -> int:
        """How many are ``absent``."""
        return len(self.absent)

    @property
    def num_episodes(self) -> int:
        """``E``."""
        return len(self._episodes)

    def num_steps(self, episode: int) -> int:
        """Steps of one episode."""
        return self._episodes[episode].length

    def instruction(self, episode: int) -> str:
        """The first of the episode's tasks."""
        return self._episodes[episode].instruction

    def lowdim(self, key: str) -> Shaped[np.ndarray, "S ..."]:
        """One column, all steps of all episodes: ``[S, n]`` for lists, ``[S]`` for numbers; floats are float32.

        Raises:
          DatasetError: a file has fewer rows than the dataset says, or rows of several lengths.
        """
        if key not in self.columns:
            raise KeyError(f"column '{key}' is not in {self.name} (has: {', '.join(self.columns)})")
        if key not in self._tables:
            self._tables[key] = self._read_column(key)
        return self._tables[key]

    def image_shape(self, camera: str) -> tuple[int, ...]:
        """(height, width, 3), as ``info.json`` says."""
        check_cameras(self, [camera])
        shape = tuple(self._info["features"][self._keys[camera]]["shape"])
        return (*shape[1:], shape[0]) if shape[0] == 3 else shape  # some converters write channels first

    def read_frames(self, episode: int, camera: str, steps: Sequence[int]) -> UInt8[np.ndarray, "T H W 3"]:
        """Frames at ``steps`` of an episode.

        Raises:
          CameraError: there is no such camera.
          DecodeError: the video is damaged, too short, or of another size than the dataset says.
        """
        expected = self.image_shape(camera)
        path, start = self._episodes[episode].videos[self._keys[camera]]
        where = f"{path} episode {self._episodes[episode].index} camera '{camera}'"
        try:
            frames = read_video(path, steps, self._info["fps"], start)
        except ValueError as error:
            raise DecodeError(f"{where}: {error}") from error
        if frames.shape[1:] != expected:
            raise DecodeError(f"{where}: frames are {frames.shape[1:]}, info.json says {expected}")
        return frames

    @functools.cached_property
    def _tables(self) -> dict[str, np.ndarray]:
        return {}

    def _read_column(self, key: str) -> Shaped[np.ndarray, "S ..."]:
        parts, path, values = [], None, np.empty(0)
        for episode in self._episodes:
            if episode.table != path:
                path = episode.table
                values = _column(path, key)
            rows = values[episode.first_row : episode.first_row + episode.length]
            if len(rows) < episode.length:
                raise DatasetError(
                    f"{path} has {len(rows)} of the {episode.length} rows of episode {episode.index}; get it anew"
                )
            parts.append(rows)
        return np.concatenate(parts)


def _read_info(directory: pathlib.Path) -> dict[str, Any]:
    try:
        info = json.loads((directory / INFO).read_text())
        missing = [key for key in ("codebase_version", "features", "fps") if key not in info]
    except (OSError, ValueError) as error:
        raise DatasetError(f"{directory} is not a LeRobot dataset: {error}") from error
    if missing:
        raise DatasetError(f"{directory / INFO} has no '{missing[0]}'")
    return info


def _split_range(info: dict[str, Any], split: str, name: str) -> tuple[int, int]:
    """Episode indices of a split, which ``info.json`` writes as "0:100"; without splits, "train" is everything."""
    splits = info.get("splits") or {"train": f"0:{info['total_episodes']}"}
    if split not in splits:
        raise DatasetError(f"split '{split}' is not in {name} (has: {', '.join(splits)}); set data.split")
    first, last = splits[split].split(":")
    return int(first), int(last)


def _episodes_v2(directory: pathlib.Path, info: dict[str, Any], videos: list[str]) -> Iterator[_Episode]:
    locate = functools.partial(_locate, directory, info, _STANDARD["v2"])
    for line in filter(None, (directory / "meta" / "episodes.jsonl").read_text().splitlines()):
        row = json.loads(line)
        number = row["episode_index"]
        where = {"episode_index": number, "episode_chunk": number // info.get("chunks_size", 1000)}
        clips = {key: (locate("video_path", video_key=key, **where), 0.0) for key in videos}
        yield _Episode(number, row["length"], _instruction(row), locate("data_path", **where), 0, clips)


def _episodes_v3(directory: pathlib.Path, info: dict[str, Any], videos: list[str]) -> Iterator[_Episode]:
    locate = functools.partial(_locate, directory, info, _STANDARD["v3"])

    def where(row: dict[str, Any], kind: str) -> dict[str, int]:
        chunk, file = (row.get(f"{kind}/{part}_index", 0) for part in ("chunk", "file"))
        return {"chunk_index": chunk, "file_index": file, "episode_chunk": chunk, "episode_file": file}

    rows: list[dict[str, Any]] = []
    for path in sorted((directory / "meta" / "episodes").glob("*/*.parquet")):
        file = pyarrow.parquet.ParquetFile(path)
        # The statistics of every episode are in there too, many times the rest.
        rows += file.read([name for name in file.schema_arrow.names if not name.startswith("stats/")]).to_pylist()
    first_of_file: dict[pathlib.Path, int] = {}
    for row in sorted(rows, key=lambda row: row["episode_index"]):
        table = locate("data_path", **where(row, "data"))
        first = first_of_file.setdefault(table, row["dataset_from_index"])
        clips = {}
        for key in videos:
            kind = f"videos/{key}"
            path = locate("video_path", video_key=key, **where(row, kind))
            clips[key] = (path, row.get(f"{kind}/from_timestamp", 0.0))
        yield _Episode(
            row["episode_index"], row["length"], _instruction(row), table, row["dataset_from_index"] - first, clips
        )


def _instruction(row: dict[str, Any]) -> str:
    """The first task; empty where it has no letter, as DROID's ``" |  | "``."""
    task = next(iter(row["tasks"]), "")
    return task if any(letter.isalpha() for letter in task) else ""


def _locate(
    directory: pathlib.Path, info: dict[str, Any], standard: dict[str, str], kind: str, **fields: int | str
) -> pathlib.Path:
    """The file by the dataset's template, or the standard one where the first leads nowhere."""
    for template in filter(None, (info.get(kind), standard[kind])):
        try:
            path = directory / template.format(**fields)
        except KeyError:
            continue
        if path.is_file():
            return path
    return directory / standard[kind].format(**fields)


def _fingerprint(directory: pathlib.Path, episodes: list[_Episode]) -> str:
    """Of what the dataset says of itself, and every file's name and size: reading all videos would take hours."""
    digest = hashlib.sha256()
    for path in sorted(path for path in (directory / "meta").rglob("*") if path.is_file()):
        digest.update(path.read_bytes())
    for path in sorted({path for e in episodes for path in (e.table, *(video for video, _ in e.videos.values()))}):
        size = path.stat().st_size if path.is_file() else 0
        digest.update(f"{path.relative_to(directory)} {size}\n".encode())
    return digest.hexdigest()


def _numeric(table: pathlib.Path) -> tuple[str, ...]:
    """Columns of numbers, or of lists of them."""
    names = []
    for field in pyarrow.parquet.read_schema(table):
        kind = field.type
        while _is_list(kind):
            kind = kind.value_type
        if pyarrow.types.is_floating(kind) or pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind):
            names.append(field.name)
    return tuple(names)


def _column(path: pathlib.Path, key: str) -> Shaped[np.ndarray, "S ..."]:
    try:
        column = pyarrow.parquet.ParquetFile(path).read([key]).column(key).combine_chunks()
    except (KeyError, pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: column '{key}' cannot be read: {error}") from error
    shape = [len(column)]
    while _is_list(column.type):
        lengths = pyarrow.compute.unique(pyarrow.compute.list_value_length(column)).to_pylist()
        if len(lengths) > 1:
            raise DatasetError(f"{path}: rows of column '{key}' have {', '.join(map(str, lengths))} numbers")
        shape += lengths
        column = column.flatten()
    values = column.to_numpy(zero_copy_only=False).reshape(shape)
    return values.astype(np.float32) if values.dtype.kind == "f" else values


def _is_list(kind: pyarrow.DataType) -> bool:
    return pyarrow.types.is_list(kind) or pyarrow.types.is_fixed_size_list(kind) or pyarrow.types.is_large_list(kind)
