"""The four tasks: their words, their objects, how a layout is drawn, and what counts as done.

In every task several objects are in view and the instruction names one, so a policy that ignores words fails.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import mujoco
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from wam_jax.sim import scene
from wam_jax.sim.scene import OBJECT_COLORS

GOAL_COLORS = {"yellow": (1.0, 0.9, 0.1), "purple": (0.6, 0.15, 0.75)}

REACH_RADIUS = 0.03  # metres between tcp and sphere
LIFT_HEIGHT = 0.10  # metres above rest
GOAL_RADIUS = 0.03  # metres in the plane between object and goal
REST_TOLERANCE = 0.005  # metres
RELEASED_OPENING = 0.75  # of the gripper's full opening; a cube held keeps it at 0.55

_SPHERE_RADIUS = 0.03
_CUBE_HALF_SIZE = 0.022
_GOAL_HALF_THICKNESS = 0.001
_LAYOUT_CANDIDATES = 256
MOST_DISTRACTORS = 2
_DISTRACTOR_COLORS = ((1.0, 0.5, 0.0), (0.9, 0.3, 0.7))
_DISTRACTOR_HEIGHT = 0.03  # metres, of the centre
_DISTRACTOR_ROOM = 0.09  # metres to anything else
_WANDER_TOP = 0.25  # metres


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """What an episode starts from: ``n`` objects, ``g`` goals, and which of them the instruction names."""

    object_xy: Float[Array, "*B n 2"]
    object_yaw: Float[Array, "*B n"]
    object_colors: Int[Array, "*B n"]  # index into OBJECT_COLORS
    goal_xy: Float[Array, "*B g 2"]
    named_object: Int[Array, "*B"]
    named_goal: Int[Array, "*B"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Facts:
    """The truth about a scene that judges and experts may look at; policies see pixels. Metres; opening in [0, 1]."""

    tcp: Float[Array, "*B 3"]
    command: Float[Array, "*B 3"]
    opening: Float[Array, "*B"]
    objects: Float[Array, "*B n 3"]
    goals: Float[Array, "*B g 3"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Whether the instruction holds now.

    Attributes:
      success: what was asked is so.
      wrong: the same is so of an object or goal that was not named.
      error: metres that are missing (distance to the target, or height still to lift).
    """

    success: Bool[Array, "*B"]
    wrong: Bool[Array, "*B"]
    error: Float[Array, "*B"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task as data.

    Attributes:
      phrases: the instruction, with ``{object}`` and ``{goal}`` for colours; then other ways to say it.
      object_shape: "sphere" (seen only) or "cube" (loose body).
      goal_colors: colours of the goals, in slot order; empty where there is none.
      goal_radius: metres, as drawn.
      area: corners (x, y) of the part of the table where things are put, metres.
      separation: least distance between any two things at the start, metres.
      path_clearance: least distance of other objects to the straight line from the named one to its goal, metres.
      clear_height: tcp height above which nothing is touched, metres.
      episode_steps: control steps that a policy is given.
      expert_steps: control steps that suffice for the expert and for holding what it reached.
      judge: ``facts -> (met bool[n, max(g, 1)], error f32[n, max(g, 1)])`` for every object and goal.
    """

    phrases: tuple[str, ...]
    num_objects: int
    object_shape: str
    goal_colors: tuple[str, ...] = ()
    goal_radius: float = 0.0
    area: tuple[tuple[float, float], tuple[float, float]]
    separation: float = 0.12
    path_clearance: float = 0.0
    clear_height: float
    episode_steps: int
    expert_steps: int
    judge: Callable[[Facts], tuple[Bool[Array, "n g"], Float[Array, "n g"]]]

    @property
    def num_goals(self) -> int:
        return len(self.goal_colors)

    @property
    def wander_box(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Corners of the room above the table in which the tcp touches nothing, metres."""
        low, high = self.area
        return (*low, self.clear_height), (*high, _WANDER_TOP)

    @property
    def rest_height(self) -> float:
        """Height of an object's centre when it lies on the table, metres."""
        return _SPHERE_RADIUS if self.object_shape == "sphere" else _CUBE_HALF_SIZE


def _judge_reach(facts: Facts):
    error = jnp.linalg.norm(facts.objects - facts.tcp, axis=-1)[:, None]
    return error < REACH_RADIUS, error


def _judge_pick_lift(facts: Facts):
    error = jnp.maximum(_CUBE_HALF_SIZE + LIFT_HEIGHT - facts.objects[:, 2], 0.0)[:, None]
    return error <= 0.0, error


def _distance_to_goals(facts: Facts) -> Float[Array, "n g"]:
    return jnp.linalg.norm(facts.objects[:, None, :2] - facts.goals[None, :, :2], axis=-1)


def _judge_push(facts: Facts):
    error = _distance_to_goals(facts)
    return error < GOAL_RADIUS, error


def _judge_place(facts: Facts):
    error = _distance_to_goals(facts)
    at_rest = jnp.abs(facts.objects[:, 2] - _CUBE_HALF_SIZE) < REST_TOLERANCE
    return (error < GOAL_RADIUS) & at_rest[:, None] & (facts.opening > RELEASED_OPENING), error


TASKS = {
    "reach": Task(
        phrases=(
            "reach the {object} sphere",
            "move to the {object} ball",
            "bring the hand to the {object} one",
            "go and touch the round {object} thing on the table",
        ),
        num_objects=3,
        object_shape="sphere",
        area=((0.38, -0.2), (0.66, 0.2)),
        clear_height=0.03,
        episode_steps=28,
        expert_steps=24,
        judge=_judge_reach,
    ),
    "pick_lift": Task(
        phrases=(
            "lift the {object} cube",
            "pick up the {object} block",
            "raise the {object} one off the table",
            "take hold of the {object} thing and hold it up in the air",
        ),
        num_objects=2,
        object_shape="cube",
        area=((0.42, -0.16), (0.62, 0.16)),
        clear_height=0.1,
        episode_steps=48,
        expert_steps=40,
        judge=_judge_pick_lift,
    ),
    "push": Task(
        phrases=(
            "push the {object} block to the {goal} disc",
            "slide the {object} cube onto the {goal} circle",
            "move the {object} one over to the {goal} spot",
            "without lifting it, get the {object} thing to where the table is {goal}",
        ),
        num_objects=2,
        object_shape="cube",
        goal_colors=("yellow",),
        goal_radius=0.05,
        area=((0.42, -0.16), (0.62, 0.16)),
        path_clearance=0.08,
        clear_height=0.1,
        episode_steps=72,
        expert_steps=72,
        judge=_judge_push,
    ),
    "place": Task(
        phrases=(
            "place the {object} cube on the {goal} plate",
            "put the {object} block onto the {goal} dish",
            "set the {object} one down on the {goal} disc",
            "take the {object} thing over to the {goal} round plate and leave it there",
        ),
        num_objects=2,
        object_shape="cube",
        goal_colors=("yellow", "purple"),
        goal_radius=0.045,
        area=((0.4, -0.2), (0.64, 0.2)),
        clear_height=0.1,
        episode_steps=72,
        expert_steps=72,
        judge=_judge_place,
    ),
}
TASK_NAMES = tuple(TASKS)


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
      ValueError: there is none; the message lists those there are.
    """
    if name not in TASKS:
        raise ValueError(f"task {name!r} is unknown (has: {', '.join(TASK_NAMES)})")
    return TASKS[name]


def instruction_text(name: str) -> tuple[str, ...]:
    """Every instruction of a task; an instruction index counts goals fastest, then object colours."""
    return wordings(name)[0]


def wordings(name: str) -> tuple[tuple[str, ...], ...]:
    """The instructions of a task in every wording: first as demonstrations say them, then farther and farther off."""
    task = get_task(name)
    return tuple(
        tuple(phrase.format(object=color, goal=goal) for color in OBJECT_COLORS for goal in task.goal_colors or ("",))
        for phrase in task.phrases
    )


def instruction_index(task: Task, color: Int[Array, "*B"], goal: Int[Array, "*B"]) -> Int[Array, "*B"]:
    """Index into :func:`instruction_text` of an object colour and a goal slot."""
    return color * max(task.num_goals, 1) + goal


def build_model(task: Task, varied: bool = False) -> mujoco.MjModel:
    """The task's scene; ``object{i}`` and ``goal{j}`` name its bodies and geoms.

    ``varied``: also what variations may show: objects of other ``SHAPES`` (``cylinder{i}``), and ``distractor{k}``.
    """
    if task.object_shape == "sphere":
        sphere = f'type="sphere" size="{_SPHERE_RADIUS}"'
        objects = [scene.marker(f"object{i}", sphere) for i in range(task.num_objects)]
    else:
        objects = [scene.cube(i, _CUBE_HALF_SIZE) for i in range(task.num_objects)]
    goals = []
    for slot, color in enumerate(task.goal_colors):
        rgb = " ".join(map(str, GOAL_COLORS[color]))
        disc = f'type="cylinder" size="{task.goal_radius} {_GOAL_HALF_THICKNESS}" rgba="{rgb} 1"'
        goals.append(scene.marker(f"goal{slot}", disc))
    return scene.build_model(objects + goals + (_varied_looks(task) if varied else []))


def _varied_looks(task: Task) -> list[str]:
    size = task.rest_height
    geoms = {
        "cube": f'type="box" size="{size} {size} {size}"',
        "cylinder": f'type="cylinder" size="{size} {size}"',
        "sphere": f'type="sphere" size="{size}"',
    }
    looks = [
        scene.hidden(f"{shape}{i}", geoms[shape])
        for shape in scene.SHAPES
        for i in range(task.num_objects)
        if shape != task.object_shape
    ]
    shapes = f'type="sphere" size="{_DISTRACTOR_HEIGHT}"', f'type="cylinder" size=".02 {_DISTRACTOR_HEIGHT}"'
    colors = (" ".join(map(str, color)) for color in _DISTRACTOR_COLORS)
    return looks + [
        scene.hidden(f"distractor{k}", f'{shape} rgba="{color} 1"')
        for k, (shape, color) in enumerate(zip(shapes, colors, strict=True))
    ]


def place_distractors(task: Task, key: PRNGKeyArray, layout: Layout) -> Float[Array, "d 3"]:
    """Places on the table for ``MOST_DISTRACTORS`` further things, apart from all there is."""
    low, high = jnp.array(task.area[0]), jnp.array(task.area[1])
    candidates = jax.random.uniform(key, (_LAYOUT_CANDIDATES, MOST_DISTRACTORS, 2), minval=low, maxval=high)
    there = jnp.concatenate([layout.object_xy, layout.goal_xy])

    def room(xy: Float[Array, "d 2"]) -> Float[Array, ""]:
        to_things = jnp.linalg.norm(xy[:, None] - there[None], axis=-1).min()
        return jnp.minimum(jnp.minimum(to_things, _least_separation(xy)) - _DISTRACTOR_ROOM, 0.0)

    best = candidates[jnp.argmax(jax.vmap(room)(candidates))]
    return jnp.pad(best, ((0, 0), (0, 1)), constant_values=_DISTRACTOR_HEIGHT)


def sample_layout(task: Task, key: PRNGKeyArray) -> Layout:
    """Draws a layout whose things lie apart as the task asks (of 256 draws; the least crowded if none does)."""
    place, turn, paint, name_object, name_goal = jax.random.split(key, 5)
    n, g = task.num_objects, task.num_goals
    named_object = jax.random.randint(name_object, (), 0, n)
    named_goal = jax.random.randint(name_goal, (), 0, max(g, 1))
    low, high = jnp.array(task.area[0]), jnp.array(task.area[1])
    candidates = jax.random.uniform(place, (_LAYOUT_CANDIDATES, n + g, 2), minval=low, maxval=high)
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


def judge(task: Task, facts: Facts, layout: Layout) -> Outcome:
    """Judges the scene against the instruction (unbatched). Success excludes that a wrong thing holds, too."""
    met, error = task.judge(facts)
    named = jnp.zeros_like(met).at[layout.named_object, layout.named_goal].set(True)
    wrong = jnp.any(met & ~named)
    return Outcome(
        success=jnp.any(met & named) & ~wrong,
        wrong=wrong,
        error=jnp.sum(jnp.where(named, error, 0.0)),
    )
