"""`wam train`: tokenizer, latents, world action model, and what it says on held-out windows."""

import argparse
import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.batches import LatentSource
from launch import devices
from launch.alignment import TEACHER_FIELDS, aligned_pass, feature_width, load_teacher, with_features
from launch.config import ConfigError, default_workdir, load_config, to_plain
from launch.data import Data, held_out_latents, interface_sizes, open_data
from launch.demos import demo_datasets
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
from launch.tokenizers import (
    LATENT_ACTION,
    TOKENIZER,
    encode_dataset,
    find_latent_actions,
    find_tokenizer,
    tokenizer_key,
    tokenizer_of,
    with_images_for,
)
from wam_jax import assets, console
from wam_jax.encoders.lpips import Lpips, load_lpips
from wam_jax.evaluation.heldout import Heldout, evaluate_heldout
from wam_jax.evaluation.report import Report, write_summary
from wam_jax.evaluation.success import EvaluationConfig, closed_loop_score
from wam_jax.evaluation.tokenizer_report import COLUMNS, add_tokenised, metric_rows, tokenise
from wam_jax.evaluation.training_report import HELDOUT_COLUMNS, add_heldout, add_training_curve, heldout_rows
from wam_jax.nn.module import Definition, Params
from wam_jax.policy import Policy, PolicyParams
from wam_jax.sharding import replicated
from wam_jax.tokenizers import saved
from wam_jax.tokenizers.tokenizer import Tokenizer
from wam_jax.training.losses import Tokenizers
from wam_jax.training.restore import Trained, define_model, load_trained
from wam_jax.training.run import Run, is_run, open_run
from wam_jax.training.state import TrainState, count_params
from wam_jax.training.trainer import Trainer
from wam_jax.wam.model import WorldActionModel
from wam_jax.zoo import make_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/quickstart.py", help="experiment file (default: %(default)s)")
    parser.add_argument("--workdir", type=Path, help="where everything is written (default: runs/CONFIG)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(args.config, overrides)
    mesh = devices.start(config, several=True)
    workdir = args.workdir or default_workdir(args.config)
    check_start(config, workdir)
    if not config.data.datasets and config.demos.tasks:
        config.data.datasets = demo_datasets(config, workdir)
    data = open_data(config.data)
    seconds = train(config, data, mesh, workdir)
    if config.distributed:
        console.log(f"trained; held-out windows and closed loops are one process' work: wam evaluate {workdir}")
        return
    report = Report(f"Training: {Path(args.config).stem}", subtitle=str(workdir))
    summary: dict[str, Any] = {"stages_s": seconds}
    if config.until == "model":
        summary |= report_training(config, data, mesh, workdir, report)
    if config.until != "model" or saved.is_saved(workdir / LATENT_ACTION):
        summary |= report_tokenizers(config, data, mesh, workdir, report)
    write_summary(workdir, summary)
    console.log(f"wrote {report.write(workdir)}")


STAGES = ("tokenizer", "latent_action", "model")


def train(config: ConfigDict, data: Data, mesh: Mesh, workdir: Path) -> dict[str, float]:
    """Trains stage after stage up to ``config.until``; resumes each. Returns the seconds that each took this time.

    Raises:
      ConfigError: for an unknown stage.
    """
    if config.until not in STAGES:
        raise ConfigError(f"config.until={config.until!r} is unknown (has: {', '.join(STAGES)})")
    seconds: dict[str, float] = {}
    with _timed("tokenizer", seconds):
        tokenizer = find_tokenizer(config, data, mesh, workdir)
    if config.until == "tokenizer":
        return seconds
    check_memory(config.data, tokenizer)
    data = with_images_for(tokenizer, data)
    latents = None
    with _timed("latents", seconds):
        if config.data.precompute_latents:
            latents = encode_dataset(data, tokenizer)
    with _timed("latent_action", seconds):
        frozen = find_tokenizers(config, data, tokenizer, latents, mesh, workdir)
    if config.until == "model":
        with _timed("training", seconds):
            train_model(config, data, frozen, latents, mesh, workdir)
    return seconds


@contextlib.contextmanager
def _timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    began = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - began, 1)


