"""What of a chunk of actions is compared with video: how far the hand goes, or where to."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from data_pipelines.transforms import ActionCodec, Affine


@dataclasses.dataclass(frozen=True, eq=False)
class ChunkView:
    """Chunks of (normalised) actions as the action adapter sees them.

    A frame shows where the hand is, not how far it has come. Seen by displacements alone (World2Act), a policy that
    lags behind what was imagined is told to make the same motion from where it is; seen by places, to catch up.

    Attributes:
      columns: for each dimension of the actions, the one of proprioception that says where a chunk begins; -1: none.
      origin, scale: ``(proprio - origin) / scale`` is that place in units of the (normalised) action.
      shown: which dimensions are seen; others are zeros.
    """

    columns: Int[np.ndarray, "A"]
    origin: Float[np.ndarray, "A"]
    scale: Float[np.ndarray, "A"]
    shown: Bool[np.ndarray, "A"]

    @classmethod
    def make(
        cls,
        codec: ActionCodec,
        proprio: Affine,
        position: Sequence[int] = (),
        unit: float = 1.0,
        hidden: Sequence[int] = (),
    ) -> "ChunkView":
        """The view of ``config.posttrain.adapters``.

        Args:
          codec, proprio: of the data.
          position: columns of proprioception in which the cumulative dimensions of the actions begin, in their order;
            empty: displacements as they are.
          unit: what a raw action of 1 moves these columns by.
          hidden: dimensions of the actions that are not seen.

        Raises:
          ValueError: they do not fit the data.
        """
        moved, size = np.flatnonzero(codec.cumulative), codec.action_size
        if position and (len(position) != len(moved) or not 0 <= min(position) <= max(position) < len(proprio.offset)):
            raise ValueError(
                f"posttrain.adapters.position={tuple(position)}: give {len(moved)} columns of proprioception, 0 to "
                f"{len(proprio.offset) - 1}, one for each cumulative dimension of the actions"
            )
        if unit <= 0 or any(not 0 <= number < size for number in hidden):
            raise ValueError(
                f"posttrain.adapters.unit={unit} must be positive, hidden={tuple(hidden)} dimensions 0 to {size - 1}"
            )
        columns, origin, scale = np.full(size, -1), np.zeros(size, np.float32), np.ones(size, np.float32)
        if position:
            columns[moved] = position
            origin[moved] = proprio.offset[list(position)]
            scale[moved] = unit * codec.affine.scale[moved]
        return cls(columns, origin, scale, ~np.isin(np.arange(size), list(hidden)))

    def __call__(self, actions: Float[Array, "*B T*M A"], proprio: Float[Array, "*B T P"]) -> Float[Array, "*B T*M A"]:
        """Chunks as they are seen.

        Args:
          actions: normalised.
          proprio: at the start of each chunk; raw.
        """
        place = jnp.where(self.columns >= 0, (proprio[..., self.columns] - self.origin) / self.scale, 0.0)
        length = actions.shape[-2] // proprio.shape[-2]
        return jnp.where(self.shown, actions + jnp.repeat(place, length, -2), 0.0)

    @property
    def places(self) -> bool:
        """Whether places are seen, not displacements."""
        return bool(((self.columns >= 0) & self.shown).any())

    def elsewhere(
        self, actions: Float[Array, "N T*M A"], chunks: int, count: int, metres: float, key: jax.Array
    ) -> Float[Array, "K N T*M A"]:
        """``count`` copies of chunks as they are seen, each moved up to ``metres`` away, at least a fifth of that.

        Raises:
          ValueError: displacements are seen, not places.
        """
        if not self.places:
            raise ValueError("posttrain.adapters.elsewhere moves places; set posttrain.adapters.position")
        moved = (self.columns >= 0) & self.shown
        direction, far = jax.random.split(key)
        shape = (count, len(actions), chunks)
        way = jnp.where(moved, jax.random.normal(direction, (*shape, actions.shape[-1])), 0.0)
        way = way / jnp.linalg.norm(way, axis=-1, keepdims=True)
        way = metres * jax.random.uniform(far, (*shape, 1), minval=0.2) * way / self.scale
        return actions + jnp.repeat(way, actions.shape[1] // chunks, -2)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON; exact."""
        return {field.name: getattr(self, field.name).tolist() for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ChunkView":
        """The inverse of `to_dict`."""
        origin, scale = (np.array(data[name], np.float32) for name in ("origin", "scale"))
        return cls(np.array(data["columns"], int), origin, scale, np.array(data["shown"], bool))
