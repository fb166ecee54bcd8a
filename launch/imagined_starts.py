"""What post-training learns from: a video from each start, imagined by the world model or made by the expert."""

from collections.abc import Callable, Sequence
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
from wam_jax.evaluation.success import Episodes, EvaluationConfig, TaskText, episodes_of
from wam_jax.sim import compilation
from wam_jax.sim.rollout import draw, reset, rollout, scripted_actor
from wam_jax.sim.tabletop import Tabletop
from wam_jax.sim.tasks import skill_text
from wam_jax.tokenizers.tokenizer import Tokenizer
from wam_jax.training.restore import Trained, fingerprint


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
    told: tuple[int, ...] | None,
    windows: int,
    directory: Path,
) -> Imagined:
    """A video from each start, of what the world model expects or of what the expert does; made once.

    Those that are only tracked come last.
    """
    numbers = config.posttrain
    decides = [numbers[name] for name in ("trajectories", "tracked", "batch_size", "seed", "imagination")]
    decides = [fingerprint(world), *decides, told, windows, task.name, task.shapes]

    def make() -> Imagined:
        return _imagine_starts(config, world, task, env, told, windows)

    return kept(directory, "imagined", decides, Imagined, make)


def starts_of(config: ConfigDict, task: TaskText) -> Episodes:
    """Those that post-training learns from, and after them those on which it is tracked."""
    numbers = config.posttrain
    return episodes_of(task, EvaluationConfig(episodes=numbers.trajectories + numbers.tracked, seed=numbers.seed))


def _imagine_starts(
    config: ConfigDict, world: Trained, task: TaskText, env: Tabletop, told: tuple[int, ...] | None, windows: int
) -> Imagined:
    numbers, episodes = config.posttrain, starts_of(config, task)
    batches = console.progress(range(0, len(episodes.keys), numbers.batch_size), "imagine")
    if numbers.imagination == "expert":
        make = expert_videos(env, picture_steps(world, windows), world.params.tokenizer)
    else:
        skills = skill_text(task.name) if told is not None else (env.instructions,)
        words = [skills[number] for number in told or [0] * windows]
        make = _imagined_videos(world, env, task.embodiment, words, numbers.seed + 2)
    found = [make(jax.tree.map(lambda x, i=i: x[i : i + numbers.batch_size], tuple(episodes)), i) for i in batches]
    return Imagined(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def _imagined_videos(
    world: Trained, env: Tabletop, embodiment: int, words: Sequence[Sequence[str]], seed: int
) -> Callable[[Any, int], Imagined]:
    """What the world model expects from some starts; the number decides its noise.

    ``words`` of each window: what it is told, by the number of the environment's instruction.
    """

    def start(keys: jax.Array, looks: Any):
        states = reset(env, keys, looks)
        return jax.vmap(env.draw)(jax.vmap(env.stage)(states)), jax.vmap(env.proprio)(states), states.instruction

    begin = compilation.jit(start)

    def make(starts: Any, number: int) -> Imagined:
        images, proprio, instruction = begin(*starts)
        plan = [tuple(window[i] for i in np.asarray(instruction)) for window in words]
        noise = jax.random.fold_in(jax.random.key(seed), number)
        future, latents = imagine(world, np.asarray(images), proprio, embodiment, plan, noise)
        pictures = np.concatenate([np.asarray(images)[:, None], future], 1)
        return Imagined(pictures, latents, np.asarray(instruction), np.asarray(proprio))

    return make


def expert_videos(
    env: Tabletop, moments: Int[np.ndarray, " I"], tokenizer: Tokenizer
) -> Callable[[Any, int], Imagined]:
    """What the scripted expert does from some starts, as the simulator shows it: a world model without fault."""
    encode = jax.jit(lambda tokenizer, images: tokenizer.encode(images))
    run, show = rollout(env, scripted_actor(env), int(moments[-1]) + 1), draw(env)

    def make(starts: Any, number: int) -> Imagined:
        keys, looks = starts
        trace = run(jnp.asarray(0.0), keys, jax.random.key(number), looks)
        pictures = np.swapaxes(np.asarray(show(jax.tree.map(lambda x: x[moments], trace.stage))), 0, 1)
        latents = np.asarray(encode(tokenizer, pictures))
        return Imagined(pictures, latents, np.asarray(trace.instruction), np.asarray(trace.proprio[0]))

    return make