def find_tokenizers(
    config: ConfigDict, data: Data, tokenizer: Tokenizer, latents: list[LatentSource] | None, mesh: Mesh, workdir: Path
) -> Tokenizers:
    """With latent actions, where they are the last stage or the model has a stream of them."""
    wanted = config.until == "latent_action"
    if config.until == "model":
        model = described_model(config, run_of(config, workdir))
        streams = make_spec(model["name"], model["size"], **model["options"]).streams
        wanted = any(stream.kind == "latent_action" for stream in streams)
    return Tokenizers(
        tokenizer, find_latent_actions(config, data, tokenizer, latents, mesh, workdir) if wanted else None
    )


def run_of(config: ConfigDict, directory: Path) -> Run | None:
    """The run that training starts from; None where it starts from a video model, or at random.

    A training that was begun is its own start: it goes on where ``config.init`` is gone, too.
    """
    if not config.init:
        return None
    return next((open_run(folder) for folder in (directory, Path(config.init)) if is_run(folder)), None)


def train_model(
    config: ConfigDict,
    data: Data,
    frozen: Tokenizers,
    latents: list[LatentSource] | None,
    mesh: Mesh,
    directory: Path,
) -> TrainState:
    """The world action model, from its random start or from ``config.init``."""
    init, tokenizer = run_of(config, directory), frozen.visual
    data = with_normalisation_of(init, data)
    interface = interface_sizes(data, tokenizer.config.latent_shape)
    if frozen.latent_actions is not None:
        interface["latent_action_size"] = frozen.latent_actions.config.size
    identity = {
        "model": described_model(config, init),
        "interface": interface,
        "tokenizer": dataclasses.asdict(tokenizer.config),
        "tokenizer_key": tokenizer_key(tokenizer),
        "codec": data.codec.to_dict(),
        "proprio": data.proprio.to_dict(),
        "init": config.init,
        "lora": to_plain(config.train.lora) if config.train.lora.rank else None,
    }
    if (on := aligned_pass(config)) is not None:
        teacher = load_teacher(config.alignment)
        part = {name: to_plain(config.alignment)[name] for name in ("weight", "layers", "projector")}
        identity["alignment"] = {"on": on, "teacher_width": feature_width(teacher), **part}
        identity["teacher"] = {name: to_plain(config.alignment)[name] for name in TEACHER_FIELDS}
        if latents is None:
            frozen = dataclasses.replace(frozen, teacher=teacher)
        else:
            latents = with_features(config, data, latents, teacher)
    if frozen.latent_actions is not None:
        identity["latent_actions"] = tokenizer_key(frozen.latent_actions)  # they are not saved with the model
    definition = define_model(identity, training=True)
    check_blocks(definition, data)
    source = None if is_run(directory) else open_source(config, definition)
    if is_run(directory) and init is not None:
        trained = init.identity["trainable"]
    else:
        trained = trained_patterns(config, definition, source)
    identity["trainable"] = trained
    trainer = model_trainer(config, definition, mesh, trained)
    frozen = jax.device_put(frozen, replicated(mesh))
    job = Job(
        name="world action model",
        trainer=trainer,
        batch_size=config.train.batch_size,
        identity=identity,
        frozen=frozen,
        tokenizer=frozen.visual if tokenizer.saved else None,
        latents=latents,
        source=source,
        remedies=lambda: [
            *model_remedies(config, identity, trainer, source),
            *state_remedies(trainer, config.train.batch_size),
        ],
        score=make_score(config, trainer, data, tokenizer) if config.train.score.every else None,
    )
    return run_job(config, data, directory, job)


