"""Where arrays live: one mesh, one table from logical axes to mesh axes.

Every parameter names a logical axis for each of its dimensions; the table says which mesh axis each one is cut along.
Activations are cut by the same table, where the model asks for it with ``constrain``; which mesh that means is ambient:
the train step's body runs inside ``use_mesh(mesh)``. The same code runs on one device, on several simulated CPU
devices, and on a pod.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding
from jaxtyping import Array, Shaped

MESH_AXES = ("data", "fsdp", "context", "tensor")

RULES: Mapping[str, str | tuple[str, ...] | None] = {
    "batch": ("data", "fsdp"),
    "tokens": "context",  # activations only
    "layers": None,  # scanned over
    "embed": "fsdp",  # token width, of parameters: activations are cut over fsdp by their batch
    "heads": "tensor",  # num_heads, or attention width: num_heads * head_dim
    "mlp": "tensor",  # feed-forward hidden width
}


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with axes data, fsdp, context, tensor.

    Devices are ordered so that the axes lie along a TPU's physical rings. Several TPU slices (pods) meet in the data
    axis, its outermost part: only gradients cross the slower network between them.

    Args:
      sizes: devices along each axis; absent axes are 1, and one may be -1: whatever devices remain.
      devices: the devices to use, all of them by default.

    Raises:
      ValueError: for an unknown axis, two -1, sizes that do not multiply to the number of devices, or a data axis that
        does not divide by the number of slices.
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
    return Mesh(_arrange(devices, shape), MESH_AXES)


def _arrange(devices: Sequence[jax.Device], shape: list[int]) -> np.ndarray:
    """The devices in the order that suits their network."""
    slices = {getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"}
    if len(slices) <= 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    data, *rest = shape
    if data % len(slices):
        raise ValueError(f"mesh axis data={data} does not divide by the {len(slices)} slices; they meet in that axis")
    within, across = (data // len(slices), *rest), (len(slices), *(1 for _ in rest))
    return mesh_utils.create_hybrid_device_mesh(within, across, devices, allow_split_physical_axes=True)


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
      ValueError: if a parameter has no logical axes or one without a rule, or if a dimension does not divide by its
        mesh axis; names the parameter.
    """

    def place(path, shape, names):
        spec = _param_spec(jax.tree_util.keystr(path), shape, names)
        for size, entry in zip(shape.shape, spec, strict=True):
            cut = _axis_size(mesh, entry)
            if size % cut:
                where = jax.tree_util.keystr(path)
                raise ValueError(f"parameter {where} of shape {shape.shape} does not divide by mesh axis {entry}={cut}")
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(place, shapes, axes)


def _param_spec(where: str, shape: jax.ShapeDtypeStruct, names: Sequence[str | None] | None) -> PartitionSpec:
    if names is None or len(names) != len(shape.shape):
        raise ValueError(f"parameter {where} of shape {shape.shape} has logical axes {names}; name one a dimension")
    try:
        return partition_spec(names)
    except ValueError as error:
        raise ValueError(f"parameter {where}: {error}") from None


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Batches are cut along their first dimension, over data and fsdp together."""
    return NamedSharding(mesh, partition_spec(("batch",)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, PartitionSpec())


def placed(x: jax.ShapeDtypeStruct, sharding: Sharding, dtype: Any = None) -> jax.ShapeDtypeStruct:
    """An abstract array with a sharding (and another dtype, if one is given)."""
    return jax.ShapeDtypeStruct(x.shape, dtype or x.dtype, sharding=sharding)


def use_mesh(mesh: Mesh) -> AbstractContextManager:
    """Makes ``mesh`` ambient for what is traced inside: for ``constrain``, and for attention's kernels.

    For the body of a jitted function, so that calling it, ``.lower`` and compiling ahead of time all see the mesh
    (``jax.set_mesh`` may not stand inside one, and would be needed around each of the three). The mesh's devices still
    come from the function's ``in_shardings`` or arguments: if these are on one device, so is the program.
    """
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def ambient_mesh() -> AbstractMesh | None:
    """The mesh to cut activations along; None without one, with one device, or inside ``jax.shard_map``."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.size <= 1 or mesh.manual_axes else mesh


def mesh_axis_size(axis: str) -> int:
    """Devices along an axis of the ambient mesh ("context", ...); 1 without a mesh."""
    mesh = ambient_mesh()
    return 1 if mesh is None else mesh.shape.get(axis, 1)


def ambient_platform() -> str:
    """What the program being traced is for: "cpu", "gpu" or "tpu".

    That of the ambient mesh, which may be of devices that this machine has not; else that of the default device.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    device = device or jax.config.jax_default_device  # type: ignore[attr-defined]
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def placement_known() -> bool:
    """Whether a kernel that XLA cannot cut may be called: where there are several devices, the mesh must be ambient."""
    return jax.device_count() == 1 or not jax.sharding.get_abstract_mesh().empty


def some_samples(x: Shaped[Array, "..."], count: int, axis: int = 0) -> Shaped[Array, "..."]:
    """``count`` samples of a batch: of every device's the first, so that none has to move; without a mesh the first."""
    shards = mesh_axis_size("data") * mesh_axis_size("fsdp")
    front, rest = x.shape[:axis], x.shape[axis + 1 :]
    cut = x.reshape(*front, shards, -1, *rest)
    return jax.lax.slice_in_dim(cut, 0, count // shards, axis=axis + 1).reshape(*front, count, *rest)


def constrain(x: Shaped[Array, "..."], axes: Sequence[str | None]) -> Shaped[Array, "..."]:
    """``x``, cut along the ambient mesh by the logical axes of its dimensions; ``x`` itself where there is no mesh.

    Example: ``constrain(x, ("batch", "tokens", None))`` for token features [B, N, D].

    Raises:
      ValueError: if a dimension does not divide by its mesh axis; see also ``partition_spec``.
    """
    mesh = ambient_mesh()
    return x if mesh is None else jax.lax.with_sharding_constraint(x, activation_spec(mesh, x.shape, axes))


def activation_spec(mesh: AbstractMesh, shape: Sequence[int], axes: Sequence[str | None]) -> PartitionSpec:
    """The mesh axes of an activation with this shape and these logical axes.

    Raises:
      ValueError: if a dimension does not divide by its mesh axis, or if there is not one logical axis a dimension.
    """
    if len(shape) != len(axes):
        raise ValueError(f"activation of shape {tuple(shape)} has logical axes {tuple(axes)}; name one a dimension")
    spec = partition_spec(axes)
    for name, size, entry in zip(axes, shape, spec, strict=True):
        if size % (cut := _axis_size(mesh, entry)):
            along = " x ".join((entry,) if isinstance(entry, str) else entry)
            raise ValueError(
                f"activation of shape {tuple(shape)} and logical axes {tuple(axes)}: {name}={size} does not divide by "
                f"mesh axis {along}={cut}"
            )
    return spec


def _axis_size(mesh: Mesh | AbstractMesh, entry: str | tuple[str, ...] | None) -> int:
    names = (entry,) if isinstance(entry, str) else (entry or ())
    return math.prod(mesh.shape[name] for name in names)
