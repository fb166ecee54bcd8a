"""The two stages of World2Act on one run folder, and the imagination between them; `wam posttrain` is the command."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, UInt8
from ml_collections import ConfigDict

from data_pipelines.transforms import ActionCodec
from launch.config import ConfigError, to_plain
from launch.data import Data, encode_text, open_data
from launch.evaluate import described_task
from launch.job import Job, run_job
from launch.tokenizers import encode_dataset, tokenizer_key, with_images_for
from wam_jax import console
from wam_jax.evaluation.success import EvaluationConfig, TaskText, closed_loop_score, episodes_of, task_env
from wam_jax.nn.lora import FACTORS, Lora, with_lora
from wam_jax.nn.module import Definition, Params
from wam_jax.policy import imagining_mode
from wam_jax.posttraining.adapters import AdapterConfig, Adapters, adapter_loss, define_adapters, inverse_loss
from wam_jax.posttraining.imagination import imagine_windows, skill_of_windows
from wam_jax.posttraining.online import Frozen, Learner, ResidualLearner, Starts, WholeLearner, online_loss
from wam_jax.posttraining.pseudo_actions import PseudoDemonstrations
from wam_jax.posttraining.residual import ResidualConfig
from wam_jax.posttraining.restore import ADAPTERS, define_correction
from wam_jax.sharding import replicated
from wam_jax.sim import compilation
from wam_jax.sim.rollout import rollout, scripted_actor
from wam_jax.sim.tabletop import Tabletop
from wam_jax.sim.tasks import skill_text
from wam_jax.training.losses import Tokenizers, encode_batch, wam_loss
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.partition import everything, matching
from wam_jax.training.restore import Trained, load_trained
from wam_jax.training.run import open_run
from wam_jax.training.trainer import Trainer
from wam_jax.types import Batch, Observation, Text

METHODS = ("residual", "lora", "pixels")
_IMAGINED = "imagined.npz"
_EXPERT_EPISODES = 32  # that tell how long skills take


def check_posttrain(config: ConfigDict) -> None:
    """Finds what is wrong with ``config.posttrain`` before any work is done.

    Raises:
      ConfigError: and says what to set.
    """
    numbers = config.posttrain
    if numbers.method not in METHODS:
        raise ConfigError(f"config.posttrain.method={numbers.method!r} is unknown (has: {', '.join(METHODS)})")
    if not config.init:
        raise ConfigError("config.init is empty; name the run whose policy is to be improved")
    if len(config.demos.tasks) != 1:
        raise ConfigError(f"config.demos.tasks is {config.demos.tasks}; post-training is for one task")
    for name, seed in (("evaluation", config.evaluation.seed), ("train.score", config.train.score.seed)):
        if numbers.seed == seed:
            raise ConfigError(f"config.posttrain.seed is config.{name}.seed; choose other starts than you judge by")
    if numbers.trajectories < 1 or numbers.batch_size < 2 or numbers.trajectories % numbers.batch_size:
        raise ConfigError(
            f"config.posttrain.trajectories={numbers.trajectories} is no multiple of "
            f"config.posttrain.batch_size={numbers.batch_size} (2 or more)"
        )
    if numbers.method == "lora" and not config.train.lora.rank:
        raise ConfigError("config.posttrain.method='lora' needs config.train.lora.rank, such as 16")


class Imagined(NamedTuple):
    """Attributes:

    pictures: the start, and what the world model expects from there.
    instruction: index into the environment's instructions.
    """

    pictures: UInt8[np.ndarray, "K I V H W 3"]
    instruction: Int[np.ndarray, " K"]


class Work(NamedTuple):
    """What post-training is about.

    Attributes:
      base, world: the policy that is improved, and the model that imagines.
      task: what the policy is told.
      env: where it acts.
      chunk: control steps from one imagined frame to the next.
      told: of each window, the number of the skill that is imagined; None: the whole instruction, throughout.
      windows: of an imagination.
      data: demonstrations, cut to such sequences.
      adapters: of stage 1.
      adapter_params: theirs, after it.
      imagined: from each start.
    """

    base: Trained
    world: Trained
    task: TaskText
    env: Tabletop
    chunk: int
    told: tuple[int, ...] | None
    windows: int
    data: Data
    adapters: Definition[Adapters]
    adapter_params: Params
    imagined: Imagined


def posttrain(config: ConfigDict, mesh: Mesh, directory: Path) -> Work:
    """Both stages, each from where it was."""
    base = load_trained(Path(config.init), mesh)
    world = load_trained(Path(config.posttrain.world), mesh) if config.posttrain.world else base
    chunk = _chunk_of(world, base, config)
    name = config.demos.tasks[0]
    task = described_task(base.meta["config"], name)
    env = task_env(task, base.image_size)
    told, windows = _schedule(config, env, world)
    frames = windows * (len(world.meta["identity"]["interface"]["frame_steps"]) - 1)
    data = with_images_for(world.params.tokenizer, open_data(_sequences(config, chunk, frames)))
    # Sequences start where those of stage 2 do, but for the arm's place.
    data = dataclasses.replace(data, windows=dataclasses.replace(data.windows, starts=chunk))
    adapters, adapter_params = train_adapters(config, data, world, mesh, directory / ADAPTERS)
    imagined = imagine_starts(config, world, task, env, told, windows, directory)
    work = Work(base, world, task, env, chunk, told, windows, data, adapters, adapter_params, imagined)
    (imitate if config.posttrain.method == "pixels" else improve)(config, work, mesh, directory)
    return work


def _chunk_of(world: Trained, base: Trained, config: ConfigDict) -> int:
    """Control steps between two imagined frames: what is compared, and executed, at a time.

    Raises:
      ConfigError: world model and policy do not fit to each other.
    """
    own = world.meta["identity"]["interface"]
    if imagining_mode(world.policy.definition.bind(world.policy.definition.shapes())) is None:
        raise ConfigError(f"{config.posttrain.world or config.init} imagines no video; set config.posttrain.world")
    spacing = set(np.diff(own["frame_steps"]).tolist())
    if len(spacing) != 1:
        raise ConfigError(f"the world model's frames at steps {own['frame_steps']} are not evenly spaced")
    chunk = spacing.pop()
    layout = base.policy.definition.bind(base.policy.definition.shapes()).layout
    executed = layout.actions_per_block if layout.autoregressive else None
    horizon = base.meta["identity"]["interface"]["action_horizon"]
    if horizon < chunk or executed not in (None, chunk):
        raise ConfigError(
            f"the policy of {config.init} gives {executed or horizon} actions at a time, the world model's frames are "
            f"{chunk} apart; choose models that fit"
        )
    if executed is not None and config.posttrain.method == "lora":
        raise ConfigError(f"{config.init} remembers its past; post-train it with config.posttrain.method=residual")
    if world.image_size != base.image_size or own["cameras"] != base.meta["identity"]["interface"]["cameras"]:
        raise ConfigError("world model and policy see pictures of other sizes, or other cameras")
    if config.evaluation.execute != chunk:
        raise ConfigError(
            f"config.evaluation.execute={config.evaluation.execute}, but the world model's frames are {chunk} control "
            "steps apart, and as many actions are compared and executed at a time; set it to that"
        )
    return chunk


def _schedule(config: ConfigDict, env: Tabletop, world: Trained) -> tuple[tuple[int, ...] | None, int]:
    """Which skill each window is told (None: the instruction), and how many windows there are."""
    numbers, skills = config.posttrain, len(skill_text(config.demos.tasks[0]))
    if numbers.skills and not skills:
        raise ConfigError(f"config.posttrain.skills: {config.demos.tasks[0]} is one skill; set it to False")
    if counts := tuple(numbers.windows):
        if len(counts) != (skills if numbers.skills else 1):
            raise ConfigError(f"config.posttrain.windows={counts}: give {skills if numbers.skills else 1} numbers")
        told = tuple(np.repeat(np.arange(len(counts)), counts).tolist())
        return (told if numbers.skills else None), sum(counts)
    keys = jax.random.split(jax.random.key(numbers.seed + 1), _EXPERT_EPISODES)
    run = rollout(env, scripted_actor(env), env.expert_steps)
    outcome = run(jnp.asarray(0.0), keys, jax.random.key(0)).outcome
    done = np.asarray(outcome.skills) if skills else np.maximum.accumulate(np.asarray(outcome.success), 0).astype(int)
    order = skill_of_windows(done, max(skills, 1), world.meta["identity"]["interface"]["frame_steps"][-1])
    middle = np.sort(order, 1)[:, order.shape[1] // 2]
    return (tuple(middle.tolist()) if numbers.skills else None), len(middle)


def _sequences(config: ConfigDict, chunk: int, frames: int) -> ConfigDict:
    """The data as sequences of chunks, from an episode's start."""
    found = config.data.copy_and_resolve_references()
    found.frame_steps = tuple(chunk * number for number in range(frames + 1))
    found.action_horizon, found.action_block = chunk * frames, chunk
    return found


