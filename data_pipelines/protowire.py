"""Where things lie inside a serialised ``tf.train.Example``: numbers are read, byte strings are located, not copied.

Protocol-buffer wire format: https://protobuf.dev/programming-guides/encoding. The message is
``Example{1: Features{1: map<string, Feature>}}``, ``Feature{1: BytesList | 2: FloatList | 3: Int64List}``.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Shaped

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_BYTES_LIST, _FLOAT_LIST, _INT64_LIST = 1, 2, 3


class WireError(ValueError):
    """The bytes are not a ``tf.train.Example``."""


@dataclasses.dataclass(frozen=True)
class ByteStrings:
    """A BytesList: offsets and lengths within the message."""

    offsets: Shaped[np.ndarray, "N"]
    lengths: Shaped[np.ndarray, "N"]


Feature = ByteStrings | np.ndarray


def parse_example(message: bytes) -> dict[str, Feature]:
    """Reads all features of a ``tf.train.Example``.

    Returns:
      Feature name to `ByteStrings`, a float32 array, or an int64 array; a feature without a value is an empty array.

    Raises:
      WireError: the message is malformed.
    """
    try:
        return dict(
            _map_entry(message, *entry)
            for features in _strings(message, 0, len(message), 1)
            for entry in _strings(message, *features, 1)
        )
    except (IndexError, UnicodeDecodeError) as error:
        raise WireError(f"not a tf.train.Example: {error}") from error


def _map_entry(message: bytes, start: int, end: int) -> tuple[str, Feature]:
    key = ""
    feature: Feature = np.zeros(0, np.float32)
    for number, _, begin, stop in _fields(message, start, end):
        if number == 1:
            key = message[begin:stop].decode()
        elif number == 2:
            feature = _feature(message, begin, stop)
    return key, feature


def _feature(message: bytes, start: int, end: int) -> Feature:
    for number, _, begin, stop in _fields(message, start, end):
        if number == _BYTES_LIST:
            spans = np.array(list(_strings(message, begin, stop, 1)), np.int64).reshape(-1, 2)
            return ByteStrings(spans[:, 0], spans[:, 1] - spans[:, 0])
        if number in (_FLOAT_LIST, _INT64_LIST):
            values = b"".join(message[b:e] for _, _, b, e in _fields(message, begin, stop))  # packed or not
            return _floats(values) if number == _FLOAT_LIST else _varints(values)
    return np.zeros(0, np.float32)


def _strings(message: bytes, start: int, end: int, number: int) -> Iterator[tuple[int, int]]:
    return ((begin, stop) for field, _, begin, stop in _fields(message, start, end) if field == number)


def _fields(message: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields (field number, wire type, start, end) of each value between two bytes."""
    at = start
    while at < end:
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == _LENGTH_DELIMITED:
            length, at = _varint(message, at)
            stop = at + length
        elif wire == _VARINT:
            stop = _varint(message, at)[1]
        elif wire in (_FIXED32, _FIXED64):
            stop = at + (4 if wire == _FIXED32 else 8)
        else:
            raise WireError(f"not a tf.train.Example: wire type {wire} at byte {at}")
        if stop > end:
            raise WireError(f"not a tf.train.Example: field {tag >> 3} ends at byte {stop}, past its parent's {end}")
        yield tag >> 3, wire, at, stop
        at = stop


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def _floats(data: bytes) -> Shaped[np.ndarray, "N"]:
    if len(data) % 4:
        raise WireError(f"not a tf.train.Example: a float list of {len(data)} bytes")
    return np.frombuffer(data, "<f4")


def _varints(data: bytes) -> Shaped[np.ndarray, "N"]:
    """Decodes back-to-back varints into int64, all at once."""
    if not data:
        return np.zeros(0, np.int64)
    octets = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(octets < 128)
    if not len(ends) or ends[-1] != len(octets) - 1:
        raise WireError("not a tf.train.Example: an integer list ends inside a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 9:
        raise WireError("not a tf.train.Example: an integer of more than 64 bits")
    position = np.arange(len(octets)) - np.repeat(starts, ends - starts + 1)
    shifted = (octets & 127).astype(np.uint64) << (7 * position).astype(np.uint64)
    return np.add.reduceat(shifted, starts).view(np.int64)
