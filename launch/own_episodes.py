"""What the base does from starts of its own, beside the demonstrations of stage 1."""

import hashlib
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from data_pipelines.transforms import ActionCodec
from launch.config import ConfigError
from launch.data import Data
from launch.kept import kept
from wam_jax import console
from wam_jax.evaluation.success import EvaluationConfig, TaskText, episodes_of
from wam_jax.posttraining.own_episodes import OwnEpisodes, OwnSequences, Wanderer, wander
from wam_jax.sim import compilation
from wam_jax.sim.rollout import WamParams
from wam_jax.sim.tabletop import Tabletop
from wam_jax.tokenizers.tokenizer import Tokenizer
from wam_jax.training.restore import Trained, fingerprint

OWN_SEED = 3  # beyond config.posttrain.seed
_AT_ONCE = 32


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
    told = {
        "episodes": numbers.own_episodes,
        "noise": numbers.own_noise,
        "seed": config.posttrain.seed,
        "base": fingerprint(base),
    }
    key = hashlib.sha256(json.dumps([told, data.codec.block, chunks, task.name, task.shapes]).encode()).hexdigest()
    found = kept(
        directory / f"own_{key[:12]}.npz", OwnEpisodes, lambda: _wandered(config, base, task, env, data.codec, chunks)
    )
    frames = found.images
    if config.data.precompute_latents:
        encode = jax.jit(lambda tokenizer, images: tokenizer.encode(images))
        parts = np.split(frames, range(_AT_ONCE, len(frames), _AT_ONCE))
        frames = np.concatenate([np.asarray(encode(tokenizer, part)) for part in parts])
    return OwnSequences(
        frames=frames,
        actions=np.asarray(data.codec.encode(found.actions), np.float32),
        proprio=np.asarray(data.proprio.normalise(found.proprio), np.float32),
        text=jax.tree.map(lambda x: np.asarray(x)[found.instruction], task.text),
        embodiment=task.embodiment,
        told=told,
    )


def _wandered(
    config: ConfigDict, base: Trained, task: TaskText, env: Tabletop, codec: ActionCodec, chunks: int
) -> OwnEpisodes:
    """The episodes, from starts that neither post-training nor evaluation knows."""
    numbers, seed = config.posttrain.adapters, config.posttrain.seed + OWN_SEED
    episodes = episodes_of(task, EvaluationConfig(episodes=numbers.own_episodes, seed=seed))
    run = compilation.jit(wander(env, Wanderer(base.policy, codec, numbers.own_noise), chunks))
    params = WamParams(
        policy=base.params, text=task.text, embodiment=jnp.asarray(task.embodiment), misinform=jnp.asarray(False)
    )
    parts = []
    for start in console.progress(range(0, numbers.own_episodes, _AT_ONCE), "the base's own episodes"):
        keys, looks = jax.tree.map(lambda x, i=start: x[i : i + _AT_ONCE], tuple(episodes))
        found = run(params, keys, looks, jax.random.fold_in(jax.random.key(seed + 1), start))
        parts.append(jax.tree.map(np.asarray, found))
    return OwnEpisodes(*(np.concatenate(rows) for rows in zip(*parts, strict=True)))
