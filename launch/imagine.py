"""`wam imagine`: a video of any length, skill by skill, beside what the scripted expert does from the same start.

    wam imagine runs/quickstart --task pick_lift
    wam imagine RUN --task place_both
    wam imagine RUN --task reach --skills "reach the red sphere" "reach the blue sphere"

Every skill's video begins with the last picture of the one before. How far it drifts from the simulator is measured
frame by frame, with the skills' words and with the whole instruction throughout. With `--skills`, other words in turn,
there is nothing to compare with.
"""

import argparse
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from data_pipelines.windows import WindowSpec
from launch import devices
from launch.alignment import feature_width
from launch.config import ConfigError, load_config
from launch.data import encode_text
from launch.evaluate import described_task
from launch.train import lpips_if_here
from wam_jax import assets, console
from wam_jax.encoders import registry
from wam_jax.encoders.frozen import FrozenEncoder
from wam_jax.evaluation import media
from wam_jax.evaluation.report import Report, write_summary
from wam_jax.evaluation.scene_probe import position_reader
from wam_jax.evaluation.scenes import draw_scenes, left_to_right
from wam_jax.evaluation.success import EvaluationConfig, TaskText, episodes_of, task_env
from wam_jax.policy import Policy, imagining_mode
from wam_jax.posttraining.imagination import drift, features_of_moments, imagine_windows, skill_of_windows
from wam_jax.sim.physics import SECONDS_PER_ACTION
from wam_jax.sim.rollout import Trace, draw, rollout, scripted_actor
from wam_jax.sim.tabletop import Tabletop
from wam_jax.sim.tasks import TASK_NAMES, Outcome, skill_text
from wam_jax.training.restore import Trained, load_trained
from wam_jax.types import Observation, Text