def train_adapters(
    config: ConfigDict, data: Data, world: Trained, mesh: Mesh, directory: Path
) -> tuple[Definition[Adapters], Params]:
    """Stage 1, on demonstrations."""
    numbers, tokenizer = config.posttrain.adapters, world.params.tokenizer
    sizes = AdapterConfig(**to_plain(numbers.options))
    channels = len(data.windows.cameras) * tokenizer.config.latent_shape[-1]
    definition = define_adapters(sizes, channels, _block(data.codec), data.codec.action_size)

    def loss(params: Params, frozen: Tokenizers, batch: Batch, key: jax.Array, step: jax.Array):
        return _sequence_loss(config, definition, params, frozen, batch)

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
        },
        frozen=jax.device_put(Tokenizers(tokenizer), replicated(mesh)),
        latents=encode_dataset(data, tokenizer) if config.data.precompute_latents else None,
        alike=numbers.hard_share,
    )
    return definition, run_job(config, data, directory, job).acting


def _block(codec: ActionCodec) -> int:
    assert codec.block is not None
    return codec.block


def _sequence_loss(
    config: ConfigDict, definition: Definition[Adapters], params: Params, frozen: Tokenizers, batch: Batch
):
    batch, latents = encode_batch(frozen, batch)
    there = jnp.asarray(batch.image_mask).any(-1)
    loss = inverse_loss if config.posttrain.method == "pixels" else adapter_loss
    return loss(definition.bind(params), latents, jnp.asarray(batch.actions), there[:, :-1] & there[:, 1:])


