"""JPEG and PNG bytes to RGB arrays, and back."""

import io

import numpy as np
import PIL.Image
import simplejpeg
from jaxtyping import UInt8

_JPEG_MAGIC = b"\xff\xd8"
_PNG_MAGIC = b"\x89PNG"


def decode_image(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes one JPEG or PNG to RGB.

    Raises:
      ValueError: the bytes are neither, or are damaged (a JPEG that ends early included).
    """
    if data.startswith(_JPEG_MAGIC):
        return simplejpeg.decode_jpeg(data, colorspace="RGB")
    if data.startswith(_PNG_MAGIC):
        try:
            return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))
        except (OSError, SyntaxError) as error:
            raise ValueError(str(error)) from error
    raise ValueError(f"neither JPEG nor PNG (starts with {data[:4].hex() or 'nothing'})")


def encode_jpeg(image: UInt8[np.ndarray, "H W 3"], quality: int = 95) -> bytes:
    """Encodes RGB as JPEG without chroma subsampling: small coloured objects are what robots look at."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(image), quality=quality, colorspace="RGB", colorsubsampling="444"
    )


def resize(frames: UInt8[np.ndarray, "T H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "T h w 3"]:
    """Resizes to (height, width), bilinear and antialiased (Pillow); frames of that size come back as they are."""
    height, width = size
    if frames.shape[1:3] == (height, width):
        return frames
    bilinear = PIL.Image.Resampling.BILINEAR
    return np.stack([np.asarray(PIL.Image.fromarray(frame).resize((width, height), bilinear)) for frame in frames])
