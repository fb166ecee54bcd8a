"""Arms of a study against each other: outcomes of the same episodes, by arm and training seed."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool

from wam_jax.evaluation.statistics import Difference, Mean, Rate, Shares, seeds_difference, seeds_mean

Outcomes = Bool[np.ndarray, "S N"]  # success by training seed and episode; episode i is the same one everywhere
Pairs = Sequence[tuple[str, str]]  # of arms: the first minus the second
# Metrics that are ratios: of these, means are geometric and arms are divided.
_RATIO = "sensitivity"


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """Success of an arm: over all seeds, and of each."""

    success: Mean
    seeds: tuple[Rate, ...]

    def as_dict(self) -> dict[str, object]:
        return {**self.success.as_dict(), "seeds": [rate.as_dict() for rate in self.seeds]}


def arm_result(outcomes: Outcomes) -> ArmResult:
    """Of one arm."""
    return ArmResult(seeds_mean(outcomes), tuple(Rate(int(row.sum()), row.size) for row in outcomes))


def arm_differences(outcomes: Mapping[str, Shares], compare: Pairs) -> dict[str, Difference]:
    """Of every pair that is to be compared, by ``first - second``."""
    return {f"{a} - {b}": seeds_difference(outcomes[a], outcomes[b]) for a, b in compare}


def metric_table(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> list[tuple[str, ...]]:
    """One row a metric, one column an arm: mean and standard deviation over seeds, and how many where some lack it.

    Of ratios the geometric mean, and the factor that they scatter by.
    """

    def cell(name: str, values: list[float], seeds: int) -> str:
        if not values:
            return "–"
        lacking = f" ({len(values)} of {seeds})" if len(values) < seeds else ""
        mean, deviation = _moments(name, values)
        spread = f" {'×÷' if _is_ratio(name) else '±'} {deviation:.2g}" if len(values) > 1 else ""
        return f"{mean:.4g}{spread}{lacking}"

    def row(name: str) -> tuple[str, ...]:
        return name, *(
            cell(name, [run[name] for run in runs if _known(run, name)], len(runs)) for runs in metrics.values()
        )

    return [row(name) for name in _names(metrics)]


def metric_differences(metrics: Mapping[str, Sequence[Mapping[str, float]]], compare: Pairs) -> list[tuple[str, ...]]:
    """One row a metric, one column a pair of arms: the mean difference over seeds that have both (of ratios, the factor
    between them), and how many of them it is up in. No row where no seed differs."""

    def both(name: str, first: str, second: str) -> list[tuple[float, float]]:
        runs = zip(metrics[first], metrics[second], strict=True)
        return [(a[name], b[name]) for a, b in runs if _known(a, name) and _known(b, name)]

    def cell(name: str, values: list[tuple[float, float]]) -> str:
        if not values:
            return "–"
        up = f"({sum(a > b for a, b in values)} of {len(values)} up)"
        if _is_ratio(name):
            return f"×{_moments(name, [a / b for a, b in values])[0]:.3g} {up}"
        return f"{np.mean([a - b for a, b in values]):+.3g} {up}"

    found = {name: [both(name, *pair) for pair in compare] for name in _names(metrics)}
    return [
        (name, *(cell(name, values) for values in columns))
        for name, columns in found.items()
        if any(a != b for values in columns for a, b in values)
    ]


def _known(run: Mapping[str, float], name: str) -> bool:
    """Whether a run has a metric; a ratio of zero has no logarithm."""
    return name in run and not (_is_ratio(name) and run[name] <= 0)


def _is_ratio(name: str) -> bool:
    return name.startswith(_RATIO)


def _moments(name: str, values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation; of ratios geometric."""
    known = np.log(values) if _is_ratio(name) else np.asarray(values)
    mean, deviation = np.mean(known), np.std(known, ddof=1) if len(values) > 1 else 0.0
    return (float(np.exp(mean)), float(np.exp(deviation))) if _is_ratio(name) else (float(mean), float(deviation))


def _names(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    return list(dict.fromkeys(name for runs in metrics.values() for run in runs for name in run))


def arm_rows(arms: Mapping[str, ArmResult]) -> list[tuple[str, ...]]:
    """Success by arm, over all seeds, then of each."""
    return [(name, str(arm.success), ", ".join(f"{rate.rate:.3f}" for rate in arm.seeds)) for name, arm in arms.items()]


def difference_rows(differences: Mapping[str, Difference]) -> list[tuple[str, ...]]:
    """Differences by pair, and whether their intervals leave out zero."""
    return [(pair, str(found), "yes" if found.significant else "no") for pair, found in differences.items()]


def task_rows(
    outcomes: Mapping[str, Outcomes], compare: Pairs, tasks: int
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Two tables with a column a task: success by arm, and differences. Episodes are those of task after task."""
    parts = {name: np.split(rows, tasks, 1) for name, rows in outcomes.items()}
    arms = [(name, *(str(seeds_mean(part)) for part in own)) for name, own in parts.items()]
    by_task = [arm_differences({name: own[task] for name, own in parts.items()}, compare) for task in range(tasks)]
    return arms, [(pair, *(str(found[pair]) for found in by_task)) for pair in by_task[0]]