def heldout_sequences(config: ConfigDict, work: Work) -> dict[str, float]:
    """How well stage 1 tells held-out sequences apart, among as many as in its batches."""
    size = config.posttrain.adapters.batch_size
    count = config.train.validation_windows // size * size
    batch = work.data.validation_windows(count, config.seed, 0)
    loss = jax.jit(lambda params, frozen, batch: _sequence_loss(config, work.adapters, params, frozen, batch)[1])
    frozen = Tokenizers(work.world.params.tokenizer)
    parts = [jax.tree.map(lambda x, i=i: x[i : i + size], batch) for i in range(0, count, size)]
    found = [loss(work.adapter_params, frozen, part) for part in parts]
    return {"windows": count, **{name: float(np.mean([part[name] for part in found])) for name in found[0]}}


def imagine_starts(
    config: ConfigDict,
    world: Trained,
    task: TaskText,
    env: Tabletop,
    told: tuple[int, ...] | None,
    windows: int,
    directory: Path,
) -> Imagined:
    """What the world model expects from each start; kept in the run."""
    numbers, data = config.posttrain, world.meta["config"]["data"]
    asked = [numbers.world or config.init, world.step, numbers.trajectories, numbers.seed, told, windows, task.name]
    key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
    path = directory / _IMAGINED
    if path.exists():
        with np.load(path, allow_pickle=False) as saved:
            if str(saved["key"]) == key:
                return Imagined(saved["pictures"], saved["instruction"])
    episodes = episodes_of(task, EvaluationConfig(episodes=numbers.trajectories, seed=numbers.seed))
    said = skill_text(task.name) if told is not None else (env.instructions,)
    words = sorted({text for skill in said for text in skill})
    table = encode_text(words, data["text_encoder"], data["text_tokens"])
    row = np.array([[words.index(text) for text in skill] for skill in said])  # of each skill and instruction

    def start(keys: jax.Array, looks: Any):
        states = jax.vmap(env.reset)(keys, *(() if looks is None else (looks,)))
        stage = jax.vmap(env.stage)(states)
        return jax.vmap(env.draw)(stage), jax.vmap(env.proprio)(states), states.instruction

    policy, reset = world.policy, compilation.jit(start)
    imagine = jax.jit(lambda params, seen, texts, key: imagine_windows(policy, params, seen, texts, key))
    found = []
    for number in console.progress(range(0, numbers.trajectories, numbers.batch_size), "imagine"):
        own = slice(number, number + numbers.batch_size)
        images, proprio, instruction = reset(*jax.tree.map(lambda x, own=own: x[own], tuple(episodes)))
        rows = row[list(told) if told is not None else [0] * windows][:, np.asarray(instruction)]
        texts = Text(features=jnp.asarray(table.features[rows]), mask=jnp.asarray(table.mask[rows]))
        seen = Observation(
            images=images[:, None],
            proprio=proprio,
            text=jax.tree.map(lambda x: x[0], texts),
            embodiment=jnp.full(len(images), task.embodiment),
        )
        future = imagine(world.params, seen, texts, jax.random.fold_in(jax.random.key(numbers.seed), number))
        pictures = np.concatenate([np.asarray(images)[:, None], np.asarray(future)], 1)
        found.append(Imagined(pictures, np.asarray(instruction)))
    imagined = Imagined(*(np.concatenate(parts) for parts in zip(*found, strict=True)))
    directory.mkdir(parents=True, exist_ok=True)
    np.savez(path, **imagined._asdict(), key=np.array(key))
    return imagined


