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
    """One row a metric, one column an arm: mean and standard deviation over seeds."""
    names = dict.fromkeys(name for runs in metrics.values() for run in runs for name in run)

    def cell(values: list[float]) -> str:
        if not values:
            return "–"
        spread = f" ± {np.std(values, ddof=1):.2g}" if len(values) > 1 else ""
        return f"{np.mean(values):.4g}{spread}"

    return [(name, *(cell([run[name] for run in runs if name in run]) for runs in metrics.values())) for name in names]


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
