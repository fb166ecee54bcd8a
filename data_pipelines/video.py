"""Frames of a video file by number, through PyAV: seek to the key frame before, decode on from there."""

import os
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt8

_DECODE_ON = 32  # frames: nearer than this, decoding on is cheaper than a seek, which starts at a key frame


def read_video(
    path: str | os.PathLike[str], frames: Sequence[int], fps: float, start: float = 0.0
) -> UInt8[np.ndarray, "T H W 3"]:
    """The pictures with these numbers, in RGB; any order, repeats allowed.

    Picture ``n`` is the one shown at ``start + n / fps`` seconds: several episodes may share a file.

    Raises:
      ValueError: the file cannot be decoded, or ends before one of ``frames``.
      ModuleNotFoundError: PyAV is not installed; the message says how to get it.
    """
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("reading videos needs PyAV; pip install -e '.[video]'") from error

    wanted = sorted(set(frames))
    first = round(start * fps)
    found: dict[int, np.ndarray] = {}
    try:
        with av.open(os.fspath(path)) as container:
            stream = container.streams.video[0]
            stream.thread_type = "NONE"  # the loader has threads of its own
            clock, origin = stream.time_base, stream.start_time or 0
            if clock is None:
                raise ValueError("its video has no time base")
            pictures: Iterator[av.VideoFrame] = iter(())
            position = None  # number of the picture decoded last
            for number in wanted:
                if position is None or number - position > _DECODE_ON:
                    container.seek(origin + int((first + number) / fps / clock), stream=stream)
                    pictures = container.decode(stream)
                for picture in pictures:
                    position = round(float(((picture.pts or 0) - origin) * clock) * fps) - first
                    if position >= number:
                        found[number] = picture.to_ndarray(format="rgb24")
                        break
                if number not in found or position != number:
                    raise ValueError(f"it has no frame {first + number} at {fps:g} frames a second")
    except (av.error.FFmpegError, IndexError) as error:
        raise ValueError(f"it cannot be decoded: {error}") from error
    return np.stack([found[number] for number in frames])
