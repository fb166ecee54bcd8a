"""`wam evaluate`: closed-loop success of a checkpoint in batched MJX, beside its controls."""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch import devices
from launch.config import ConfigError, load_config
from launch.data import encode_text
from launch.demos import object_shapes
from launch.grounding import Recorded, ground, ground_films, ground_recorded, read_recorded
from wam_jax import console
from wam_jax.evaluation import robustness
from wam_jax.evaluation.closed_loop_report import COLUMNS, add_closed_loop, result_rows
from wam_jax.evaluation.grounding import TOKEN_KINDS
from wam_jax.evaluation.grounding_report import (
    ATTENTION_COLUMNS,
    SENSITIVITY_COLUMNS,
    add_grounding,
    attention_rows,
    sensitivity_rows,
)
from wam_jax.evaluation.report import Report, write_summary
from wam_jax.evaluation.robustness import add_robustness, conditions, evaluate_robustness
from wam_jax.evaluation.success import EvaluationConfig, TaskResult, TaskText, evaluate_task
from wam_jax.posttraining.restore import load_policy
from wam_jax.serving.remote import RemotePolicy, is_address
from wam_jax.sim.tasks import TASK_NAMES, wordings
from wam_jax.training.restore import Trained
from wam_jax.types import Text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="run folder, its best/, an export, or ws://HOST:PORT of `wam serve`")
    parser.add_argument("--tasks", nargs="+", choices=TASK_NAMES, help="default: what the model was trained on")
    parser.add_argument("--config", default="configs/common.py", help="devices and numbers (default: %(default)s)")
    parser.add_argument("--grounding", action="store_true", help="also what actions look at and depend on, with films")
    parser.add_argument(
        "--masks", type=Path, help="for --grounding, also of recorded data: .npz of masks, see launch/grounding.py"
    )
    parser.add_argument("--robustness", action="store_true", help="also success under changed conditions")
    parser.add_argument("--out", type=Path, help="folder for the report (default: CHECKPOINT/evaluation)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(args.config, overrides)
    mesh = devices.start(config)
    trained = load_policy(args.checkpoint, mesh)
    tasks = args.tasks or trained.meta["config"]["demos"]["tasks"]
    _check(args, trained, config, tasks, object_shapes(trained.meta["config"]["demos"].get("object_shapes", {})))
    recorded = None
    if args.masks:
        size = tuple(trained.meta["identity"]["tokenizer"]["image_size"])
        recorded = read_recorded(args.masks, ConfigDict(trained.meta["config"]["data"]), size)
    if not tasks:
        console.log(f"{args.checkpoint} was not trained on simulated tasks: no closed loop, only what actions look at")
    results, seconds = evaluate(config, trained, tasks, mesh)
    out = args.out or Path(args.checkpoint) / "evaluation"
    report = Report(f"Evaluation of {Path(args.checkpoint).name}", subtitle=f"step {trained.step}")
    if results:
        report_evaluation(report, config, trained, results)
        console.table("Closed-loop evaluation", COLUMNS, result_rows(results))
    summary = {"tasks": {r.task: r.summary() for r in results}, "step": trained.step, "seconds": seconds}
    written = _write(out, report, summary)  # after each part, so that none is lost to what goes wrong in the next
    if args.grounding:
        summary["grounding"] = report_grounding(report, config, trained, results, recorded)
        written = _write(out, report, summary)
    if args.robustness:
        summary["robustness"] = report_robustness(report, config, trained, tasks, mesh)
        written = _write(out, report, summary)
    console.log(f"wrote {written}")


def _check(
    args: argparse.Namespace,
    trained: Trained,
    config: ConfigDict,
    tasks: Sequence[str],
    shapes: tuple[tuple[int, ...], ...],
) -> None:
    """Raises ConfigError, or ValueError, for what would go wrong after hours of evaluation."""
    if is_address(args.checkpoint) and not args.out:
        raise ConfigError(f"{args.checkpoint} is elsewhere; give --out FOLDER for the report")
    if isinstance(trained.policy, RemotePolicy) and args.grounding:
        raise ConfigError("nobody can look into a policy that is elsewhere; ask for --grounding where its run is")
    if args.masks and not args.grounding:
        raise ConfigError(f"--masks {args.masks} is for --grounding; ask for that, too")
    if not tasks and (args.robustness or not args.masks):
        raise ConfigError(
            f"{args.checkpoint} was not trained on simulated tasks; name some with --tasks, or give --grounding "
            "--masks FILE alone, for what its actions look at in its own data"
        )
    if args.robustness:
        for task in tasks:
            conditions(task, shapes, config.evaluation.robustness_axes, config.evaluation.robustness_strengths)


def _write(out: Path, report: Report, summary: Mapping[str, Any]) -> Path:
    write_summary(out, summary)
    return report.write(out)


def evaluate(
    config: ConfigDict, trained: Trained, tasks: Sequence[str], mesh: Mesh
) -> tuple[list[TaskResult], dict[str, float]]:
    """Every task, one after the other; and the seconds each took, compiling included."""
    settings = EvaluationConfig(**config.evaluation)
    results, seconds = [], {}
    for task in tasks:
        began = time.monotonic()
        described = described_task(trained.meta["config"], task)
        results.append(evaluate_task(described, trained, settings, mesh))
        seconds[task] = round(time.monotonic() - began, 1)
    return results, seconds


def report_grounding(
    report: Report, config: ConfigDict, trained: Trained, results: Sequence[TaskResult], recorded: Recorded | None
) -> dict[str, Any]:
    """What actions look at and depend on, into the report, the console and a summary; by task, or file of masks."""
    told = trained.meta["config"]
    found, films = {}, {}
    for result in results:
        task = described_task(told, result.task)
        found[result.task] = ground(trained, task, config.evaluation.grounding_scenes, TOKEN_KINDS)
        films[result.task] = ground_films(trained, task, result, config.evaluation.execute)
    if recorded is not None:
        found[recorded.name], films[recorded.name] = ground_recorded(trained, recorded, config.evaluation.films)
    add_grounding(report, found, films)
    console.table("What actions look at", ATTENTION_COLUMNS, attention_rows(found))
    console.table("What actions depend on", SENSITIVITY_COLUMNS, sensitivity_rows(found))
    return {task: grounding.summary() for task, grounding in found.items()}


def report_robustness(
    report: Report, config: ConfigDict, trained: Trained, tasks: Sequence[str], mesh: Mesh
) -> dict[str, Any]:
    """Success under changed conditions, into the report, the console and a summary."""
    told, settings = trained.meta["config"], EvaluationConfig(**config.evaluation)
    results = [
        evaluate_robustness(described_task(told, task, every_wording=True), trained, settings, mesh) for task in tasks
    ]
    add_robustness(report, results)
    console.table("Success under changed conditions", robustness.COLUMNS, robustness.rows(results))
    return {result.task: result.summary() for result in results}


def described_task(config: Mapping[str, Any], task: str, every_wording: bool = False) -> TaskText:
    """A task as a model meets it that was trained with ``config``.

    Its robot is the one that the task's demonstrations were said to be of; the first, for a task that was not trained.
    ``every_wording``: with the instructions in the demonstrations' words, then in all others.
    """
    tasks, embodiments = config["demos"]["tasks"], config["data"].get("embodiments") or []
    robot = embodiments[tasks.index(task)] if embodiments and task in tasks else 0
    shapes = object_shapes(config["demos"].get("object_shapes", {}))
    return TaskText(
        name=task,
        text=task_text(config, task, every_wording),
        embodiment=robot,
        shapes=shapes,
        cameras=tuple(config["data"]["cameras"]),
    )


def task_text(config: Mapping[str, Any], task: str, every_wording: bool = False) -> Text:
    """Features of a task's instructions, in the environment's order."""
    data = config["data"]
    said = [text for wording in wordings(task)[: None if every_wording else 1] for text in wording]
    table = encode_text(said, data["text_encoder"], data["text_tokens"])
    return Text(features=jnp.asarray(table.features), mask=jnp.asarray(table.mask))


def report_evaluation(report: Report, config: ConfigDict, trained: Trained, results: list[TaskResult]) -> None:
    """The closed-loop sections of a report."""
    identity: dict[str, Any] = trained.meta["identity"]
    cameras, lead = identity["data"]["cameras"], identity["interface"]["frame_steps"][-1]
    add_closed_loop(report, results, cameras, config.evaluation.execute, lead)
