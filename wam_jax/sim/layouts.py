"""Where things lie when an episode starts: drawn at random, apart from each other as the task asks."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from wam_jax.sim.scene import OBJECT_COLORS
from wam_jax.sim.tasks import DISTRACTOR_HEIGHT, Layout, Task

MOST_DISTRACTORS = 2

_CANDIDATES = 256
_DISTRACTOR_ROOM = 0.09  # metres to anything else


def sample_layout(task: Task, key: PRNGKeyArray) -> Layout:
    """Draws a layout whose things lie apart as the task asks (of 256 draws; the least crowded if none does)."""
    place, turn, paint, name_object, name_goal = jax.random.split(key, 5)
    n, g = task.num_objects, task.num_goals
    named_object = jax.random.randint(name_object, (), 0, n)
    named_goal = jax.random.randint(name_goal, (), 0, max(g, 1))
    low, high = jnp.array([task.area] * n + [task.goal_area or task.area] * g).swapaxes(0, 1)
    candidates = jax.random.uniform(place, (_CANDIDATES, n + g, 2), minval=low, maxval=high)
    # The first that is good enough, not the most spread of all: that would push everything to the borders.
    slack = jnp.minimum(jax.vmap(_least_separation)(candidates) - task.separation, 0.0)
    if task.path_clearance:
        clearance = jax.vmap(_path_clearance, in_axes=(0, 0, None))(
            candidates[:, :n], candidates[:, n + named_goal], named_object
        )
        slack = jnp.minimum(slack, clearance - task.path_clearance)
    xy = candidates[jnp.argmax(slack)]
    return Layout(
        object_xy=xy[:n],
        object_yaw=jax.random.uniform(turn, (n,), minval=-0.4, maxval=0.4),
        object_colors=jax.random.permutation(paint, len(OBJECT_COLORS))[:n],
        goal_xy=xy[n:],
        named_object=named_object,
        named_goal=named_goal,
    )


def place_distractors(task: Task, key: PRNGKeyArray, layout: Layout) -> Float[Array, "d 3"]:
    """Places on the table for ``MOST_DISTRACTORS`` further things, apart from all there is."""
    low, high = jnp.array(task.area[0]), jnp.array(task.area[1])
    candidates = jax.random.uniform(key, (_CANDIDATES, MOST_DISTRACTORS, 2), minval=low, maxval=high)
    there = jnp.concatenate([layout.object_xy, layout.goal_xy])

    def room(xy: Float[Array, "d 2"]) -> Float[Array, ""]:
        to_things = jnp.linalg.norm(xy[:, None] - there[None], axis=-1).min()
        return jnp.minimum(jnp.minimum(to_things, _least_separation(xy)) - _DISTRACTOR_ROOM, 0.0)

    best = candidates[jnp.argmax(jax.vmap(room)(candidates))]
    return jnp.pad(best, ((0, 0), (0, 1)), constant_values=DISTRACTOR_HEIGHT)


def _least_separation(xy: Float[Array, "n 2"]) -> Float[Array, ""]:
    """Least distance between two of some points, metres."""
    distances = jnp.linalg.norm(xy[:, None] - xy[None], axis=-1)
    return jnp.min(distances + jnp.eye(len(xy)))  # one metre to itself


def _path_clearance(objects: Float[Array, "n 2"], goal: Float[Array, "2"], named: Int[Array, ""]) -> Float[Array, ""]:
    """Least distance of the other objects to the segment from the named one to its goal, metres."""
    start = objects[named]
    path = goal - start
    share = jnp.clip(jnp.sum((objects - start) * path, axis=-1) / jnp.sum(path**2), 0.0, 1.0)
    distance = jnp.linalg.norm(objects - (start + share[:, None] * path), axis=-1)
    return jnp.min(jnp.where(jnp.arange(len(objects)) == named, jnp.inf, distance))
