"""What counts as done: from the truth about a scene to whether a thing holds, and how much is missing.

``judge_*`` judge the end of a task, for every object and goal: ``facts -> (met bool, error f32)``, both [n, max(g, 1)],
errors in metres; the others a skill, at the moment in which it is done: ``(facts, named) -> bool``.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from wam_jax.sim import scene

REACH_RADIUS = 0.03  # metres between tcp and sphere
LIFT_HEIGHT = 0.10  # metres above rest
GOAL_RADIUS = 0.03  # metres in the plane between object and goal
REST_TOLERANCE = 0.005  # metres
OPENED = 0.08  # metres that an open drawer is drawn out
SHUT = 0.015  # metres that a shut one still may be
STACK_TOLERANCE = 0.02  # metres between where a cube lies and the top of another
PRESS_RADIUS = 0.025  # metres in the plane between tcp and button
RELEASED_OPENING = 0.75  # of the gripper's full opening; a cube held keeps it at 0.55
CUBE_HALF_SIZE = 0.022  # metres

_PICKED_HEIGHT = 0.03  # metres above rest
_LEFT_HEIGHT = 0.1  # metres of the tcp over where a cube was put down
_PRESS_HEIGHT = 0.03  # metres of the tcp over the middle of a button


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """The truth about a scene that judges and experts may look at; policies see pixels. Metres; opening in [0, 1]."""

    tcp: Float[Array, "*B 3"]
    command: Float[Array, "*B 3"]
    opening: Float[Array, "*B"]
    objects: Float[Array, "*B n 3"]
    goals: Float[Array, "*B g 3"]
    drawn: Float[Array, "*B"]  # how far a drawer is open; zero where there is none


class Named(NamedTuple):
    """Where the things are that an instruction names, metres; zeros for what a task does not have."""

    object: Float[Array, "3"]
    goal: Float[Array, "3"]
    other: Float[Array, "3"]
    other_goal: Float[Array, "3"]

    def others_first(self) -> "Named":
        """The other way round."""
        return Named(self.other, self.other_goal, self.object, self.goal)


def judge_reach(facts: Facts):
    error = jnp.linalg.norm(facts.objects - facts.tcp, axis=-1)[:, None]
    return error < REACH_RADIUS, error


def judge_pick_lift(facts: Facts):
    error = jnp.maximum(CUBE_HALF_SIZE + LIFT_HEIGHT - facts.objects[:, 2], 0.0)[:, None]
    return error <= 0.0, error


def _distance_to_goals(facts: Facts) -> Float[Array, "n g"]:
    return jnp.linalg.norm(facts.objects[:, None, :2] - facts.goals[None, :, :2], axis=-1)


def judge_push(facts: Facts):
    error = _distance_to_goals(facts)
    return error < GOAL_RADIUS, error


def _lies_at(facts: Facts, distance: Float[Array, "..."], height: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether a cube lies on the table and was let go, ``distance`` (metres) from a goal and at ``height``."""
    return (distance < GOAL_RADIUS) & (jnp.abs(height - CUBE_HALF_SIZE) < REST_TOLERANCE) & _let_go(facts)


def _let_go(facts: Facts) -> Bool[Array, ""]:
    return facts.opening > RELEASED_OPENING


def judge_place(facts: Facts):
    error = _distance_to_goals(facts)
    return _lies_at(facts, error, facts.objects[:, 2, None]), error


def _to_top(objects: Float[Array, "... 3"], below: Float[Array, "... 3"]) -> Float[Array, "..."]:
    """Metres between a cube and its place on top of another."""
    return jnp.linalg.norm(objects - below - jnp.array([0.0, 0.0, 2 * CUBE_HALF_SIZE]), axis=-1)


def judge_stack(facts: Facts):
    """Of every object, whether it lies on the next one; tasks with two objects."""
    error = _to_top(facts.objects, jnp.roll(facts.objects, -1, axis=0))[:, None]
    return error < STACK_TOLERANCE, error  # that it was let go is a skill


def _in_drawer(objects: Float[Array, "... 3"], drawer: Float[Array, "3"]) -> Bool[Array, "..."]:
    """Whether a cube lies in the drawer, the middle of whose floor is given."""
    x, y = scene.DRAWER_HALF_SIZE
    room = jnp.array([x - CUBE_HALF_SIZE, y - CUBE_HALF_SIZE, REST_TOLERANCE])
    rest = drawer + jnp.array([0.0, 0.0, scene.DRAWER_FLOOR + CUBE_HALF_SIZE])
    return jnp.all(jnp.abs(objects - rest) < room, axis=-1)


def judge_drawer(facts: Facts):
    """Of every object, whether it lies in the drawer, and that is shut."""
    error = _distance_to_goals(facts) + facts.drawn
    return _in_drawer(facts.objects, facts.goals[0])[:, None] & (facts.drawn < SHUT), error


def opened(facts: Facts, named: Named) -> Bool[Array, ""]:
    return facts.drawn > OPENED


def put_in(facts: Facts, named: Named) -> Bool[Array, ""]:
    return _in_drawer(named.object, named.goal) & _let_go(facts) & (facts.tcp[2] > _LEFT_HEIGHT)


def shut(facts: Facts, named: Named) -> Bool[Array, ""]:
    return facts.drawn < SHUT


def picked(facts: Facts, named: Named) -> Bool[Array, ""]:
    return named.object[2] > CUBE_HALF_SIZE + _PICKED_HEIGHT


def placed(facts: Facts, named: Named) -> Bool[Array, ""]:
    away = jnp.linalg.norm(named.object[:2] - named.goal[:2])
    return _lies_at(facts, away, named.object[2]) & (facts.tcp[2] > _LEFT_HEIGHT)


def stacked(facts: Facts, named: Named) -> Bool[Array, ""]:
    left = facts.tcp[2] > named.object[2] + _LEFT_HEIGHT - CUBE_HALF_SIZE
    return (_to_top(named.object, named.other) < STACK_TOLERANCE) & _let_go(facts) & left


def pressed(facts: Facts, named: Named) -> Bool[Array, ""]:
    over = jnp.linalg.norm(facts.tcp[:2] - named.goal[:2]) < PRESS_RADIUS
    return over & (facts.tcp[2] < named.goal[2] + _PRESS_HEIGHT)


def of_the_other(met: Callable[[Facts, Named], Bool[Array, ""]]) -> Callable[[Facts, Named], Bool[Array, ""]]:
    return lambda facts, named: met(facts, named.others_first())
