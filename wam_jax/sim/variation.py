"""What a robustness study may change, as arrays: a grid of conditions is one batched run, never a recompilation."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.spatial.transform import Rotation
from jaxtyping import Array, Float, Int, PRNGKeyArray

from wam_jax.sim.scene import CAMERA_NAMES, CHECKER_DARK, NUM_ARM_JOINTS, OBJECT_COLORS, TABLE_COLOR, WALL_COLOR


def _constant(value: Any) -> Any:
    return np.asarray(value, np.float32)


def _index(value: Any) -> Any:
    return np.asarray(value, np.int32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Variation:
    """Deviations from the training conditions; the defaults deviate in nothing.

    Attributes:
      camera_shift: metres along each camera's own axes (right, up, back). ``V`` is front, wrist.
      camera_tilt: rotation vector about each camera's own axes, radians.
      light_shift: metres.
      brightness: factor on every pixel.
      table_color, wall_color: RGB in [0, 1].
      checker: brightness of the table's dark squares over that of the others.
      arm_joint_shift: added to the arm's first joint angles, radians.
      layout_shift: added to the place of every object and goal, metres (x, y).
      object_colors: RGB of each of ``OBJECT_COLORS``, whatever it is called.
      object_shapes: of the objects of each of ``OBJECT_COLORS``, index into ``SHAPES``; -1: their own. They look so,
        and feel as before. Needs ``Tabletop(varied=True)``, as do:
      distractors: number of further things on the table, at random places: at most ``MOST_DISTRACTORS``. They are seen
        only.
      pixel_noise: standard deviation of Gaussian noise on what a policy sees of a pixel, in [0, 1].
      wording: which of the task's phrases the policy is told, see ``tasks.wordings``.
    """

    camera_shift: Float[Array, "*B V 3"] = dataclasses.field(
        default_factory=lambda: _constant(np.zeros((len(CAMERA_NAMES), 3)))
    )
    camera_tilt: Float[Array, "*B V 3"] = dataclasses.field(
        default_factory=lambda: _constant(np.zeros((len(CAMERA_NAMES), 3)))
    )
    light_shift: Float[Array, "*B 3"] = dataclasses.field(default_factory=lambda: _constant(np.zeros(3)))
    brightness: Float[Array, "*B"] = dataclasses.field(default_factory=lambda: _constant(1.0))
    table_color: Float[Array, "*B 3"] = dataclasses.field(default_factory=lambda: _constant(TABLE_COLOR))
    wall_color: Float[Array, "*B 3"] = dataclasses.field(default_factory=lambda: _constant(WALL_COLOR))
    checker: Float[Array, "*B"] = dataclasses.field(default_factory=lambda: _constant(CHECKER_DARK))
    arm_joint_shift: Float[Array, "*B 7"] = dataclasses.field(
        default_factory=lambda: _constant(np.zeros(NUM_ARM_JOINTS))
    )
    layout_shift: Float[Array, "*B 2"] = dataclasses.field(default_factory=lambda: _constant(np.zeros(2)))
    object_colors: Float[Array, "*B 3 3"] = dataclasses.field(
        default_factory=lambda: _constant(list(OBJECT_COLORS.values()))
    )
    object_shapes: Int[Array, "*B 3"] = dataclasses.field(default_factory=lambda: _index(np.full(3, -1)))
    distractors: Int[Array, "*B"] = dataclasses.field(default_factory=lambda: _index(0))
    pixel_noise: Float[Array, "*B"] = dataclasses.field(default_factory=lambda: _constant(0.0))
    wording: Int[Array, "*B"] = dataclasses.field(default_factory=lambda: _index(0))


def neutral(count: int) -> Variation:
    """So many episodes under the conditions of training."""
    return jax.tree.map(lambda x: np.broadcast_to(x, (count, *np.shape(x))), Variation())


def in_shapes(key: PRNGKeyArray, shapes: Sequence[Sequence[int]], count: int) -> Variation:
    """So many episodes whose objects of each of ``OBJECT_COLORS`` look like one of ``shapes``, drawn for each."""
    draws = zip(jax.random.split(key, len(shapes)), shapes, strict=True)
    looks = jnp.stack([jax.random.choice(k, jnp.array(own), (count,)) for k, own in draws], 1)
    return dataclasses.replace(neutral(count), object_shapes=looks)


def move_camera(
    position: Float[Array, "3"], rotation: Float[Array, "3 3"], shift: Float[Array, "3"], tilt: Float[Array, "3"]
) -> tuple[Float[Array, "3"], Float[Array, "3 3"]]:
    """A camera's pose (metres; axes as columns) after a shift along, and a tilt about, its own axes."""
    turn = Rotation.from_rotvec(jnp.asarray(tilt)).as_matrix()
    return position + rotation @ shift, rotation @ turn
