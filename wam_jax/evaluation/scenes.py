"""Moments of the scripted expert's episodes, with the truth about them: what probes and diagnostics are made on."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from wam_jax import console
from wam_jax.evaluation.robustness import changed, conditions, counted
from wam_jax.sim import compilation
from wam_jax.sim.scene import CAMERA_NAMES
from wam_jax.sim.tabletop import Tabletop
from wam_jax.sim.variation import Variation, in_shapes, neutral

_BATCH = 128
_HELD_HEIGHT, _HELD_DISTANCE = 0.02, 0.05  # metres: above where it lay, and from the gripper


class Scenes(NamedTuple):
    """Attributes:

    images: of all cameras.
    proprio: of the robot.
    instruction: index into the task's instructions.
    positions: (x, y) of the objects in metres, from left to right: colours and names do not decide the order.
    held: whether the gripper holds one of them.
    masks: where ``PARTS`` of the scene are seen, see ``Tabletop.masks``.
    """

    images: UInt8[np.ndarray, "N V H W 3"]
    proprio: Float[np.ndarray, "N P"]
    instruction: Int[np.ndarray, "N"]
    positions: Float[np.ndarray, "N D"]
    held: Bool[np.ndarray, "N"]
    masks: Bool[np.ndarray, "N M V H W"]


def left_to_right(places: Float[Array, "*B n 3"]) -> Float[Array, "*B 2*n"]:
    """(x, y) of objects as ``Scenes.positions``."""
    order = jnp.argsort(places[..., 1], axis=-1)[..., None]
    return jnp.take_along_axis(places, order, -2)[..., :2].reshape(*places.shape[:-2], -1)


@functools.cache  # several models are looked at on the same scenes
def draw_scenes(
    task: str,
    image_size: int,
    count: int,
    seed: int,
    shapes: tuple[tuple[int, ...], ...] = (),
    cameras: tuple[str, ...] = CAMERA_NAMES,
    axis: str = "",
) -> Scenes:
    """One random moment of each of ``count`` episodes; ``shapes`` as in ``demonstrations.generate``.

    ``axis``: of ``robustness.conditions``, whose strongest change the scenes show. Of unseen looks there are fewer
    scenes: those whose named objects look so.

    Raises:
      ValueError: the axis changes nothing that is seen, or see ``conditions``.
    """
    if axis in ("wording", "noise"):  # noise comes between a picture and the policy
        raise ValueError(f"axis {axis!r} changes nothing that is seen")
    env = Tabletop(task, image_size=image_size, varied=bool(shapes or axis), cameras=cameras)

    def looks(key: Array, batch: int) -> Variation:
        usual = in_shapes(jax.random.fold_in(key, 1), shapes, _BATCH) if shapes else neutral(_BATCH)
        if not axis:
            return usual
        return changed(usual, conditions(task, shapes, (axis,), (1.0,))[axis, 1.0], (axis, 1.0), _BATCH, seed + batch)

    def run(key: Array, times: Array, variation: Variation):
        states = jax.vmap(env.reset)(jax.random.split(key, len(times)), variation)
        resting = jax.vmap(env.facts)(states).objects[..., 2]

        def step(states, _):
            seen = jax.vmap(env.stage)(states), jax.vmap(env.facts)(states), jax.vmap(env.proprio)(states)
            return jax.vmap(env.step)(states, jax.vmap(env.expert)(states)), seen

        _, seen = jax.lax.scan(step, states, length=env.episode_steps)
        stage, facts, proprio = jax.tree.map(lambda x: x[times, jnp.arange(len(times))], seen)
        lifted = facts.objects[..., 2] > resting + _HELD_HEIGHT
        near = jnp.linalg.norm(facts.objects - facts.tcp[:, None], axis=-1) < _HELD_DISTANCE
        return (
            jax.vmap(env.draw)(stage),
            proprio,
            states.instruction,
            left_to_right(facts.objects),
            (lifted & near).any(-1),
            jax.vmap(env.masks)(stage, states.layout),
        )

    run = compilation.jit(run)
    rng, parts = np.random.default_rng(seed), []
    for batch in console.progress(range(-(-count // _BATCH)), f"scenes of {task}"):
        key = jax.random.fold_in(jax.random.key(seed), batch)
        times = jnp.asarray(rng.integers(env.episode_steps, size=_BATCH))
        parts.append(jax.tree.map(np.asarray, run(key, times, looks(key, batch))))
    found = Scenes(*(np.concatenate(column)[:count] for column in zip(*parts, strict=True)))
    rows = counted(axis, task, shapes, found.instruction)
    return Scenes(*(column[rows] for column in found))
