"""`wam evaluate --grounding`: what a checkpoint's actions look at, and what they depend on.

On the simulator's scenes, whose masks are exact; and with `--masks FILE.npz` on moments of the run's own validation
data, of which a user says where things are seen:

    masks    bool [N, M, V, H, W]; cameras in the run's order, pictures of any size
    parts    [M] names of the masks, such as hand, object, goal
    episode  [N] numbers of episodes of the validation split, from 0 on
    step     [N] steps of these, from 0 on
    dataset  number in data.datasets; 0 where it is left out
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from ml_collections import ConfigDict

from data_pipelines.batches import read_cameras
from data_pipelines.episodes import EpisodeStore, check_cameras
from data_pipelines.statistics import stack_columns
from data_pipelines.subset import open_split
from launch.config import ConfigError
from launch.data import encode_text
from launch.skills import with_skills
from wam_jax.evaluation.grounding import TOKEN_KINDS, Act, Grounding, acting, diagnose, heat
from wam_jax.evaluation.grounding_report import heat_film
from wam_jax.evaluation.scenes import draw_scenes
from wam_jax.evaluation.success import TaskResult, TaskText
from wam_jax.sim.tabletop import PARTS
from wam_jax.training.restore import Trained
from wam_jax.types import Observation, Text
from wam_jax.wam.layout import Layout
from wam_jax.wam.lens import Lens

_SEED = 2000  # of the scenes: neither training nor closed-loop evaluation draws these
_ARRAYS = ("masks", "parts", "episode", "step")


def ground(trained: Trained, task: TaskText, scenes: int, token_kinds: Sequence[str] = (), axis: str = "") -> Grounding:
    """Diagnostics on so many moments of the scripted expert's episodes.

    ``token_kinds`` as in ``diagnose``, ``axis`` of changed conditions as in ``draw_scenes``.
    """
    found = draw_scenes(task.name, trained.image_size, scenes, _SEED, task.shapes, task.cameras, axis)
    act = _act(trained, found.images, found.proprio, _told(task, found.instruction), task.embodiment)
    parts = PARTS[: found.masks.shape[1]]
    label = f"ground {task.name}{', ' if axis else ''}{axis}"
    return diagnose(act, parts, found.masks, _layout(trained).grid, label=label, token_kinds=token_kinds)


def ground_films(trained: Trained, task: TaskText, result: TaskResult, execute: int) -> list[tuple[bytes, str]]:
    """The recorded rollouts with attention and sensitivity over them."""
    if result.recording is None:
        return []
    recording, layout = result.recording, _layout(trained)
    frames = np.asarray(recording.frames)  # [T, N, ...]
    seen = frames[::execute]
    plans, episodes = seen.shape[:2]
    proprio = np.asarray(recording.proprio)[::execute].reshape(plans * episodes, -1)
    told = _told(task, np.tile(np.asarray(recording.instruction), plans))
    act = _act(trained, seen.reshape(-1, *seen.shape[2:]), proprio, told, task.embodiment)
    maps = _heat_maps(act, layout, plans * episodes)
    films = []
    for episode in range(episodes):
        own = {name: values.reshape(plans, episodes, -1)[:, episode] for name, values in maps.items()}
        label = result.instructions[int(recording.instruction[episode])]
        films.append(heat_film(frames[:, episode], own, layout.grid, task.cameras, execute, label))
    return films


class Recorded(NamedTuple):
    """Moments of recorded episodes, by episode and step, and where a user says that things are seen.

    Attributes:
      name: of the file that says so.
      parts, masks: see ``diagnose``; in pictures of the size that the model sees.
      cameras: their names.
      images, proprio: raw.
      instructions, text: what was said, and its features.
      embodiment: of the dataset.
      episode: number of each moment's.
    """

    name: str
    parts: tuple[str, ...]
    masks: Bool[np.ndarray, "N M V H W"]
    cameras: tuple[str, ...]
    images: UInt8[np.ndarray, "N V H W 3"]
    proprio: Float[np.ndarray, "N P"]
    instructions: tuple[str, ...]
    text: Text
    embodiment: int
    episode: Int[np.ndarray, "N"]


def ground_recorded(trained: Trained, found: Recorded, films: int) -> tuple[Grounding, list[tuple[bytes, str]]]:
    """Diagnostics on recorded moments; the first ``films`` episodes' with attention and sensitivity over them."""
    layout = _layout(trained)
    act = _act(trained, found.images, found.proprio, found.text, found.embodiment)
    label = f"ground {found.name}"
    result = diagnose(act, found.parts, found.masks, layout.grid, label=label, token_kinds=TOKEN_KINDS)
    shown = np.unique(found.episode)[:films]
    maps = _heat_maps(act, layout, len(found.images)) if films else {}
    made = []
    for rows in (np.flatnonzero(found.episode == episode) for episode in shown):
        own = {name: values[rows] for name, values in maps.items()}
        label = found.instructions[rows[0]]
        made.append(heat_film(found.images[rows], own, layout.grid, found.cameras, 1, label, fps=2))
    return result, made


