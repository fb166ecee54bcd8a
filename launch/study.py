"""`wam study CONFIG`: a claim, tested. Arms x seeds on the same data, steps and episodes.

    wam study configs/studies/finetune.py --config.base.init=runs/quickstart

A study's config has ``base`` (an experiment), ``arms`` (name -> fields of the base that differ), ``seeds``, and
``compare`` (pairs of arms). An arm's ``before`` holds fields of the base for a training that comes first, from which
it starts; arms with the same one share it. An arm with ``posttrain.method`` is post-trained (`wam posttrain`)
instead; "base" is what the others of these start from.
With ``robustness``, success is also judged under changed conditions, by axis; with ``grounding``, what actions look at
and depend on is measured.
What arms share (demonstrations, tokenizer, latents) is made once. Every finished run is kept, and whenever a seed is
done in all arms the report is written; a killed study goes on where it was. Several processes may share a --workdir,
each with seeds of its own (``--config.seeds="(1,)"``); the command with all seeds then reports.
"""

import argparse
import functools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float
from ml_collections import ConfigDict

from data_pipelines.batches import LatentSource
from launch import devices
from launch.config import ConfigError, default_workdir, load_config, set_field, to_plain
from launch.data import Data, open_data
from launch.demos import demo_datasets, object_shapes
from launch.evaluate import described_task
from launch.grounding import ground
from launch.kept import digest
from launch.posttrain import posttrain, tracking_figures
from launch.start import check_start
from launch.tokenizers import encode_dataset, find_tokenizer, tokenizer_key, with_images_for
from launch.train import evaluate_validation, find_tokenizers, lpips_if_here, train_model
from launch.world2act import check_posttrain, heldout_sequences
from wam_jax import console
from wam_jax.evaluation import media
from wam_jax.evaluation.grounding import mean_grounding
from wam_jax.evaluation.report import Report, environment, write_summary
from wam_jax.evaluation.robustness import evaluate_robustness, unseen_axes
from wam_jax.evaluation.scene_probe import probe_tokenizer
from wam_jax.evaluation.scenes import draw_scenes
from wam_jax.evaluation.statistics import Rate, seeds_mean
from wam_jax.evaluation.study import (
    arm_differences,
    arm_result,
    arm_rows,
    difference_rows,
    metric_differences,
    metric_table,
    task_rows,
)
from wam_jax.evaluation.study_metrics import heldout_metrics
from wam_jax.evaluation.success import EvaluationConfig, TaskText, policy_outcomes
from wam_jax.posttraining.restore import load_policy
from wam_jax.training.metrics import read_metrics
from wam_jax.training.restore import Trained, load_trained

