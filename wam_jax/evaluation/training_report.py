"""Report sections about training: curves, and predictions beside the truth."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from wam_jax.evaluation import media
from wam_jax.evaluation.heldout import Heldout
from wam_jax.evaluation.report import Report
from wam_jax.training.metrics import read_metrics

_SHOWN_WINDOWS = 6
_SMALL = 64  # beneath so many windows, figures mean little


def add_training_curve(report: Report, path: Path) -> None:
    """Each stream's loss against the step."""
    rows = read_metrics(path)
    names = [name for name in rows[-1] if name.startswith("loss/")] if rows else []
    series = {name.removeprefix("loss/"): [(row["step"], row[name]) for row in rows] for name in names}
    if series:
        chart = media.curve(series, "Velocity error in training", "step", "mean squared error")
        report.add_image("Training", chart, "Moving noise levels make single values jump; the trend counts.")


def add_heldout(report: Report, results: Mapping[str, Heldout], cameras: Sequence[str]) -> None:
    """A table of errors, and for some windows the present, the real future, the imagined one and the tokenizer's."""
    rows = []
    for name, result in results.items():
        errors, actions = result.image_errors(), result.action_errors()
        rows.append(
            (
                name,
                len(result.actions),
                f"{actions['chunk']:.3f}",
                f"{actions['first_action']:.3f}",
                f"{errors['repeat_present']:.4f}",
                f"{errors['imagined']:.4f}",
                f"{errors['tokenizer']:.4f}",
            )
        )
    header = ("dataset", "windows", "action error", "first action", "repeat present", "imagined", "tokenizer")
    report.add_table("Held-out windows", header, rows)
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
            caption = "Columns: windows. Rows: present, real future, imagined future, tokenizer's best."
            report.add_image(f"{name}: {camera}", media.picture(_grid(result, index)), caption)


def _grid(result: Heldout, camera: int) -> np.ndarray:
    shown = np.flatnonzero(result.future_mask[:, -1, camera])[:_SHOWN_WINDOWS]
    rows = (result.present, result.future[:, -1], result.imagined[:, -1], result.reconstructed[:, -1])
    frames = np.concatenate([row[shown, camera] for row in rows])
    return media.tile(media.enlarge(frames, 128), columns=max(1, len(shown)))
