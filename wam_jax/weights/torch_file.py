"""Tensor-only torch files (.pth, .pt, .bin, .ckpt), read without torch and without running what is in them.

Such a file is a pickle, which is a program. This one may name tensors and arrays, and nothing else: a class or function
that is not on the list below is refused by name, before it is looked up. Three layouts are read: the zip archive of
torch >= 1.6, the older stream, and a plain pickle of numpy arrays. Formats: torch/serialization.py, torch/_utils.py.
"""

import math
import os
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from wam_jax.weights.mapping import Shape, UnreadableWeights

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_ZIP = b"PK\x03\x04"
_DTYPES: Mapping[str, np.dtype] = {
    "DoubleStorage": np.dtype("<f8"), "FloatStorage": np.dtype("<f4"), "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16), "LongStorage": np.dtype("<i8"), "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"), "CharStorage": np.dtype("i1"), "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}  # fmt: skip


class TorchFile:
    """The tensors of one file; nested dictionaries give dotted names, what is not a tensor is left out."""

    def __init__(self, path: Path):
        """Reads names, shapes and places.

        Raises:
          UnreadableWeights: the file is damaged, or holds more than tensors.
        """
        self._path = path
        try:
            tree, places = _open(path)
            self._tensors = _named_tensors(tree)
            self._places = places
            self._shapes = {name: self._checked_shape(tensor) for name, tensor in self._tensors.items()}
        except _Refused as error:
            raise UnreadableWeights(
                f"{path} is more than tensors: it wants {error}. Nothing in it was run; if you trust it, save its "
                "state dict as safetensors where it was made"
            ) from None
        # A damaged pickle fails in any of these ways.
        except (Exception, MemoryError) as error:
            raise UnreadableWeights(f"{path} is damaged or not a torch file ({error!r}); fetch it again") from error
        if not self._tensors:
            raise UnreadableWeights(f"{path} holds no tensors by name; expected a state dict")

    def shapes(self) -> Mapping[str, Shape]:
        return self._shapes

    def read(self, name: str) -> np.ndarray:
        if name not in self._tensors:
            raise KeyError(f"tensor {name!r} is not in {self._path}")
        tensor = self._tensors[name]
        if isinstance(tensor, _Array):
            return tensor.to_numpy()
        dtype, extent = tensor.storage.dtype, tensor.extent
        start = self._places[tensor.storage.key].offset + tensor.offset * dtype.itemsize
        data = np.fromfile(self._path, np.uint8, extent * dtype.itemsize, offset=start)
        if data.size < extent * dtype.itemsize:
            raise UnreadableWeights(f"{self._path} ends within tensor {name!r}; fetch it again")
        strides = [stride * dtype.itemsize for stride in tensor.strides]
        return np.lib.stride_tricks.as_strided(data.view(dtype), tensor.shape, strides)

    def _checked_shape(self, tensor: "_View | _Array") -> Shape:
        if isinstance(tensor, _Array):
            return tensor.to_numpy().shape
        place, storage = self._places[tensor.storage.key], tensor.storage
        numbers = (tensor.offset, storage.length, *tensor.shape, *tensor.strides)
        if not all(isinstance(number, int) and number >= 0 for number in numbers):
            raise ValueError(f"a tensor of {tensor.shape} with strides {tensor.strides} at {tensor.offset}")
        if len(tensor.shape) != len(tensor.strides) or place.size != storage.length * storage.dtype.itemsize:
            raise ValueError(f"storage {storage.key} does not have {storage.length} numbers of {storage.dtype}")
        # More elements than numbers would be one number repeated: a small file could fill the memory.
        if tensor.offset + tensor.extent > storage.length or math.prod(tensor.shape) > storage.length:
            raise ValueError(f"a tensor of {tensor.shape} reaches out of its storage of {storage.length} numbers")
        return tuple(tensor.shape)


class _Refused(Exception):
    """A class or function that is not on the list."""


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    length: int


class _View(NamedTuple):
    """A tensor before it is read: a strided view of a storage, in elements."""

    storage: _Storage
    offset: int
    shape: Shape
    strides: Shape

    @property
    def extent(self) -> int:
        """Elements from the first to the last."""
        if not math.prod(self.shape):
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))


class _Place(NamedTuple):
    """Where a storage lies in the file, in bytes."""

    offset: int
    size: int


class _Dtype:
    """What a pickle says of a numpy type. numpy's own constructors are never handed what a file says."""

    def __init__(self, code: str, *_: Any):
        self._code, self._state = code, (3, "|", None, None, None)

    def __setstate__(self, state: tuple) -> None:
        self._state = state

    def to_numpy(self) -> np.dtype:
        order, subtype, names = self._state[1:4]
        if not re.fullmatch(r"[biufc]\d+", str(self._code)) or order not in ("<", ">", "|", "=") or subtype or names:
            raise ValueError(f"an array of {self._code!r}; only arrays of numbers are read")
        return np.dtype(f"{order}{self._code}")


