"""`wam posttrain`: a frozen policy improved by what a world model imagines, without rewards or labels (World2Act).

    wam posttrain --config configs/world2act/posttrain.py
    wam evaluate runs/world2act/posttrain --config.evaluation.execute=7

Stage 1 learns where video and actions meet, on demonstrations and on what the policy does by itself. Then the world
model imagines from many starts. Stage 2 runs the policy from the same starts in the simulator and trains what is added
to it (`config.posttrain.method`: a residual, or LoRA's factors) until what it does is like what was imagined; or
(`pixels`, the comparator of DreamGen) the policy imitates the imagined videos, with actions that inverse dynamics reads
off them. Each stage is kept, and resumed where it was.
"""

import argparse
from pathlib import Path
from typing import Any

from jax.sharding import Mesh
from ml_collections import ConfigDict

from launch import devices
from launch.config import default_workdir, load_config, to_plain
from launch.demos import demo_datasets
from launch.improve import Tracking, imitate, improve
from launch.world2act import Work, check_posttrain, heldout_sequences, prepare
from wam_jax import console
from wam_jax.encoders import words
from wam_jax.evaluation import media
from wam_jax.evaluation.report import Report, write_summary
from wam_jax.evaluation.statistics import Rate, paired_difference, ranking
from wam_jax.evaluation.success import EvaluationConfig, policy_outcomes
from wam_jax.posttraining.restore import ADAPTERS, load_policy
from wam_jax.serving.remote import is_address
from wam_jax.training.metrics import read_metrics

_FILMS, _FPS = 6, 8
COLUMNS = ("policy", "success", "95% interval", "n")
HELDOUT_COLUMNS = ("held-out windows", "similarity", "of others", "retrieval", "action error")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config", default="configs/world2act/posttrain.py", help="experiment file (default: %(default)s)"
    )
    parser.add_argument("--workdir", type=Path, help="where everything is written (default: runs/CONFIG)")


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    config = load_config(args.config, overrides)
    if is_address(config.init):  # it is told words as they are
        config.data.text_encoder, config.data.text_tokens = words.NAME, words.LENGTH
    check_posttrain(config)
    mesh = devices.start(config)
    workdir = args.workdir or default_workdir(args.config)
    if not config.data.datasets:
        config.data.datasets = demo_datasets(config, workdir)
    work, tracking = posttrain(config, mesh, workdir)
    report = Report(f"Post-training: {args.config}", subtitle=str(workdir))
    summary = _report(report, config, work, tracking, mesh, workdir)
    write_summary(workdir, summary)
    console.log(f"wrote {report.write(workdir)}")


def posttrain(
    config: ConfigDict, mesh: Mesh, directory: Path, shared: Path | None = None
) -> tuple[Work, Tracking | None]:
    """Both stages, each from where it was; arguments as of ``prepare``. Imitation is compared with nothing."""
    work = prepare(config, mesh, directory, shared)
    if config.posttrain.method == "pixels":
        imitate(config, work, mesh, directory)
        return work, None
    return work, improve(config, work, mesh, directory)


def tracking_figures(tracking: Tracking | None) -> dict[str, float]:
    """Mean similarity of episodes that end in success and of others, and how well it tells them apart (``ranking``).

    And whether the gradient that it began with points to what the expert would do.
    """
    if tracking is None:
        return {}
    similarity, success, direction = tracking
    figures = {"direction_of_gradient": float(direction.mean())}
    if (told := ranking(similarity, success)) is None:
        return figures
    return {
        **figures,
        "similarity_tells_success": told.mean,
        "similarity_tells_success_low": told.ci95[0],
        "similarity_tells_success_high": told.ci95[1],
        "similarity_of_successes": float(similarity[success].mean()),
        "similarity_of_failures": float(similarity[~success].mean()),
    }


def _report(
    report: Report, config: ConfigDict, work: Work, tracking: Tracking | None, mesh: Mesh, directory: Path
) -> dict[str, Any]:
    """Success before and after, on episodes that nothing was trained on; curves; what was imagined."""
    settings = EvaluationConfig(**config.evaluation)
    after = load_policy(directory, mesh)
    found = {
        "before": policy_outcomes(work.task, work.base, settings, mesh).success,
        "after": policy_outcomes(work.task, after, settings, mesh).success,
    }
    difference = paired_difference(found["after"], found["before"])
    rates = {name: Rate(int(success.sum()), success.size) for name, success in found.items()}
    rows = [
        (name, f"{rate.rate:.3f}", f"{rate.ci95[0]:.3f} to {rate.ci95[1]:.3f}", rate.n) for name, rate in rates.items()
    ]
    report.add_image(f"Success: {work.task.name}", media.bars(rates, "Success at the end of the episode"))
    report.add_table("", COLUMNS, rows)
    report.add_text("", f"After - before, on the same episodes: {difference}")
    heldout = heldout_sequences(config, work)
    report.add_table("Stage 1", HELDOUT_COLUMNS, [_heldout_row(heldout)])
    for stage, folder in (("Stage 1", directory / ADAPTERS), ("Stage 2", directory)):
        for chart in _curves(read_metrics(folder / "metrics.jsonl")):
            report.add_image(stage, chart)
    if tracked := tracking_figures(tracking):
        report.add_figures(tracked, "Does similarity tell success, its gradient what to do?")
        if (told := tracked.get("similarity_tells_success")) is not None:
            console.log(f"similarity tells success: {told:.2f} (chance: .50)")
    films = [
        (media.film(media.side_by_side({"imagined": pictures[:, 0]}), _FPS), f"start {number}")
        for number, pictures in enumerate(work.imagined.pictures[:_FILMS])
    ]
    report.add_films("Imagined", films)
    console.table("Closed-loop success", COLUMNS, rows)
    console.table("Stage 1", HELDOUT_COLUMNS, [_heldout_row(heldout)])
    console.log(f"after - before: {difference}")
    return {
        "success": {name: {"rate": rate.rate, "ci95": list(rate.ci95), "n": rate.n} for name, rate in rates.items()},
        "difference": difference.as_dict(),
        "adapters": heldout,
        "tracking": tracked,
        "config": to_plain(config),
    }


def _heldout_row(found: dict[str, float]) -> tuple[str, ...]:
    """Of `HELDOUT_COLUMNS`; inverse dynamics knows no similarity."""
    figures = (found.get(name) for name in ("similarity", "similarity_of_others", "retrieval", "reconstruction"))
    return str(int(found["windows"])), *("–" if figure is None else f"{figure:.3f}" for figure in figures)


def _curves(rows: list[dict[str, Any]]) -> list[bytes]:
    """Similarity and retrieval against the step, and success where it was looked at."""
    charts = []
    for title, names in (
        ("Similarity of actions and video", ("similarity", "similarity_of_others")),
        ("How often the pair is found; success", ("retrieval", "rollout_success", "score")),
        ("Error in training", ("reconstruction", "loss/action", "loss/video")),
    ):
        series = {name: points for name in names if (points := [(r["step"], r[name]) for r in rows if name in r])}
        if series:
            charts.append(media.curve(series, title, "step", ""))
    return charts
