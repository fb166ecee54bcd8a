"""Report sections about what actions look at and depend on: tables, layers by heads, films with heat maps."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, UInt8

from wam_jax.evaluation import media
from wam_jax.evaluation.grounding import Grounding
from wam_jax.evaluation.report import Report

SENSITIVITY_COLUMNS = ("task", "intervention", "sensitivity ratio", "95% interval", "inside", "outside", "n")
ATTENTION_COLUMNS = ("task", "part", "share of the tokens", "attention in it", "best head", "by layer")


def sensitivity_rows(found: dict[str, Grounding]) -> list[tuple[str, ...]]:
    """One row a task and kind of intervention."""
    rows: list[tuple[str, ...]] = []
    for task, grounding in found.items():
        for kind, result in grounding.sensitivity.items():
            low, high = result.interval()
            cells = (f"{result.ratio:.2f}", f"{low:.2f} to {high:.2f}") if result.moved else ("–", "does not move")
            numbers = (f"{result.inside.mean():.3g}", f"{result.outside.mean():.3g}", str(len(result.inside)))
            rows.append((task, kind, *cells, *numbers))
    return rows


def attention_rows(found: dict[str, Grounding]) -> list[tuple[str, ...]]:
    """One row a task and part; shares of the attention to video, means over steps."""
    rows: list[tuple[str, ...]] = []
    for task, grounding in found.items():
        for number, (part, area) in enumerate(zip(grounding.parts, grounding.area, strict=True)):
            if grounding.in_mask is None:
                rows.append((task, part, f"{area:.3f}", "–", "–", "actions attend to no video token"))
                continue
            by_head = grounding.in_mask[number].mean(0)  # layers, heads
            layers = " ".join(f"{x:.2f}" for x in by_head.mean(1))
            rows.append((task, part, f"{area:.3f}", f"{by_head.mean():.3f}", f"{by_head.max():.3f}", layers))
    return rows


def add_grounding(
    report: Report, found: dict[str, Grounding], films: Mapping[str, Sequence[tuple[bytes, str]]]
) -> None:
    """Everything about ``found``, by task; ``films`` as ``heat_film`` makes them."""
    report.add_table("What actions look at", ATTENTION_COLUMNS, attention_rows(found))
    for task, grounding in found.items():
        if grounding.in_mask is not None:
            matrix = grounding.in_mask[-1].mean(0)
            report.add_image("", media.matrix(matrix, f"{task}: attention in the masks", "layer", "head"))
    report.add_table("What actions depend on", SENSITIVITY_COLUMNS, sensitivity_rows(found))
    report.add_text(
        "",
        "The ratio says how much farther actions move when tokens of hand, named object and goal are changed than when "
        "equally many tokens of the background are: 1 is no preference. Actions that do not depend on order do not "
        "move when tokens are shuffled.",
    )
    for task, clips in films.items():
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
            maps = maps / np.maximum(maps.max((1, 2, 3), keepdims=True), 1e-12)
            panels[name] = media.overlay(frames[:, view], maps[plan, view])
        rows.append(media.side_by_side(panels, 128))
    return media.film(media.caption(np.concatenate(rows, axis=1), label), fps), label
