"""What latents know of a scene: linear probes on pictures of the simulator, where the truth is at hand."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Float, UInt8

from wam_jax import console
from wam_jax.evaluation.probes import flattened, linear_reader, probe_classes, probe_positions
from wam_jax.evaluation.scenes import Scenes
from wam_jax.tokenizers.tokenizer import Tokenizer

_BATCH = 128


def position_reader(
    tokenizer: Tokenizer, fit: Scenes
) -> Callable[[UInt8[np.ndarray, "N V H W 3"]], Float[np.ndarray, "N E"]]:
    """Reads where objects are (as ``Scenes.positions``) off pictures, true or imagined."""
    features = _features(tokenizer)
    read = linear_reader(features(fit.images), fit.positions)
    return lambda images: read(features(images))


def probe_tokenizer(tokenizer: Tokenizer, fit: Scenes, test: Scenes) -> dict[str, float]:
    """How well a linear map reads object positions, and whether one is held, off latents of single images.

    Returns:
      ``position_r2``; ``position_error`` in metres beside ``position_error_of_mean``; and, where both cases occur,
      ``held_accuracy`` beside ``held_majority``.
    """
    features = _features(tokenizer)
    fitted, tested = features(fit.images), features(test.images)
    position = probe_positions(fitted, fit.positions, tested, test.positions)
    found = {
        "position_r2": position.r2,
        "position_error": position.mean_error,
        "position_error_of_mean": position.mean_error_of_constant,
    }
    if fit.held.any() and not fit.held.all():
        held = dataclasses.asdict(probe_classes(fitted, fit.held, tested, test.held))
        found |= {"held_accuracy": held["accuracy"], "held_majority": held["majority_accuracy"]}
    return found


def _features(tokenizer: Tokenizer) -> Callable[[UInt8[np.ndarray, "N V H W 3"]], Float[np.ndarray, "N D"]]:
    """Latents of single pictures, as one vector each."""
    encode = jax.jit(lambda tokenizer, images: tokenizer.start(images)[0])

    def features(images: UInt8[np.ndarray, "N V H W 3"]) -> Float[np.ndarray, "N D"]:
        rows = [np.minimum(np.arange(i, i + _BATCH), len(images) - 1) for i in range(0, len(images), _BATCH)]
        parts = console.progress(rows, "scenes to latents")
        found = np.concatenate([np.asarray(encode(tokenizer, images[row])) for row in parts])
        return flattened(found[: len(images)])

    return features
