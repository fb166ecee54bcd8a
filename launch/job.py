"""One training from its start, or from where it was killed, to its last step."""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grain
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.batches import LatentSource
from data_pipelines.windows import WindowSpec
from launch.config import ConfigError, to_plain
from launch.data import Data
from launch.memory import Remedy, check_memory
from wam_jax import console
from wam_jax.alone import alone_in
from wam_jax.nn.module import Params
from wam_jax.processes import batch_part
from wam_jax.sharding import batch_sharding, placed, replicated
from wam_jax.tokenizers.tokenizer import Tokenizer
from wam_jax.training.checkpoint import Checkpoints
from wam_jax.training.loop import LoopConfig, fit
from wam_jax.training.source import ParamSource, start_from
from wam_jax.training.state import TrainState, count_params
from wam_jax.training.trainer import Trainer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What differs between trainings.

    Attributes:
      name: beside the progress bar.
      trainer: what is trained, and how.
      batch_size: windows in a step.
      identity: what must be the same for a run to be resumed.
      frozen: what the loss needs beside the parameters.
      tokenizer: saved with the parameters, so that they can act; None: it is found by its name, or there is none.
      latents: of all frames, where they were encoded ahead.
      windows: other windows than the data's.
      batches: endless, instead of the data's windows.
      source: where parameters come from; None: from their random start.
      remedies: what to try where memory does not suffice.
      score: of parameters, the higher the better.
    """

    name: str
    trainer: Trainer
    batch_size: int
    identity: dict[str, Any]
    frozen: Any = None
    tokenizer: Tokenizer | None = None
    latents: list[LatentSource] | None = None
    windows: WindowSpec | None = None
    batches: Callable[[], grain.DatasetIterator] | None = None
    source: ParamSource | None = None
    remedies: Callable[[], list[Remedy]] = list
    score: Callable[[Params], float] | None = None


def run_job(config: ConfigDict, data: Data, directory: Path, job: Job) -> TrainState:
    """Says what it will hold, begins or resumes, and trains to the end; alone in its folder.

    Raises:
      DoesNotFit: more memory is needed than there is; nothing was allocated yet.
    """
    trainer, numbers = job.trainer, job.trainer.config
    total, trained = (count_params(tree) / 1e6 for tree in (trainer.definition.shapes(), trainer.trained_shapes))
    part = "" if total == trained else f" ({trained:.3f}M of them trained)"
    console.log(f"{job.name}: {total:.2f}M parameters{part}, {numbers.steps} steps of {job.batch_size} windows")
    check_parts(job.batch_size, trainer.accumulate, trainer.mesh)
    step = _compile(config, data, job)
    loop = LoopConfig(
        steps=numbers.steps,
        save_every=config.train.save_every,
        log_every=config.train.log_every,
        evaluate_every=config.train.score.every if job.score else 0,
        log_batches=config.train.log_batches,
    )
    identity = {
        **job.identity,
        "optimizer": dataclasses.asdict(numbers),
        "accumulate": trainer.accumulate,
        "frozen_dtype": trainer.frozen_dtype,
        "batch_size": job.batch_size,
        "data": _data_identity(data),
        **({"processes": jax.process_count()} if jax.process_count() > 1 else {}),  # each has its own place in the data
        "seed": config.seed,
    }
    meta = {"identity": identity, "config": to_plain(config), "statistics": data.statistics.to_dict()}
    with alone_in(directory) if jax.process_index() == 0 else contextlib.nullcontext():  # arms of a study share some
        state, rest = _start(directory, job)
        return fit(
            state,
            step,
            trainer.frozen_argument(rest, job.frozen),
            _batches(config, data, job),
            trainer.mesh,
            directory,
            loop,
            meta,
            job.name,
            tokenizer=job.tokenizer,
            score=None if job.score is None else lambda state: job.score(trainer.acting(state, rest)),
        )


def check_parts(batch_size: int, parts: int, mesh: Mesh) -> None:
    """Whether a batch can be worked through in so many parts.

    Raises:
      ConfigError: if it does not divide, or a part of it not over the devices.
    """
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if parts < 1 or batch_size % (parts * shards):
        raise ConfigError(
            f"a batch of {batch_size} does not divide into train.accumulate={parts} parts over data x fsdp = {shards} "
            "devices; change train.batch_size or train.accumulate"
        )


def _batches(config: ConfigDict, data: Data, job: Job) -> grain.DatasetIterator:
    if job.batches is not None:
        return job.batches()
    return data.batches(job.batch_size, config.seed, job.latents, job.windows, part=batch_part(job.trainer.mesh))


def _compile(config: ConfigDict, data: Data, job: Job) -> Any:
    """The compiled step; says what it holds."""
    trainer = job.trainer
    example, (_, parts) = next(_batches(config, data, job)), batch_part(trainer.mesh)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((parts * len(x), *x.shape[1:]), x.dtype, sharding=batch_sharding(trainer.mesh)),
        example,
    )
    everywhere = replicated(trainer.mesh)
    frozen = jax.tree.map(lambda x: placed(x, everywhere), job.frozen)
    return check_memory(trainer, frozen, batch, job.remedies, config.train.check_memory)


def _start(directory: Path, job: Job) -> tuple[TrainState, Params]:
    """The state to begin with (abstract, where a checkpoint will fill it) and the parameters that are not trained."""
    trainer = job.trainer
    checkpoints = Checkpoints(directory / "checkpoints")
    if checkpoints.latest is not None:
        like = trainer.abstract_frozen_part()
        state, rest = trainer.abstract_state(), checkpoints.load_base(like) if like else {}
    elif job.source is None:
        state, rest = trainer.init_state(), {}
    else:
        start = start_from(job.source, trainer)
        start.log()
        state = trainer.start_state(start.params)
        rest = trainer.frozen_part(start.params)
        if rest:
            checkpoints.save_base(rest)
    checkpoints.close()
    return state, rest


def _data_identity(data: Data) -> dict[str, Any]:
    """What decides which batches come in which order."""
    fields = to_plain(data.config)
    for name in ("datasets", "threads", "validation_split"):
        fields.pop(name)
    return {**fields, "fingerprints": [store.fingerprint for store in data.train]}
