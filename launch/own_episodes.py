"""What the base does from starts of its own, beside the demonstrations of stage 1."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.transforms import ActionCodec
from launch.config import ConfigError
from launch.data import Data
from launch.imagined_starts import starts_of
from launch.kept import kept
from launch.tokenizers import tokenizer_key
from wam_jax import console
from wam_jax.evaluation.success import TaskText, informed
from wam_jax.posttraining.own_episodes import NoisyPerformer, OwnEpisodes, own_episodes
from wam_jax.sim import compilation
from wam_jax.sim.tabletop import Tabletop
from wam_jax.tokenizers.tokenizer import Tokenizer
from wam_jax.tokenizers.visual import encode_in_parts
from wam_jax.training.restore import Trained, fingerprint
from wam_jax.types import Batch

OWN_SEED = 3  # beyond config.posttrain.seed
_AT_ONCE = 32


class OwnSequences(NamedTuple):
    """Attributes:

    sequences: all of them, normalised, as those of demonstrations are.
    told: what tells them from others.
    """

    sequences: Batch
    told: dict[str, Any]


def own_sequences(
    config: ConfigDict, base: Trained, task: TaskText, env: Tabletop, data: Data, tokenizer: Tokenizer, directory: Path
) -> OwnSequences:
    """``config.posttrain.adapters.own_episodes`` of them, cut as the demonstrations are; made once a base.

    Raises:
      ConfigError: the tokenizer makes latents of clips, not of single frames.
    """
    if tokenizer.config.temporal:
        raise ConfigError(
            "config.posttrain.adapters.own_episodes is for tokenizers of single frames, and the world model's looks "
            "back; set it to 0"
        )
    chunks, numbers = len(data.windows.frame_offsets) - 1, config.posttrain.adapters
    seen = tokenizer if config.data.precompute_latents else None
    told = {
        "episodes": numbers.own_episodes,
        "noise": numbers.own_noise,
        "seed": config.posttrain.seed,
        "skills": config.posttrain.skills,
        "base": fingerprint(base),
    }
    decides = [told, data.codec.to_dict(), chunks, task.name, task.shapes, seen and tokenizer_key(seen)]

    def make() -> OwnEpisodes:
        return _own_episodes(config, base, task, env, data.codec, chunks, seen)

    found = kept(directory, "own", decides, OwnEpisodes, make)
    return OwnSequences(_as_batch(found, task, data), told)


def _as_batch(found: OwnEpisodes, task: TaskText, data: Data) -> Batch:
    pictures = found.frames.dtype == np.uint8
    actions = np.asarray(data.codec.encode(found.actions), np.float32)
    proprio = np.asarray(data.proprio.normalise(found.proprio), np.float32)
    arrays: dict[str, Any] = {
        "images": found.frames if pictures else None,
        "latents": None if pictures else found.frames,
        "image_mask": np.ones(found.frames.shape[:3], bool),
        "actions": actions,
        "action_mask": np.ones(actions.shape, bool),
        "proprio": proprio,
        "proprio_mask": np.ones(proprio.shape, bool),
        "embodiment": np.full(len(actions), task.embodiment, np.int32),
    }
    return Batch(text=jax.tree.map(lambda x: np.asarray(x)[found.instruction], task.text), **arrays)


def _own_episodes(
    config: ConfigDict,
    base: Trained,
    task: TaskText,
    env: Tabletop,
    codec: ActionCodec,
    chunks: int,
    tokenizer: Tokenizer | None,
) -> OwnEpisodes:
    """The episodes, from starts that neither post-training nor evaluation knows; None: pictures as they are."""
    numbers, seed = config.posttrain.adapters, config.posttrain.seed + OWN_SEED
    starts = starts_of(config, task, env, numbers.own_episodes, seed)
    run = compilation.jit(own_episodes(env, NoisyPerformer(base.policy, codec, numbers.own_noise), chunks))
    parts = []
    for start in console.progress(range(0, numbers.own_episodes, _AT_ONCE), "the base's own episodes"):
        states = jax.tree.map(lambda x, i=start: x[i : i + _AT_ONCE], starts)
        found = run(informed(task, base.params), states, jax.random.fold_in(jax.random.key(seed + 1), start))
        parts.append(jax.tree.map(np.asarray, found))
    whole = OwnEpisodes(*(np.concatenate(rows) for rows in zip(*parts, strict=True)))
    return whole if tokenizer is None else whole._replace(frames=np.asarray(encode_in_parts(tokenizer, whole.frames)))