_SCENES, _SCENES_SEED = 1024, 500  # pictures that the reader of positions is fitted to
_ENCODER = "efficientnet_lite2"  # whose features a Fréchet distance is of
_WINDOWS = 2  # of each skill that is said
_FPS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="run folder of a model that imagines video")
    parser.add_argument("--task", choices=TASK_NAMES, required=True, help="where it starts")
    parser.add_argument(
        "--skills",
        nargs="+",
        metavar="WORDS",
        help="skills to imagine in turn (default: the task's)",
    )
    parser.add_argument(
        "--windows", type=int, help="windows of each skill (default: as long as the expert takes; with --skills, 2)"
    )
    parser.add_argument("--episodes", type=int, default=64, help="starts (default: %(default)s)")
    parser.add_argument("--films", type=int, default=4, help="of them, shown (default: %(default)s)")
    parser.add_argument("--config", default="configs/common.py", help="devices and seed (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder for the report (default: CHECKPOINT/imagined)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(args.config, overrides)
    for name, count in (("episodes", args.episodes), ("windows", args.windows)):
        if count is not None and count < 1:
            raise ConfigError(f"--{name}={count} is too few; the least is 1")
    trained = load_trained(args.checkpoint, devices.start(config))
    definition = trained.policy.definition
    if imagining_mode(definition.bind(definition.shapes())) is None:
        raise ConfigError(f"{args.checkpoint} imagines no video; choose a system that has a video stream")
    scene = _happen(config, trained, args.task, args.episodes)
    plan = _plan(args, scene, trained)
    seen = _see(scene, picture_steps(trained, windows=len(next(iter(plan.values())))))
    out = args.out or args.checkpoint / "imagined"
    report = Report(f"Imagined: {args.task}", subtitle=f"step {trained.step}")
    key, start, proprio = jax.random.key(config.seed), seen.start[:, 0], scene.trace.proprio[0]
    imagined = {
        name: imagine(trained, start, proprio, scene.task.embodiment, words, key)[0] for name, words in plan.items()
    }
    summary: dict[str, object] = {"windows": {name: len(words) for name, words in plan.items()}}
    if not args.skills:
        summary["drift"] = _add_drift(report, config, trained, scene.task, seen, imagined)
    _add_films(report, seen.pictures, imagined, plan, args.films)
    write_summary(out, summary)
    console.log(f"wrote {report.write(out)}")


class _Scene(NamedTuple):
    """Episodes of the scripted expert.

    Attributes:
      task: what the model is told of it.
      env: where they are.
      trace: of them.
      lead: control steps of a window.
      instructions: of each episode.
      skills: of each episode, in its words.
    """

    task: TaskText
    env: Tabletop
    trace: Trace
    lead: int
    instructions: tuple[str, ...]
    skills: tuple[tuple[str, ...], ...]


def _happen(config: ConfigDict, trained: Trained, task: str, episodes: int) -> _Scene:
    """What the expert does."""
    told = trained.meta["config"]
    described = described_task(told, task)
    env = task_env(described, trained.image_size)
    starts = episodes_of(described, EvaluationConfig(**{**config.evaluation, "episodes": episodes}))
    run = rollout(env, scripted_actor(env), env.expert_steps)
    trace = run(jnp.asarray(0.0), starts.keys, jax.random.key(config.seed), starts.looks)
    numbers = np.asarray(trace.instruction)
    words = skill_text(task) or (env.instructions,)
    return _Scene(
        described,
        env,
        trace,
        trained.meta["identity"]["interface"]["frame_steps"][-1],
        tuple(env.instructions[number] for number in numbers),
        tuple(tuple(skill[number] for skill in words) for number in numbers),
    )


class _Seen(NamedTuple):
    """The expert's episodes at the moments that are imagined.

    Attributes:
      start: the first picture.
      pictures: what the cameras see; an episode that is over stands still.
      places: where the objects are, as ``Scenes.positions``.
      seconds: from the start.
    """

    start: UInt8[np.ndarray, "N 1 V H W 3"]
    pictures: UInt8[np.ndarray, "N F V H W 3"]
    places: Float[np.ndarray, "N F E"]
    seconds: Float[np.ndarray, " F"]


def picture_steps(trained: Trained, windows: int) -> Int[np.ndarray, " I"]:
    """The control steps of all pictures of so many windows; the first is 0, the start."""
    steps, tubelet = trained.meta["identity"]["interface"]["frame_steps"], trained.params.tokenizer.config.tubelet
    ahead = WindowSpec(cameras=(), frame_offsets=tuple(steps), tubelet=tubelet).image_offsets[1:]
    return np.append(0, (steps[-1] * np.arange(windows)[:, None] + np.array(ahead)).reshape(-1))


def _see(scene: _Scene, moments: Int[np.ndarray, " I"]) -> _Seen:
    """Draws the start, and what happens after it."""
    stage = jax.tree.map(lambda x: x[np.minimum(moments, len(x) - 1)], scene.trace.stage)
    pictures = np.swapaxes(np.asarray(draw(scene.env)(stage)), 0, 1)
    places = np.swapaxes(np.asarray(left_to_right(scene.env.object_places(stage))), 0, 1)
    return _Seen(pictures[:, :1], pictures[:, 1:], places[:, 1:], SECONDS_PER_ACTION * moments[1:])


def _plan(args: argparse.Namespace, scene: _Scene, trained: Trained) -> dict[str, list[tuple[str, ...]]]:
    """What is said in every window to every episode, by name; the whole instruction, if the model can be told it."""
    count = len(scene.instructions)
    if args.skills:
        return {"said": [(words,) * count for words in args.skills for _ in range(args.windows or _WINDOWS)]}
    number = len(scene.skills[0])
    if args.windows is not None:
        order = np.repeat(np.arange(number), args.windows)[:, None].repeat(count, 1)
    else:
        order = skills_of_expert(scene.trace.outcome, args.task, scene.lead)
    plan = {"by skills": [tuple(own[skill] for own, skill in zip(scene.skills, row, strict=True)) for row in order]}
    if number > 1 and can_hear(trained.meta, scene.instructions):
        plan["whole instruction"] = [scene.instructions for _ in order]
    return plan


def can_hear(meta: Mapping[str, Any], instructions: Sequence[str]) -> bool:
    """Whether a model, with ``meta`` of its run, was made for instructions so long; says so, if not."""
    told, made_for = meta["config"]["data"], meta["identity"]["interface"]["text_tokens"]
    tokens = encode_text(sorted(set(instructions)), told["text_encoder"], told["text_tokens"]).mask.shape[1]
    if tokens > made_for:
        console.log(
            f"whole instructions have {tokens} tokens, the model was made for {made_for}: it hears skills alone"
        )
    return tokens <= made_for


def skills_of_expert(outcome: Outcome, task: str, lead: int) -> Int[np.ndarray, "W N"]:
    """Which skill of a task the expert is at when each window of ``lead`` control steps begins.

    Where the task is one skill, it is done as soon as the instruction holds.
    """
    skills = len(skill_text(task))
    done = np.asarray(outcome.skills) if skills else np.maximum.accumulate(np.asarray(outcome.success), 0).astype(int)
    return skill_of_windows(done, max(skills, 1), lead)


def imagine(
    trained: Trained,
    images: UInt8[np.ndarray, "N V H W 3"],
    proprio: Float[Array, "N P"],
    embodiment: int,
    plan: Sequence[tuple[str, ...]],
    key: jax.Array,
) -> tuple[UInt8[np.ndarray, "N F V H W 3"], Float[np.ndarray, "N T V h w C"]]:
    """What a model expects from here on, window after window; ``plan`` is what it is told in each, start by start.

    Returns:
      pictures, and latents with those of the present first.
    """
    data = trained.meta["config"]["data"]
    words = sorted({text for window in plan for text in window})
    table = encode_text(words, data["text_encoder"], data["text_tokens"])
    rows = np.array([[words.index(text) for text in window] for window in plan])
    texts = Text(features=jnp.asarray(table.features[rows]), mask=jnp.asarray(table.mask[rows]))
    observation = Observation(
        images=jnp.asarray(images)[:, None],
        proprio=proprio,
        text=jax.tree.map(lambda x: x[0], texts),
        embodiment=jnp.full(len(images), embodiment),
    )
    pictures, latents = _imagining(trained.policy)(trained.params, observation, texts, key)
    return np.asarray(pictures), np.asarray(latents)


@functools.cache  # compiled once a model
def _imagining(policy: Policy) -> Callable[..., Array]:
    return jax.jit(functools.partial(imagine_windows, policy))


def _add_drift(
    report: Report,
    config: ConfigDict,
    trained: Trained,
    task: TaskText,
    seen: _Seen,
    imagined: dict[str, UInt8[np.ndarray, "N F V H W 3"]],
) -> dict[str, dict[str, list[float]]]:
    """How far each is from the simulator, by time, beside what never moves and what happened, through the tokenizer."""
    tokenizer = trained.params.tokenizer

    def each(function: Callable, pictures: UInt8[np.ndarray, "N F V H W 3"]) -> np.ndarray:
        found = function(pictures.reshape(-1, *pictures.shape[2:]))
        return found.reshape(*pictures.shape[:2], *found.shape[1:])

    again = jax.jit(lambda tokenizer, images: tokenizer.decode(tokenizer.start(images)[0][:, None])[:, 0])
    compared = {
        **imagined,
        "nothing moves": np.broadcast_to(seen.start, seen.pictures.shape),
        "what happened, tokenised": each(lambda images: np.asarray(again(tokenizer, images)), seen.pictures),
    }
    fit = draw_scenes(task.name, trained.image_size, _SCENES, _SCENES_SEED, task.shapes, task.cameras)
    read, lpips = position_reader(tokenizer, fit), lpips_if_here(config)
    encoders = _encoders_for(seen.start.shape[0] * seen.start.shape[2])
    features = {name: (encoder, features_of_moments(encoder, seen.pictures)) for name, encoder in encoders.items()}
    found = {
        name: drift(shown, seen.pictures, (each(read, shown), seen.places), lpips, features)
        for name, shown in console.progress(list(compared.items()), "beside the simulator")
    }
    metrics = next(iter(found.values()))
    for metric in metrics:
        series = {name: list(zip(seen.seconds.tolist(), values[metric], strict=True)) for name, values in found.items()}
        report.add_image("", media.curve(series, metric, "seconds", metric))
    rows = [(name, *(f"{np.mean(values[metric]):.3f}" for metric in metrics)) for name, values in found.items()]
    report.add_table("Drift from the simulator, a mean over time", ("", *metrics), rows)
    console.table("Drift from the simulator, a mean over time", ("", *metrics), rows)
    return found


def _encoders_for(pictures: int) -> dict[str, FrozenEncoder]:
    """The encoder of a Fréchet distance, where its weights are here and so many pictures suffice."""
    if not assets.status([_ENCODER])[0].present:
        return {}
    encoder = registry.load(_ENCODER, dtype=jnp.float32)
    width = feature_width(encoder)
    if pictures > width:
        return {_ENCODER: encoder}
    console.log(f"{pictures} pictures of a moment are too few for a Fréchet distance; it takes more than {width}")
    return {}


def _add_films(
    report: Report,
    true: UInt8[np.ndarray, "N F V H W 3"],
    imagined: dict[str, UInt8[np.ndarray, "N F V H W 3"]],
    plan: dict[str, list[tuple[str, ...]]],
    films: int,
) -> None:
    """Imagined beside true, the first camera."""
    name = next(iter(imagined))
    made = []
    for episode in range(min(films, len(true))):
        panels = {key: pictures[episode, :, 0] for key, pictures in imagined.items()}
        if name != "said":
            panels = {"simulator": true[episode, :, 0], **panels}
        said = list(dict.fromkeys(window[episode] for window in plan[name]))
        made.append((media.film(media.side_by_side(panels), _FPS), "; ".join(said)))
    report.add_films("Films", made)
