"""`wam train`: tokenizer, latents, world action model, and what it says on held-out windows."""

import argparse
import dataclasses
import hashlib
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.latents import LatentCache
from data_pipelines.windows import WindowSpec
from launch import devices
from launch.config import ConfigError, load_config, to_plain
from launch.data import Data, build_latents, interface_sizes, open_data
from wam_jax import console
from wam_jax.evaluation.heldout import evaluate_heldout
from wam_jax.evaluation.report import Report, write_summary
from wam_jax.evaluation.training_report import HELDOUT_COLUMNS, add_heldout, add_training_curve, heldout_rows
from wam_jax.nn.module import Definition
from wam_jax.sharding import replicated
from wam_jax.tokenizers.visual import FrozenTokenizer, TokenizerConfig, define_tokenizer, latent_statistics
from wam_jax.training.loop import LoopConfig, fit
from wam_jax.training.losses import tokenizer_loss, wam_loss
from wam_jax.training.optimizer import OptimizerConfig, make_optimizer
from wam_jax.training.restore import define_model, load_trained
from wam_jax.training.state import TrainState, count_params, init_state, state_shardings
from wam_jax.training.step import LossFn, make_step
from wam_jax.wam.model import WorldActionModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/quickstart.py", help="experiment file (default: %(default)s)")
    parser.add_argument("--workdir", default="runs/train", help="where everything is written (default: %(default)s)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(args.config, overrides)
    mesh = devices.start(config)
    workdir = Path(args.workdir)
    data = open_data(config.data)
    seconds = train(config, data, mesh, workdir)
    report = Report(f"Training: {Path(args.config).stem}", subtitle=str(workdir))
    summary = {"stages_s": seconds, **report_training(config, data, mesh, workdir, report)}
    write_summary(workdir, summary)
    console.log(f"wrote {report.write(workdir)}")


def train(config: ConfigDict, data: Data, mesh: Mesh, workdir: Path) -> dict[str, float]:
    """Trains the tokenizer, then the model; resumes both. Returns the seconds that each stage took this time."""
    seconds = {}
    began = time.monotonic()
    tokenizer = train_tokenizer(config, data, mesh, workdir / "tokenizer")
    seconds["tokenizer"] = time.monotonic() - began
    began = time.monotonic()
    latents = encode_dataset(data, tokenizer, workdir / "latents") if config.data.precompute_latents else None
    seconds["latents"] = time.monotonic() - began
    began = time.monotonic()
    train_model(config, data, tokenizer, latents, mesh, workdir)
    seconds["training"] = time.monotonic() - began
    return {name: round(value, 1) for name, value in seconds.items()}


def train_tokenizer(config: ConfigDict, data: Data, mesh: Mesh, directory: Path) -> FrozenTokenizer:
    """The visual autoencoder, on single frames of the training windows; then its latents' statistics."""
    sizes = TokenizerConfig(image_size=tuple(config.data.image_size), **config.tokenizer.sizes)
    definition = define_tokenizer(sizes)
    frames = dataclasses.replace(data.windows, frame_offsets=(0,))
    job = _Job(
        name="tokenizer",
        definition=definition,
        loss=tokenizer_loss(definition),
        optimizer=OptimizerConfig(**config.tokenizer.optimizer),
        batch_size=config.tokenizer.batch_size,
        identity={"tokenizer": dataclasses.asdict(sizes)},
        windows=frames,
    )
    state = _fit(config, data, mesh, directory, job)
    sample = next(data.batches(256, config.seed + 1, None, frames)).images
    assert sample is not None
    return latent_statistics(sizes, state.ema, sample.reshape(-1, *sample.shape[-3:]))


def encode_dataset(data: Data, tokenizer: FrozenTokenizer, directory: Path) -> list[LatentCache]:
    """Latents of every training frame, on disk."""
    encode = jax.jit(lambda frozen, images: frozen.encode(images))
    return build_latents(data, lambda images: encode(tokenizer, images), tokenizer_key(tokenizer), directory)


def tokenizer_key(tokenizer: FrozenTokenizer) -> str:
    """A hash over the tokenizer's sizes and arrays."""
    digest = hashlib.sha256(repr(tokenizer.config).encode())
    for leaf in jax.tree.leaves(tokenizer):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def train_model(
    config: ConfigDict,
    data: Data,
    tokenizer: FrozenTokenizer,
    latents: list[LatentCache] | None,
    mesh: Mesh,
    directory: Path,
) -> TrainState:
    """The world action model."""
    identity = {
        "model": to_plain(config.model),
        "interface": interface_sizes(data, tokenizer.config.latent_shape),
        "tokenizer": dataclasses.asdict(tokenizer.config),
        "codec": data.codec.to_dict(),
        "proprio": data.proprio.to_dict(),
    }
    definition = define_model(identity)
    check_blocks(definition, data)
    job = _Job(
        name="world action model",
        definition=definition,
        loss=wam_loss(definition),
        optimizer=OptimizerConfig(**config.train.optimizer),
        batch_size=config.train.batch_size,
        identity=identity,
        frozen=jax.device_put(tokenizer, replicated(mesh)),
        latents=latents,
    )
    return _fit(config, data, mesh, directory, job)


def check_blocks(definition: Definition[WorldActionModel], data: Data) -> None:
    """A model that sees what each block of actions did needs displacements that start anew with every block.

    Raises:
      ConfigError: if the data's do not.
    """
    layout = definition.bind(definition.shapes()).layout
    wanted = layout.actions_per_block if layout.autoregressive else None
    if data.codec.block != wanted:
        raise ConfigError(
            f"{layout.spec.name} predicts {wanted or layout.interface.action_horizon} actions at a time; "
            f"set data.action_block={wanted or 0} (it is {data.codec.block or 0})"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Job:
    """What differs between training the tokenizer and training the model."""

    name: str
    definition: Definition
    loss: LossFn
    optimizer: OptimizerConfig
    batch_size: int
    identity: dict[str, Any]
    frozen: Any = None
    latents: list[LatentCache] | None = None
    windows: WindowSpec | None = None


def _fit(config: ConfigDict, data: Data, mesh: Mesh, directory: Path, job: _Job) -> TrainState:
    optimizer = make_optimizer(job.optimizer)
    shardings = state_shardings(job.definition, optimizer, mesh)
    step = make_step(job.loss, optimizer, ema=job.optimizer.ema, seed=config.seed, mesh=mesh, shardings=shardings)
    state = init_state(job.definition, optimizer, config.seed, mesh)
    console.log(
        f"{job.name}: {count_params(state.params) / 1e6:.2f}M parameters, {job.optimizer.steps} steps of "
        f"{job.batch_size} windows"
    )
    loop = LoopConfig(
        steps=job.optimizer.steps,
        save_every=config.train.save_every,
        log_every=config.train.log_every,
        log_batches=config.train.log_batches,
    )
    batches = data.batches(job.batch_size, config.seed, job.latents, job.windows)
    identity = {
        **job.identity,
        "optimizer": dataclasses.asdict(job.optimizer),
        "batch_size": job.batch_size,
        "data": _data_identity(config, data),
        "seed": config.seed,
    }
    meta = {"identity": identity, "config": to_plain(config), "statistics": data.statistics.to_dict()}
    return fit(state, step, job.frozen, batches, mesh, directory, loop, meta, job.name)


def _data_identity(config: ConfigDict, data: Data) -> dict[str, Any]:
    """What decides which batches come in which order."""
    fields = to_plain(config.data)
    for name in ("datasets", "threads", "validation_split"):
        fields.pop(name)
    return {**fields, "fingerprints": [store.fingerprint for store in data.train]}


def report_training(config: ConfigDict, data: Data, mesh: Mesh, workdir: Path, report: Report) -> dict[str, Any]:
    """Curves, and action and image errors on held-out windows of every dataset, into the report and a summary."""
    trained = load_trained(workdir, mesh)
    results = {}
    for number, store in enumerate(data.validation):
        batch = data.validation_windows(config.train.validation_windows, config.seed, number)
        results[_label(data, number)] = evaluate_heldout(trained.policy, trained.params, batch, config.seed)
        console.log(f"held-out windows of {store.name}: done")
    add_training_curve(report, workdir / "metrics.jsonl")
    add_heldout(report, results, data.windows.cameras)
    console.table("Held-out windows", HELDOUT_COLUMNS, heldout_rows(results))
    params = {expert: count_params(tree) for expert, tree in trained.params.model["trunk"]["blocks"].items()}
    return {
        "step": trained.step,
        "parameters": count_params(trained.params.model),
        "trunk_parameters": params,
        "heldout": {name: result.summary() for name, result in results.items()},
    }


def _label(data: Data, number: int) -> str:
    names = [store.name for store in data.validation]
    return names[number] if names.count(names[number]) == 1 else f"{names[number]}_{number}"
