"""Which tensor of a published checkpoint each of our parameters is, as a table that reads both ways.

A map is a nested dict like the parameter tree, with a ``Source`` at each leaf. From the same table come the check that
nothing is missing and nothing is left over (by shapes alone), loading, and export.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from wam_jax.nn.module import Params, by_path, paths

Shape = tuple[int, ...]


class WeightsMismatch(ValueError):
    """A checkpoint's tensors are not those of the model; the message names the first few."""


class UnreadableWeights(ValueError):
    """A file of weights is damaged, in a format that is not read, or holds more than tensors."""


class Tensors(Protocol):
    """A published checkpoint: the shapes of its tensors at once, their values one at a time."""

    def shapes(self) -> Mapping[str, Shape]: ...

    def read(self, name: str) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Source:
    """Where one of our arrays is in a published checkpoint.

    Attributes:
      name: the tensor; ``{}`` stands for the layer's number where ours is a stack of layers.
      pattern: einops, from theirs to ours (of one layer): "o i -> i o" for a kernel. Empty: the same.
      sizes: lengths of axes that the pattern cannot infer, in either direction.
      part: (index, count): ours is one of so many equal parts of theirs along its first axis (fused projections).
    """

    name: str
    pattern: str = ""
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    part: tuple[int, int] = (0, 1)

    @property
    def stacked(self) -> bool:
        return "{}" in self.name

    def names(self, shape: Shape) -> list[str]:
        """The tensors of an array of this shape: one a layer, or one."""
        return [self.name.format(layer) for layer in range(shape[0])] if self.stacked else [self.name]

    def to_ours(self, theirs: np.ndarray) -> np.ndarray:
        """Their tensor as our array (one layer of it); a view wherever numpy can give one."""
        index, count = self.part
        theirs = np.split(theirs, count)[index] if count > 1 else theirs
        return rearrange(theirs, self.pattern, **self.sizes) if self.pattern else theirs

    def to_theirs(self, ours: np.ndarray) -> np.ndarray:
        """The inverse of ``to_ours``, of this part."""
        if not self.pattern:
            return ours
        theirs, mine = self.pattern.split("->")
        return rearrange(ours, f"{mine} -> {theirs}", **self.sizes)


WeightMap = dict[str, Any]  # a nested dict of Sources


def linear(name: str, bias: bool = True) -> WeightMap:
    """A ``torch.nn.Linear`` as our ``Linear``."""
    kernel = {"kernel": Source(f"{name}.weight", "o i -> i o")}
    return {**kernel, "bias": Source(f"{name}.bias")} if bias else kernel


def layer_norm(name: str) -> WeightMap:
    """A ``torch.nn.LayerNorm`` as our ``LayerNorm``."""
    return {"scale": Source(f"{name}.weight"), "bias": Source(f"{name}.bias")}


def own_names(params: Params) -> WeightMap:
    """The map of files that this project writes: paths, with dots."""
    return by_path({path: Source(path.replace("/", ".")) for path in paths(params)})


def check(weight_map: WeightMap, ours: Params, theirs: Mapping[str, Shape], unused: Sequence[str] = ()) -> None:
    """Compares names and shapes on both sides; nothing is read.

    Args:
      weight_map: the table.
      ours: our parameter tree; leaves have a ``shape``.
      theirs: shapes of the checkpoint's tensors.
      unused: regular expressions (whole names) of tensors that the model has no use for.

    Raises:
      WeightsMismatch: a parameter without a source, a source without a parameter, a tensor that is missing, left over
        or of another shape.
    """
    table = paths(weight_map)
    shapes = {path: tuple(leaf.shape) for path, leaf in paths(ours).items()}
    used: dict[str, list[tuple[int, int]]] = {}
    wrong, missing = [], []
    for path in table.keys() & shapes.keys():
        for name in table[path].names(shapes[path]):
            used.setdefault(name, []).append(table[path].part)
            if name not in theirs:
                missing.append(name)
            elif (problem := _wrong_shape(table[path], shapes[path], theirs[name])) is not None:
                wrong.append(f"{name} {problem}")
    problems = {
        "parameters without a source": shapes.keys() - table.keys(),
        "sources without a parameter": table.keys() - shapes.keys(),
        "tensors missing from the checkpoint": missing,
        "tensors of another shape": wrong,
        "tensors not used in full, once": [name for name, parts in used.items() if not _is_whole(parts)],
        "tensors left over in the checkpoint": [
            name for name in theirs.keys() - used.keys() if not any(re.fullmatch(rule, name) for rule in unused)
        ],
    }
    if texts := [_listed(what, sorted(names)) for what, names in problems.items() if names]:
        raise WeightsMismatch(f"{'; '.join(texts)}. Is this the checkpoint of this model, at this size?")


