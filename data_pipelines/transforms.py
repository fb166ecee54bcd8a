"""How raw actions and proprioception become what the model sees, and back. Works on numpy and jax arrays alike."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Float

AnyArray = Array | np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Affine:
    """``normalise(x) = (x - offset) / scale`` for each of ``A`` dimensions; in raw units."""

    offset: Float[np.ndarray, "A"]
    scale: Float[np.ndarray, "A"]

    def __post_init__(self) -> None:
        if self.offset.shape != self.scale.shape or not (np.isfinite(self.scale).all() and (self.scale > 0).all()):
            raise ValueError(f"an Affine needs as many positive scales as offsets; got {self.offset}, {self.scale}")

    @classmethod
    def identity(cls, size: int) -> "Affine":
        """Leaves ``size`` dimensions as they are."""
        return cls(np.zeros(size, np.float32), np.ones(size, np.float32))

    def normalise(self, raw: Float[AnyArray, "*B A"]) -> Float[AnyArray, "*B A"]:
        """Raw units to model units."""
        return (raw - self.offset) / self.scale

    def unnormalise(self, normalised: Float[AnyArray, "*B A"]) -> Float[AnyArray, "*B A"]:
        """Model units to raw units."""
        return normalised * self.scale + self.offset

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON; exact."""
        return {"offset": self.offset.tolist(), "scale": self.scale.tolist()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Affine":
        """The inverse of `to_dict`."""
        return cls(np.array(data["offset"], np.float32), np.array(data["scale"], np.float32))


@dataclasses.dataclass(frozen=True, eq=False)
class ActionCodec:
    """Action chunks in model space.

    On ``cumulative`` dimensions, which hold deltas, a chunk is encoded as the displacement since its start: a sum of
    small steps is what the scene shows, and its scale does not vanish beside the noise. Then all are normalised.

    Attributes:
      cumulative: which dimensions are deltas.
      affine: normalises the displacements, and the other dimensions as they are.
      limit: largest magnitude of one raw action. Where a decoded delta would exceed it, the rest is made up by the
        deltas after it, so that the chunk still arrives; None where there is no limit.
      block: displacements start anew every so many steps, as a model that sees what happened after each block needs;
        None sums over the whole chunk.
    """

    cumulative: Bool[np.ndarray, "A"]
    affine: Affine
    limit: Float[np.ndarray, "A"] | None = None
    block: int | None = None

    def __post_init__(self) -> None:
        if self.cumulative.shape != self.affine.offset.shape:
            raise ValueError(
                f"{len(self.cumulative)} cumulative flags for an action of {len(self.affine.offset)} dimensions"
            )

    @property
    def action_size(self) -> int:
        """``A``."""
        return len(self.cumulative)

    def encode(self, chunk: Float[AnyArray, "*B K A"]) -> Float[AnyArray, "*B K A"]:
        """Raw actions to model space."""
        return self._by_block(chunk, lambda part: self.affine.normalise(accumulate(part, self.cumulative)))

    def decode(self, encoded: Float[AnyArray, "*B K A"]) -> Float[AnyArray, "*B K A"]:
        """Model space to raw actions; the inverse of `encode` for actions within ``limit``."""
        return self._by_block(encoded, self._decode)

    @property
    def block_steps(self) -> int:
        """How many steps a block has.

        Raises:
          ValueError: actions are not cut into blocks.
        """
        if self.block is None:
            raise ValueError("these actions are not cut into blocks; set data.action_block")
        return self.block

    def _by_block(self, chunk: AnyArray, convert: Callable[[AnyArray], AnyArray]) -> AnyArray:
        """Converts every block of a chunk.

        Raises:
          ValueError: if the chunk does not divide into blocks.
        """
        steps = chunk.shape[-2]
        if self.block is None or steps == self.block:
            return convert(chunk)
        if steps % self.block:
            raise ValueError(f"a chunk of {steps} actions does not divide into blocks of {self.block}")
        blocks = chunk.reshape(*chunk.shape[:-2], steps // self.block, self.block, chunk.shape[-1])
        return convert(blocks).reshape(chunk.shape)

    def _decode(self, encoded: Float[AnyArray, "*B K A"]) -> Float[AnyArray, "*B K A"]:
        chunk = self.affine.unnormalise(encoded)
        xp = chunk.__array_namespace__()
        reached, deltas = xp.zeros_like(chunk[..., 0, :]), []
        for step in range(chunk.shape[-2]):
            delta = chunk[..., step, :] - reached
            deltas.append(delta if self.limit is None else xp.clip(delta, -self.limit, self.limit))
            reached = reached + deltas[-1]
        return xp.where(self.cumulative, xp.stack(deltas, -2), chunk)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists, for JSON; exact."""
        limit = None if self.limit is None else self.limit.tolist()
        return {
            "cumulative": self.cumulative.tolist(),
            "affine": self.affine.to_dict(),
            "limit": limit,
            "block": self.block,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "ActionCodec":
        """The inverse of `to_dict`."""
        limit = None if data["limit"] is None else np.array(data["limit"], np.float32)
        return cls(np.array(data["cumulative"], bool), Affine.from_dict(data["affine"]), limit, data.get("block"))


def accumulate(chunk: Float[AnyArray, "*B K A"], cumulative: Bool[np.ndarray, "A"]) -> Float[AnyArray, "*B K A"]:
    """Running sums along the chunk, on the cumulative dimensions only."""
    xp = chunk.__array_namespace__()
    return xp.where(cumulative, xp.cumsum(chunk, -2), chunk)
