"""Closed-loop success of a policy, beside the controls that give the number its meaning.

Every controller meets the same episodes: the trained policy, the same policy told to use another object of the scene,
the policy at its random start, random actions, and the scripted expert.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Bool, Int

from wam_jax import console
from wam_jax.evaluation.statistics import Rate
from wam_jax.policy import Policy, PolicyParams
from wam_jax.sharding import batch_sharding, replicated
from wam_jax.sim.rollout import Recording, Trace, WamParams, draw, imagine, rollout, scripted_actor, wam_actor
from wam_jax.sim.scene import CAMERA_NAMES
from wam_jax.sim.tabletop import Tabletop
from wam_jax.sim.tasks import get_task
from wam_jax.sim.variation import Variation, in_shapes
from wam_jax.training.restore import Trained
from wam_jax.types import Text


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Attributes:

    episodes: for each controller, all the same ones.
    batch_size: episodes simulated at once.
    execute: actions of each chunk that are executed before planning anew.
    candidates: chunks drawn for each observation; a model with a value stream takes the one it values most.
    films: rollouts to record.
    seed: of the episodes; no training or tuning should use the same.
    robustness_episodes: under each changed condition, the first of ``episodes``.
    robustness_axes: of changed conditions, out of ``robustness.AXES``; empty: all.
    robustness_strengths: in (0, 1], of the axes that are graded.
    grounding_scenes: moments of each task that diagnostics of what actions look at are made on.
    """

    episodes: int = 256
    batch_size: int = 128
    execute: int = 4
    candidates: int = 1
    films: int = 6
    seed: int = 1000
    robustness_episodes: int = 64
    robustness_axes: tuple[str, ...] = ()
    robustness_strengths: tuple[float, ...] = (1 / 3, 2 / 3, 1.0)
    grounding_scenes: int = 64


