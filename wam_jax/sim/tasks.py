"""The tasks: their words, their objects and skills, and the scene of each; what counts as done is in judges.py.

In every task several objects are in view and the instruction names one, so a policy that ignores words fails. The last
four ask for several skills in turn.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mujoco
from jaxtyping import Array, Bool, Float, Int

from wam_jax.sim import judges, scene
from wam_jax.sim.judges import Facts, Named
from wam_jax.sim.scene import OBJECT_COLORS

GOAL_COLORS = {"yellow": (1.0, 0.9, 0.1), "purple": (0.6, 0.15, 0.75)}


_SPHERE_RADIUS = 0.03  # metres
_DISTRACTOR_COLORS = ((1.0, 0.5, 0.0), (0.9, 0.3, 0.7))
DISTRACTOR_HEIGHT = 0.03  # metres, of the centre
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skill:
    """One of the things that a task asks for in turn.

    Attributes:
      phrase: the instruction for it alone, see ``Task.phrases``.
      met: ``(facts, named) -> bool``: whether it is done, at the moment in which it is.
    """

    phrase: str
    met: Callable[[Facts, Named], Bool[Array, ""]]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Whether the instruction holds now.

    Attributes:
      success: what was asked is so.
      wrong: the same is so of an object or goal that was not named.
      error: metres that are missing (distance to the target, or height still to lift).
      skills: how many of the task's skills were done so far, in their order; 0 where it has none.
    """

    success: Bool[Array, "*B"]
    wrong: Bool[Array, "*B"]
    error: Float[Array, "*B"]
    skills: Int[Array, "*B"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """A task as data.

    Attributes:
      phrases: the instruction, with ``{object}`` and ``{goal}`` for colours (and ``{other}``, ``{other_goal}`` where
        ``names_other``); then other ways to say it.
      object_shape: "sphere" (seen only) or "cube" (loose body).
      goal_colors: colours of the goals, in slot order; empty where there is none.
      goal_radius: metres, as drawn.
      area: corners (x, y) of the part of the table where things are put, metres.
      goal_area: the same for goals, where theirs is another.
      separation: least distance between any two things at the start, metres.
      path_clearance: least distance of other objects to the straight line from the named one to its goal, metres.
      clear_height: tcp height above which nothing is touched, metres.
      episode_steps: control steps that a policy is given.
      expert_steps: control steps that suffice for the expert and for holding what it reached.
      judge: ``facts -> (met bool[n, max(g, 1)], error f32[n, max(g, 1)])`` for every object and goal.
      goal_height: metres, half of the goals' thickness.
      names_other: whether the instruction names both objects.
      both: whether each object has to be at a goal of its own.
      drawer: whether the goal is a drawer, in its cabinet.
      skills: what has to be done in turn; empty: only the end counts.
    """

    phrases: tuple[str, ...]
    num_objects: int
    object_shape: str
    goal_colors: tuple[str, ...] = ()
    goal_radius: float = 0.0
    area: tuple[tuple[float, float], tuple[float, float]]
    goal_area: tuple[tuple[float, float], tuple[float, float]] | None = None
    separation: float = 0.12
    path_clearance: float = 0.0
    clear_height: float
    episode_steps: int
    expert_steps: int
    judge: Callable[[Facts], tuple[Bool[Array, "n g"], Float[Array, "n g"]]]
    goal_height: float = 0.001
    names_other: bool = False
    both: bool = False
    drawer: bool = False
    skills: tuple[Skill, ...] = ()

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
        return _SPHERE_RADIUS if self.object_shape == "sphere" else judges.CUBE_HALF_SIZE


_PICK = Skill(phrase="pick up the {object} cube", met=judges.picked)
_PLACE = Skill(phrase="place the {object} cube on the {goal} plate", met=judges.placed)
_TWO_CUBES: dict[str, Any] = {
    "num_objects": 2,
    "object_shape": "cube",
    "area": ((0.4, -0.2), (0.64, 0.2)),
    "clear_height": 0.1,
}
_TWO_PLATES: dict[str, Any] = {
    **_TWO_CUBES,
    "goal_colors": ("yellow", "purple"),
    "goal_radius": 0.045,
    "judge": judges.judge_place,
}

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
        judge=judges.judge_reach,
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
        judge=judges.judge_pick_lift,
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
        judge=judges.judge_push,
    ),
    "place": Task(
        phrases=(
            "place the {object} cube on the {goal} plate",
            "put the {object} block onto the {goal} dish",
            "set the {object} one down on the {goal} disc",
            "take the {object} thing over to the {goal} round plate and leave it there",
        ),
        episode_steps=72,
        expert_steps=72,
        **_TWO_PLATES,
    ),
    "pick_place": Task(
        phrases=(
            "pick up the {object} cube and place it on the {goal} plate",
            "grasp the {object} block, then set it down on the {goal} dish",
        ),
        episode_steps=80,
        expert_steps=72,
        skills=(_PICK, _PLACE),
        **_TWO_PLATES,
    ),
    "place_both": Task(
        phrases=(
            "pick up the {object} cube, place it on the {goal} plate, "
            "then pick up the {other} cube and place it on the {other_goal} plate",
            "put the {object} block onto the {goal} dish and after that the {other} block onto the {other_goal} dish",
        ),
        names_other=True,
        both=True,
        episode_steps=144,
        expert_steps=120,
        skills=(
            _PICK,
            _PLACE,
            Skill(phrase="pick up the {other} cube", met=judges.of_the_other(judges.picked)),
            Skill(phrase="place the {other} cube on the {other_goal} plate", met=judges.of_the_other(judges.placed)),
        ),
        **_TWO_PLATES,
    ),
    "stack_press": Task(
        phrases=(
            "pick up the {object} cube, stack it on the {other} cube, then press the {goal} button",
            "put the {object} block on top of the {other} one and finally push the {goal} knob",
        ),
        goal_colors=("yellow",),
        goal_radius=0.03,
        goal_height=0.012,
        names_other=True,
        episode_steps=104,
        expert_steps=88,
        judge=judges.judge_stack,
        skills=(
            _PICK,
            Skill(phrase="stack the {object} cube on the {other} cube", met=judges.stacked),
            Skill(phrase="press the {goal} button", met=judges.pressed),
        ),
        **_TWO_CUBES,
    ),
    "drawer": Task(
        phrases=(
            "open the drawer for the {object} cube, put the {object} cube in the drawer, then shut the drawer",
            "pull the drawer out, lay the {object} block inside and push the drawer back in",
        ),
        num_objects=2,
        object_shape="cube",
        goal_colors=("yellow",),
        goal_height=scene.DRAWER_FLOOR,
        drawer=True,
        area=((0.42, -0.2), (0.62, -0.08)),
        goal_area=((0.48, 0.17), (0.56, 0.19)),
        clear_height=0.1,
        episode_steps=144,
        expert_steps=128,
        judge=judges.judge_drawer,
        skills=(
            # Up to the grasp, where gripper contacts cut: so it has to say of what.
            Skill(phrase="open the drawer for the {object} cube", met=judges.opened),
            Skill(phrase="put the {object} cube in the drawer", met=judges.put_in),
            Skill(phrase="shut the drawer", met=judges.shut),
        ),
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
    """Every instruction of a task; its index counts goals fastest, then the other object's colours, then colours."""
    return wordings(name)[0]


def wordings(name: str) -> tuple[tuple[str, ...], ...]:
    """The instructions of a task in every wording: first as demonstrations say them, then farther and farther off."""
    task = get_task(name)
    return tuple(_said(task, phrase) for phrase in task.phrases)


def skill_text(name: str) -> tuple[tuple[str, ...], ...]:
    """Of each skill of a task, its own words for every instruction."""
    task = get_task(name)
    return tuple(_said(task, skill.phrase) for skill in task.skills)


def _said(task: Task, phrase: str) -> tuple[str, ...]:
    goals = task.goal_colors or ("",)
    others = OBJECT_COLORS if task.names_other else ("",)
    return tuple(
        phrase.format(object=color, other=other, goal=goal, other_goal=goals[other_goal(task, index)])
        for color in OBJECT_COLORS
        for other in others
        for index, goal in enumerate(goals)
    )


def instruction_index(
    task: Task, color: Int[Array, "*B"], other: Int[Array, "*B"], goal: Int[Array, "*B"]
) -> Int[Array, "*B"]:
    """Index into :func:`instruction_text` of two objects' colours and a goal slot."""
    named = color * len(OBJECT_COLORS) + other if task.names_other else color
    return named * max(task.num_goals, 1) + goal


def named_things(task: Task, facts: Facts, layout: Layout) -> Named:
    """Where they are now; the other object is the one after the named one, the other goal likewise."""
    goals = facts.goals if task.num_goals else jnp.zeros((1, 3))
    return Named(
        object=facts.objects[layout.named_object],
        goal=goals[layout.named_goal],
        other=facts.objects[other_object(task, layout)],
        other_goal=goals[other_goal(task, layout.named_goal)],
    )


def other_object(task: Task, layout: Layout) -> Int[Array, "*B"]:
    """Index of an object that is not the (first) named one."""
    return (layout.named_object + 1) % task.num_objects


def other_goal(task: Task, goal: Any) -> Any:
    """Slot of the goal after ``goal``: a number, or an array of them."""
    return (goal + 1) % max(task.num_goals, 1)


def build_model(task: Task, varied: bool = False) -> mujoco.MjModel:
    """The task's scene; ``object{i}`` and ``goal{j}`` name its bodies and geoms.

    ``varied``: also what variations may show: objects of other ``SHAPES`` (``cylinder{i}``), and ``distractor{k}``.
    """
    if task.object_shape == "sphere":
        sphere = f'type="sphere" size="{_SPHERE_RADIUS}"'
        objects = [scene.marker(f"object{i}", sphere) for i in range(task.num_objects)]
    else:
        objects = [scene.cube(i, judges.CUBE_HALF_SIZE) for i in range(task.num_objects)]
    goals = []
    for slot, color in enumerate(task.goal_colors):
        rgb = " ".join(map(str, GOAL_COLORS[color]))
        if task.drawer:
            goals.append(scene.drawer(f"goal{slot}", rgb))
            continue
        disc = f'type="cylinder" size="{task.goal_radius} {task.goal_height}" rgba="{rgb} 1"'
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
    shapes = f'type="sphere" size="{DISTRACTOR_HEIGHT}"', f'type="cylinder" size=".02 {DISTRACTOR_HEIGHT}"'
    colors = (" ".join(map(str, color)) for color in _DISTRACTOR_COLORS)
    return looks + [
        scene.hidden(f"distractor{k}", f'{shape} rgba="{color} 1"')
        for k, (shape, color) in enumerate(zip(shapes, colors, strict=True))
    ]


def advance(task: Task, facts: Facts, layout: Layout, done: Int[Array, ""]) -> Int[Array, ""]:
    """How many skills are done, in their order, given how many were a step before; at most one more."""
    if not task.skills:
        return done
    named = named_things(task, facts, layout)
    met = jnp.stack([*(skill.met(facts, named) for skill in task.skills), jnp.asarray(False)])
    return done + met[done].astype(done.dtype)


def judge(task: Task, facts: Facts, layout: Layout, done: Int[Array, ""]) -> Outcome:
    """Judges the scene against the instruction (unbatched), given how many skills are done.

    Success excludes that a wrong thing holds, too, and takes all skills to be done, in order.
    """
    met, error = task.judge(facts)
    goal = layout.named_goal if met.shape[1] > 1 else 0
    named = jnp.zeros_like(met).at[layout.named_object, goal].set(True)
    if task.both:
        named = named.at[other_object(task, layout), other_goal(task, goal)].set(True)
    wrong = jnp.any(met & ~named)
    return Outcome(
        success=jnp.all(met | ~named) & ~wrong & (done == len(task.skills)),
        wrong=wrong,
        error=jnp.sum(jnp.where(named, error, 0.0)),
        skills=done,
    )
