"""Report sections about training: curves, and predictions beside the truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from wam_jax.evaluation import media
from wam_jax.evaluation.heldout import Heldout
from wam_jax.evaluation.report import Report
from wam_jax.training.metrics import read_metrics

_SHOWN_WINDOWS = 6
_SMALL = 64  # beneath so many windows, figures mean little


def add_training_curve(report: Report, path: Path, stage: str = "") -> None:
    """Each stream's loss against the step, under the name of what is trained."""
    title = f"Training: {stage}" if stage else "Training"
    every = read_metrics(path)
    rows = [row for row in every if "loss" in row]
    names = [name for name in rows[-1] if name.startswith("loss/")] if rows else []
    series = {name.removeprefix("loss/"): [(row["step"], row[name]) for row in rows] for name in names}
    if rows and "psnr" in rows[-1]:
        chart = media.curve({"PSNR": [(row["step"], row["psnr"]) for row in rows]}, "Reconstruction", "step", "dB")
        report.add_image(title, chart, "Of training clips.")
    if series:
        chart = media.curve(series, "Error in training", "step", "mean squared error")
        report.add_image(title, chart, "Moving noise levels make single values jump; the trend counts.")
    if scores := [(row["step"], row["score"]) for row in every if "score" in row]:
        chart = media.curve({"success": scores}, "Closed-loop success in training", "step", "success")
        report.add_image("", chart, "On episodes of another seed than those that are reported.")


HELDOUT_COLUMNS = ("dataset", "windows", "action error", "first action", "repeat present", "imagined", "tokenizer")


def heldout_rows(results: Mapping[str, Heldout]) -> list[tuple[str, ...]]:
    """One row a dataset."""
    rows = []
    for name, result in results.items():
        actions, images = result.action_errors(), result.image_errors()
        figures = [f"{actions[kind]:.3f}" if actions else "–" for kind in ("chunk", "first_action")]
        figures += [f"{images[kind]:.4f}" for kind in ("repeat_present", "imagined", "tokenizer")]
        rows.append((name, str(len(result.actions)), *figures))
    return rows


def add_heldout(report: Report, results: Mapping[str, Heldout], cameras: Sequence[str]) -> None:
    """A table of errors, and for some windows the present, the real future, the imagined one and the tokenizer's."""
    report.add_table("Held-out windows", HELDOUT_COLUMNS, heldout_rows(results))
    report.add_text(
        "",
        "Action error: root mean square over the chunk, in standard deviations of the actions (1 = always the mean). "
        "The others: mean squared pixel error against the real future, of repeating the present frame, of the imagined "
        "future, and of the real future through the tokenizer, which bounds what can be imagined in its latents.",
    )
    small = [f"{name} ({len(result.actions)})" for name, result in results.items() if len(result.actions) < _SMALL]
    if small:
        report.add_text(
            "Too little data to mean much",
            f"So few held-out windows: {', '.join(small)}. They show that the path from data to prediction works; "
            "they say nothing of how good the model is.",
        )
    for name, result in results.items():
        for index, camera in enumerate(cameras):
            shown = np.flatnonzero(result.future_mask[:, -1, index])[:_SHOWN_WINDOWS]
            if not len(shown):
                continue  # every window ends before its last future frame
            caption = "Columns: windows. Rows: present, real future, imagined future, tokenizer's best."
            report.add_image(f"{name}: {camera}", media.picture(_grid(result, index, shown)), caption)


def _grid(result: Heldout, camera: int, windows: Int[np.ndarray, "N"]) -> UInt8[np.ndarray, "H W 3"]:
    rows = (result.present, result.future[:, -1], result.imagined[:, -1], result.reconstructed[:, -1])
    frames = np.concatenate([row[windows, camera] for row in rows])
    return media.tile(media.enlarge(frames, 128), columns=len(windows))
