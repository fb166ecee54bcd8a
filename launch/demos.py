"""`wam demos`: the simulator's experts at work, as RLDS on disk."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from einops import rearrange
from jaxtyping import UInt8
from ml_collections import ConfigDict

from data_pipelines.write_rlds import RldsWriter
from launch import devices
from launch.config import ConfigError, load_config, to_plain
from wam_jax import console
from wam_jax.alone import alone_in
from wam_jax.sim.demonstrations import Demonstrations, generate_batches, steps_to_success
from wam_jax.sim.scene import OBJECT_COLORS, SHAPES
from wam_jax.sim.tabletop import Tabletop
from wam_jax.sim.tasks import TASK_NAMES

DEPTH_SUFFIX = "_depth"  # of the cameras that hold depth pictures
_SETTINGS = "demos.json"  # beside a dataset: what it was made with
_SHAPES = "object_shapes.json"  # beside one that was made before those were kept, whose objects vary
_BATCH = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/quickstart.py", help="tasks and numbers (default: %(default)s)")
    parser.add_argument("--out", default="runs/demos", help="folder for the datasets (default: %(default)s)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(args.config, overrides)
    devices.start(config)
    folders = make_demos(config, Path(args.out))
    rows = [(folder.parent.name, folder) for folder in folders]
    console.table("Demonstrations", ("dataset", "folder"), rows)
    console.log(f"next: wam train --config.data.datasets='{tuple(str(folder) for folder in folders)}'")


def demo_datasets(config: ConfigDict, workdir: Path) -> tuple[str, ...]:
    """``make_demos`` in ``config.demos.directory``, or in a folder of the run: what ``config.data.datasets`` takes."""
    return tuple(str(folder) for folder in make_demos(config, Path(config.demos.directory or workdir / "data")))


def make_demos(config: ConfigDict, out: Path) -> list[Path]:
    """Writes one RLDS dataset a task, with splits train and val; those that exist are left as they are.

    Returns:
      the dataset folders (the ones with ``features.json``), in the order of ``config.demos.tasks``.

    Raises:
      ConfigError: if tasks and numbers of episodes do not pair up, or a dataset that exists was made with other
        settings.
    """
    tasks, episodes = config.demos.tasks, config.demos.episodes
    if not tasks:
        raise ConfigError(f"config.demos.tasks is empty; name some of: {', '.join(TASK_NAMES)}")
    if len(tasks) != len(episodes):
        raise ConfigError(f"config.demos has {len(tasks)} tasks and {len(episodes)} numbers of episodes; give one each")
    return [_make_task(config, task, count, out) for task, count in zip(tasks, episodes, strict=True)]


def _make_task(config: ConfigDict, task: str, episodes: int, out: Path) -> Path:
    name = f"tabletop_{task}"
    folder = out / name / "1.0.0"
    settings = _settings(config, episodes)
    if not folder.exists():
        with alone_in(folder.parent):
            if not folder.exists():  # another process may have made it meanwhile
                _write_task(config, task, episodes, folder)
                (folder / _SETTINGS).write_text(json.dumps(settings, indent=1) + "\n")
                return folder
    _check_made(folder, settings, config.demos.depth)
    console.log(f"{name}: found in {folder}")
    return folder


def _write_task(config: ConfigDict, task: str, episodes: int, folder: Path) -> None:
    name = folder.parent.name
    shapes = object_shapes(config.demos.object_shapes)
    env = Tabletop(task, image_size=config.data.image_size[0], varied=bool(shapes))
    sizes = dict.fromkeys(dataset_cameras(env, config.demos.depth), tuple(config.data.image_size))
    splits = {"train": episodes, "val": config.demos.validation_episodes}
    successes: list[np.ndarray] = []
    lengths: list[int] = []
    with RldsWriter(folder, name, sizes, env.action_size, env.proprio_size) as writer:
        for number, (split, count) in enumerate(splits.items()):
            key = jax.random.fold_in(jax.random.key(config.seed), TASK_NAMES.index(task) * len(splits) + number)
            batches = generate_batches(
                env,
                key,
                count,
                action_noise=config.demos.action_noise,
                wander_steps=config.demos.wander_steps,
                batch_size=_BATCH,
                depth=config.demos.depth,
                shapes=shapes,
            )
            for batch in console.progress(batches, f"{name} {split}", total=-(-count // _BATCH)):
                successes.append(np.asarray(batch.success[:, -1]))
                lengths.extend(write_episodes(writer, env, batch, split, config.demos.hold_steps))
    rate = np.concatenate(successes).mean()
    console.log(f"{name}: {len(lengths)} episodes of {np.mean(lengths):.0f} steps, expert success {rate:.3f}")


def _settings(config: ConfigDict, episodes: int) -> dict[str, Any]:
    """What a task's demonstrations depend on, by field of ``config.demos``."""
    names = ("validation_episodes", "wander_steps", "hold_steps", "action_noise", "object_shapes")
    # Not the seed: trainings with several seeds are to share one set of demonstrations.
    return {"episodes": episodes, **{name: to_plain(config.demos[name]) for name in names}}


