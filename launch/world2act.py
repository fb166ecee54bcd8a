"""World2Act before its policy: where video and actions meet (stage 1), and what fits to what.

What the world model imagines is in launch/imagined_starts.py, stage 2 in launch/improve.py, the command in
launch/posttrain.py.
"""

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from data_pipelines.loader import SideBySide, endless
from launch.config import ConfigError, missing_run, to_plain
from launch.data import Data, open_data
from launch.evaluate import described_task
from launch.imagine import skills_of_expert
from launch.imagined_starts import Imagined, imagine_starts, learned_skills, starts_of
from launch.job import Job, run_job
from launch.kept import digest
from launch.own_episodes import OWN_SEED, OwnSequences, own_sequences
from launch.skills import CUTS
from launch.tokenizers import encode_dataset, tokenizer_key, with_images_for
from wam_jax.evaluation.success import TaskText, task_env
from wam_jax.nn.module import Definition, Params
from wam_jax.policy import imagining_mode
from wam_jax.posttraining.adapters import PRESETS, AdapterConfig, Adapters, adapter_loss, define_adapters, inverse_loss
from wam_jax.posttraining.chunk_view import ChunkView
from wam_jax.posttraining.eyes import Eyes, eyes_of, frame_channels
from wam_jax.posttraining.imagination import steps_of_skills
from wam_jax.posttraining.residual import ResidualConfig
from wam_jax.posttraining.restore import ADAPTERS, load_base
from wam_jax.serving.remote import is_address
from wam_jax.sharding import replicated
from wam_jax.sim.rollout import rollout, scripted_actor
from wam_jax.sim.tabletop import SimState, Tabletop
from wam_jax.sim.tasks import skill_text
from wam_jax.training.losses import encode_batch
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.restore import Trained, fingerprint, load_trained
from wam_jax.training.run import is_run
from wam_jax.training.trainer import Trainer
from wam_jax.types import Batch

METHODS = ("residual", "lora", "pixels")
IMAGINATIONS = ("world", "expert")
_EXPERT_EPISODES = 32  # that tell how long skills take
# What decides what a policy is told and sees; post-training takes it from its base.
_OF_BASE = ("data.text_encoder", "data.text_tokens", "data.cameras", "demos.object_shapes")


def check_posttrain(config: ConfigDict, starts: bool = False) -> None:
    """Finds what is wrong with ``config.posttrain`` before any work is done; ``starts``: its base is yet to be trained.

    Raises:
      ConfigError: and says what to set.
    """
    numbers = config.posttrain
    if numbers.method not in METHODS:
        raise ConfigError(f"config.posttrain.method={numbers.method!r} is unknown (has: {', '.join(METHODS)})")
    if not config.init and not starts:
        raise ConfigError("config.init is empty; name the run whose policy is to be improved")
    if is_address(config.init) and (numbers.method != "residual" or not numbers.world):
        raise ConfigError(
            f"the policy at {config.init} can only be corrected: set config.posttrain.method=residual, and "
            "config.posttrain.world to the run of a world model"
        )
    if is_address(config.init) and numbers.residual.options.get("sees", "pictures") != "pictures":
        raise ConfigError(
            f"the policy at {config.init} shows no hidden tokens; set config.posttrain.residual.options.sees=pictures"
        )
    if len(config.demos.tasks) != 1:
        raise ConfigError(f"config.demos.tasks is {config.demos.tasks}; post-training is for one task")
    for name, seed in (("evaluation", config.evaluation.seed), ("train.score", config.train.score.seed)):
        if seed in (numbers.seed, numbers.seed + OWN_SEED):
            raise ConfigError(
                f"config.{name}.seed is config.posttrain.seed, or {OWN_SEED} more; choose starts you do not judge by"
            )
    if config.train.score.every and config.train.score.seed == config.evaluation.seed:
        raise ConfigError("config.train.score.seed is config.evaluation.seed; choose on other episodes than you report")
    if numbers.imagination not in IMAGINATIONS:
        known = ", ".join(IMAGINATIONS)
        raise ConfigError(f"config.posttrain.imagination={numbers.imagination!r} is unknown (has: {known})")
    if numbers.skills and numbers.skills not in CUTS:
        raise ConfigError(f"config.posttrain.skills={numbers.skills!r} is unknown (has: {', '.join(CUTS)}, or empty)")
    if numbers.skills and not skill_text(config.demos.tasks[0]):
        task = config.demos.tasks[0]
        raise ConfigError(f"config.posttrain.skills={numbers.skills!r}, but {task} is one skill; leave it empty")
    if numbers.windows < 0:
        raise ConfigError(f"config.posttrain.windows={numbers.windows} is too few; 0 is as long as the expert takes")
    if not 0 <= numbers.adapters.hard_share <= 1:
        raise ConfigError(f"config.posttrain.adapters.hard_share={numbers.adapters.hard_share} is no share, 0 to 1")
    half = numbers.adapters.batch_size // 2
    if numbers.adapters.own_episodes and (half < 1 or numbers.adapters.own_episodes % half):  # nor twice in a batch
        raise ConfigError(
            f"config.posttrain.adapters.own_episodes={numbers.adapters.own_episodes} is no multiple of {half}, half of "
            "config.posttrain.adapters.batch_size"
        )
    for name in ("trajectories", "tracked"):
        if numbers[name] < 1 or numbers.batch_size < 2 or numbers[name] % numbers.batch_size:
            raise ConfigError(
                f"config.posttrain.{name}={numbers[name]} is no multiple of "
                f"config.posttrain.batch_size={numbers.batch_size} (2 or more)"
            )
    if numbers.adapters.elsewhere and not numbers.adapters.position:
        raise ConfigError("config.posttrain.adapters.elsewhere moves places; set config.posttrain.adapters.position")
    if numbers.method == "lora" and not config.train.lora.rank:
        raise ConfigError("config.posttrain.method='lora' needs config.train.lora.rank, such as 16")
    for name, value in (("data.unlabelled", config.data.unlabelled), ("data.packed", config.data.packed)):
        if value:
            raise ConfigError(f"config.{name}={value!r}: post-training learns from whole, labelled demonstrations")
    if config.train.trainable or config.train.accumulate != 1:
        raise ConfigError("config.train.trainable and config.train.accumulate are not for post-training; leave them")
    for name, kind in (("adapters", AdapterConfig), ("residual", ResidualConfig)):
        fields, options = [field.name for field in dataclasses.fields(kind)], to_plain(numbers[name].options)
        if unknown := sorted(set(options) - set(fields)):
            raise ConfigError(f"config.posttrain.{name}.options has no {unknown[0]!r} (has: {', '.join(fields)})")
    if numbers.adapters.preset not in PRESETS:
        known = ", ".join(PRESETS)
        raise ConfigError(f"config.posttrain.adapters.preset={numbers.adapters.preset!r} is unknown (has: {known})")
    adapter_sizes(config)  # raises, if they cannot be
    for name, run in (("posttrain.world", numbers.world), ("init", config.init)):  # the first has the other's tokenizer
        if run and not is_address(run) and not is_run(Path(run)):
            raise missing_run(name, run)


