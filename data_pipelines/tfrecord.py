"""TFRecord framing: ``uint64 length | masked crc32c of length | payload | masked crc32c of payload``.

The format is TensorFlow's ``tensorflow/core/lib/io/record_writer.h``. A bad record is reported, never hidden.
"""

import dataclasses
import pathlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

import google_crc32c

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")
_HEADER_BYTES = _LENGTH.size + _CRC.size
_MASK_DELTA = 0xA282EAD8


@dataclasses.dataclass(frozen=True)
class Record:
    """One payload with its masked crc32c, and the bytes of the file at which the record and its payload start."""

    number: int
    start: int
    payload_start: int
    payload: bytes
    checksum: int


@dataclasses.dataclass(frozen=True)
class BadRecord:
    """A record that cannot be trusted, the byte of the file at which it starts, and why."""

    number: int
    start: int
    reason: str


def masked_crc32c(data: bytes) -> int:
    """The checksum TFRecord stores: crc32c rotated right by 15 bits plus a constant."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + _MASK_DELTA) & 0xFFFFFFFF


def write_record(file: BinaryIO, payload: bytes) -> None:
    """Appends one record to ``file``."""
    length = _LENGTH.pack(len(payload))
    file.write(length + _CRC.pack(masked_crc32c(length)) + payload + _CRC.pack(masked_crc32c(payload)))


def read_records(path: pathlib.Path) -> Iterator[Record | BadRecord]:
    """Yields every record of a file in order, and a `BadRecord` for each that fails its checks.

    After a wrong payload the scan goes on at the next record. After a wrong length, or where the file ends inside a
    record, there is no telling where the next one starts: that `BadRecord` is the last item.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        number, start = 0, 0
        while start < size:
            header = file.read(_HEADER_BYTES)
            if len(header) < _HEADER_BYTES:
                yield BadRecord(number, start, "file ends inside the record's header; the rest is lost")
                return
            if _CRC.unpack_from(header, _LENGTH.size)[0] != masked_crc32c(header[: _LENGTH.size]):
                yield BadRecord(number, start, "wrong checksum of the length; the rest of the file is unreadable")
                return
            (length,) = _LENGTH.unpack_from(header)
            if start + _HEADER_BYTES + length + _CRC.size > size:
                yield BadRecord(number, start, "file ends inside the record's payload; the rest is lost")
                return
            payload = file.read(length)
            (checksum,) = _CRC.unpack(file.read(_CRC.size))
            if checksum != masked_crc32c(payload):
                yield BadRecord(number, start, "wrong checksum of the payload")
            else:
                yield Record(number, start, start + _HEADER_BYTES, payload, checksum)
            number, start = number + 1, start + _HEADER_BYTES + length + _CRC.size