@dataclasses.dataclass(frozen=True)
class Controlled:
    """Outcomes at the end of each episode, judged by the true instruction; ``skills``: how many were done, in order."""

    success: Bool[np.ndarray, "N"]
    wrong: Bool[np.ndarray, "N"]
    skills: Int[np.ndarray, "N"]

    def at_least(self, skills: int) -> Rate:
        """The share of episodes in which so many skills were done."""
        return Rate(int((self.skills >= skills).sum()), len(self.skills))

    def summary(self, skills: int = 0) -> dict[str, Any]:
        """``skills``: how many the task has; the share of episodes that got so far is listed for each."""
        rate = Rate(int(self.success.sum()), len(self.success))
        wrong = Rate(int(self.wrong.sum()), len(self.wrong))
        done = [self.at_least(number + 1).rate for number in range(skills)]
        return {
            **({"skills": done} if done else {}),
            "success": rate.rate,
            "ci95": list(rate.ci95),
            "n": len(self.success),
            "wrong_object": wrong.rate,
            "wrong_object_ci95": list(wrong.ci95),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskResult:
    """One task's evaluation: outcomes by controller, speed, films."""

    task: str
    controllers: dict[str, Controlled]
    speed: dict[str, float]
    recording: Recording | None
    instructions: tuple[str, ...]

    def summary(self) -> dict[str, Any]:
        """For ``summary.json``; the trained policy's figures on top, the controls beneath."""
        skills = len(get_task(self.task).skills)
        figures = {name: outcome.summary(skills) for name, outcome in self.controllers.items()}
        return {**figures.pop("trained"), "controls": figures, "speed": self.speed}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskText:
    """A tabletop task as a model meets it.

    Attributes:
      name: of the task.
      text: features of every instruction of the task, in the environment's order.
      embodiment: which of the model's robots the simulator's is.
      shapes: of each of ``OBJECT_COLORS``, the shapes of its objects in the demonstrations (``Variation``'s numbers);
        empty: the task's own.
      cameras: what the model sees it with.
    """

    name: str
    text: Text
    embodiment: int = 0
    shapes: tuple[tuple[int, ...], ...] = ()
    cameras: tuple[str, ...] = CAMERA_NAMES


class Episodes(NamedTuple):
    """What decides the starts of episodes: their keys, and how their objects look (None: as ever)."""

    keys: jax.Array
    looks: Variation | None


def evaluate_task(task: TaskText, trained: Trained, config: EvaluationConfig, mesh: Mesh) -> TaskResult:
    """Runs every controller on the same episodes of one task.

    Args:
      task: which.
      trained: the model.
      config: numbers.
      mesh: episodes are spread over its devices.
    """
    env, episodes = task_env(task, trained.image_size), episodes_of(task, config)
    policy = dataclasses.replace(trained.policy, candidates=config.candidates)
    policy_run = rollout(env, wam_actor(env, policy, config.execute), env.episode_steps)
    scripted_run = rollout(env, scripted_actor(env), env.episode_steps)
    told = informed(task, trained.params)
    misinformed = dataclasses.replace(told, misinform=jnp.asarray(True))
    plan: list[tuple[str, Callable, Any]] = [
        ("trained", policy_run, told),
        ("wrong_instruction", policy_run, misinformed),
        ("random", scripted_run, jnp.asarray(1.0)),
        ("expert", scripted_run, jnp.asarray(0.0)),
    ]
    if jax.tree.leaves(trained.params.model):  # it is here, and no address
        plan.insert(2, ("untrained", policy_run, informed(task, trained.untrained())))
    controllers, seconds, traces = {}, {}, {}
    for name, run, params in console.progress(plan, f"evaluate {task.name}"):
        controllers[name], seconds[name], traces[name] = _run(run, params, episodes, config, mesh)
    recording, seconds["frame"] = _record(env, trained.policy, told, traces["trained"], config)
    return TaskResult(
        task=task.name,
        controllers=controllers,
        speed=_speed(env, config, seconds),
        recording=recording,
        instructions=env.instructions,
    )


def policy_outcomes(task: TaskText, trained: Trained, config: EvaluationConfig, mesh: Mesh) -> Controlled:
    """What the trained policy alone does, on the same episodes as in ``evaluate_task``."""
    run, episodes = _policy_run(task, trained.policy, trained.image_size, config)
    return _run(run, informed(task, trained.params), episodes, config, mesh)[0]


def closed_loop_score(
    tasks: Sequence[TaskText], policy: Policy, image_size: int, config: EvaluationConfig, mesh: Mesh
) -> Callable[[PolicyParams], float]:
    """Mean success over tasks as a function of the parameters; each task's program is compiled once.

    For choosing among checkpoints: ``config.seed`` must not be the one that results are reported on.
    """
    runs = [(task, *_policy_run(task, policy, image_size, config)) for task in tasks]

    def score(params: PolicyParams) -> float:
        outcomes = [_run(run, informed(task, params), episodes, config, mesh)[0] for task, run, episodes in runs]
        return float(np.mean([outcome.success.mean() for outcome in outcomes]))

    return score


def _policy_run(task: TaskText, policy: Policy, image_size: int, config: EvaluationConfig) -> tuple[Callable, Episodes]:
    """The policy's rollout, compiled at its first call, and the episodes."""
    env = task_env(task, image_size)
    policy = dataclasses.replace(policy, candidates=config.candidates)
    return rollout(env, wam_actor(env, policy, config.execute), env.episode_steps), episodes_of(task, config)


def task_env(task: TaskText, image_size: int) -> Tabletop:
    """The scene in which its demonstrations were made."""
    return Tabletop(task.name, image_size=image_size, varied=bool(task.shapes), cameras=task.cameras)


def episodes_of(task: TaskText, config: EvaluationConfig) -> Episodes:
    """Of a task, whatever controls them."""
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 0), config.episodes)
    if not task.shapes:
        return Episodes(keys, None)
    looks = in_shapes(jax.random.fold_in(jax.random.key(config.seed), 1), task.shapes, config.episodes)
    return Episodes(keys, looks)