def check_memory(config: ConfigDict, tokenizer: Tokenizer) -> None:
    """A window's images do not show what a tokenizer saw before them, as it does where a model that remembers acts.

    Raises:
      ConfigError: if such a model would be trained on images, not on latents of whole episodes.
    """
    if tokenizer.config.temporal and config.action_block and not config.precompute_latents:
        raise ConfigError(
            "config.data.precompute_latents is False, but a model that remembers (data.action_block="
            f"{config.action_block}) reads frames that have seen their episode from its start; set it to True"
        )


def make_score(config: ConfigDict, trainer: Trainer, data: Data, tokenizer: Tokenizer) -> Callable[[Params], float]:
    """Closed-loop success of parameters on the config's tasks, on the episodes that are for choosing.

    Raises:
      ConfigError: if there are no simulated tasks, or the episodes are those that results are reported on.
    """
    numbers = config.train.score
    if config.distributed:
        raise ConfigError("config.train.score is one process' work; set config.train.score.every=0")
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


def report_tokenizers(config: ConfigDict, data: Data, mesh: Mesh, workdir: Path, report: Report) -> dict[str, Any]:
    """Reconstructions of held-out clips, and futures by latent actions, into the report and a summary."""
    tokenizer = tokenizer_of(workdir) or find_tokenizer(config, data, mesh, workdir)
    trained = [stage for stage in (TOKENIZER, LATENT_ACTION) if saved.is_saved(workdir / stage)]
    actions: Any = saved.load(workdir / LATENT_ACTION, LATENT_ACTION) if LATENT_ACTION in trained else None
    data = with_images_for(tokenizer, data)
    lpips = lpips_if_here(config)
    teacher = load_teacher(config.tokenizer) if config.tokenizer.loss.alignment else None
    results = {}
    for number in range(len(data.validation)):
        batch = data.validation_windows(config.train.validation_windows, config.seed, number)
        results[_label(data, number)] = tokenise(batch, tokenizer, actions)
    for stage in trained:
        add_training_curve(report, workdir / stage / "metrics.jsonl", stage.replace("_", " "))
    summary = add_tokenised(report, results, data.windows.cameras, lpips, teacher)
    console.table("Held-out reconstructions", COLUMNS, metric_rows(summary["reconstruction"]))
    for name, result in results.items():
        if result.usage is not None:
            console.log(f"{name}: {result.usage.summary}")
    return summary


def report_training(config: ConfigDict, data: Data, mesh: Mesh, workdir: Path, report: Report) -> dict[str, Any]:
    """Curves, and action and image errors on held-out windows of every dataset, into the report and a summary."""
    trained = load_trained(workdir, mesh)
    results = evaluate_validation(config, data, trained)
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


def evaluate_validation(config: ConfigDict, data: Data, trained: Trained) -> dict[str, Heldout]:
    """Predictions on held-out windows of every dataset."""
    data = dataclasses.replace(data, codec=trained.policy.codec, proprio=trained.policy.proprio)
    tokenizer = trained.params.tokenizer
    data = with_images_for(tokenizer, data)
    results = {}
    for number, store in enumerate(data.validation):
        latents = held_out_latents(data, number, tokenizer, tokenizer_key(tokenizer))
        batch = data.validation_windows(config.train.validation_windows, config.seed, number, latents)
        results[_label(data, number)] = evaluate_heldout(trained.policy, trained.params, batch, config.seed)
        console.log(f"held-out windows of {store.name}: done")
    return results


def lpips_if_here(config: ConfigDict) -> Lpips | None:
    """``config.tokenizer.lpips``, for metrics; None where its weights are not on this machine."""
    here = assets.status([f"lpips_{config.tokenizer.lpips}"])[0].present
    return load_lpips(config.tokenizer.lpips) if here else None


def _label(data: Data, number: int) -> str:
    names = [store.name for store in data.validation]
    return names[number] if names.count(names[number]) == 1 else f"{names[number]}_{number}"
