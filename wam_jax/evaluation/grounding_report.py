"""Report sections about what actions look at and depend on: tables, layers by heads, films with heat maps."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from wam_jax.evaluation import media
from wam_jax.evaluation.grounding import Grounding
from wam_jax.evaluation.report import Report

SENSITIVITY_COLUMNS = ("task", "intervention", "sensitivity ratio", "95% interval", "inside", "outside", "n")
ATTENTION_COLUMNS = ("task", "part", "share of tokens", "attention in it", "best head", "centroid error", "by layer")


def sensitivity_rows(found: dict[str, Grounding]) -> list[tuple[str, ...]]:
    """One row a task and kind of intervention."""
    rows: list[tuple[str, ...]] = []
    for task, grounding in found.items():
        for kind, result in grounding.sensitivity.items():
            if not result.inside.size:
                rows.append((task, kind, "–", "no scene has tokens inside and outside", "–", "–", "0"))
                continue
            low, high = result.interval()
            cells = (f"{result.ratio:.2f}", f"{low:.2f} to {high:.2f}") if result.moved else ("–", "does not move")
            numbers = (f"{result.inside.mean():.3g}", f"{result.outside.mean():.3g}", str(len(result.inside)))
            rows.append((task, kind, *cells, *numbers))
    return rows


def attention_rows(found: dict[str, Grounding]) -> list[tuple[str, ...]]:
    """One row a task and part; shares of the attention to the present frame, means over steps."""
    rows: list[tuple[str, ...]] = []
    for task, grounding in found.items():
        for number, (part, area) in enumerate(zip(grounding.parts, grounding.area, strict=True)):
            cells = (task, part, f"{area:.3f}")
            if grounding.in_mask is None or grounding.centroid_error is None:
                rows.append((*cells, "–", "–", "–", "actions do not attend to the present frame"))
                continue
            by_head = grounding.in_mask[number].mean(0)  # layers, heads
            if np.isnan(by_head).any():
                rows.append((*cells, "–", "–", "–", "no scene shows it"))
                continue
            error = f"{grounding.centroid_error.mean():.3f}" if number == len(grounding.parts) - 1 else ""
            layers = " ".join(f"{x:.2f}" for x in by_head.mean(1))
            rows.append((*cells, f"{by_head.mean():.3f}", f"{by_head.max():.3f}", error, layers))
    return rows


def add_grounding(
    report: Report, found: dict[str, Grounding], films: Mapping[str, Sequence[tuple[bytes, str]]]
) -> None:
    """Everything about ``found``, by task; ``films`` as ``heat_film`` makes them."""
    report.add_table("What actions look at", ATTENTION_COLUMNS, attention_rows(found))
    for task, grounding in found.items():
        if grounding.in_mask is not None and not np.isnan(grounding.in_mask[-1]).any():
            everything, title = grounding.in_mask[-1], f"{task}: attention in the masks"
            report.add_image("", media.matrix(everything.mean(0), title, "layer", "head"))
            report.add_image("", media.matrix(everything.mean(2), title, "sampling step", "layer"))
    report.add_table("What actions depend on", SENSITIVITY_COLUMNS, sensitivity_rows(found))
    report.add_text(
        "",
        "The ratio says how much farther actions move when tokens inside the masks are changed than when equally many "
        "of the background are: 1 is no preference. Token by token, it compares the means over single tokens of each "
        "side. Actions that do not depend on order do not move when tokens are shuffled. The centroid error is how far "
        "the centre of attention is from that of the masks, in sides of the picture.",
    )
    for task, clips in films.items():
        if clips:
            report.add_films(f"Attention and sensitivity: {task}", clips)


def heat_film(
    frames: UInt8[np.ndarray, "T V H W 3"],
    heats: dict[str, Float[np.ndarray, "R n"]],
    grid: tuple[int, int],
    cameras: Sequence[str],
    execute: int,
    label: str,
    fps: float = 8,
) -> tuple[bytes, str]:
    """Each camera beside itself under every heat map; a map holds for ``execute`` frames."""
    plan = np.arange(len(frames)) // execute
    rows = []
    for view, camera in enumerate(cameras):
        panels = {camera: frames[:, view]}
        for name, values in heats.items():
            maps = values.reshape(len(values), len(cameras), *grid)
            maps = maps / np.maximum(maps.max(), 1e-12)  # of the whole film: what hardly matters stays cold
            panels[name] = media.overlay(frames[:, view], maps[plan, view])
        rows.append(media.side_by_side(panels, 128))
    return media.film(media.caption(np.concatenate(rows, axis=1), label), fps), label
