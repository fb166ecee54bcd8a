"""The published tokenizers, by name."""

import functools
from collections.abc import Callable, Mapping

from wam_jax.tokenizers.taef2 import load_taef2
from wam_jax.tokenizers.tokenizer import Tokenizer
from wam_jax.tokenizers.wan_tokenizer import load_wan_tokenizer

PUBLISHED: Mapping[str, Callable[[tuple[int, int]], Tokenizer]] = {
    "wan21_vae": functools.partial(load_wan_tokenizer, "wan21_vae"),
    "wan22_vae": functools.partial(load_wan_tokenizer, "wan22_vae"),
    "taef2": load_taef2,
}


def load_published(name: str, image_size: tuple[int, int]) -> Tokenizer:
    """A published tokenizer for pictures of this size, in rows and columns.

    Raises:
      ValueError: an unknown name, or a size that does not divide as the tokenizer needs.
      assets.AssetMissing, assets.AssetCorrupt: its weights are not here, or not the registered ones.
    """
    if name not in PUBLISHED:
        raise ValueError(f"tokenizer {name!r} is not a published one (has: {', '.join(PUBLISHED)}); set tokenizer.name")
    return PUBLISHED[name](image_size)