class _Array:
    """What a pickle says of a numpy array."""

    def __setstate__(self, state: tuple) -> None:
        self._state = state

    def to_numpy(self) -> np.ndarray:
        _, shape, dtype, fortran, data = self._state
        data = data.encode("latin1") if isinstance(data, str) else data  # as written by Python 2
        return np.frombuffer(data, dtype.to_numpy()).reshape(shape, order="F" if fortran else "C")


# The unpickler in Python, not the one in C: that one grows a table up to any index that a file asks for.
class _TensorsOnly(pickle._Unpickler):  # type: ignore[name-defined]
    """Builds dictionaries, lists, numbers, strings and descriptions of tensors."""

    def __init__(self, stream: Any):
        super().__init__(stream, encoding="latin1")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return name
        # Made anew each time: a pickle may set attributes of what it is given.
        allowed = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch._utils", "_rebuild_tensor"): lambda *view: _View(*view),
            ("torch._utils", "_rebuild_tensor_v2"): lambda *view_and_hooks: _View(*view_and_hooks[:4]),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
            ("numpy", "ndarray"): "ndarray",
            ("numpy", "dtype"): lambda *code: _Dtype(*code),
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("_codecs", "encode"): lambda text, _: text.encode("latin1"),  # bytes in protocol 2
        }
        if (module, name) not in allowed:
            raise _Refused(f"{module}.{name}")
        return allowed[module, name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _, count, *view = pid
        if kind != "storage" or any(part is not None for part in view):
            raise _Refused(f"a persistent {kind!r}")
        self.storages[key] = _Storage(key, _DTYPES[dtype], count)
        return self.storages[key]


def _open(path: Path) -> tuple[Any, Mapping[str, _Place]]:
    """What the file describes, and where its storages are."""
    with path.open("rb") as stream:
        if stream.read(len(_ZIP)) == _ZIP:
            return _open_zip(path)
        stream.seek(0)
        first = _TensorsOnly(stream).load()
        return _open_stream(stream) if first == _MAGIC else (first, {})


def _open_zip(path: Path) -> tuple[Any, Mapping[str, _Place]]:
    with zipfile.ZipFile(path) as archive, path.open("rb") as stream:
        (pickled,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        root = pickled.removesuffix("data.pkl")
        if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
            raise ValueError("big-endian numbers")
        with archive.open(pickled) as member:
            tree = _TensorsOnly(member).load()
        prefix = f"{root}data/"
        entries = [entry for entry in archive.infolist() if entry.filename.startswith(prefix)]
        return tree, {entry.filename.removeprefix(prefix): _zip_place(entry, stream) for entry in entries}


def _zip_place(entry: zipfile.ZipInfo, stream: Any) -> _Place:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename} is compressed")
    stream.seek(entry.header_offset)
    # The local header's own lengths: torch pads it so that data is aligned. APPNOTE.TXT 4.3.7.
    signature, name_length, extra_length = struct.unpack("<4s22xHH", stream.read(30))
    if signature != _ZIP:
        raise ValueError(f"{entry.filename} is not where the archive says")
    return _Place(entry.header_offset + 30 + name_length + extra_length, entry.file_size)


def _open_stream(stream: Any) -> tuple[Any, Mapping[str, _Place]]:
    """After the magic number: protocol, system, object, storage keys; then each storage's count and numbers."""
    if _TensorsOnly(stream).load() != _PROTOCOL or not _TensorsOnly(stream).load()["little_endian"]:
        raise ValueError("another version of the format, or big-endian numbers")
    unpickler = _TensorsOnly(stream)
    tree = unpickler.load()
    places = {}
    for key in _TensorsOnly(stream).load():
        (count,) = struct.unpack("<q", stream.read(8))
        places[key] = _Place(stream.tell(), count * unpickler.storages[key].dtype.itemsize)
        if places[key].offset + places[key].size > os.fstat(stream.fileno()).st_size or count < 0:
            raise ValueError(f"the file ends within storage {key}")
        stream.seek(places[key].size, os.SEEK_CUR)
    return tree, places


def _named_tensors(tree: Any) -> dict[str, _View | _Array]:
    found: dict[str, _View | _Array] = {}
    walked: set[int] = set()

    def walk(value: Any, name: str) -> None:
        if isinstance(value, _View | _Array):
            found[name] = value
        elif isinstance(value, dict) and id(value) not in walked:  # a file may nest one dictionary without end
            walked.add(id(value))
            for key, inner in value.items():
                walk(inner, f"{name}.{key}" if name else str(key))

    if isinstance(tree, dict):
        walk(tree, "")
    return found
