"""A narrow expert from a wide one's weights: every matrix interpolated linearly along both of its axes.

What Fast-WAM (arXiv 2603.16666) begins its action expert with: scripts/preprocess_action_dit_backbone.py of its
repository. Both experts have the same heads, so only token width and feed-forward width change.
"""

from collections.abc import Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Path = tuple[str, ...]
Flat = dict[Path, Array]

# Maps of data (and heads) are not interpolated: an action is no patch.
_PARTS = (("trunk", "blocks"), ("conditioning",), ("text_in",))


def interpolate_expert(
    params: Mapping[Path, Array], like: Mapping[Path, jax.ShapeDtypeStruct], source: str, target: str
) -> Flat:
    """The parameters ``like`` of the expert ``target``, from those of ``source``; by path.

    Args:
      params: of the source, at least.
      like: shape, dtype and sharding of what is wanted.
      source, target: names of experts.
    """
    found = {}
    for path, wide in counterparts(like, source, target).items():
        leaf, inputs = like[path], {"kernel": -2, "modulation": -1}.get(path[-1])
        make = jax.jit(resize, static_argnums=(1, 2), out_shardings=leaf.sharding)
        found[path] = make(params[wide], leaf.shape, inputs).astype(leaf.dtype)
    return found


def check_interpolation(shapes: Mapping[Path, jax.ShapeDtypeStruct], source: str, target: str) -> None:
    """Whether the one expert can be made from the other.

    Raises:
      ValueError: if the two are one, or the target has not as many layers as the source.
    """
    if source == target:
        raise ValueError(f"actions run through expert {source!r} itself; there is none to interpolate")
    for path, wide in counterparts(shapes, source, target).items():
        layers, there = shapes[path].shape[0], shapes[wide].shape[0] if wide in shapes else 0
        if path[0] == "trunk" and there and layers != there:
            raise ValueError(
                f"expert {target!r} has {layers} layers and {source!r} {there}; interpolated weights need as many: "
                "start the action expert new"
            )


def counterparts(paths: Iterable[Path], source: str, target: str) -> dict[Path, Path]:
    """The paths of the target's parameters, and where the source has theirs."""
    found = {}
    for path in paths:
        for part in _PARTS:
            if path[: len(part) + 1] == (*part, target):
                found[path] = (*part, source, *path[len(part) + 1 :])
    return found


def resize(array: Float[Array, "..."], shape: tuple[int, ...], inputs: int | None = None) -> Float[Array, "..."]:
    """Linear interpolation along each axis whose length changes, first value to first and last to last.

    With fewer ``inputs`` (the axis that a product sums over), values grow by sqrt(old / new), so that sums keep their
    size. Fast-WAM takes modulations, which are summed over nothing, as matrices with their width as inputs.
    """
    out = array.astype(jnp.float32)
    for axis, (old, new) in enumerate(zip(array.shape, shape, strict=True)):
        if old != new:
            out = _resize_axis(out, axis, new)
    if inputs is not None:
        out = out * np.sqrt(array.shape[inputs] / shape[inputs]).astype(np.float32)
    return out


def _resize_axis(array: Float[Array, "..."], axis: int, size: int) -> Float[Array, "..."]:
    last = array.shape[axis] - 1
    where = np.linspace(0, last, size)
    below = np.minimum(where.astype(int), max(last - 1, 0))
    share = (where - below).astype(np.float32).reshape(-1, *[1] * (array.ndim - axis - 1))
    first, second = (jnp.take(array, index, axis) for index in (below, np.minimum(below + 1, last)))
    return first * (1 - share) + second * share
