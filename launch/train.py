"""`wam train`: tokenizer, latents, world action model, and what it says on held-out windows."""

import argparse
import dataclasses
import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.latents import LatentCache
from launch import devices
from launch.config import ConfigError, load_config, to_plain
from launch.data import Data, build_latents, interface_sizes, open_data
from launch.demos import make_demos
from launch.evaluate import described_task
from launch.job import Job, run_job
from launch.memory import state_remedies
from launch.start import (
    check_start,
    described_model,
    model_remedies,
    model_trainer,
    open_source,
    trained_patterns,
    with_normalisation_of,
)
from wam_jax import console
from wam_jax.evaluation.heldout import evaluate_heldout
from wam_jax.evaluation.report import Report, write_summary
from wam_jax.evaluation.success import EvaluationConfig, closed_loop_score
from wam_jax.evaluation.training_report import HELDOUT_COLUMNS, add_heldout, add_training_curve, heldout_rows
from wam_jax.nn.module import Definition, Params
from wam_jax.policy import Policy, PolicyParams
from wam_jax.sharding import replicated
from wam_jax.tokenizers.visual import FrozenTokenizer, Tokenizer, TokenizerConfig, define_tokenizer, latent_statistics
from wam_jax.tokenizers.wan_tokenizer import load_wan_tokenizer
from wam_jax.training.losses import tokenizer_loss
from wam_jax.training.optimizer import OptimizerConfig
from wam_jax.training.restore import define_model, load_trained
from wam_jax.training.run import Run, is_run, open_run
from wam_jax.training.state import TrainState, count_params
from wam_jax.training.trainer import Trainer
from wam_jax.wam.model import WorldActionModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/quickstart.py", help="experiment file (default: %(default)s)")
    parser.add_argument("--workdir", default="runs/train", help="where everything is written (default: %(default)s)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(args.config, overrides)
    mesh = devices.start(config)
    workdir = Path(args.workdir)
    check_start(config, workdir)
    if not config.data.datasets and config.demos.tasks:
        config.data.datasets = tuple(str(folder) for folder in make_demos(config, workdir / "data"))
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
    tokenizer = find_tokenizer(config, data, mesh, workdir / "tokenizer")
    seconds["tokenizer"] = time.monotonic() - began
    began = time.monotonic()
    latents = encode_dataset(data, tokenizer, workdir / "latents") if config.data.precompute_latents else None
    seconds["latents"] = time.monotonic() - began
    began = time.monotonic()
    train_model(config, data, tokenizer, latents, mesh, workdir)
    seconds["training"] = time.monotonic() - began
    return {name: round(value, 1) for name, value in seconds.items()}


def run_of(config: ConfigDict, directory: Path) -> Run | None:
    """The run that training starts from; None where it starts from a video model, or at random.

    A training that was begun is its own start: it goes on where ``config.init`` is gone, too.
    """
    if not config.init:
        return None
    return next((open_run(folder) for folder in (directory, Path(config.init)) if is_run(folder)), None)


def find_tokenizer(config: ConfigDict, data: Data, mesh: Mesh, directory: Path) -> Tokenizer:
    """A published tokenizer, that of a run, or one trained here."""
    image_size = tuple(config.data.image_size)
    if config.tokenizer.name:
        return load_wan_tokenizer(config.tokenizer.name, image_size)
    run = open_run(Path(config.tokenizer.init)) if config.tokenizer.init else run_of(config, directory.parent)
    if run is not None:
        tokenizer = run.tokenizer()
        if tuple(tokenizer.config.image_size) != image_size:
            start, size = config.tokenizer.init or config.init, tokenizer.config.image_size
            raise ConfigError(
                f"the tokenizer of {start} is for pictures of {size}; set data.image_size to that (it is {image_size})"
            )
        return tokenizer
    return train_tokenizer(config, data, mesh, directory)


def train_tokenizer(config: ConfigDict, data: Data, mesh: Mesh, directory: Path) -> FrozenTokenizer:
    """The visual autoencoder, on single frames of the training windows; then its latents' statistics."""
    sizes = TokenizerConfig(image_size=tuple(config.data.image_size), **config.tokenizer.sizes)
    definition = define_tokenizer(sizes)
    frames = dataclasses.replace(data.windows, frame_offsets=(0,))
    job = Job(
        name="tokenizer",
        trainer=Trainer(
            definition=definition,
            loss=tokenizer_loss(definition),
            config=OptimizerConfig(**config.tokenizer.optimizer),
            mesh=mesh,
            seed=config.seed,
        ),
        batch_size=config.tokenizer.batch_size,
        identity={"tokenizer": dataclasses.asdict(sizes)},
        windows=frames,
    )
    state = run_job(config, data, directory, job)
    sample = next(data.batches(256, config.seed + 1, None, frames)).images
    assert sample is not None
    return latent_statistics(sizes, state.acting, sample.reshape(-1, *sample.shape[-3:]))


def encode_dataset(data: Data, tokenizer: Tokenizer, directory: Path) -> list[LatentCache]:
    """Latents of every training frame, on disk."""
    encode = jax.jit(lambda frozen, images: frozen.encode(images))
    return build_latents(data, lambda images: encode(tokenizer, images), tokenizer_key(tokenizer), directory)


def tokenizer_key(tokenizer: Tokenizer) -> str:
    """A hash over the tokenizer's sizes and arrays."""
    digest = hashlib.sha256(repr(tokenizer.config).encode())
    for leaf in jax.tree.leaves(tokenizer):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def train_model(
    config: ConfigDict,
    data: Data,
    tokenizer: Tokenizer,
    latents: list[LatentCache] | None,
    mesh: Mesh,
    directory: Path,
) -> TrainState:
    """The world action model, from its random start or from ``config.init``."""
    init = run_of(config, directory)
    data = with_normalisation_of(init, data)
    identity = {
        "model": described_model(config, init),
        "interface": interface_sizes(data, tokenizer.config.latent_shape),
        "tokenizer": dataclasses.asdict(tokenizer.config),
        "codec": data.codec.to_dict(),
        "proprio": data.proprio.to_dict(),
        "init": config.init,
        "lora": to_plain(config.train.lora) if config.train.lora.rank else None,
    }
    definition = define_model(identity)
    check_blocks(definition, data)
    source = None if is_run(directory) else open_source(config, definition)
    if is_run(directory) and init is not None:
        trained = init.identity["trainable"]
    else:
        trained = trained_patterns(config, definition, source)
    identity["trainable"] = trained
    trainer = model_trainer(config, definition, mesh, trained)
    job = Job(
        name="world action model",
        trainer=trainer,
        batch_size=config.train.batch_size,
        identity=identity,
        tokenizer=jax.device_put(tokenizer, replicated(mesh)),
        latents=latents,
        source=source,
        remedies=lambda: [
            *model_remedies(config, identity, trainer, source),
            *state_remedies(trainer, config.train.batch_size),
        ],
        score=make_score(config, trainer, data, tokenizer) if config.train.score.every else None,
    )
    return run_job(config, data, directory, job)


def make_score(config: ConfigDict, trainer: Trainer, data: Data, tokenizer: Tokenizer) -> Callable[[Params], float]:
    """Closed-loop success of parameters on the config's tasks, on the episodes that are for choosing.

    Raises:
      ConfigError: if there are no simulated tasks, or the episodes are those that results are reported on.
    """
    numbers = config.train.score
    if not config.demos.tasks:
        raise ConfigError(
            "config.train.score needs simulated tasks in config.demos.tasks; set config.train.score.every=0"
        )
    if numbers.seed == config.evaluation.seed:
        raise ConfigError("config.train.score.seed is config.evaluation.seed; choose on other episodes than you report")
    settings = EvaluationConfig(**{**config.evaluation, "episodes": numbers.episodes, "seed": numbers.seed, "films": 0})
    told = to_plain(config)
    tasks = [described_task(told, task) for task in config.demos.tasks]
    policy = Policy(definition=trainer.definition, codec=data.codec, proprio=data.proprio)
    score = closed_loop_score(tasks, policy, config.data.image_size[0], settings, trainer.mesh)
    return lambda params: score(PolicyParams(model=params, tokenizer=tokenizer))


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


def report_training(config: ConfigDict, data: Data, mesh: Mesh, workdir: Path, report: Report) -> dict[str, Any]:
    """Curves, and action and image errors on held-out windows of every dataset, into the report and a summary."""
    trained = load_trained(workdir, mesh)
    data = dataclasses.replace(data, codec=trained.policy.codec, proprio=trained.policy.proprio)
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
