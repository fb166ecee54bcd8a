"""The order in which windows are drawn: shuffled, sharded over hosts, repeated, and mixed by weight."""

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
