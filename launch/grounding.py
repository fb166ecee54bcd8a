"""`wam evaluate --grounding`: what a checkpoint's actions look at, and what they depend on."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from wam_jax.evaluation.grounding import Act, Grounding, acting, diagnose, heat
from wam_jax.evaluation.grounding_report import heat_film
from wam_jax.evaluation.scenes import draw_scenes
from wam_jax.evaluation.success import TaskResult, TaskText
from wam_jax.sim.tabletop import PARTS
from wam_jax.training.restore import Trained
from wam_jax.types import Observation, Text
from wam_jax.wam.lens import Lens
from wam_jax.wam.model import WorldActionModel

_SEED = 2000  # of the scenes: neither training nor closed-loop evaluation draws these


def ground(trained: Trained, task: TaskText, scenes: int) -> Grounding:
    """Diagnostics on so many moments of the scripted expert's episodes."""
    found = draw_scenes(task.name, trained.image_size, scenes, _SEED, task.shapes, task.cameras)
    act = _act(trained, task, found.images, found.proprio, found.instruction)
    return diagnose(
        act, PARTS[: found.masks.shape[1]], found.masks, _model(trained).layout.grid, label=f"ground {task.name}"
    )


def ground_films(trained: Trained, task: TaskText, result: TaskResult, execute: int) -> list[tuple[bytes, str]]:
    """The recorded rollouts with attention and sensitivity over them."""
    if result.recording is None:
        return []
    recording, layout = result.recording, _model(trained).layout
    frames = np.asarray(recording.frames)  # [T, N, ...]
    seen = frames[::execute]
    plans, episodes = seen.shape[:2]
    proprio = np.asarray(recording.proprio)[::execute].reshape(plans * episodes, -1)
    told = np.tile(np.asarray(recording.instruction), plans)
    act = _act(trained, task, seen.reshape(-1, *seen.shape[2:]), proprio, told)
    _, attention = act(Lens(attention=True, frame_tokens=layout.tokens_per_frame))
    maps = {} if attention is None else {"attention": np.asarray(attention).mean((1, 2, 3))}
    maps["sensitivity"] = heat(act, layout.tokens_per_frame, plans * episodes)
    films = []
    for episode in range(episodes):
        own = {name: values.reshape(plans, episodes, -1)[:, episode] for name, values in maps.items()}
        label = result.instructions[int(recording.instruction[episode])]
        films.append(heat_film(frames[:, episode], own, layout.grid, task.cameras, execute, label))
    return films


def _act(
    trained: Trained, task: TaskText, images: UInt8[np.ndarray, "N V H W 3"], proprio: Any, instruction: Any
) -> Act:
    told = jnp.asarray(instruction)
    observation = Observation(
        images=jnp.asarray(images)[:, None],
        proprio=jnp.asarray(proprio),
        text=Text(features=task.text.features[told], mask=task.text.mask[told]),
        embodiment=jnp.full(len(told), task.embodiment),
    )
    return acting(trained.policy.look, trained.params, observation, _SEED)


def _model(trained: Trained) -> WorldActionModel:
    definition = trained.policy.definition
    return definition.bind(definition.shapes())
