"""`wam study CONFIG`: a claim, tested. Arms x seeds on the same data, steps and episodes.

    wam study configs/studies/finetune.py --config.base.init=runs/quickstart

A study's config has ``base`` (an experiment), ``arms`` (name -> fields of the base that differ), ``seeds``, and
``compare`` (pairs of arms). What arms share (demonstrations, tokenizer, latents) is made once. Every finished run is
kept; a killed study goes on where it was.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data_pipelines.latents import LatentCache
from launch import devices
from launch.config import ConfigError, load_config, set_field, to_plain
from launch.data import Data, open_data
from launch.demos import make_demos
from launch.evaluate import described_task
from launch.start import check_start
from launch.train import encode_dataset, find_tokenizer, train_model
from wam_jax import console
from wam_jax.evaluation import media
from wam_jax.evaluation.report import Report, environment, write_summary
from wam_jax.evaluation.statistics import Rate
from wam_jax.evaluation.study import Outcomes, arm_result, bootstrap_difference, study_rows
from wam_jax.evaluation.success import EvaluationConfig, policy_outcomes
from wam_jax.training.restore import load_trained

ARM_COLUMNS = ("arm", "success", "by seed")
DIFFERENCE_COLUMNS = ("difference", "95% interval", "significant")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="a study, as configs/studies/finetune.py")
    parser.add_argument("--workdir", type=Path, help="where everything is written (default: runs/studies/CONFIG)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    began = time.monotonic()
    study = load_config(args.config, overrides)
    study.base.tokenizer.init = study.base.tokenizer.init or study.base.init  # an arm may start from nothing else
    arms = {name: arm_config(study, name) for name in study.arms}
    _check_pairs(study)
    workdir = args.workdir or Path("runs/studies") / Path(args.config).stem
    for arm in arms.values():
        check_start(arm, workdir)
    mesh = devices.start(study.base)
    shared: dict[str, _Shared] = {}
    outcomes: dict[str, list[np.ndarray]] = {name: [] for name in arms}
    todo = [(name, seed) for seed in study.seeds for name in arms]
    for number, (name, seed) in enumerate(todo, start=1):
        console.log(f"{name}, seed {seed} ({number} of {len(todo)})")
        config = arms[name].copy_and_resolve_references()
        config.seed = seed
        outcomes[name].append(_run_arm(config, study.base.seed, mesh, workdir, f"{name}/seed_{seed}", shared))
    results = {name: np.stack(rows) for name, rows in outcomes.items()}
    _report(study, results, workdir, time.monotonic() - began)


def arm_config(study: ConfigDict, name: str) -> ConfigDict:
    """The base with an arm's fields.

    Raises:
      ConfigError: for a field that the base does not have.
    """
    config = study.base.copy_and_resolve_references()
    for field, value in study.arms[name].items():
        set_field(config, field, value)
    return config


def _check_pairs(study: ConfigDict) -> None:
    for name in {name for pair in study.compare for name in pair}:
        if name not in study.arms:
            raise ConfigError(f"config.compare names {name!r}, which is no arm (has: {', '.join(study.arms)})")


class _Shared:
    """Demonstrations, tokenizer and latents of arms that agree on all that makes them."""

    def __init__(self, config: ConfigDict, mesh: Mesh, directory: Path):
        config.data.datasets = tuple(config.data.datasets) or tuple(
            str(folder) for folder in make_demos(config, directory / "data")
        )
        self.datasets = config.data.datasets
        self.data: Data = open_data(config.data)
        self.tokenizer = find_tokenizer(config, self.data, mesh, directory / "tokenizer")
        self.latents: list[LatentCache] | None = None
        if config.data.precompute_latents:
            self.latents = encode_dataset(self.data, self.tokenizer, directory / "latents")


def _run_arm(
    config: ConfigDict, data_seed: int, mesh: Mesh, workdir: Path, name: str, shared: dict[str, _Shared]
) -> np.ndarray:
    """Success of every episode, task after task; read back where the run is finished."""
    directory = workdir / name
    path = directory / "outcomes.json"
    asked = to_plain(config)
    if path.exists():
        saved = json.loads(path.read_text())
        if saved["config"] != json.loads(json.dumps(asked)):
            raise ConfigError(f"{path} is of another configuration; choose another --workdir, or delete it")
        return np.array(saved["success"], bool)
    key = _preparation(config)
    if key not in shared:
        prepared = config.copy_and_resolve_references()
        prepared.seed = data_seed
        shared[key] = _Shared(prepared, mesh, workdir / "shared" / key)
    parts = shared[key]
    config.data.datasets = parts.datasets
    train_model(config, parts.data, parts.tokenizer, parts.latents, mesh, directory)
    trained = load_trained(directory, mesh)
    settings = EvaluationConfig(**config.evaluation)
    success = np.concatenate(
        [policy_outcomes(described_task(asked, task), trained, settings, mesh).success for task in config.demos.tasks]
    )
    path.write_text(json.dumps({"config": asked, "success": success.tolist()}) + "\n")
    console.log(f"{name}: {Rate(int(success.sum()), success.size)}")
    return success


def _preparation(config: ConfigDict) -> str:
    """A name for all that demonstrations, tokenizer and latents depend on, beside the study's seed."""
    parts = [to_plain(config[name]) for name in ("demos", "data", "tokenizer")]
    start = config.tokenizer.init or config.init
    return hashlib.sha256(json.dumps([parts, start], sort_keys=True).encode()).hexdigest()[:12]


def _report(study: ConfigDict, results: dict[str, Outcomes], workdir: Path, seconds: float) -> None:
    arms, differences = study_rows(results, study.compare)
    report = Report(f"Study: {workdir.name}", subtitle=f"{len(study.seeds)} seeds")
    report.add_table("Success", ARM_COLUMNS, arms)
    report.add_image("", media.bars({name: arm_result(rows).pooled for name, rows in results.items()}, "Success"))
    report.add_table("Differences on the same episodes", DIFFERENCE_COLUMNS, differences)
    report.add_figures(environment(), "Environment")
    summary: dict[str, Any] = {
        "arms": {name: arm_result(rows).as_dict() for name, rows in results.items()},
        "differences": {f"{a} - {b}": bootstrap_difference(results[a], results[b]).as_dict() for a, b in study.compare},
        "seeds": list(study.seeds),
        "config": to_plain(study),
        "this_run_s": round(seconds, 1),
    }
    write_summary(workdir, summary)
    console.table("Success", ARM_COLUMNS, arms)
    console.table("Differences on the same episodes", DIFFERENCE_COLUMNS, differences)
    console.log(f"{console.duration(seconds)}; wrote {report.write(workdir)}")
