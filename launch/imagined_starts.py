"""What post-training learns from: starts, and a video from each, imagined by the world model or made by the expert."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, UInt8
from ml_collections import ConfigDict

from launch.imagine import imagine, picture_steps
from launch.kept import kept
from wam_jax import console
from wam_jax.evaluation.success import EvaluationConfig, TaskText, episodes_of
from wam_jax.sim import compilation
from wam_jax.sim.rollout import at_skill, draw, reset, scripted_actor, unroll
from wam_jax.sim.tabletop import SimState, Tabletop
from wam_jax.sim.tasks import skill_text
from wam_jax.tokenizers.tokenizer import Tokenizer
from wam_jax.training.restore import Trained, fingerprint

_AT_ONCE = 32  # episodes that are begun


class Imagined(NamedTuple):
    """Attributes:

    pictures, latents: the start, and what the world model expects from there, or what the expert does.
    instruction: index into the environment's instructions.
    proprio: at the start.
    """

    pictures: UInt8[np.ndarray, "K I V H W 3"]
    latents: Float[np.ndarray, "K T V h w C"]
    instruction: Int[np.ndarray, " K"]
    proprio: Float[np.ndarray, "K P"]


def imagine_starts(
    config: ConfigDict,
    world: Trained,
    task: TaskText,
    env: Tabletop,
    starts: SimState,
    windows: int,
    directory: Path,
) -> Imagined:
    """A video from each of ``starts_of``, of what the world model expects or of what the expert does; made once."""
    numbers = config.posttrain
    decides = [numbers[name] for name in ("trajectories", "tracked", "batch_size", "seed", "imagination", "skills")]
    decides = [fingerprint(world), *decides, windows, task.name, task.shapes]

    def make() -> Imagined:
        if numbers.imagination == "expert":
            show = expert_videos(env, picture_steps(world, windows), world.params.tokenizer)
        else:
            show = _imagined_videos(world, env, task, windows, numbers.seed + 2)
        found = [
            show(jax.tree.map(lambda x, i=i: x[i : i + numbers.batch_size], starts), i)
            for i in console.progress(range(0, len(starts.instruction), numbers.batch_size), "imagine")
        ]
        return Imagined(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    return kept(directory, "imagined", decides, Imagined, make)


def starts_of(config: ConfigDict, task: TaskText, env: Tabletop, count: int, seed: int) -> SimState:
    """So many states of the simulator from which episodes go on.

    New episodes; with ``config.posttrain.skills``, where one of the task's skills begins, each as often. The expert
    brings them there.
    """
    episodes = episodes_of(task, EvaluationConfig(episodes=count, seed=seed))
    skills = np.arange(count) % max(len(skill_text(task.name)), 1)

    def begin(keys: jax.Array, looks: Any, skill: jax.Array) -> SimState:
        states = reset(env, keys, looks)
        return at_skill(env, states, skill, env.expert_steps) if config.posttrain.skills else states

    run, parts = compilation.jit(begin), []
    for start in console.progress(range(0, count, _AT_ONCE), "starts"):
        part = jax.tree.map(lambda x, i=start: x[i : i + _AT_ONCE], (*episodes, skills))
        parts.append(jax.tree.map(np.asarray, run(*part)))
    return jax.tree.map(lambda *rows: np.concatenate(rows), *parts)


def _imagined_videos(
    world: Trained, env: Tabletop, task: TaskText, windows: int, seed: int
) -> Callable[[SimState, int], Imagined]:
    """What the world model expects from some states on; the number decides its noise.

    One that learned from single skills is told the next one, others the whole instruction.
    """
    words = skill_text(task.name) if learned_skills(world) else (env.instructions,)
    look = compilation.jit(jax.vmap(lambda state: (env.render(state), env.proprio(state))))

    def make(states: SimState, number: int) -> Imagined:
        images, proprio = look(states)
        instruction, skill = np.asarray(states.instruction), np.minimum(states.done, len(words) - 1)
        told = tuple(words[k][i] for k, i in zip(skill, instruction, strict=True))
        noise = jax.random.fold_in(jax.random.key(seed), number)
        future, latents = imagine(world, np.asarray(images), proprio, task.embodiment, [told] * windows, noise)
        pictures = np.concatenate([np.asarray(images)[:, None], future], 1)
        return Imagined(pictures, latents, instruction, np.asarray(proprio))

    return make


def learned_skills(world: Trained) -> bool:
    """Whether a world model learned from single skills, each with its own words."""
    return bool(world.meta["config"]["data"].get("skills", {}).get("cut"))


def expert_videos(
    env: Tabletop, moments: Int[np.ndarray, " I"], tokenizer: Tokenizer
) -> Callable[[SimState, int], Imagined]:
    """What the scripted expert does from some states on, as the simulator shows it: a world model without fault."""
    encode = jax.jit(lambda tokenizer, images: tokenizer.encode(images))
    actor, show = scripted_actor(env), draw(env)
    run = compilation.jit(
        lambda states, key: unroll(env, actor, jnp.asarray(0.0), states, int(moments[-1]) + 1, key)[0]
    )

    def make(states: SimState, number: int) -> Imagined:
        trace = run(states, jax.random.key(number))
        pictures = np.swapaxes(np.asarray(show(jax.tree.map(lambda x: x[moments], trace.stage))), 0, 1)
        latents = np.asarray(encode(tokenizer, pictures))
        return Imagined(pictures, latents, np.asarray(trace.instruction), np.asarray(trace.proprio[0]))

    return make
