"""Success under changed conditions: axes of graded strength, the same episodes under each, one batched run.

Seven axes, as LIBERO-Plus has them: camera, robot's start, wording, light, background, sensor noise and layout. And
looks that demonstrations did not have: colours, shapes, and combinations of the two. A colour that had every shape has
no unseen one: it keeps its own, and episodes that name it do not count there.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from wam_jax import console
from wam_jax.evaluation import media
from wam_jax.evaluation.report import Report
from wam_jax.evaluation.statistics import Mean, Rate, mean_share
from wam_jax.evaluation.success import EvaluationConfig, TaskText, episodes_of, informed, on_mesh
from wam_jax.sharding import batch_sharding
from wam_jax.sim.layouts import MOST_DISTRACTORS
from wam_jax.sim.rollout import rollout, wam_actor
from wam_jax.sim.scene import OBJECT_COLORS, SHAPES, TABLE_COLOR, WALL_COLOR
from wam_jax.sim.tabletop import Tabletop
from wam_jax.sim.tasks import get_task, instruction_text, wordings
from wam_jax.sim.variation import Variation, neutral
from wam_jax.training.restore import Trained

NOMINAL = "nominal"
# Changes of a batch of N episodes: (N, strength, rng) -> fields of ``Variation`` with N rows.
Change = Callable[[int, float, np.random.Generator], dict[str, np.ndarray]]


def _direction(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _camera(count: int, strength: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Up to 6 cm and 9 degrees, of the front camera; half of that at the wrist."""
    size = strength * np.array([1.0, 0.5])[:, None]
    return {
        "camera_shift": 0.06 * size * _direction(rng, count, 2, 3),
        "camera_tilt": 0.15 * size * _direction(rng, count, 2, 3),
    }