def load(weight_map: WeightMap, like: Params, checkpoint: Tensors, unused: Sequence[str] = ()) -> Params:
    """The checkpoint's tensors as our parameter tree, in place on their devices.

    One tensor at a time is read, turned and put where it belongs; the host never holds a second copy of the model.

    Args:
      weight_map: the table.
      like: our parameter tree as ``jax.ShapeDtypeStruct``; their dtype is what is stored, their sharding, where.
      checkpoint: where tensors come from.
      unused: as in ``check``.

    Raises:
      WeightsMismatch: as ``check`` says, or a tensor of integers (quantised weights) where ours has floats.
    """
    check(weight_map, like, checkpoint.shapes(), unused)
    table = paths(weight_map)
    loaded = {path: _load(table[path], leaf, checkpoint) for path, leaf in paths(like).items()}
    return by_path(loaded)


def export(weight_map: WeightMap, params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Our parameter tree as the checkpoint's tensors, one after another, in the order of the table."""
    arrays = paths(params)
    waiting: dict[str, dict[int, np.ndarray]] = {}
    for path, source in paths(weight_map).items():
        for layer, name in enumerate(source.names(arrays[path].shape)):
            tensor = source.to_theirs(np.asarray(arrays[path][layer] if source.stacked else arrays[path]))
            index, count = source.part
            found = waiting.setdefault(name, {})
            found[index] = tensor
            if len(found) == count:
                del waiting[name]
                yield name, np.concatenate([found[i] for i in range(count)]) if count > 1 else tensor


def _load(source: Source, leaf: jax.ShapeDtypeStruct, checkpoint: Tensors) -> jax.Array:
    if not source.stacked:
        return _placed(source, source.name, leaf.dtype, leaf.sharding, checkpoint)
    stack, layer_sharding = _zeros(leaf.shape, leaf.dtype, leaf.sharding), _of_one_layer(leaf.sharding)
    for layer, name in enumerate(source.names(leaf.shape)):
        one = _placed(source, name, leaf.dtype, layer_sharding, checkpoint)
        stack = _put(leaf.sharding)(stack, one, np.int32(layer))
        stack.block_until_ready()  # else the host runs ahead, holding every layer it has read
    return stack


def _placed(source: Source, name: str, dtype: Any, sharding: Sharding | None, checkpoint: Tensors) -> jax.Array:
    """One tensor, turned; each device is handed its own part of it, in its final type."""
    array = source.to_ours(checkpoint.read(name))
    if jnp.issubdtype(dtype, jnp.floating) and not jnp.issubdtype(array.dtype, jnp.floating):
        raise WeightsMismatch(f"{name} is {array.dtype}, the model has {dtype}; get weights that are not quantised")

    def part(index: Any) -> np.ndarray:
        return np.asarray(array[index], dtype, order="C")

    if sharding is None:
        return jax.device_put(part(...))
    return jax.make_array_from_callback(array.shape, sharding, part)


def _of_one_layer(sharding: Sharding | None) -> Sharding | None:
    """How a layer lies where a stack of them lies so."""
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]), memory_kind=sharding.memory_kind)


def _zeros(shape: Shape, dtype: Any, sharding: Sharding | None) -> jax.Array:
    return jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sharding)(shape, dtype)


@functools.cache
def _put(sharding: Sharding | None) -> Callable[[jax.Array, jax.Array, np.int32], jax.Array]:
    """Writes one layer into a stack, in the stack's own memory."""
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0)
    return jax.jit(put, donate_argnums=0, out_shardings=sharding)


def _wrong_shape(source: Source, ours: Shape, theirs: Shape) -> str | None:
    """What is wrong with a tensor's shape, or None."""
    wanted = ours[1:] if source.stacked else ours
    count = source.part[1]
    if count > 1 and (not theirs or theirs[0] % count):
        return f"{theirs} does not cut into {count}"
    part = (theirs[0] // count, *theirs[1:]) if count > 1 else theirs
    try:
        # A broadcast scalar has the shape and takes no memory.
        whole = np.broadcast_to(np.float32(0), part)
        got = rearrange(whole, source.pattern, **source.sizes).shape if source.pattern else part
    except Exception:  # einops says what does not fit in several types of error
        return f"{theirs} does not follow {source.pattern!r}"
    return None if tuple(got) == wanted else f"{theirs} gives {tuple(got)}, the model has {wanted}"


def _is_whole(parts: list[tuple[int, int]]) -> bool:
    """Whether these parts (index, count) of one tensor are all of it, each once."""
    return sorted(parts) == [(index, len(parts)) for index in range(len(parts))]


def _listed(what: str, names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{len(names)} {what}: {', '.join(names[:5])}{more}"
