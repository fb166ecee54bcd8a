"""What latents know of a scene: linear probes on pictures of the simulator, where the truth is at hand."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from wam_jax.evaluation.probes import flattened, probe_classes, probe_positions
from wam_jax.sim import compilation
from wam_jax.sim.tabletop import Tabletop
from wam_jax.tokenizers.tokenizer import Tokenizer

_BATCH = 128
_HELD_HEIGHT, _HELD_DISTANCE = 0.02, 0.05  # metres: above where it lay, and from the gripper


class Scenes(NamedTuple):
    """Moments of the scripted expert's episodes.

    Attributes:
      images: of all cameras.
      positions: (x, y) of the objects in metres, from left to right: colours and names do not decide the order.
      held: whether the gripper holds one of them.
    """

    images: UInt8[np.ndarray, "N V H W 3"]
    positions: Float[np.ndarray, "N D"]
    held: Bool[np.ndarray, "N"]


@functools.cache  # several tokenizers are probed on the same scenes
def draw_scenes(task: str, image_size: int, count: int, seed: int) -> Scenes:
    """One random moment of each of ``count`` episodes."""
    env = Tabletop(task, image_size=image_size)

    def run(keys: Array, times: Array):
        states = jax.vmap(env.reset)(keys)
        resting = jax.vmap(env.facts)(states).objects[..., 2]

        def step(states, _):
            seen = jax.vmap(env.stage)(states), jax.vmap(env.facts)(states)
            return jax.vmap(env.step)(states, jax.vmap(env.expert)(states)), seen

        _, seen = jax.lax.scan(step, states, length=env.episode_steps)
        stage, facts = jax.tree.map(lambda x: x[times, jnp.arange(len(times))], seen)
        lifted = facts.objects[..., 2] > resting + _HELD_HEIGHT
        near = jnp.linalg.norm(facts.objects - facts.tcp[:, None], axis=-1) < _HELD_DISTANCE
        places = jnp.take_along_axis(facts.objects, jnp.argsort(facts.objects[..., 1])[..., None], 1)[..., :2]
        return jax.vmap(env.draw)(stage), places.reshape(len(times), -1), (lifted & near).any(-1)

    run = compilation.jit(run)
    rng, parts = np.random.default_rng(seed), []
    for batch in range(-(-count // _BATCH)):
        keys = jax.random.split(jax.random.fold_in(jax.random.key(seed), batch), _BATCH)
        parts.append(jax.tree.map(np.asarray, run(keys, jnp.asarray(rng.integers(env.episode_steps, size=_BATCH)))))
    return Scenes(*(np.concatenate(column)[:count] for column in zip(*parts, strict=True)))


def probe_tokenizer(tokenizer: Tokenizer, fit: Scenes, test: Scenes) -> dict[str, float]:
    """How well a linear map reads object positions, and whether one is held, off latents of single images.

    Returns:
      ``position_r2``; ``position_error`` in metres beside ``position_error_of_mean``; and, where both cases occur,
      ``held_accuracy`` beside ``held_majority``.
    """
    encode = jax.jit(lambda tokenizer, images: tokenizer.start(images)[0])

    def features(images: UInt8[np.ndarray, "N V H W 3"]) -> Float[np.ndarray, "N D"]:
        rows = [np.minimum(np.arange(i, i + _BATCH), len(images) - 1) for i in range(0, len(images), _BATCH)]
        found = np.concatenate([np.asarray(encode(tokenizer, images[row])) for row in rows])
        return flattened(found[: len(images)])

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