OUTCOMES = "outcomes.json"  # of a finished run
BASE = "base"  # posttrain.method of an arm that is not trained further
_SCENES, _SCENE_SEEDS = 1024, (500, 501)  # pictures of a task that probes are fitted and tested on
ARM_COLUMNS = ("arm", "success", "by seed")
DIFFERENCE_COLUMNS = ("difference", "95% interval", "significant")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a study, as configs/studies/finetune.py")
    parser.add_argument("--workdir", type=Path, help="where everything is written (default: runs/CONFIG)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    began = time.monotonic()
    study = load_config(args.config, overrides)
    study.base.tokenizer.init = study.base.tokenizer.init or study.base.init  # an arm may start from nothing else
    arms = {name: arm_config(study, name) for name in study.arms}
    _check_pairs(study)
    workdir = args.workdir or default_workdir(args.config)
    for name, arm in arms.items():
        check_start(arm, workdir, starts="before" in study.arms[name])
        if (before := before_config(study, name)) is not None:
            check_start(before, workdir)
        if arm.posttrain.method not in ("", BASE):
            check_posttrain(arm, starts="before" in study.arms[name])
    mesh = devices.start(study.base)
    shared: dict[str, _Shared] = {}
    measure = _Measure(bool(study.get("robustness", False)), bool(study.get("grounding", False)))
    finished: dict[str, list[ArmRun]] = {name: [] for name in arms}
    todo = [(name, seed) for seed in study.seeds for name in arms]
    for number, (name, seed) in enumerate(todo, start=1):
        console.log(f"{name}, seed {seed} ({number} of {len(todo)})")
        config = arms[name].copy_and_resolve_references()
        config.seed = seed
        directory = workdir / name / f"seed_{seed}"
        if (before := before_config(study, name)) is not None:
            before.seed = seed
            first = workdir / "before" / _training(before) / f"seed_{seed}"
            config.init = str(first)
            if not (directory / OUTCOMES).exists():
                _train(before, study.base.seed, mesh, workdir, first, shared)
        finished[name].append(_run_arm(config, study.base.seed, mesh, workdir, directory, shared, measure))
        if number % len(arms) == 0:  # a seed of every arm
            report_study(study, finished, workdir, time.monotonic() - began)


class ArmRun(NamedTuple):
    """One arm at one seed: success of every episode, task after task; by axis of changed conditions, the share of its
    strengths at which an episode succeeds; and what else was measured, by name."""

    success: Bool[np.ndarray, "N"]
    changed: dict[str, Float[np.ndarray, "N"]]
    metrics: dict[str, float]


def arm_config(study: ConfigDict, name: str) -> ConfigDict:
    """The base with an arm's fields.

    Raises:
      ConfigError: for a field that the base does not have.
    """
    config = study.base.copy_and_resolve_references()
    for field, value in study.arms[name].items():
        if field != "before":
            set_field(config, field, value)
    return config


def before_config(study: ConfigDict, name: str) -> ConfigDict | None:
    """What an arm is trained on first: the base with the fields of its ``before``; None where it has none."""
    if "before" not in study.arms[name]:
        return None
    config = study.base.copy_and_resolve_references()
    config.posttrain.method = ""
    for field, value in study.arms[name]["before"].items():
        set_field(config, field, value)
    return config


def _check_pairs(study: ConfigDict) -> None:
    for name in {name for pair in study.compare for name in pair}:
        if name not in study.arms:
            raise ConfigError(f"config.compare names {name!r}, which is no arm (has: {', '.join(study.arms)})")


class _Shared:
    """Demonstrations, tokenizers and latents of arms that agree on all that makes them."""

    def __init__(self, config: ConfigDict, mesh: Mesh, directory: Path):
        self.config, self.directory = config, directory
        config.data.datasets = tuple(config.data.datasets) or demo_datasets(config, directory)
        self.datasets = config.data.datasets
        self.data: Data = open_data(config.data)
        self.tokenizer = find_tokenizer(config, self.data, mesh, directory)
        self.data = with_images_for(self.tokenizer, self.data)
        self.latents: list[LatentSource] | None = None
        if config.data.precompute_latents:
            self.latents = encode_dataset(self.data, self.tokenizer)

    @functools.cached_property
    def probes(self) -> dict[str, float]:
        """What can be read off the tokenizer's latents, a mean over the tasks; kept for all that share a tokenizer."""
        tasks, cameras = tuple(self.config.demos.tasks), tuple(self.config.data.cameras)
        size, shapes = self.config.data.image_size[0], object_shapes(self.config.demos.object_shapes)
        of = digest([tokenizer_key(self.tokenizer), tasks, cameras, size, shapes])
        path = self.directory.parent / f"probes_{of}.json"
        if path.exists():
            return json.loads(path.read_text())
        found = []
        for task in tasks:
            fit, test = (draw_scenes(task, size, _SCENES, seed, shapes, cameras) for seed in _SCENE_SEEDS)
            found.append(probe_tokenizer(self.tokenizer, fit, test))
        names = dict.fromkeys(name for row in found for name in row)  # not every task has all of them
        means = {f"probe_{name}": float(np.mean([row[name] for row in found if name in row])) for name in names}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(means) + "\n")
        return means


def _train(
    config: ConfigDict, data_seed: int, mesh: Mesh, workdir: Path, directory: Path, shared: dict[str, _Shared]
) -> _Shared:
    """Trains, on what arms share; or goes on where that was interrupted."""
    key, prepared = _preparation(config), config.copy_and_resolve_references()
    prepared.seed = data_seed
    if key not in shared:
        shared[key] = _Shared(prepared, mesh, workdir / "shared" / key)
    parts = shared[key]
    config.data.datasets = parts.datasets
    frozen = find_tokenizers(prepared, parts.data, parts.tokenizer, parts.latents, mesh, parts.directory)
    train_model(config, parts.data, frozen, parts.latents, mesh, directory)
    return parts