def adapter_sizes(config: ConfigDict) -> AdapterConfig:
    """One of the published presets, with what is set beside it."""
    numbers = config.posttrain.adapters
    return dataclasses.replace(PRESETS[numbers.preset], **to_plain(numbers.options))


class Work(NamedTuple):
    """What post-training is about.

    Attributes:
      base, world: the policy that is improved, and the model that imagines.
      task: what the policy is told.
      env: where it acts.
      chunk: control steps from one imagined frame to the next.
      windows: of an imagination.
      data: demonstrations, cut to such sequences.
      view: what of their actions is compared with video.
      adapters: of stage 1.
      adapter_params: theirs, after it.
      starts: from which episodes go on; those that are only tracked come last.
      imagined: from each of them.
    """

    base: Trained
    world: Trained
    task: TaskText
    env: Tabletop
    chunk: int
    windows: int
    data: Data
    view: ChunkView
    adapters: Definition[Adapters]
    adapter_params: Params
    starts: SimState
    imagined: Imagined


def prepare(config: ConfigDict, mesh: Mesh, directory: Path, shared: Path | None = None) -> Work:
    """Stage 1 and imagination, each from where it was.

    Args:
      config: with ``posttrain``.
      mesh: of all devices.
      directory: of the run.
      shared: where what several runs have in common is kept; None: in the run's folder.
    """
    base = load_base(config.init, mesh)
    world = load_trained(Path(config.posttrain.world), mesh) if config.posttrain.world else base
    chunk = _chunk_of(world, base, config)
    task = described_task(base.meta["config"], config.demos.tasks[0])
    env = task_env(task, base.image_size)
    windows = _windows(config, env, world)
    frames = windows * (len(world.meta["identity"]["interface"]["frame_steps"]) - 1)
    data = with_images_for(world.params.tokenizer, open_data(_sequences(config, chunk, frames)))
    # Sequences start where those of stage 2 do, but for the arm's place.
    data = dataclasses.replace(data, windows=dataclasses.replace(data.windows, starts=chunk))
    view = _view(config, data)
    own = None
    if config.posttrain.adapters.own_episodes:
        own = own_sequences(config, base, task, env, data, world.params.tokenizer, shared or directory)
    place = directory / ADAPTERS
    if shared:
        place = shared / f"{ADAPTERS}_{digest(_deciding_adapters(config, world, own))}"
    adapters, adapter_params = train_adapters(config, data, view, world, mesh, place, own)
    if shared:  # a run is whole without what it shares
        _copy_once(place, directory / ADAPTERS)
    numbers = config.posttrain
    starts = starts_of(config, task, env, numbers.trajectories + numbers.tracked, numbers.seed)
    imagined = imagine_starts(config, world, task, env, starts, windows, shared or directory)
    return Work(base, world, task, env, chunk, windows, data, view, adapters, adapter_params, starts, imagined)


