"""What goes into a pass through the trunk, and what it leaves for later passes."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from wam_jax.nn.attention import KeysValues
from wam_jax.wam.lens import Lens
from wam_jax.wam.visibility import Group


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Entry:
    """What one group left behind for later passes.

    Attributes:
      keys_values: in each stretch that it ran in, by the stretch's number; all layers.
      bridged: keys and values for each expert that reads it, all of that expert's layers.
      hidden: its tokens after its last layer.
      positions: (time, row, column) of its tokens; only where a lens needs them.
      layers: its tokens after the layers that a lens shows.
      present: which tokens are there: those of a rolling cache's slot that is not filled yet are hidden. None: all.
      episode: see ``Tokens.key_episode``.
    """

    keys_values: dict[int, KeysValues]
    bridged: dict[str, KeysValues]
    hidden: Float[Array, "B n D"]
    present: Bool[Array, "n"] | None = None
    episode: Int[Array, "B"] | None = None
    positions: Float[Array | np.ndarray, "n 3"] | None = None
    layers: Float[Array, "l B n D"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
    """The groups that all later passes attend to without running them again."""

    groups: tuple[Group, ...] = dataclasses.field(default=(), metadata={"static": True})
    entries: tuple[Entry, ...] = ()

    def __add__(self, other: "Cache") -> "Cache":
        return Cache(self.groups + other.groups, self.entries + other.entries)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """One pass's input.

    Attributes:
      groups: what runs.
      values: per group, its tokens at its expert's width; None copies the tokens of ``sources`` where it branches off.
      positions: per group, (time, row, column) of each token.
      rows: per group, which row of the modulation is its own.
      modulation: per expert, one row a distinct noise level (and state).
      sources: per group, the group it branches off from.
      episode: of packed rows, the episode that each block belongs to: tokens see their own only. None: one a row.
      key_episode: per group, the episode whose tokens may see it; -1: none.
      lens: what is shown and changed in this pass.
    """

    groups: tuple[Group, ...]
    values: tuple[Float[Array, "B n D"] | None, ...]
    positions: tuple[Float[Array | np.ndarray, "n 3"], ...]
    rows: tuple[int, ...]
    modulation: Mapping[str, Float[Array, "B S 6 D"]]
    sources: tuple[Group | None, ...]
    episode: Int[Array, "B b"] | None = None
    key_episode: tuple[Int[Array, "B"] | None, ...] = ()
    lens: Lens | None = None
