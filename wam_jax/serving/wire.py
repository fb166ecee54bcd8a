"""What goes over the wire: msgpack, arrays as openpi's ``msgpack_numpy`` writes them. Nothing in it is executed."""

import math
from typing import Any

import msgpack
import numpy as np

LIMIT = 256 * 2**20  # bytes of a message
PING_SECONDS = 20  # between signs of life: proxies close what is silent for a minute
ANSWER_SECONDS = 600  # patience; the first answer to a batch of a new size waits for a compiler
_KINDS = "biuf"  # of numbers; objects and records are refused


class WireError(ValueError):
    """A message is not what it should be; says what, and what is expected."""


def pack(message: Any) -> bytes:
    """Numbers, strings, lists, dictionaries and numpy arrays as bytes.

    Raises:
      TypeError: there is something else in it.
    """
    return msgpack.packb(message, default=_written)


def unpack(data: bytes) -> Any:
    """What was packed; arrays are read-only.

    Raises:
      WireError: it is no such message.
    """
    try:
        return msgpack.unpackb(data, object_hook=_read)
    except WireError:
        raise
    except Exception as error:  # msgpack's own errors share no base
        raise WireError(f"the message is no msgpack ({type(error).__name__}: {error})") from error


def _written(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _KINDS:
        array = np.asarray(value)
        return {b"__ndarray__": True, b"data": array.tobytes(), b"dtype": array.dtype.str, b"shape": list(array.shape)}
    raise TypeError(f"{type(value).__name__} does not go over the wire")


def _read(found: dict[Any, Any]) -> Any:
    if b"__npgeneric__" in found:  # openpi's way to write a single number
        return np.dtype(_kind(found.get(b"dtype"))).type(found[b"data"])
    if b"__ndarray__" not in found:
        return found
    dtype, shape, data = np.dtype(_kind(found.get(b"dtype"))), found.get(b"shape"), found.get(b"data")
    if not isinstance(shape, list) or not all(isinstance(n, int) and n >= 0 for n in shape):
        raise WireError(f"an array's shape is {shape!r}; give a list of sizes")
    if not isinstance(data, bytes) or len(data) != math.prod(shape) * dtype.itemsize:
        raise WireError(f"an array of shape {shape} and type {dtype} does not have as many bytes as that takes")
    return np.frombuffer(data, dtype).reshape(shape)


def _kind(name: Any) -> str:
    try:
        if isinstance(name, str) and np.dtype(name).kind in _KINDS:
            return name
    except TypeError:
        pass
    raise WireError(f"an array's type is {name!r}; give one of numbers, such as '<f4' or '|u1'")