def read_recorded(path: Path, data: ConfigDict, image_size: tuple[int, int]) -> Recorded:
    """The moments of a user's file of masks, with what the run's data has of them.

    Args:
      path: of the file, see above.
      data: ``config.data`` of the run.
      image_size: (height, width) of what the model sees.

    Raises:
      ConfigError: the file is not as it should be, or does not fit the data.
    """
    cameras = tuple(data.cameras)
    arrays = _read_masks(path, len(cameras))
    number = int(arrays.get("dataset", 0))
    if not 0 <= number < len(data.datasets):
        raise ConfigError(f"{path} is of dataset {number}; the run has {len(data.datasets)}, counted from 0")
    directory = data.datasets[number]
    store = with_skills(data, open_split(directory, data.validation_split), directory)
    check_cameras(store, cameras)
    order = np.lexsort((arrays["step"], arrays["episode"]))
    masks, episode, step = (arrays[name][order] for name in ("masks", "episode", "step"))
    _check_moments(path, store, episode, step)
    masks = _resized(masks, image_size)
    if not masks.any():
        raise ConfigError(f"{path}: masks are False everywhere; mark pixels of some part in some picture")
    moments = list(zip(episode.tolist(), step.tolist(), strict=True))
    said = tuple(store.instruction(at) for at, _ in moments)
    table = encode_text(sorted(set(said)), data.text_encoder, data.text_tokens)
    rows = np.array([table.instructions.index(text) for text in said])
    return Recorded(
        name=path.name,
        parts=tuple(str(part) for part in arrays["parts"]),
        masks=masks,
        cameras=cameras,
        images=np.concatenate([read_cameras(store, at, [when], cameras, image_size) for at, when in moments]),
        proprio=stack_columns([store], data.proprio_key)[store.episode_starts[episode] + step],
        instructions=said,
        text=Text(features=jnp.asarray(table.features[rows]), mask=jnp.asarray(table.mask[rows])),
        embodiment=data.embodiments[number] if data.embodiments else 0,
        episode=episode,
    )


def _read_masks(path: Path, cameras: int) -> dict[str, np.ndarray]:
    """The arrays of a file of masks, which agree with each other."""
    if not zipfile.is_zipfile(path):
        raise ConfigError(f"--masks {path} is no .npz file; write one with numpy.savez_compressed")
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    if missing := [name for name in _ARRAYS if name not in arrays]:
        raise ConfigError(f"{path} has no array {missing[0]!r} (has: {', '.join(arrays)}); it needs {_ARRAYS}")
    masks = arrays["masks"]
    if masks.ndim != 5 or masks.dtype != bool:
        raise ConfigError(
            f"{path}: masks are {masks.dtype} {masks.shape}; save bool [moments, parts, cameras, height, width]"
        )
    if masks.shape[2] != cameras:
        raise ConfigError(f"{path}: masks are of {masks.shape[2]} cameras, the run has {cameras}; make one for each")
    fits = {"parts": (masks.shape[1], "U"), "episode": (len(masks), "iu"), "step": (len(masks), "iu")}
    for name, (count, kinds) in fits.items():
        found = arrays[name]
        if found.shape != (count,) or found.dtype.kind not in kinds:
            wanted = f"{count} {'names' if kinds == 'U' else 'whole numbers'}"
            raise ConfigError(f"{path}: {name} are {found.dtype} {found.shape} for masks {masks.shape}; save {wanted}")
    return arrays


def _check_moments(path: Path, store: EpisodeStore, episode: Int[np.ndarray, "N"], step: Int[np.ndarray, "N"]) -> None:
    """Raises ConfigError for the first moment that the store does not have."""
    for at, when in zip(episode.tolist(), step.tolist(), strict=True):
        if not 0 <= at < store.num_episodes:
            there = f"its validation split has {store.num_episodes}, counted from 0"
            raise ConfigError(f"{path}: episode {at} is not in {store.name}; {there}")
        if not 0 <= when < store.num_steps(at):
            there = f"it has {store.num_steps(at)} steps, counted from 0"
            raise ConfigError(f"{path}: step {when} is not in episode {at} of {store.name}; {there}")


def _resized(masks: Bool[np.ndarray, "*N H W"], size: tuple[int, int]) -> Bool[np.ndarray, "*N h w"]:
    """The mask at the centre of each pixel of pictures of ``size``."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, masks.shape[-2:], strict=True)
    )
    return masks[..., rows[:, None], columns]


def _heat_maps(act: Act, layout: Layout, scenes: int) -> dict[str, Float[np.ndarray, "N n"]]:
    """What ``heat_film`` lays over pictures."""
    _, attention = act(Lens(attention=True, present=True, frame_tokens=layout.tokens_per_frame))
    maps = {} if attention is None else {"attention": np.asarray(attention).mean((1, 2, 3))}
    maps["sensitivity"] = heat(act, layout.tokens_per_frame, scenes, label="films")
    return maps


def _told(task: TaskText, instruction: Int[np.ndarray, "N"]) -> Text:
    told = jnp.asarray(instruction)
    return Text(features=task.text.features[told], mask=task.text.mask[told])


def _act(trained: Trained, images: UInt8[np.ndarray, "N V H W 3"], proprio: Any, text: Text, embodiment: int) -> Act:
    observation = Observation(
        images=jnp.asarray(images)[:, None],
        proprio=jnp.asarray(proprio),
        text=text,
        embodiment=jnp.full(len(images), embodiment),
    )
    return acting(trained.policy.look, trained.params, observation, _SEED)


def _layout(trained: Trained) -> Layout:
    definition = trained.policy.definition
    return definition.bind(definition.shapes()).layout
