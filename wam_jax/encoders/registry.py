"""The table of frozen encoders, by name: which weights, which sizes, and the module that puts them together."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from wam_jax import assets
from wam_jax.encoders import dinov2, dinov3, efficientnet_lite, minilm, perception, siglip2, t5, vjepa2, words
from wam_jax.encoders.frozen import FrozenEncoder
from wam_jax.encoders.text import TextEncoder
from wam_jax.weights.files import open_weights


@dataclasses.dataclass(frozen=True)
class Entry:
    """One encoder.

    Attributes:
      asset: name of its weights in wam_jax/asset_table.py.
      config: its sizes.
      frozen: (config, checkpoint, dtype) -> encoder.
    """

    asset: str
    config: Any
    frozen: Callable[..., FrozenEncoder]


def _family(name: str, sizes: Mapping[str, Any], frozen: Callable[..., FrozenEncoder], tower: str = "") -> dict:
    """A row for each published size: ``NAME_SIZE``, with ``tower`` added where one file holds two encoders."""
    return {f"{name}_{size}{tower}": Entry(f"{name}_{size}", config, frozen) for size, config in sizes.items()}


ENCODERS: Mapping[str, Entry] = {
    **_family("dinov2", dinov2.SIZES, dinov2.frozen),
    **_family("dinov3", dinov3.SIZES, dinov3.frozen),
    **_family("siglip2", siglip2.VISION_SIZES, siglip2.frozen_vision),
    **_family("siglip2", siglip2.TEXT_SIZES, siglip2.frozen_text, tower="_text"),
    **_family("perception", perception.SIZES, perception.frozen),
    **_family("vjepa2", vjepa2.SIZES, vjepa2.frozen),
    **_family("efficientnet", efficientnet_lite.SIZES, efficientnet_lite.frozen),
    **_family("t5_v1_1", t5.T5_SIZES, t5.frozen),
    **_family("umt5", t5.UMT5_SIZES, t5.frozen),
}


def load(name: str, dtype: DTypeLike = jnp.bfloat16, path: str | Path | None = None) -> FrozenEncoder:
    """A published encoder with its weights.

    Args:
      name: one of ``ENCODERS``.
      dtype: that weights are stored in, and that it computes in: bfloat16 or float32. Features are float32.
      path: its weights, where they are not found as an asset: a file or folder, see ``open_weights``.

    Raises:
      KeyError: the name is unknown, or its weights are no registered asset and no path is given.
      assets.AssetMissing, assets.AssetCorrupt: the weights are not here, or not the registered ones.
      UnreadableWeights, WeightsMismatch: the file is not a checkpoint of this encoder.
    """
    entry = _entry(name)
    return entry.frozen(entry.config, open_weights(path or find(name)), dtype)


def find(name: str) -> Path:
    """Where the weights of an encoder are; raises as ``load`` does without a path."""
    entry = _entry(name)
    if entry.asset not in assets.ASSETS:
        raise KeyError(f"the weights of encoder {name!r} are no registered asset; give their path")
    return assets.find(entry.asset)["weights"]


def _entry(name: str) -> Entry:
    if name not in ENCODERS:
        raise KeyError(f"encoder {name!r} is unknown (has: {', '.join(ENCODERS)})")
    return ENCODERS[name]


def text_encoder(name: str) -> TextEncoder:
    """A published text encoder and its tokenizer: "minilm_l6", "umt5_xxl", "t5_v1_1_xxl", "siglip2_base_patch16_224"…

    "words" gives instructions as they are, for policies elsewhere.

    Raises:
      KeyError: the name is unknown, or its weights are no registered asset.
      assets.AssetMissing, assets.AssetCorrupt: the weights are not here, or not the registered ones.
    """
    if name == words.NAME:
        return words.text_encoder()
    if name == minilm.ASSET:
        return minilm.text_encoder()
    if name.startswith("siglip2_"):
        return siglip2.text_encoder(name.removeprefix("siglip2_"))
    return t5.text_encoder(name)


def forget_text_encoders() -> None:
    """Gives back the memory of those that were read: gigabytes of a device, of some. MiniLM may stay."""
    for module in (t5, siglip2):
        module.text_encoder.cache_clear()
