"""`wam quickstart`: from nothing to a robot that acts. Demonstrations, index, tokenizer, model, evaluation, report.

Every stage keeps what it made and is skipped, or resumed in its middle, when the command is run again.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

from launch import devices
from launch.config import default_workdir, load_config, to_plain
from launch.data import open_data
from launch.demos import demo_datasets
from launch.evaluate import evaluate, report_evaluation
from launch.train import report_training, train
from wam_jax import console
from wam_jax.evaluation.closed_loop_report import COLUMNS, result_rows
from wam_jax.evaluation.report import Report, environment, write_summary
from wam_jax.training.restore import load_trained


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", default="configs/quickstart.py", help="experiment file (default: %(default)s)")
    parser.add_argument("--workdir", type=Path, help="where everything is written (default: runs/CONFIG)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    began = time.monotonic()
    config = load_config(args.config, overrides)
    workdir = args.workdir or default_workdir(args.config)
    mesh = devices.start(config)
    stages = _Stages(workdir / "stages.json")

    with stages.timed("demonstrations"):
        config.data.datasets = demo_datasets(config, workdir)
    with stages.timed("index and text"):
        data = open_data(config.data)
    for name, seconds in train(config, data, mesh, workdir).items():
        stages.add(name, seconds)
    with stages.timed("evaluation"):
        trained = load_trained(workdir, mesh)
        results, _ = evaluate(config, trained, config.demos.tasks, mesh)

    report = Report(f"wam_jax {Path(args.config).stem}", subtitle="Demonstrations, training and closed-loop evaluation")
    report_evaluation(report, config, trained, results)
    with stages.timed("held-out windows"):
        training = report_training(config, data, mesh, workdir, report)
    summary = {
        "tasks": {result.task: result.summary() for result in results},
        **training,
        "stages_s": stages.seconds,
        "this_run_s": round(time.monotonic() - began, 1),
        "peak_memory_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
        "config": to_plain(config),
    }
    report.add_table("Stages", ("stage", "time"), [(n, console.duration(s)) for n, s in stages.seconds.items()])
    report.add_figures({**environment(), "peak memory": f"{summary['peak_memory_gib']} GiB"}, "Environment")
    write_summary(workdir, summary)
    page = report.write(workdir)
    console.table("Closed-loop success", COLUMNS, result_rows(results))
    console.log(f"{console.duration(sum(stages.seconds.values()))} in all; open {page}")


class _Stages:
    """Seconds spent in each stage over all runs of a work directory, so that a resumed run tells the whole time."""

    def __init__(self, path: Path):
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}

    def add(self, name: str, seconds: float) -> None:
        self.seconds[name] = round(self.seconds.get(name, 0.0) + seconds, 1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.seconds))

    def timed(self, name: str) -> Any:
        return _Timed(self, name)


class _Timed:
    def __init__(self, stages: _Stages, name: str):
        self._stages, self._name = stages, name

    def __enter__(self) -> None:
        self._began = time.monotonic()
        console.log(f"{self._name}")

    def __exit__(self, *_: object) -> None:
        self._stages.add(self._name, time.monotonic() - self._began)