def informed(task: TaskText, params: PolicyParams) -> WamParams:
    """A policy that is told the truth about the task."""
    return WamParams(
        policy=params, text=task.text, embodiment=jnp.asarray(task.embodiment), misinform=jnp.asarray(False)
    )


def _run(
    run: Callable, params: Any, episodes: Episodes, config: EvaluationConfig, mesh: Mesh
) -> tuple[Controlled, float, Trace]:
    """Outcomes of all episodes, the seconds that one batch took once compiled, and the first batch's trace."""
    params = jax.tree.map(lambda x: on_mesh(x, mesh), params)
    size = min(config.batch_size, config.episodes)
    success, wrong, skills, seconds = [], [], [], []
    first: Trace | None = None
    for start in range(0, config.episodes, size):
        rows = np.arange(start, start + size) % config.episodes  # the last batch wraps around instead of recompiling
        part, own = jax.device_put(jax.tree.map(lambda x, r=rows: x[r], episodes), batch_sharding(mesh))
        key = jax.random.fold_in(jax.random.key(config.seed), start + 1)
        began = time.monotonic()
        trace = jax.block_until_ready(run(params, part, key, own))
        seconds.append(time.monotonic() - began)
        kept = min(size, config.episodes - start)
        success.append(np.asarray(trace.outcome.success)[-1, :kept])
        wrong.append(np.asarray(trace.outcome.wrong)[-1, :kept])
        skills.append(np.asarray(trace.outcome.skills)[-1, :kept])
        first = first or trace
    assert first is not None  # there is at least one episode
    controlled = Controlled(*map(np.concatenate, (success, wrong, skills)))
    return controlled, min(seconds), first


def on_mesh(x: jax.Array, mesh: Mesh) -> jax.Array:
    """``x`` on the mesh: cut as it is there already, or on every device."""
    here = isinstance(x.sharding, NamedSharding) and x.sharding.mesh == mesh
    return x if here else jax.device_put(x, replicated(mesh))


def _record(
    env: Tabletop, policy: Policy, params: WamParams, trace: Trace, config: EvaluationConfig
) -> tuple[Recording | None, float]:
    """Draws the first episodes of a trace with what the policy imagined; and the seconds that one frame took."""
    count = max(1, min(config.films, len(trace.instruction)))
    stage = jax.tree.map(lambda x: x[:, :count], trace.stage)
    draw_frames = draw(env)
    frames = draw_frames(stage)
    seconds = min(_seconds(draw_frames, stage) for _ in range(3)) / (frames.shape[0] * frames.shape[1])
    if not config.films:
        return None, seconds
    instruction, key = trace.instruction[:count], jax.random.key(config.seed)
    futures = imagine(policy, config.execute)(params, frames, trace.proprio[:, :count], instruction, key)
    recording = Recording(
        frames=frames,
        proprio=trace.proprio[:, :count],
        imagined=futures,
        success=trace.outcome.success[-1, :count],
        instruction=instruction,
    )
    return recording, seconds


def _seconds(function: Callable, argument: Any) -> float:
    began = time.monotonic()
    jax.block_until_ready(function(argument))
    return time.monotonic() - began


def _speed(env: Tabletop, config: EvaluationConfig, seconds: dict[str, float]) -> dict[str, float]:
    """Control steps a second of the whole loop, and which share of the time goes where.

    Physics is what scripted actions cost, pixels what drawing as many observations costs, policy the rest.
    """
    size = min(config.batch_size, config.episodes)
    pixels = seconds["frame"] * size * -(-env.episode_steps // config.execute)
    total = min(seconds["trained"], seconds["wrong_instruction"])
    physics = min(seconds["random"], seconds["expert"])
    return {
        "control_steps_per_s": round(size * env.episode_steps / total, 1),
        "physics_share": round(physics / total, 3),
        "pixels_share": round(pixels / total, 3),
        "policy_share": round(max(0.0, 1 - (physics + pixels) / total), 3),
    }