class _Measure(NamedTuple):
    """What is measured beside success."""

    robustness: bool
    grounding: bool


def _run_arm(
    config: ConfigDict,
    data_seed: int,
    mesh: Mesh,
    workdir: Path,
    directory: Path,
    shared: dict[str, _Shared],
    measure: _Measure,
) -> ArmRun:
    """Trains and measures; reads back what is finished."""
    path = directory / OUTCOMES
    asked = to_plain(config)
    if path.exists():
        saved = json.loads(path.read_text())
        had = _Measure(*saved["measured"])
        lacks = had.grounding != measure.grounding or (measure.robustness and not had.robustness)
        if _deciding(saved["config"]) != json.loads(json.dumps(_deciding(asked))) or lacks:
            raise ConfigError(f"{path} is of another configuration; choose another --workdir, or delete it")
        changed = {axis: np.array(success) for axis, success in saved["changed"].items()}
        return ArmRun(np.array(saved["success"], bool), changed if measure.robustness else {}, saved["metrics"])
    if config.posttrain.method:
        trained, metrics = _posttrain(config, data_seed, mesh, workdir, directory)
    else:
        parts = _train(config, data_seed, mesh, workdir, directory, shared)
        trained = load_trained(directory, mesh)
        metrics = {
            **heldout_metrics(evaluate_validation(config, parts.data, trained), lpips_if_here(config)),
            **parts.probes,
        }
    settings = EvaluationConfig(**config.evaluation)
    tasks = [described_task(asked, task, every_wording=measure.robustness) for task in config.demos.tasks]
    ended = [policy_outcomes(task, trained, settings, mesh) for task in tasks]
    success = np.concatenate([found.success for found in ended])
    metrics["wrong_object"] = float(np.concatenate([found.wrong for found in ended]).mean())
    changed = {}
    if measure.robustness:
        found = [evaluate_robustness(task, trained, settings, mesh).by_axis for task in tasks]
        changed = {axis: np.concatenate([axes[axis] for axes in found]) for axis in found[0]}
    if measure.grounding:
        metrics |= _grounding(trained, tasks, settings)
    kept = {axis: outcomes.tolist() for axis, outcomes in changed.items()}
    outcomes = {
        "config": asked,
        "measured": list(measure),
        "success": success.tolist(),
        "changed": kept,
        "metrics": metrics,
    }
    path.parent.mkdir(parents=True, exist_ok=True)  # a base is not trained here
    path.write_text(json.dumps(outcomes) + "\n")
    console.log(f"{directory}: {Rate(int(success.sum()), success.size)}")
    return ArmRun(success, changed, metrics)


def _grounding(trained: Trained, tasks: Sequence[TaskText], settings: EvaluationConfig) -> dict[str, float]:
    """What actions look at and depend on, as demonstrations look, and as none of them did."""
    found = mean_grounding([ground(trained, task, settings.grounding_scenes) for task in tasks])
    for axis in unseen_axes([(task.name, task.shapes) for task in tasks]):
        changed = mean_grounding([ground(trained, task, settings.grounding_scenes, axis=axis) for task in tasks])
        found |= {f"{name}, unseen {axis}": value for name, value in changed.items()}
    return found


def _posttrain(
    config: ConfigDict, data_seed: int, mesh: Mesh, workdir: Path, directory: Path
) -> tuple[Trained, dict[str, float]]:
    """A post-trained policy, and how alike its last episodes of training and what was imagined for them are."""
    if config.posttrain.method == BASE:
        return load_trained(Path(config.init), mesh), {}
    if not config.data.datasets:
        prepared = config.copy_and_resolve_references()
        prepared.seed = data_seed
        config.data.datasets = demo_datasets(prepared, workdir / "shared")
    work, tracking = posttrain(config, mesh, directory, workdir / "shared")
    names = ("similarity", "similarity_of_others", "retrieval")
    rows = [row for row in read_metrics(directory / "metrics.jsonl") if names[0] in row]  # none of imitation
    online = {f"online_{name}": rows[-1][name] for name in names if rows}
    stage1 = {f"adapters_{name}": value for name, value in heldout_sequences(config, work).items()}
    return load_policy(directory, mesh), {**online, **stage1, **tracking_figures(tracking)}


