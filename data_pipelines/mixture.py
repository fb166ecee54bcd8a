"""The order in which windows are drawn: shuffled, sharded over hosts, repeated, and mixed by weight.

For contrastive losses, another one: batches of which a part is hard to tell apart.
"""

import functools
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Int

_SEED_STRIDE = 1_000_003  # grain shuffles epoch n by seed + n: the seeds of two stores must lie apart


def window_order(
    groups: Sequence[Int[np.ndarray, "W"]],
    weights: Sequence[float] | None,
    seed: int,
    shard_index: int = 0,
    shard_count: int = 1,
) -> grain.MapDataset[int]:
    """An endless dataset of window numbers, a pure function of (seed, position).

    Each group is shuffled anew every epoch. Shards split the shuffled epoch, before mixing, so that every shard sees
    every group in its proportion and no window falls to two shards of an epoch.

    Args:
      groups: window numbers of each store.
      weights: how often each group is drawn, relative to the others; None draws every window equally often, each
        once an epoch.
      seed: of the shuffle.
      shard_index: which host this is.
      shard_count: how many hosts there are.

    Raises:
      ValueError: weights that are not positive or not one a group, a shard that is out of range, or more shards than
        windows.
    """
    if not 0 <= shard_index < shard_count:
        raise ValueError(f"shard_index {shard_index} is not below shard_count {shard_count}")
    if weights is None:
        groups = [np.concatenate(groups)]
    elif len(weights) != len(groups) or any(weight <= 0 for weight in weights):
        raise ValueError(f"mixture weights must be positive and one a dataset ({len(groups)}); got {tuple(weights)}")
    parts = []
    for number, group in enumerate(groups):
        if len(group) < shard_count:
            raise ValueError(f"dataset {number} has {len(group)} windows, too few for {shard_count} shards")
        shuffled = grain.MapDataset.source(group).shuffle((seed + number * _SEED_STRIDE) % 2**32)
        parts.append(shuffled[shard_index::shard_count].repeat())
    return parts[0] if len(parts) == 1 else grain.MapDataset.mix(parts, list(weights or ()))


def contrasting_order(
    instruction: Int[np.ndarray, "W"], episode: Int[np.ndarray, "W"], batch_size: int, share: float, seed: int
) -> grain.MapDataset[int]:
    """An endless dataset of window numbers: every batch has windows of different episodes, a share one instruction.

    Two windows of one episode would be negatives of each other that are alike. A pure function of (seed, position).

    Args:
      instruction, episode: of each window.
      batch_size: windows of a batch; where there are fewer episodes, some are met again.
      share: of them; where too few episodes have the instruction, as many as there are.
      seed: of the draws.
    """
    hard = round(share * batch_size)
    episodes = np.unique(episode)
    windows = {number: np.flatnonzero(episode == number) for number in episodes}
    told = {number: int(instruction[own[0]]) for number, own in windows.items()}
    same = {text: np.array([number for number, own in told.items() if own == text]) for text in set(told.values())}

    @functools.lru_cache(maxsize=8)
    def batch(number: int) -> Int[np.ndarray, "B"]:
        rng = np.random.default_rng([seed, number])
        group = same[int(instruction[rng.integers(len(instruction))])]
        alike = rng.permutation(group)[:hard]
        others = rng.permutation(np.setdiff1d(episodes, alike))[: batch_size - len(alike)]
        again = rng.choice(episodes, batch_size - len(alike) - len(others))
        return np.array([rng.choice(windows[e]) for e in rng.permutation(np.concatenate([alike, others, again]))])

    return grain.MapDataset.range(2**40).map(lambda i: int(batch(int(i) // batch_size)[int(i) % batch_size]))
