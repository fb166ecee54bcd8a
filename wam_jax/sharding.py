"""Where arrays live: one mesh, one table from logical axes to mesh axes.

Every parameter names a logical axis for each of its dimensions; the table says which mesh axis each one is cut along.
The same code runs on one device, on several simulated CPU devices, and on a pod.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "context", "tensor")

RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "layers": None,  # scanned over
    "embed": "fsdp",  # token width
    "heads": "tensor",  # attention width: num_heads * head_dim
    "mlp": "tensor",  # feed-forward hidden width
}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes data, fsdp, context, tensor.

    Args:
      sizes: devices along each axis; absent axes are 1, and one may be -1: whatever devices remain.
      devices: the devices to use, all of them by default.

    Raises:
      ValueError: for an unknown axis, two -1, or sizes that do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    if unknown := set(sizes) - set(MESH_AXES):
        raise ValueError(f"mesh axis {sorted(unknown)[0]!r} is unknown (has: {', '.join(MESH_AXES)})")
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    if shape.count(-1) > 1:
        raise ValueError(f"only one mesh axis may be -1, got {dict(sizes)}")
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape and len(devices) % known == 0:
        shape[shape.index(-1)] = len(devices) // known
    if -1 in shape or math.prod(shape) != len(devices):
        wanted = " x ".join(f"{axis}={size}" for axis, size in zip(MESH_AXES, shape, strict=True))
        raise ValueError(f"mesh {wanted} does not fit {len(devices)} devices; set one axis of mesh to -1")
    return Mesh(np.asarray(devices).reshape(shape), MESH_AXES)


def partition_spec(axes: Sequence[str | None]) -> PartitionSpec:
    """The mesh axes of an array with these logical axes.

    Raises:
      ValueError: for a logical axis without a rule, or if two dimensions want the same mesh axis.
    """
    entries: list[str | tuple[str, ...] | None] = []
    taken: set[str] = set()
    for name in axes:
        if name is not None and name not in RULES:
            raise ValueError(f"no sharding rule for logical axis {name!r} of {tuple(axes)}; add it to RULES")
        entry = None if name is None else RULES[name]
        wanted = {entry} if isinstance(entry, str) else set(entry or ())
        if taken & wanted:
            raise ValueError(f"logical axes {tuple(axes)} use mesh axis {sorted(taken & wanted)[0]!r} twice")
        taken |= wanted
        entries.append(entry)
    return PartitionSpec(*entries)


def param_shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """A tree of ``NamedSharding`` for a parameter tree.

    Args:
      mesh: the mesh.
      axes: tree of tuples of logical axes (``Definition.axes``).
      shapes: the same tree with ``jax.ShapeDtypeStruct`` leaves (``Definition.shapes``).

    Raises:
      ValueError: if a dimension does not divide by its mesh axis; names the parameter.
    """

    def place(path, shape, names):
        spec = partition_spec(names)
        for size, entry in zip(shape.shape, spec, strict=True):
            cut = _axis_size(mesh, entry)
            if size % cut:
                where = jax.tree_util.keystr(path)
                raise ValueError(f"parameter {where} of shape {shape.shape} does not divide by mesh axis {entry}={cut}")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, shapes, axes)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are cut along their first dimension, over data and fsdp together."""
    return NamedSharding(mesh, partition_spec(("batch",)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _axis_size(mesh: Mesh, entry: str | tuple[str, ...] | None) -> int:
    names = (entry,) if isinstance(entry, str) else (entry or ())
    return math.prod(mesh.shape[name] for name in names)