def _preparation(config: ConfigDict) -> str:
    """A name for all that demonstrations, tokenizer and latents depend on, beside the study's seed."""
    parts = [to_plain(config[name]) for name in ("demos", "data", "tokenizer", "latent_action")]
    return digest([parts, config.tokenizer.init or config.init])


def _training(config: ConfigDict) -> str:
    """A name for all that a training depends on: how it is judged is no part of it."""
    return digest({name: part for name, part in _deciding(to_plain(config)).items() if name != "evaluation"})


def _deciding(told: dict[str, Any]) -> dict[str, Any]:
    """A config without its post-training, where there is none."""
    return {name: part for name, part in told.items() if name != "posttrain" or part["method"]}


def report_study(study: ConfigDict, finished: dict[str, list[ArmRun]], workdir: Path, seconds: float) -> None:
    """Tables, figures and summary of the runs that are finished, as many seeds of every arm."""
    results = {name: np.stack([run.success for run in runs]) for name, runs in finished.items()}
    arms = {name: arm_result(rows) for name, rows in results.items()}
    differences = arm_differences(results, study.compare)
    metrics = {name: [run.metrics for run in runs] for name, runs in finished.items()}
    seeds = list(study.seeds)[: len(next(iter(results.values())))]
    report = Report(f"Study: {workdir.name}", subtitle=f"seeds {', '.join(map(str, seeds))} of {len(study.seeds)}")

    def show(title: str, columns: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
        report.add_table(title, columns, rows)
        console.table(title, columns, rows)

    show("Success", ARM_COLUMNS, arm_rows(arms))
    figure = media.bars({name: arm.success for name, arm in arms.items()}, "Success")
    (workdir / "success.png").write_bytes(figure)
    report.add_image("", figure)
    if len(tasks := list(study.base.demos.tasks)) > 1:
        by_task, differences_by_task = task_rows(results, study.compare, len(tasks))
        show("By task", ("arm", *tasks), by_task)
        report.add_table("", ("difference", *tasks), differences_by_task)
    show("Differences on the same episodes", DIFFERENCE_COLUMNS, difference_rows(differences))
    axes = _add_changed(report, study, finished, workdir)
    measured = "Also measured (mean over seeds, and their standard deviation; of ratios, a factor)"
    show(measured, ("", *results), metric_table(metrics))
    gaps = metric_differences(metrics, study.compare)
    report.add_table("Differences of these (mean over seeds, and in how many above zero)", ("", *differences), gaps)
    report.add_figures(environment(), "Environment")
    summary: dict[str, Any] = {
        "arms": {name: arm.as_dict() for name, arm in arms.items()},
        "differences": {pair: found.as_dict() for pair, found in differences.items()},
        "changed": axes,
        "metrics": metrics,
        "seeds": seeds,
        "config": to_plain(study),
        "this_run_s": round(seconds, 1),
    }
    write_summary(workdir, summary)
    console.log(f"{console.duration(seconds)}; wrote {report.write(workdir)}")


def _add_changed(report: Report, study: ConfigDict, finished: dict[str, list[ArmRun]], workdir: Path) -> dict[str, Any]:
    """Success under changed conditions, axis by axis, into the report and a summary."""
    axes = list(next(iter(finished.values()))[0].changed)
    if not axes:
        return {}
    outcomes = {a: {name: np.stack([run.changed[a] for run in runs]) for name, runs in finished.items()} for a in axes}
    arms = {axis: {name: seeds_mean(x) for name, x in found.items()} for axis, found in outcomes.items()}
    gaps = {axis: arm_differences(found, study.compare) for axis, found in outcomes.items()}
    series = {name: {axis: arms[axis][name].mean for axis in axes} for name in finished}
    success = [(axis, *map(str, arms[axis].values())) for axis in axes]
    differences = [(axis, *map(str, gaps[axis].values())) for axis in axes]
    figure = media.radar(series, "Success under changed conditions")
    (workdir / "changed.png").write_bytes(figure)
    report.add_image("Under changed conditions", figure)
    report.add_table("", ("axis", *finished), success)
    report.add_table("Differences under changed conditions", ("axis", *next(iter(gaps.values()))), differences)
    console.table("Success under changed conditions", ("axis", *finished), success)
    return {
        axis: {
            "arms": {name: result.as_dict() for name, result in arms[axis].items()},
            "differences": {name: gap.as_dict() for name, gap in gaps[axis].items()},
        }
        for axis in axes
    }