def _of_imagined(work: Work, batch_size: int, read: Callable[[Adapters, Array], Array]) -> Float[np.ndarray, "K ..."]:
    """What ``read`` makes of the adapters and the world model's latents of all that was imagined."""

    def run(tokenizer: Any, params: Params, images: jax.Array):
        return read(work.adapters.bind(params), tokenizer.encode(images))

    jitted, pictures = jax.jit(run), work.imagined.pictures
    parts = [pictures[i : i + batch_size] for i in range(0, len(pictures), batch_size)]
    tokenizer = work.world.params.tokenizer
    return np.concatenate([np.asarray(jitted(tokenizer, work.adapter_params, part)) for part in parts])


def improve(config: ConfigDict, work: Work, mesh: Mesh, directory: Path) -> None:
    """Stage 2: the policy acts beside what was imagined."""
    numbers, base = config.posttrain, work.base
    episodes = episodes_of(work.task, EvaluationConfig(episodes=numbers.trajectories, seed=numbers.seed))
    keys = np.asarray(jax.random.key_data(episodes.keys))
    video = _of_imagined(work, numbers.batch_size, lambda adapters, latents: adapters.of_video(latents))
    looks = jax.tree.map(np.asarray, episodes.looks)

    def batches() -> grain.DatasetIterator:
        order = grain.MapDataset.range(numbers.trajectories).shuffle(config.seed).repeat()

        def take(rows: Any) -> Starts:
            rows = np.asarray(rows)
            return Starts(keys=keys[rows], video=video[rows], looks=jax.tree.map(lambda x: x[rows], looks))

        return iter(order.to_iter_dataset(grain.ReadOptions(num_threads=0)).batch(numbers.batch_size, batch_fn=take))

    learner, definition, identity = _learner(config, work)
    frozen = Frozen(
        base=base.params,
        adapters=work.adapter_params,
        text=work.task.text,
        embodiment=jnp.asarray(work.task.embodiment),
    )
    trainer = Trainer(
        definition=definition,
        loss=online_loss(work.env, learner, work.adapters, work.data.codec),
        config=OptimizerConfig(**numbers.optimizer),
        mesh=mesh,
        seed=config.seed,
        jit=compilation.jit,
        trained=matching([FACTORS]) if numbers.method == "lora" else everything,
    )
    tokenizer = base.params.tokenizer
    job = Job(
        name="post-training",
        trainer=trainer,
        batch_size=numbers.batch_size,
        identity={**identity, "posttrain": _described(config, video)},
        frozen=jax.device_put(frozen, replicated(mesh)),
        tokenizer=tokenizer if numbers.method == "lora" and tokenizer.saved else None,
        source=open_run(Path(config.init)) if numbers.method == "lora" else None,
        batches=batches,
        score=_score(config, work, learner, frozen, mesh) if config.train.score.every else None,
    )
    run_job(config, work.data, directory, job)


def _described(config: ConfigDict, targets: np.ndarray) -> dict[str, Any]:
    """What decides a post-training, beside its optimizer."""
    fields = ("method", "world", "skills", "trajectories", "seed")
    told = {name: to_plain(config.posttrain[name]) for name in fields}
    return {**told, "base": config.init, "targets": hashlib.sha256(targets.tobytes()).hexdigest()}


