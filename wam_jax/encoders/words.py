"""The words of an instruction as they are, for a policy that has its own text encoder elsewhere."""

import jax.numpy as jnp
import numpy as np

from wam_jax.encoders.text import TextEncoder
from wam_jax.types import Text

NAME, LENGTH = "words", 256  # bytes


def text_encoder() -> TextEncoder:
    """A token for each byte of an instruction; its one feature is its number."""
    return TextEncoder(
        lambda sentences: [list(sentence.encode()) for sentence in sentences],
        lambda ids, mask: jnp.where(mask, ids, 0)[..., None].astype(jnp.float32),
        width=1,
        lengths=(LENGTH, 2 * LENGTH, 8 * LENGTH),
    )


def words(text: Text) -> list[str]:
    """The instructions of a batch again."""
    tokens, mask = np.asarray(text.features)[..., 0], np.asarray(text.mask)
    return [row[there].astype(np.uint8).tobytes().decode() for row, there in zip(tokens, mask, strict=True)]
