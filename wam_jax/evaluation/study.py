"""Arms of a study against each other: outcomes of the same episodes, by arm and training seed."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

from wam_jax.evaluation.statistics import Difference, Rate

Shares = Bool[np.ndarray, "S N"] | Float[np.ndarray, "S N"]  # of an episode: success, or the share of several tries
Outcomes = Bool[np.ndarray, "S N"]  # success by training seed and episode; episode i is the same one everywhere


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """Success of an arm: pooled over seeds with Wilson's interval of the episodes, and of each seed."""

    pooled: Rate
    seeds: tuple[Rate, ...]

    def as_dict(self) -> dict[str, object]:
        return {**self.pooled.as_dict(), "seeds": [rate.as_dict() for rate in self.seeds]}


def arm_result(outcomes: Outcomes) -> ArmResult:
    """Of one arm."""
    seeds = tuple(Rate(int(row.sum()), row.size) for row in outcomes)
    return ArmResult(Rate(int(outcomes.sum()), outcomes.size), seeds)


def bootstrap_difference(a: Shares, b: Shares, draws: int = 10_000, seed: int = 0) -> Difference:
    """Mean success of ``a`` minus that of ``b``, with the 95% interval of a two-level paired bootstrap.

    Seeds are drawn anew with replacement, and so are episodes; both arms are read at the same ones. The interval so
    covers training luck and the choice of episodes (Efron and Tibshirani 1993, chapters 8 and 13: percentiles).

    Raises:
      ValueError: the two do not have the same seeds and episodes.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"outcomes of shapes {a.shape} and {b.shape} are not paired; run both on the same episodes")
    difference: Float[np.ndarray, "S N"] = a.astype(np.float64) - b
    rng = np.random.default_rng(seed)
    seeds, episodes = difference.shape
    means = np.empty(draws)
    for draw in range(draws):
        rows = rng.integers(seeds, size=seeds)
        columns = rng.integers(episodes, size=episodes)
        means[draw] = difference[np.ix_(rows, columns)].mean()
    low, high = np.quantile(means, [0.025, 0.975])
    return Difference(float(difference.mean()), (float(low), float(high)), difference.size)


def metric_table(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> list[tuple[str, ...]]:
    """One row a metric, one column an arm: mean and standard deviation over seeds, and how many where some lack it."""

    def cell(values: list[float], seeds: int) -> str:
        if not values:
            return "–"
        spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
        return f"{np.mean(values):.4g}{spread}{f' ({len(values)} of {seeds})' if len(values) < seeds else ''}"

    def row(name: str) -> tuple[str, ...]:
        return name, *(cell([run[name] for run in runs if name in run], len(runs)) for runs in metrics.values())

    return [row(name) for name in _names(metrics)]


def metric_differences(
    metrics: Mapping[str, Sequence[Mapping[str, float]]], compare: Sequence[tuple[str, str]]
) -> list[tuple[str, ...]]:
    """One row a metric, one column a pair of arms: the mean difference over seeds that have both, and how many of them
    it is above zero in. No row where no seed differs."""

    def gaps(name: str, first: str, second: str) -> list[float]:
        pairs = zip(metrics[first], metrics[second], strict=True)
        return [a[name] - b[name] for a, b in pairs if name in a and name in b]

    def cell(values: list[float]) -> str:
        return f"{np.mean(values):+.3g} ({sum(v > 0 for v in values)} of {len(values)} up)" if values else "–"

    found = {name: [gaps(name, *pair) for pair in compare] for name in _names(metrics)}
    return [(name, *map(cell, columns)) for name, columns in found.items() if any(any(values) for values in columns)]


def _names(metrics: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    return list(dict.fromkeys(name for runs in metrics.values() for run in runs for name in run))


def study_rows(
    outcomes: Mapping[str, Outcomes], compare: Sequence[tuple[str, str]]
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Two tables: success by arm (pooled, then each seed), and differences."""
    arms: list[tuple[str, ...]] = []
    for name, rows in outcomes.items():
        result = arm_result(rows)
        arms.append((name, str(result.pooled), ", ".join(f"{rate.rate:.3f}" for rate in result.seeds)))
    differences: list[tuple[str, ...]] = []
    for first, second in compare:
        found = bootstrap_difference(outcomes[first], outcomes[second])
        differences.append((f"{first} - {second}", str(found), "yes" if found.significant else "no"))
    return arms, differences


def task_rows(
    outcomes: Mapping[str, Outcomes], compare: Sequence[tuple[str, str]], tasks: int
) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Two tables with a column a task: success by arm, and differences. Episodes are those of task after task."""
    parts = {name: np.split(rows, tasks, 1) for name, rows in outcomes.items()}
    arms = [(name, *(str(arm_result(part).pooled) for part in own)) for name, own in parts.items()]
    differences = [
        (f"{a} - {b}", *(str(bootstrap_difference(x, y)) for x, y in zip(parts[a], parts[b], strict=True)))
        for a, b in compare
    ]
    return arms, differences