def imitate(config: ConfigDict, work: Work, mesh: Mesh, directory: Path) -> None:
    """The comparator: all of the policy learns from imagined videos with guessed actions, as from demonstrations.

    Raises:
      ConfigError: the policy sees more frames than two, or frames that its tokenizer merges in time.
    """
    numbers, base = config.posttrain, work.base
    told, tokenizer = base.meta["identity"]["interface"], base.params.tokenizer
    if told["frame_steps"] != [0, work.chunk] or tokenizer.config.temporal:
        raise ConfigError(
            f"config.posttrain.method='pixels' is for policies whose frames are at steps (0, {work.chunk}), by "
            f"themselves; {config.init} has {told['frame_steps']}"
        )
    actions = _of_imagined(work, numbers.batch_size, lambda adapters, x: adapters.decode(adapters.of_video(x)))
    encode = jax.jit(lambda tokenizer, images: tokenizer.start(images)[0])
    latents = [np.asarray(encode(tokenizer, images)) for images in np.swapaxes(work.imagined.pictures, 0, 1)]
    text = work.task.text
    episodes = PseudoDemonstrations(
        latents=np.stack(latents, 1),
        actions=np.asarray(work.data.codec.decode(actions)),
        text=jax.tree.map(lambda x: np.asarray(x)[work.imagined.instruction], text),
        embodiment=work.task.embodiment,
        proprio_size=told["proprio_size"],
    )

    def batches() -> grain.DatasetIterator:
        order = grain.MapDataset.range(len(episodes)).shuffle(config.seed).repeat()
        options = grain.ReadOptions(num_threads=0)
        return iter(
            order.to_iter_dataset(options).batch(
                config.train.batch_size,
                batch_fn=lambda rows: episodes.batch(rows, base.policy.codec, told["action_horizon"]),
            )
        )

    definition = base.policy.definition
    job = Job(
        name="post-training",
        trainer=Trainer(
            definition=definition,
            loss=wam_loss(definition),
            config=OptimizerConfig(**numbers.optimizer),
            mesh=mesh,
            seed=config.seed,
        ),
        batch_size=config.train.batch_size,
        identity={**_of_base(work), "posttrain": _described(config, actions)},
        tokenizer=tokenizer if tokenizer.saved else None,
        source=open_run(Path(config.init)),
        batches=batches,
    )
    run_job(config, work.data, directory, job)


def _of_base(work: Work) -> dict[str, Any]:
    """What of the base's identity is that of the same model with other parameters."""
    names = ("model", "interface", "tokenizer", "codec", "proprio")
    return {name: work.base.meta["identity"][name] for name in names}


def _learner(config: ConfigDict, work: Work) -> tuple[Learner, Definition, dict[str, Any]]:
    """What is trained, and what must be known to act with it again."""
    base, codec = work.base, work.data.codec
    if config.posttrain.method == "residual":
        told = {
            "base": config.init,
            "adapters": dataclasses.asdict(work.adapters.bind(work.adapters.shapes()).config),
            "channels": len(work.data.windows.cameras) * work.world.params.tokenizer.config.latent_shape[-1],
            "chunks": codec.to_dict(),
            "residual": dataclasses.asdict(ResidualConfig(**to_plain(config.posttrain.residual))),
        }
        corrected, _, residual = define_correction(told, base)
        return ResidualLearner(corrected), residual, {"correction": told}
    lora = to_plain(config.train.lora)
    definition = with_lora(base.policy.definition, Lora(**lora))
    identity = {**_of_base(work), "init": config.init, "lora": lora, "trainable": [FACTORS]}
    return WholeLearner(dataclasses.replace(base.policy, definition=definition), codec), definition, identity


def _score(config: ConfigDict, work: Work, learner: Learner, frozen: Frozen, mesh: Mesh):
    """Closed-loop success of what is trained, on the episodes that are for choosing."""
    numbers = config.train.score
    settings = EvaluationConfig(**{**config.evaluation, "episodes": numbers.episodes, "seed": numbers.seed, "films": 0})
    score = closed_loop_score([work.task], learner.policy, work.base.image_size, settings, mesh)
    return lambda params: score(learner.acting(params, frozen))
