"""Ray intersections and surface normals of MuJoCo's primitive geoms, in the geom's own frame.

Vectors are tuples of three arrays, one a coordinate: XLA then fuses the arithmetic of all geoms into a few loops
over pixels, which an array with a trailing axis of three prevents. Conventions are those of ``mujoco``'s
``engine_ray.c``: sizes are radii and half-lengths, cylinders and capsules lie along z, planes are infinite.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from mujoco import mjtGeom

Vector = tuple[Float[Array, "*R"], Float[Array, "*R"], Float[Array, "*R"]]

MISS = 1e9  # distance of a ray that meets nothing, metres
_NEAREST = 1e-4  # metres; nearer hits are the surface that a shadow ray starts from
_TINY = 1e-9

PLANE, SPHERE, CAPSULE, CYLINDER, BOX = (
    int(kind)
    for kind in (
        mjtGeom.mjGEOM_PLANE,
        mjtGeom.mjGEOM_SPHERE,
        mjtGeom.mjGEOM_CAPSULE,
        mjtGeom.mjGEOM_CYLINDER,
        mjtGeom.mjGEOM_BOX,
    )
)
KINDS = (PLANE, SPHERE, CAPSULE, CYLINDER, BOX)


def dot(a: Vector, b: Vector) -> Float[Array, "*R"]:
    """Inner product."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def distance(kind: int, size: np.ndarray, origin: Vector, direction: Vector) -> Float[Array, "*R"]:
    """Distance along unit rays to the outside of a geom, metres; ``MISS`` where there is none.

    Args:
      kind: one of ``KINDS`` (static).
      size: the geom's three MuJoCo sizes, metres (static).
      origin, direction: the rays in the geom's frame.
    """
    if kind == PLANE:
        return _valid(direction[2] < 0, -origin[2] / _nonzero(direction[2]))
    if kind == SPHERE:
        return _sphere(size[0], origin, direction)
    if kind == BOX:
        return _box(size, origin, direction)
    side = _tube(size[0], size[1], origin, direction)
    if kind == CYLINDER:
        return jnp.minimum(side, _disc(size[0], size[1], origin, direction))
    ends = (_sphere(size[0], (origin[0], origin[1], origin[2] - z), direction) for z in (-size[1], size[1]))
    return jnp.minimum(side, jnp.minimum(*ends))


def normal(kind: int, size: np.ndarray, point: Vector) -> Vector:
    """Outward unit normal at a surface ``point`` of a geom, both in the geom's frame."""
    x, y, z = point
    zero = jnp.zeros_like(z)
    if kind == PLANE:
        return zero, zero, zero + 1.0
    if kind == SPHERE:
        return x / size[0], y / size[0], z / size[0]
    if kind == CAPSULE:
        return x / size[0], y / size[0], (z - jnp.clip(z, -size[1], size[1])) / size[0]
    if kind == CYLINDER:
        on_cap = jnp.abs(z) > size[1] - _NEAREST
        side = jnp.where(on_cap, 0.0, 1.0 / size[0])
        return x * side, y * side, jnp.where(on_cap, jnp.sign(z), 0.0)
    depth = tuple(jnp.abs(value) / size[axis] for axis, value in enumerate(point))
    deepest = jnp.maximum(depth[0], jnp.maximum(depth[1], depth[2]))
    face = tuple(jnp.where(depth[axis] >= deepest, jnp.sign(value), 0.0) for axis, value in enumerate(point))
    return face[0], face[1], face[2]


def _nonzero(value):
    return jnp.where(jnp.abs(value) < _TINY, _TINY, value)


def _valid(hit: Bool[Array, "*R"], t: Float[Array, "*R"]) -> Float[Array, "*R"]:
    return jnp.where(hit & (t > _NEAREST), t, MISS)


def _first_root(a, b, c):
    """Whether ``a t^2 + 2 b t + c`` has real roots, and the smaller one."""
    discriminant = b * b - a * c
    real = discriminant >= 0
    return real, (-b - jnp.sqrt(jnp.where(real, discriminant, 0.0))) / _nonzero(a)


def _sphere(radius, origin: Vector, direction: Vector):
    return _valid(*_first_root(dot(direction, direction), dot(origin, direction), dot(origin, origin) - radius**2))


def _tube(radius, half_length, origin: Vector, direction: Vector):
    """The open side of a cylinder."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    real, t = _first_root(dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy - radius**2)
    return _valid(real & (jnp.abs(oz + t * dz) <= half_length), t)


def _disc(radius, half_length, origin: Vector, direction: Vector):
    """The cap of a cylinder that faces the ray."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    t = (-jnp.sign(dz) * half_length - oz) / _nonzero(dz)
    x, y = ox + t * dx, oy + t * dy
    return _valid(x * x + y * y <= radius**2, t)


def _box(size, origin: Vector, direction: Vector):
    """Slab test: the ray is inside where it is inside all three pairs of faces."""
    enter, leave = jnp.asarray(-MISS), jnp.asarray(MISS)
    for half, o, d in zip(size, origin, direction, strict=True):
        inverse = 1.0 / _nonzero(d)
        middle, reach = -o * inverse, jnp.abs(inverse) * half
        enter, leave = jnp.maximum(enter, middle - reach), jnp.minimum(leave, middle + reach)
    return _valid(enter < leave, enter)