def _check_made(folder: Path, asked: Mapping[str, Any], depth: bool) -> None:
    """Raises ConfigError if the dataset in ``folder`` was made otherwise than ``asked``, as far as that is known."""
    way_out = "choose another folder with config.demos.directory (of `wam demos`: --out), or delete this one"
    if depth and DEPTH_SUFFIX not in (folder / "features.json").read_text():
        raise ConfigError(f"{folder} was made without depth; {way_out}")
    if (folder / _SETTINGS).exists():
        made = json.loads((folder / _SETTINGS).read_text())
    else:
        console.log(f"{folder} does not say what it was made with: its settings are unknown")
        shapes = json.loads((folder / _SHAPES).read_text()) if (folder / _SHAPES).exists() else {}
        made = {"object_shapes": shapes}
    for name, value in asked.items():
        if name in made and made[name] != value:
            raise ConfigError(f"{folder} was made with {name} {made[name]}, config.demos.{name} is {value}; {way_out}")


def object_shapes(named: Mapping[str, Sequence[str]]) -> tuple[tuple[int, ...], ...]:
    """Of each colour, the numbers of the shapes that its objects may have; empty where none are named.

    Raises:
      ConfigError: for an unknown colour or shape, or a colour without any.
    """
    if not named:
        return ()
    for color, shapes in named.items():
        if color not in OBJECT_COLORS or not shapes or any(shape not in SHAPES for shape in shapes):
            raise ConfigError(
                f"config.demos.object_shapes has {color}: {tuple(shapes)}; colours are {', '.join(OBJECT_COLORS)} and "
                f"shapes {', '.join(SHAPES)}"
            )
    if missing := [color for color in OBJECT_COLORS if color not in named]:
        raise ConfigError(f"config.demos.object_shapes names no shape of {missing[0]} objects")
    return tuple(tuple(SHAPES.index(shape) for shape in named[color]) for color in OBJECT_COLORS)


def dataset_cameras(env: Tabletop, depth: bool) -> tuple[str, ...]:
    """Names of the cameras that the dataset will have: the environment's, then those that hold depth."""
    return env.cameras + tuple(camera + DEPTH_SUFFIX for camera in env.cameras if depth)


def write_episodes(writer: RldsWriter, env: Tabletop, batch: Demonstrations, split: str, hold_steps: int) -> list[int]:
    """Writes episodes that end ``hold_steps`` after success; returns their lengths."""
    pictures = _pictures(env, batch)
    actions, proprio, rewards, success = (
        np.asarray(x) for x in (batch.action, batch.proprio, batch.reward, batch.success)
    )
    lengths = np.minimum(steps_to_success(success) + hold_steps, success.shape[1])
    for episode, length in enumerate(lengths):
        writer.add_episode(
            {camera: frames[episode, :length] for camera, frames in pictures.items()},
            actions[episode, :length],
            proprio[episode, :length],
            env.instructions[int(batch.instruction[episode])],
            rewards[episode, :length],
            split=split,
        )
    return lengths.tolist()


def _pictures(env: Tabletop, batch: Demonstrations) -> dict[str, UInt8[np.ndarray, "N S H W 3"]]:
    """What each of the `dataset_cameras` saw; depth as grey of three equal channels."""
    images = np.asarray(batch.images)
    views = list(rearrange(images, "n s v ... -> v n s ..."))
    if batch.depth is not None:
        grey = np.broadcast_to(np.asarray(batch.depth)[..., None], images.shape)
        views += list(rearrange(grey, "n s v ... -> v n s ..."))
    return dict(zip(dataset_cameras(env, batch.depth is not None), views, strict=True))