def _robot(count: int, strength: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Joints up to 0.25 radians elsewhere, twice the spread of training."""
    return {"arm_joint_shift": strength * rng.uniform(-0.25, 0.25, (count, 7))}


def _light(count: int, strength: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """A lamp up to 1.2 m away from its place, and pictures up to half as bright or half as bright again."""
    shift = 1.2 * strength * _direction(rng, count, 3)
    shift[:, 2] = np.abs(shift[:, 2])
    return {"light_shift": shift, "brightness": 1 + 0.5 * strength * rng.choice([-1, 1], count)}


def _background(count: int, strength: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Table and wall on the way to random colours, and the table's squares to black and white."""
    mixed = {
        name: (1 - strength) * np.array(color) + strength * rng.uniform(0.1, 0.9, (count, 3))
        for name, color in (("table_color", TABLE_COLOR), ("wall_color", WALL_COLOR))
    }
    return {**mixed, "checker": np.full(count, 0.88 - 0.5 * strength)}


def _noise(count: int, strength: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Gaussian, up to 0.15 of the full range."""
    return {"pixel_noise": np.full(count, 0.15 * strength)}


def _layout(count: int, strength: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Everything up to 4 cm away, and further things on the table."""
    return {
        "layout_shift": 0.04 * strength * _direction(rng, count, 2),
        "distractors": np.full(count, round(strength * MOST_DISTRACTORS)),
    }


def _color(count: int, strength: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Every object paler or darker, up to half way to white or black: unseen looks that keep their names."""
    palette = np.array(list(OBJECT_COLORS.values()))
    other = rng.choice([0.0, 1.0], (count, 3, 1))
    return {"object_colors": (1 - 0.5 * strength) * palette + 0.5 * strength * other}


def _worded(number: int) -> Change:
    """The instruction in another wording."""
    return lambda count, strength, rng: {"wording": np.full(count, number)}


_GRADED: dict[str, Change] = {
    "camera": _camera, "robot": _robot, "light": _light, "background": _background, "noise": _noise,
    "layout": _layout, "color": _color,
}  # fmt: skip
LOOKS = ("shape", "combination")  # unseen ones, which have one strength
AXES = (*_GRADED, "wording", *LOOKS)


def conditions(
    task: str, shapes: Sequence[Sequence[int]], axes: Sequence[str], strengths: Sequence[float]
) -> dict[tuple[str, float], Change]:
    """Every condition by (axis, strength).

    Args:
      task: of the suite.
      shapes: what the demonstrations' objects looked like, see ``TaskText``.
      axes, strengths: see ``EvaluationConfig``.

    Raises:
      ValueError: an axis is unknown, a strength outside (0, 1], or demonstrations had all that an axis could show.
    """
    if unknown := [axis for axis in axes if axis not in AXES]:
        raise ValueError(f"robustness axis {unknown[0]!r} is unknown (has: {', '.join(AXES)})")
    if wrong := [strength for strength in strengths if not 0 < strength <= 1]:
        raise ValueError(f"robustness strength {wrong[0]} is not in (0, 1]; 1 is the strongest")
    found: dict[tuple[str, float], Change] = {(NOMINAL, 0.0): lambda count, strength, rng: {}}
    for name, change in _GRADED.items():
        found.update({(name, strength): change for strength in strengths})
    number = len(wordings(task)) - 1
    found.update({("wording", i / number): _worded(i) for i in range(1, number + 1)})
    seen = _seen_shapes(task, shapes)
    for axis in LOOKS:
        unseen = _unseen_shapes(axis, seen)
        if any(unseen):
            found[(axis, 1.0)] = _shaped([other or own for other, own in zip(unseen, seen, strict=True)])
        elif axis in axes:
            raise ValueError(
                f"robustness axis {axis!r}: {task} has none that its demonstrations did not show; hold some out in "
                "demos.object_shapes, or leave the axis away"
            )
    return {name: change for name, change in found.items() if not axes or name[0] in (NOMINAL, *axes)}


def unseen_axes(tasks: Sequence[tuple[str, Sequence[Sequence[int]]]]) -> list[str]:
    """Axes of looks that no demonstration had, as far as all tasks have such; tasks with their shapes."""
    return ["color", *(a for a in LOOKS if all(any(_unseen_shapes(a, _seen_shapes(*task))) for task in tasks))]


def counted(
    axis: str, task: str, shapes: Sequence[Sequence[int]], instructions: Int[np.ndarray, "N"]
) -> Bool[np.ndarray, "N"]:
    """Which episodes an axis judges: all; of unseen looks, those in which all objects that are named have one."""
    if axis not in LOOKS:
        return np.ones(len(instructions), bool)
    unseen = dict(zip(OBJECT_COLORS, _unseen_shapes(axis, _seen_shapes(task, shapes)), strict=True))
    judged = [all(unseen[word] for word in text.split() if word in unseen) for text in instruction_text(task)]
    return np.array(judged)[instructions]


def _seen_shapes(task: str, shapes: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    """Of each colour, in the demonstrations."""
    return shapes or ((SHAPES.index(get_task(task).object_shape),),) * len(OBJECT_COLORS)


def _unseen_shapes(axis: str, seen: Sequence[Sequence[int]]) -> list[list[int]]:
    """Of each colour: shapes that no object had, or that only objects of other colours had."""
    known = {shape for own in seen for shape in own}
    wanted = known if axis == "combination" else set(range(len(SHAPES))) - known
    return [sorted(wanted - set(own)) for own in seen]


def _shaped(shapes: Sequence[Sequence[int]]) -> Change:
    """Objects of each colour in one of these shapes."""

    def change(count: int, strength: float, rng: np.random.Generator) -> dict[str, np.ndarray]:
        return {"object_shapes": np.stack([rng.choice(own, count) for own in shapes], 1)}

    return change


@dataclasses.dataclass(frozen=True, kw_only=True)
class Robustness:
    """Success of every condition on the same episodes, or those of them that its axis judges (``counted``).

    ``(NOMINAL, 0.0)`` is that of training.
    """

    task: str
    success: dict[tuple[str, float], Bool[np.ndarray, "N"]]

    def rate(self, condition: tuple[str, float]) -> Rate:
        return Rate(int(self.success[condition].sum()), self.success[condition].size)

    @property
    def by_axis(self) -> dict[str, Float[np.ndarray, "N"]]:
        """Share of an axis' strengths at which an episode succeeds; the nominal first. Empty where none is judged."""
        names = dict.fromkeys(axis for axis, _ in self.success)
        return {name: np.mean([x for (axis, _), x in self.success.items() if axis == name], 0) for name in names}

    @property
    def axes(self) -> dict[str, Mean]:
        """Success by axis, with an interval over episodes; of axes that judge any."""
        return {name: mean_share(x) for name, x in self.by_axis.items() if x.size}

    def summary(self) -> dict[str, Any]:
        """For ``summary.json``."""
        return {
            "axes": {name: rate.as_dict() for name, rate in self.axes.items()},
            "conditions": {
                f"{axis} {strength:.2f}": self.rate((axis, strength)).as_dict()
                for (axis, strength), success in self.success.items()
                if success.size
            },
        }


def evaluate_robustness(task: TaskText, trained: Trained, config: EvaluationConfig, mesh: Mesh) -> Robustness:
    """Runs the trained policy under every condition; conditions times episodes are one list, cut into equal batches.

    Args:
      task: with the features of its instructions in every wording, one after the other.
      trained: the model.
      config: numbers; ``robustness_episodes`` of them under each condition.
      mesh: episodes are spread over its devices.
    """
    env = Tabletop(task.name, image_size=trained.image_size, varied=True, cameras=task.cameras)
    plan = conditions(task.name, task.shapes, config.robustness_axes, config.robustness_strengths)
    count = min(config.robustness_episodes, config.episodes)
    keys, looks = jax.tree.map(lambda x: x[:count], episodes_of(task, config))
    usual = looks or neutral(count)
    parts = [changed(usual, change, name, count, config.seed) for name, change in plan.items()]
    everything = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    starts = np.tile(np.asarray(jax.random.key_data(keys)), (len(plan), 1))
    policy = dataclasses.replace(trained.policy, candidates=config.candidates)
    run = rollout(env, wam_actor(env, policy, config.execute), env.episode_steps)
    params = jax.tree.map(lambda x: on_mesh(x, mesh), informed(task, trained.params))
    total, size = len(starts), min(config.batch_size, len(starts))
    success: list[np.ndarray] = []
    told: list[np.ndarray] = []
    for start in console.progress(range(0, total, size), f"robustness {task.name}"):
        rows = np.arange(start, start + size) % total  # the last batch wraps around instead of recompiling
        part = jax.device_put(jax.tree.map(lambda x, r=rows: x[r], (starts, everything)), batch_sharding(mesh))
        key = jax.random.fold_in(jax.random.key(config.seed), start + 1)
        trace = run(params, jax.random.wrap_key_data(part[0]), key, part[1])
        success.append(np.asarray(trace.outcome.success)[-1, : total - start])
        told.append(np.asarray(trace.instruction)[: total - start])
    by_condition = zip(plan, np.concatenate(success).reshape(len(plan), count), strict=True)
    instructions = np.concatenate(told)[:count]  # the same under every condition
    return Robustness(
        task=task.name,
        success={name: x[counted(name[0], task.name, task.shapes, instructions)] for name, x in by_condition},
    )


def changed(usual: Variation, change: Change, name: tuple[str, float], count: int, seed: int) -> Variation:
    """``count`` episodes under the condition ``name``: (axis, strength).

    All strengths of an axis are more or less of the same draws, and those of another axis do not depend on them.
    """
    axis, strength = name
    rng = np.random.default_rng([seed, *axis.encode()])
    fields = change(count, strength, rng)
    typed: dict[str, Any] = {name: np.asarray(value, getattr(usual, name).dtype) for name, value in fields.items()}
    return dataclasses.replace(usual, **typed)


COLUMNS = ("task", "axis", "by strength", "success", "n")


def rows(results: Sequence[Robustness]) -> list[tuple[str, ...]]:
    """One row a task and axis: success at each strength, and over all of them."""
    found: list[tuple[str, ...]] = []
    for result in results:
        for name, rate in result.axes.items():
            graded = [str(result.rate(condition)) for condition in result.success if condition[0] == name]
            found.append((result.task, name, ", ".join(graded), str(rate), str(rate.n)))
    return found


def add_robustness(report: Report, results: Sequence[Robustness]) -> None:
    """A radar of all axes, and the table."""
    figures = {r.task: {name: found.mean for name, found in r.axes.items()} for r in results}
    shared = [axis for axis in next(iter(figures.values())) if all(axis in rates for rates in figures.values())]
    series = {task: {axis: rates[axis] for axis in shared} for task, rates in figures.items()}
    report.add_image("Robustness", media.radar(series, "Success under changed conditions"))
    report.add_table("", COLUMNS, rows(results))
    report.add_text(
        "",
        "The same episodes under every condition; an axis' strengths are grades of the same changes, and its interval "
        "counts each episode once. Shapes, combinations and colours are ones that no demonstration had (episodes that "
        "name a colour that had every shape are left out there); what is to be done and what things are called stays.",
    )
