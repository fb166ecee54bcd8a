"""Files of published weights, opened without running what is in them and read one tensor at a time.

``open_weights`` takes a ``.safetensors`` file, an index of shards in the diffusers and transformers layout, a folder
with either, an ``.npz``, or a tensor-only torch file (wam_jax/weights/torch_file.py). ``write_safetensors`` is its
inverse. Shapes come from headers alone; a read holds that one tensor and nothing else of the file.
"""

import difflib
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from wam_jax.weights.mapping import Shape, Tensors, UnreadableWeights
from wam_jax.weights.torch_file import TorchFile

# What numpy holds (bfloat16 through ml_dtypes). Smaller floats come with scales that belong to no weight map.
_SAFETENSORS_DTYPES = {
    "BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64", "F16", "BF16", "F32", "F64", "C64",
}  # fmt: skip
_TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
_INDEX = ".index.json"


def open_weights(path: str | Path) -> Tensors:
    """The tensors of a file or folder of published weights, by the names that it gives them.

    Raises:
      FileNotFoundError: nothing is there.
      UnreadableWeights: another format, a damaged file, or one that holds more than tensors.
    """
    path = Path(path)
    if path.is_dir():
        path = _in_folder(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; `wam assets` says what is and how to get the rest")
    if path.name.endswith(_INDEX):
        return _Shards(path)
    if path.suffix == ".safetensors":
        return _Safetensors(path)
    if path.suffix == ".npz":
        return _Npz(path)
    if path.suffix in _TORCH_SUFFIXES:
        return TorchFile(path)
    raise UnreadableWeights(
        f"{path} is not in a format that is read here (.safetensors, .safetensors.index.json, .npz, "
        f"{', '.join(_TORCH_SUFFIXES)}); convert it to safetensors where it was made"
    )


def write_safetensors(
    folder: str | Path,
    tensors: Iterable[tuple[str, np.ndarray]],
    max_shard_bytes: int = 2 * 10**9,
    metadata: Mapping[str, str] | None = None,
    stem: str = "diffusion_pytorch_model",
) -> Path:
    """Writes tensors as they come, in the layout that diffusers and transformers read; holds one shard at a time.

    Args:
      folder: made where it is missing.
      tensors: names and arrays.
      max_shard_bytes: a shard ends before it would exceed this; a larger tensor is a shard of its own.
      metadata: for the header of each file. ``format: pt`` is added: transformers refuses files without it.
      stem: how file names start; transformers looks for "model".

    Returns:
      The index, or the only file where one shard was enough.

    Raises:
      ValueError: no tensors, or a name comes twice.
      FileExistsError: the folder has such files; they would mix.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if found := sorted(path.name for path in folder.glob(f"{stem}*.safetensors*")):
        raise FileExistsError(f"{folder} already has {found[0]}; choose another folder or remove it")
    header = {"format": "pt", **(metadata or {})}
    names: list[list[str]] = []
    total = 0
    for shard in _cut(tensors, max_shard_bytes):
        part = folder / f"{stem}.{len(names)}.part"
        safetensors.numpy.save_file(shard, part, header)
        part.chmod(folder.stat().st_mode & 0o666)  # the library lets only the owner read it
        names.append(list(shard))
        total += sum(array.nbytes for array in shard.values())
        shard.clear()  # before the next one is gathered
    if not names:
        raise ValueError("there are no tensors to write")
    files = [f"{stem}-{i + 1:05d}-of-{len(names):05d}.safetensors" for i in range(len(names))]
    files = files if len(names) > 1 else [f"{stem}.safetensors"]
    for i, file in enumerate(files):
        (folder / f"{stem}.{i}.part").rename(folder / file)
    if len(files) == 1:
        return folder / files[0]
    index = folder / f"{stem}.safetensors{_INDEX}"
    weight_map = {name: file for file, shard_names in zip(files, names, strict=True) for name in shard_names}
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2) + "\n")
    return index


def shard_paths(index: Path) -> dict[str, Path]:
    """From an index file: which file each tensor is in. Files need not exist.

    Raises:
      UnreadableWeights: it is not such an index, or points out of its folder.
    """
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        shards = {str(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnreadableWeights(f"{index} is not an index of shards ({error!r}); fetch it again") from error
    for file in set(shards.values()):
        if Path(file).name != file:
            raise UnreadableWeights(f"{index} points to {file!r}, which is not a file beside it; do not trust it")
    return {name: index.parent / file for name, file in shards.items()}


class _Safetensors:
    """One ``.safetensors`` file. The library checks the header: offsets, sizes, overlaps, what is left over."""

    def __init__(self, path: Path):
        try:
            # pread, not mmap: pages of a mapped file stay resident, and loading would hold the file a second time.
            self._file = safetensors.safe_open(path, framework="numpy", backend="pread")
        except safetensors.SafetensorError as error:
            raise UnreadableWeights(
                f"{path} is not a safetensors file, or damaged ({error}); fetch it again"
            ) from error
        self._path = path
        self._shapes: dict[str, Shape] = {}
        for name in self._file.keys():  # noqa: SIM118  (not a dict)
            view = self._file.get_slice(name)
            if view.get_dtype() not in _SAFETENSORS_DTYPES:
                raise UnreadableWeights(
                    f"tensor {name!r} of {path} is {view.get_dtype()}; quantised weights are not read, "
                    "get the unquantised ones"
                )
            self._shapes[name] = tuple(view.get_shape())

    def shapes(self) -> Mapping[str, Shape]:
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        _known(name, self._shapes, self._path)
        return self._file.get_tensor(name)


class _Shards:
    """Files that an index puts together."""

    def __init__(self, index: Path):
        self._index, self._paths = index, shard_paths(index)
        if missing := sorted({path.name for path in self._paths.values() if not path.is_file()}):
            raise UnreadableWeights(f"{index} needs {', '.join(missing)}, which is not beside it; fetch it again")
        self._files = {path: open_weights(path) for path in sorted(set(self._paths.values()))}
        self._shapes = {name: shape for file in self._files.values() for name, shape in file.shapes().items()}
        held = {name: path for path, file in self._files.items() for name in file.shapes()}
        if wrong := sorted(
            name for name in held.keys() | self._paths.keys() if held.get(name) != self._paths.get(name)
        ):
            raise UnreadableWeights(
                f"{index} and its shards disagree on {len(wrong)} tensors ({', '.join(wrong[:3])}); fetch both again"
            )

    def shapes(self) -> Mapping[str, Shape]:
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        _known(name, self._shapes, self._index)
        return self._files[self._paths[name]].read(name)


class _Npz:
    """A numpy archive; arrays of objects, which would be pickles, are refused."""

    def __init__(self, path: Path):
        self._path = path
        try:
            with zipfile.ZipFile(path) as archive:
                headers = {entry.filename.removesuffix(".npy"): _npy(archive, entry) for entry in archive.infolist()}
        except (ValueError, OSError, zipfile.BadZipFile) as error:
            raise UnreadableWeights(f"{path} is not an .npz file, or damaged ({error}); fetch it again") from error
        for name, (_, dtype) in headers.items():
            if dtype.kind not in "biufc":
                raise UnreadableWeights(f"array {name!r} of {path} is of {dtype}; only arrays of numbers are read")
        self._shapes = {name: shape for name, (shape, _) in headers.items()}

    def shapes(self) -> Mapping[str, Shape]:
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        _known(name, self._shapes, self._path)
        try:
            with np.load(self._path, allow_pickle=False) as archive:
                return archive[name]
        except (ValueError, zipfile.BadZipFile) as error:
            raise UnreadableWeights(f"array {name!r} of {self._path} is damaged ({error}); fetch it again") from error


def _npy(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[Shape, np.dtype]:
    """Shape and type of an array, from its header."""
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in read:
            raise ValueError(f"{entry.filename} has .npy version {version}")
        shape, _, dtype = read[version](stream)
        if (
            entry.file_size - stream.tell() != dtype.itemsize * int(np.prod(shape, dtype=object))
            and not dtype.hasobject
        ):
            raise ValueError(f"{entry.filename} does not hold the bytes of {dtype}{list(shape)}")
        return shape, dtype


def _in_folder(folder: Path) -> Path:
    """The one index, or else the one safetensors file, of a folder."""
    for pattern in (f"*.safetensors{_INDEX}", "*.safetensors"):
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise UnreadableWeights(f"{folder} has {', '.join(path.name for path in found)}; name the one to open")
    raise UnreadableWeights(f"{folder} has no .safetensors file and no index of shards; name the file to open")


def _cut(tensors: Iterable[tuple[str, np.ndarray]], max_bytes: int) -> Iterator[dict[str, np.ndarray]]:
    """Consecutive tensors in groups of at most so many bytes."""
    seen: set[str] = set()
    shard: dict[str, np.ndarray] = {}
    for name, value in tensors:
        if name in seen:
            raise ValueError(f"tensor {name!r} comes twice; each name is written once")
        seen.add(name)
        # The library writes an array's buffer whatever its strides.
        array = np.asarray(value, order="C")
        if shard and sum(other.nbytes for other in shard.values()) + array.nbytes > max_bytes:
            yield shard
            shard = {}
        shard[name] = array
    if shard:
        yield shard


def _known(name: str, shapes: Mapping[str, Any], path: Path) -> None:
    if name not in shapes:
        near = difflib.get_close_matches(name, list(shapes), n=1, cutoff=0)
        raise KeyError(f"tensor {name!r} is not in {path} (nearest: {', '.join(near) or 'it has none'})")
