"""Tokens of several groups as one array, cut along the mesh's context axis or not."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from wam_jax.sharding import constrain
from wam_jax.wam.visibility import Group


@dataclasses.dataclass(frozen=True)
class Lane:
    """Groups whose tokens run through one expert's weights as one array [B, N, ...].

    ``rows`` > 1 under context parallelism: the array holds, device after device along the mesh axis, every group's
    share of that device, so that cutting out a group never moves data.
    """

    expert: str
    rows: int
    groups: tuple[Group, ...]

    @property
    def name(self) -> str:
        return f"{self.expert}/{self.rows}"

    def gather(self, parts: Sequence[Any], axis: int = 1) -> Any:
        """One array from the groups' own."""
        if self.rows == 1:
            return _concatenate(parts, axis)
        cut = [part.reshape(*part.shape[:axis], self.rows, -1, *part.shape[axis + 1 :]) for part in parts]
        joined = _concatenate(cut, axis + 1)
        return joined.reshape(*joined.shape[:axis], -1, *joined.shape[axis + 2 :])

    def split(self, x: Array, axis: int = 1) -> list[Array]:
        """The groups' own arrays."""
        if len(self.groups) == 1:
            return [x]
        cuts = np.cumsum([group.size // self.rows for group in self.groups])[:-1]
        if self.rows == 1:
            return jnp.split(x, cuts, axis)
        x = x.reshape(*x.shape[:axis], self.rows, -1, *x.shape[axis + 1 :])
        parts = jnp.split(x, cuts, axis + 1)
        return [part.reshape(*part.shape[:axis], -1, *part.shape[axis + 2 :]) for part in parts]

    def constrain(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        """Says where the tokens live: along ``context`` if they are cut, else on every device of it."""
        return constrain(x, ("batch", "tokens" if self.rows > 1 else None, None))


def _concatenate(parts: Sequence[Any], axis: int) -> Any:
    if len(parts) == 1:
        return parts[0]
    return (np if isinstance(parts[0], np.ndarray) else jnp).concatenate(parts, axis)