def _deciding_adapters(config: ConfigDict, world: Trained, own: OwnSequences | None) -> list[Any]:
    """What runs on the same data have to agree on to share stage 1; `run_job` refuses whatever else differs."""
    numbers = config.posttrain
    sequences = [numbers.skills, numbers.windows, numbers.method == "pixels"]
    return [config.seed, to_plain(numbers.adapters), sequences, fingerprint(world), own and own.told]


def _copy_once(source: Path, target: Path) -> None:
    """A folder and all that is in it: whole, or not at all."""
    if target.exists():
        return
    unfinished = target.with_name(f"{target.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(source, unfinished)
    unfinished.rename(target)


def _chunk_of(world: Trained, base: Trained, config: ConfigDict) -> int:
    """Control steps between two imagined frames: what is compared, and executed, at a time.

    Raises:
      ConfigError: world model, policy and config do not fit to each other.
    """
    own, theirs = (trained.meta["identity"]["interface"] for trained in (world, base))
    if imagining_mode(world.policy.definition.bind(world.policy.definition.shapes())) is None:
        raise ConfigError(f"{config.posttrain.world or config.init} imagines no video; set config.posttrain.world")
    spacing = set(np.diff(own["frame_steps"]).tolist())
    if len(spacing) != 1:
        raise ConfigError(f"the world model's frames at steps {own['frame_steps']} are not evenly spaced")
    chunk = spacing.pop()
    executed = base.policy.block()
    if theirs["action_horizon"] < chunk or executed not in (None, chunk):
        raise ConfigError(
            f"the policy of {config.init} gives {executed or theirs['action_horizon']} actions at a time, the world "
            f"model's frames are {chunk} apart; choose models that fit"
        )
    if executed is not None and config.posttrain.method == "lora":
        raise ConfigError(f"{config.init} remembers its past; post-train it with config.posttrain.method=residual")
    if world.image_size != base.image_size or own["cameras"] != theirs["cameras"]:
        raise ConfigError("world model and policy see pictures of other sizes, or other cameras")
    if config.evaluation.execute != chunk:
        raise ConfigError(
            f"config.evaluation.execute={config.evaluation.execute}, but the world model's frames are {chunk} control "
            "steps apart, and as many actions are compared and executed at a time; set it to that"
        )
    for name in _OF_BASE:
        part, field = name.split(".")
        asked, used = to_plain(config[part][field]), base.meta["config"][part].get(field, {})
        if json.dumps(asked) != json.dumps(used):
            raise ConfigError(f"config.{name}={asked!r}, but {config.init} was trained with {used!r}; set it to that")
    return chunk


def _windows(config: ConfigDict, env: Tabletop, world: Trained) -> int:
    """Of an imagination: as set, or as long as the expert takes, in the median; for the longest skill."""
    numbers, task = config.posttrain, config.demos.tasks[0]
    skills = len(skill_text(task))
    if skills and numbers.imagination == "world" and learned_skills(world) and not numbers.skills:
        raise ConfigError("the world model learned from single skills; set config.posttrain.skills, such as gripper")
    if numbers.windows:
        return numbers.windows
    keys = jax.random.split(jax.random.key(numbers.seed + 1), _EXPERT_EPISODES)
    run = rollout(env, scripted_actor(env), env.expert_steps)
    outcome = run(jnp.asarray(0.0), keys, jax.random.key(0)).outcome
    lead = world.meta["identity"]["interface"]["frame_steps"][-1]
    if not numbers.skills:
        return len(skills_of_expert(outcome, task, lead))
    return math.ceil(steps_of_skills(np.asarray(outcome.skills), skills).max() / lead)


def _sequences(config: ConfigDict, chunk: int, frames: int) -> ConfigDict:
    """The data as sequences of chunks, from the start of an episode or of a skill."""
    found = config.data.copy_and_resolve_references()
    found.skills.cut = config.posttrain.skills
    found.depth_cameras, found.value_discount = (), 0.0  # streams are not for adapters
    found.frame_steps = tuple(chunk * number for number in range(frames + 1))
    found.action_horizon, found.action_block = chunk * frames, chunk
    return found


def _view(config: ConfigDict, data: Data) -> ChunkView:
    """What of the actions is compared with video; inverse dynamics guesses all of them, as they are."""
    if config.posttrain.method == "pixels":
        return ChunkView.make(data.codec, data.proprio)
    numbers = config.posttrain.adapters
    return ChunkView.make(data.codec, data.proprio, tuple(numbers.position), numbers.unit, tuple(numbers.hidden))


def train_adapters(
    config: ConfigDict,
    data: Data,
    view: ChunkView,
    world: Trained,
    mesh: Mesh,
    directory: Path,
    own: OwnSequences | None,
) -> tuple[Definition[Adapters], Params]:
    """Stage 1, on demonstrations; half of a batch is what the base does itself, if that is given.

    Of the comparator, inverse dynamics with the same networks.
    """
    numbers, tokenizer, sizes = config.posttrain.adapters, world.params.tokenizer, adapter_sizes(config)
    channels = frame_channels(sizes, world)
    definition = define_adapters(sizes, channels, data.codec.block_steps, data.codec.action_size)

    def loss(params: Params, eyes: Eyes, batch: Batch, key: jax.Array, step: jax.Array):
        return _sequence_loss(config, data, view, definition, params, eyes, batch, key)

    latents = encode_dataset(data, tokenizer) if config.data.precompute_latents else None

    def batches() -> grain.DatasetIterator:
        if own is None:
            return data.batches(numbers.batch_size, config.seed, latents, alike=numbers.hard_share)
        half = numbers.batch_size // 2
        shown = data.batches(numbers.batch_size - half, config.seed, latents, alike=min(2 * numbers.hard_share, 1.0))
        mine = endless(numbers.own_episodes, half, config.seed, lambda rows: jax.tree.map(lambda x: x[rows], own[0]))
        return SideBySide(mine, shown)

    job = Job(
        name="adapters",
        trainer=Trainer(
            definition=definition,
            loss=loss,
            config=OptimizerConfig(**numbers.optimizer),
            mesh=mesh,
            seed=config.seed,
        ),
        batch_size=numbers.batch_size,
        identity={
            "adapters": dataclasses.asdict(sizes),
            "objective": "inverse dynamics" if config.posttrain.method == "pixels" else "contrastive",
            "tokenizer": tokenizer_key(tokenizer),
            **({"world": fingerprint(world)} if sizes.video == "features" else {}),
            "view": view.to_dict(),
            "elsewhere": [numbers.elsewhere, numbers.elsewhere_metres],
            "hard_share": numbers.hard_share,
            **({"own": own.told} if own else {}),
        },
        frozen=jax.device_put(eyes_of(sizes, world), replicated(mesh)),
        batches=batches,
    )
    return definition, run_job(config, data, directory, job).acting


def _sequence_loss(
    config: ConfigDict,
    data: Data,
    view: ChunkView,
    definition: Definition[Adapters],
    params: Params,
    eyes: Eyes,
    batch: Batch,
    key: jax.Array | None = None,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    batch, latents = encode_batch(eyes.tokenizers, batch)
    there = jnp.asarray(batch.image_mask).any(-1)
    loss = inverse_loss if config.posttrain.method == "pixels" else adapter_loss
    starts = jnp.asarray(data.proprio.unnormalise(batch.proprio[:, :-1]))
    actions, numbers = view(jnp.asarray(batch.actions), starts), config.posttrain.adapters
    elsewhere = None
    if key is not None and numbers.elsewhere and view.places:  # inverse dynamics sees displacements
        elsewhere = view.elsewhere(actions, starts.shape[1], numbers.elsewhere, numbers.elsewhere_metres, key)
    return loss(definition.bind(params), eyes.see(latents), actions, there[:, :-1] & there[:, 1:], elsewhere)


def heldout_sequences(config: ConfigDict, work: Work) -> dict[str, float]:
    """How well stage 1 tells the starts of held-out demonstrations apart, among as many as in its batches."""
    starts = dataclasses.replace(work.data, windows=dataclasses.replace(work.data.windows, starts=1))
    here = starts.validation[0].num_episodes
    size = min(config.posttrain.adapters.batch_size, here)
    batch = starts.validation_windows(here // size * size, config.seed, 0)
    told = (config, work.data, work.view, work.adapters)
    loss = jax.jit(lambda params, eyes, batch: _sequence_loss(*told, params, eyes, batch)[1])
    eyes = eyes_of(adapter_sizes(config), work.world)
    parts = [jax.tree.map(lambda x, i=i: x[i : i + size], batch) for i in range(0, here // size * size, size)]
    found = [loss(work.adapter_params, eyes, part) for part in parts]
    return {"windows": size * len(parts), **{name: float(np.mean([p[name] for p in found])) for name in found[0]}}
