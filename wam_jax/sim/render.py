"""A ray caster for scenes of MuJoCo primitives, in JAX: it compiles into one program with physics and policy.

Lambert shading with one point light, a head light and an optional shadow ray; no antialiasing. The stages (hit,
point, normal, shadow, shade) are kept apart by loops and by ``optimization_barrier``: XLA would otherwise fuse them and
recompute every intersection for each use, several times slower on CPU.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Float32, Int32, UInt8

from wam_jax.sim import primitives
from wam_jax.sim.primitives import MISS, PLANE, Vector

SKY = -1  # segmentation id of a ray that meets nothing
FARTHEST_DEPTH = 1.5  # metres, white in a depth picture; the cameras at rest see 0.04 to 1.4 m

_SKY_COLOR = (0.8, 0.9, 1.0)
_CHECKER_SQUARES_PER_METRE = 10
_AMBIENT, _DIFFUSE, _HEAD_LIGHT = 0.3, 0.55, 0.15
_SHADOW = 0.25  # share of the diffuse light that stays in a shadow
_SHADOW_OFFSET = 1e-3  # metres off the surface, so that it does not shade itself


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What is fixed of one camera: its rays, and the geoms it can see.

    Attributes:
      rays: unit directions in the camera's frame (it looks along -z), one array ``[size * size]`` a coordinate.
      geom_ids, kinds, sizes: MuJoCo's id, type and sizes of each geom that is drawn, sorted by type.
      image_size: pixels a side.
      shadow: whether the light casts shadows.
    """

    rays: tuple[np.ndarray, np.ndarray, np.ndarray]
    geom_ids: tuple[int, ...]
    kinds: tuple[int, ...]
    sizes: np.ndarray
    image_size: int
    shadow: bool

    @property
    def groups(self) -> list[tuple[int, int, int]]:
        """(kind, start, stop) of each run of geoms of one kind."""
        starts = [(kind, self.kinds.index(kind)) for kind in sorted(set(self.kinds))]
        return [(kind, start, start + self.kinds.count(kind)) for kind, start in starts]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """All that a picture depends on. ``N`` counts all geoms of the model; metres, colours in [0, 1].

    A camera's rotation has its axes (right, up, back) as columns.
    """

    geom_position: Float[Array, "*B N 3"]
    geom_rotation: Float[Array, "*B N 3 3"]
    geom_color: Float[Array, "*B N 3"]
    light: Float[Array, "*B 3"]
    brightness: Float[Array, "*B"]
    checker: Float[Array, "*B"]
    camera_position: Float[Array, "*B V 3"]
    camera_rotation: Float[Array, "*B V 3 3"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Hits:
    """Where each ray of a view ends.

    Attributes:
      origin: the camera's position.
      direction: unit rays in the world's frame.
      distance: metres along the ray, ``MISS`` for sky.
      winner: index into the view's geoms; 0 where the ray misses.
    """

    origin: Float[Array, "3"]
    direction: Vector
    distance: Float[Array, "R"]
    winner: Int32[Array, "R"]

    @property
    def sky(self):
        return self.distance >= 0.5 * MISS


def make_view(model: mujoco.MjModel, camera: str, image_size: int, geom_groups: tuple[int, ...], shadow: bool) -> View:
    """The view of a camera on the geoms of some geom groups.

    Raises:
      ValueError: a geom is of a kind that the ray caster does not draw.
    """
    seen = [i for i in range(model.ngeom) if model.geom_group[i] in geom_groups]
    geom_ids = tuple(sorted(seen, key=lambda i: int(model.geom_type[i])))
    for i in geom_ids:
        if model.geom_type[i] not in primitives.KINDS:
            raise ValueError(
                f"geom {model.geom(i).name!r} has type {mujoco.mjtGeom(model.geom_type[i]).name}, which the ray "
                "caster does not draw (has: plane, sphere, capsule, cylinder, box); put it in an unseen geom group"
            )
    half_height = np.tan(np.deg2rad(model.camera(camera).fovy.item()) / 2)
    pixel = (np.arange(image_size) + 0.5) / image_size * 2 - 1
    up, right = np.meshgrid(-half_height * pixel, half_height * pixel, indexing="ij")
    rays = np.stack([right, up, -np.ones_like(up)]).reshape(3, -1)
    x, y, z = (rays / np.linalg.norm(rays, axis=0)).astype(np.float32)
    return View(
        rays=(x, y, z),
        geom_ids=geom_ids,
        kinds=tuple(int(model.geom_type[i]) for i in geom_ids),
        sizes=np.asarray(model.geom_size[list(geom_ids)], np.float32),
        image_size=image_size,
        shadow=shadow,
    )


def cast(view: View, stage: Stage, position: Float[Array, "3"], rotation: Float[Array, "3 3"]) -> Hits:
    """Follows every ray of the camera at ``position`` with axes ``rotation`` (columns) to what it meets first."""
    x, y, z = (jnp.asarray(ray) for ray in view.rays)
    direction = _rotate(rotation, (x, y, z))
    distance, winner = _nearest(view, stage, (position[0], position[1], position[2]), direction)
    return Hits(origin=position, direction=direction, distance=distance, winner=winner)


def geometry(view: View, hits: Hits) -> tuple[Int32[Array, "H W"], Float[Array, "H W"]]:
    """MuJoCo geom ids (``SKY`` where nothing is), and depth along the optical axis in metres (0 for sky)."""
    ids = jnp.asarray(view.geom_ids, jnp.int32)[hits.winner]
    depth = hits.distance * -view.rays[2]
    return _image(view, jnp.where(hits.sky, SKY, ids)), _image(view, jnp.where(hits.sky, 0.0, depth))


def depth_image(view: View, hits: Hits) -> UInt8[Array, "H W"]:
    """Depth along the optical axis as grey, for `depth_from_image`: black at 0, white from ``FARTHEST_DEPTH`` on.

    Linear, 5.9 mm a level: the front camera looks from a metre away, the wrist camera from a hand's breadth, and a map
    that is finer nearby would spend its levels on the latter.
    """
    depth = _image(view, jnp.where(hits.sky, FARTHEST_DEPTH, hits.distance * -view.rays[2]))
    return jnp.round(jnp.clip(depth / FARTHEST_DEPTH, 0.0, 1.0) * 255).astype(jnp.uint8)


def depth_from_image(image: UInt8[Array | np.ndarray, "*B"]) -> Float32[Array | np.ndarray, "*B"]:
    """Metres along the optical axis of grey values; within ``FARTHEST_DEPTH / 510`` (2.9 mm) of the truth up to there.

    JPEG, as `RldsWriter` stores such pictures, adds 0.3 levels (2 mm) on average, and up to 9 at edges.
    """
    return image.astype("float32") * np.float32(FARTHEST_DEPTH / 255)


def shade(view: View, stage: Stage, hits: Hits) -> UInt8[Array, "H W 3"]:
    """The picture."""
    distance = jnp.where(hits.sky, 0.0, hits.distance)
    point = _barrier(tuple(o + distance * d for o, d in zip(hits.origin, hits.direction, strict=True)))
    normal, color = _barrier(_surface(view, stage, hits, point))
    diffuse = _diffuse(view, stage, point, normal)
    facing = jnp.maximum(-primitives.dot(normal, hits.direction), 0.0)
    light = _AMBIENT + _DIFFUSE * diffuse + _HEAD_LIGHT * facing
    sky = 0.75 + 0.2 * hits.direction[2]
    channels = [jnp.where(hits.sky, sky * _SKY_COLOR[i], color[i] * light) for i in range(3)]
    pixels = jnp.clip(stage.brightness * jnp.stack(channels, -1), 0.0, 1.0) * 255
    return _image(view, jnp.round(pixels).astype(jnp.uint8))


def _surface(view: View, stage: Stage, hits: Hits, point: Vector) -> tuple[Vector, Vector]:
    """Normal and colour where the rays end: first what is known of the geom that was hit, then its kind's formula."""
    ids = np.asarray(view.geom_ids)
    columns = [
        np.asarray(view.kinds, np.float32),
        *view.sizes.T,
        *stage.geom_position[ids].T,
        *stage.geom_color[ids].T,
        *rearrange(stage.geom_rotation[ids], "n i j -> (i j) n"),
    ]
    kind, *rest = _barrier(_look_up(columns, hits.winner))
    size, position, color, rotation = rest[:3], rest[3:6], rest[6:9], rest[9:]
    rows, axes = (rotation[0:3], rotation[3:6], rotation[6:9]), (rotation[0::3], rotation[1::3], rotation[2::3])
    local = _barrier(_transform(axes, tuple(p - o for p, o in zip(point, position, strict=True))))
    outward = (jnp.zeros_like(kind),) * 3
    for present in sorted(set(view.kinds)):
        outward = _select(kind == present, primitives.normal(present, size, local), outward)
    tint = jnp.where(kind == PLANE, _checker(point, stage.checker), 1.0)
    return _transform(rows, _barrier(outward)), tuple(value * tint for value in color)


def _look_up(columns: list[Array], index: Int32[Array, "R"]) -> list[Float[Array, "R"]]:
    """``column[index]`` of each column; selecting value by value beats a gather for the few geoms of a scene."""
    found = []
    for column in columns:
        value = jnp.full(index.shape, column[0])
        for row in range(1, column.shape[0]):
            value = jnp.where(index == row, column[row], value)
        found.append(value)
    return found


def _diffuse(view: View, stage: Stage, point: Vector, normal: Vector) -> Float[Array, "R"]:
    """Light that reaches a point from the lamp: cosine of the angle, dimmed where something is between."""
    to_light: Vector = tuple(stage.light[i] - point[i] for i in range(3))  # type: ignore[assignment]
    reach = jnp.sqrt(primitives.dot(to_light, to_light))
    to_light = (to_light[0] / reach, to_light[1] / reach, to_light[2] / reach)
    cosine = jnp.maximum(primitives.dot(normal, to_light), 0.0)
    if not view.shadow:
        return cosine
    start: Vector = tuple(p + _SHADOW_OFFSET * n for p, n in zip(point, normal, strict=True))  # type: ignore[assignment]
    distance, _ = _nearest(view, stage, start, to_light)
    return jnp.where(distance < reach, _SHADOW, 1.0) * cosine


def _nearest(
    view: View, stage: Stage, origin: Vector, direction: Vector
) -> tuple[Float[Array, "R"], Int32[Array, "R"]]:
    """Distance to, and index of, the first geom that each ray meets.

    One loop for each kind of geom: XLA neither fuses across a loop nor copies its body, where an unrolled version is
    recomputed for every later use.
    """
    ids = np.asarray(view.geom_ids)
    geoms = (np.arange(len(ids)), view.sizes, stage.geom_position[ids], stage.geom_rotation[ids])

    def meet(kind, nearest, geom):
        index, size, position, rotation = geom
        distance, winner = nearest
        t = primitives.distance(
            kind, size, _rotate(rotation.T, _subtract(origin, position)), _rotate(rotation.T, direction)
        )
        return (jnp.minimum(t, distance), jnp.where(t < distance, index, winner)), None

    nearest = jnp.full(direction[0].shape, MISS), jnp.zeros(direction[0].shape, jnp.int32)
    for kind, start, stop in view.groups:
        members = jax.tree.map(lambda x, a=start, b=stop: x[a:b], geoms)
        nearest, _ = jax.lax.scan(functools.partial(meet, kind), nearest, members)
    return nearest


def _checker(point: Vector, dark: Float[Array, ""]) -> Float[Array, "R"]:
    """Squares on the table: without texture a camera could not tell where it looks."""
    square = jnp.floor(point[0] * _CHECKER_SQUARES_PER_METRE) + jnp.floor(point[1] * _CHECKER_SQUARES_PER_METRE)
    return jnp.where(square % 2 > 0.5, 1.0, dark)


def _rotate(rotation: Float[Array, "3 3"], vector: Vector) -> Vector:
    return _transform(tuple((row[0], row[1], row[2]) for row in rotation), vector)


def _transform(rows, vector: Vector) -> Vector:
    # Written out: a matrix product may run in TF32 or bfloat16 on accelerators, and would not fuse.
    x, y, z = (primitives.dot(row, vector) for row in rows)
    return x, y, z


def _subtract(point: Vector, origin: Float[Array, "3"]) -> Vector:
    return point[0] - origin[0], point[1] - origin[1], point[2] - origin[2]


def _select(condition, yes: Vector, no: Vector) -> Vector:
    x, y, z = (jnp.where(condition, a, b) for a, b in zip(yes, no, strict=True))
    return x, y, z


def _barrier(tree):
    return jax.lax.optimization_barrier(tree)


def _image(view: View, pixels: Array) -> Array:
    return rearrange(pixels, "(h w) ... -> h w ...", h=view.image_size)
