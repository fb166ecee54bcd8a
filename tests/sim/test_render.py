"""The ray caster against MuJoCo's own ray casting, and against its OpenGL renderer where there is one."""

import importlib
import sys

import jax
import mujoco
import numpy as np
import pytest

from wam_jax.sim import primitives, render
from wam_jax.sim.compilation import jit
from wam_jax.sim.render import SKY
from wam_jax.sim.tabletop import Tabletop

GEOM_GROUPS = {"front": (0, 1), "wrist": (0,)}
HALF_LEVEL = render.FARTHEST_DEPTH / 510  # metres: what rounding to one of 256 greys may lose


@pytest.fixture(scope="module")
def geometry(place, place_states):
    """Segmentation and depth of eight states, as numpy."""
    return jax.tree.map(np.asarray, jit(jax.vmap(place.render_geometry))(place_states))


@pytest.fixture(scope="module")
def pictures(place, place_states):
    return np.asarray(jit(jax.vmap(place.render))(place_states))


@pytest.fixture(scope="module")
def masks(place, place_states):
    """Of eight states: [episode, part, camera, row, column]."""
    return np.asarray(jit(jax.vmap(lambda state: place.masks(place.stage(state), state.layout)))(place_states))


@pytest.fixture(scope="module")
def drawn_with_depth(place, place_states):
    """Pictures and depth pictures."""
    return jax.tree.map(np.asarray, jit(jax.vmap(place.render_with_depth))(place_states))


def c_data(env, states, episode):
    data = mujoco.MjData(env.model)
    data.qpos[:] = states.physics.qpos[episode]
    data.mocap_pos[:] = states.physics.mocap_pos[episode]
    mujoco.mj_forward(env.model, data)
    return data


def c_rays(env, data, camera, groups):
    """Geom id and depth along the optical axis of every pixel, by ``mj_multiRay``."""
    view = render.make_view(env.model, camera, env.image_size, groups, shadow=False)
    identity = env.model.camera(camera).id
    rays = np.stack(view.rays, -1).astype(float)
    directions = rays @ data.cam_xmat[identity].reshape(3, 3).T
    count = len(rays)
    ids, distances = np.zeros(count, np.int32), np.zeros(count)
    group_mask = np.array([group in groups for group in range(6)], np.uint8)
    origin = data.cam_xpos[identity]
    arguments = (origin, directions.reshape(-1), group_mask, True, -1, ids, distances, None, count, mujoco.mjMAXVAL)
    mujoco.mj_multiRay(env.model, data, *arguments)
    depth = np.where(ids == SKY, 0.0, distances * -rays[:, 2])
    return ids.reshape(env.image_size, -1), depth.reshape(env.image_size, -1)


def test_a_camera_sees_alone_what_it_sees_beside_others(place, place_states, pictures):
    alone = Tabletop("place", cameras=("wrist",))
    np.testing.assert_array_equal(jit(jax.vmap(alone.render))(place_states)[:, 0], pictures[:, 1])


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_matches_mujoco_ray_casting(place, place_states, geometry, camera):
    segmentation, depth = geometry
    index = place.cameras.index(camera)
    for episode in range(8):
        data = c_data(place, place_states, episode)
        ids, reference = c_rays(place, data, camera, GEOM_GROUPS[camera])
        same = segmentation[episode, index] == ids
        assert same.mean() > 0.99
        assert (np.abs(depth[episode, index] - reference) < 1e-3).mean() > 0.99


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_masks_are_where_mujocos_rays_meet_hand_named_object_and_named_goal(place, place_states, masks, camera):
    for episode in range(8):
        ids, _ = c_rays(place, c_data(place, place_states, episode), camera, GEOM_GROUPS[camera])
        layout = jax.tree.map(lambda x, episode=episode: np.asarray(x)[episode], place_states.layout)
        named = [
            [place.model.geom(name).id for name in ("hand", "finger_left", "finger_right")],
            [place.model.geom(f"object{layout.named_object}").id],
            [place.model.geom(f"goal{layout.named_goal}").id],
        ]
        for mask, geoms in zip(masks[episode, :, place.cameras.index(camera)], named, strict=True):
            seen = np.isin(ids, geoms)
            assert (mask == seen).mean() > 0.998
            assert (mask & seen).sum() >= 0.9 * (mask | seen).sum()


@pytest.mark.parametrize("camera", ["front", "wrist"])
def test_depth_pictures_invert_to_mujocos_depth(place, place_states, drawn_with_depth, camera):
    index = place.cameras.index(camera)
    for episode in range(8):
        _, reference = c_rays(place, c_data(place, place_states, episode), camera, GEOM_GROUPS[camera])
        error = np.abs(render.depth_from_image(drawn_with_depth[1][episode, index]) - reference)
        assert (error < HALF_LEVEL + 1e-3).mean() > 0.99


def test_depth_pictures_lose_half_a_level_and_clip_nothing(geometry, drawn_with_depth):
    np.testing.assert_allclose(render.depth_from_image(drawn_with_depth[1]), geometry[1], atol=HALF_LEVEL + 1e-5)


def test_pictures_with_depth_are_those_without(pictures, drawn_with_depth):
    # Other fusions may round a pixel the other way; none may differ by more.
    assert np.abs(pictures.astype(int) - drawn_with_depth[0]).max() <= 1


def test_depth_pictures_grow_with_depth_and_are_white_beyond_the_farthest(place):
    view = render.make_view(place.model, "front", 32, (0,), shadow=False)
    depth = np.linspace(0.0, 2.0, 32 * 32, dtype=np.float32)
    distance = depth / -view.rays[2]
    distance[-1] = primitives.MISS
    hits = render.Hits(origin=np.zeros(3), direction=view.rays, distance=distance, winner=np.zeros(32 * 32, np.int32))
    grey = np.asarray(render.depth_image(view, hits)).ravel()
    near = depth <= render.FARTHEST_DEPTH
    assert grey.dtype == np.uint8
    assert (np.diff(grey.astype(int)) >= 0).all()
    assert (grey[~near] == 255).all()
    np.testing.assert_allclose(render.depth_from_image(grey)[near], depth[near], atol=HALF_LEVEL + 1e-6)


def test_wrist_camera_cannot_see_what_it_leaves_out(place, place_states):
    for episode in range(8):
        ids, _ = c_rays(place, c_data(place, place_states, episode), "wrist", (0, 1))
        hidden = (ids != SKY) & (place.model.geom_group[ids] == 1)
        assert hidden.mean() < 0.02


def test_matches_mujoco_opengl_segmentation(place, place_states, geometry, monkeypatch):
    try:
        egl = importlib.import_module("mujoco.egl")
        monkeypatch.setattr(sys.modules[mujoco.Renderer.__module__].gl_context, "GLContext", egl.GLContext)
        renderer = mujoco.Renderer(place.model, place.image_size, place.image_size)
    except Exception as error:  # what is raised depends on the driver that is missing
        pytest.skip(f"no EGL here: {error!r}")
    renderer.enable_segmentation_rendering()
    renderer.update_scene(c_data(place, place_states, 0), camera="front")
    ids = renderer.render()[..., 0]
    renderer.close()
    assert (ids == geometry[0][0, 0]).mean() > 0.97


def test_objects_are_seen_from_the_front_in_their_colours(place, place_states, geometry, pictures):
    """At the start each object and plate covers pixels of the front view, and its own colour dominates them."""
    segmentation = geometry[0][:, 0]
    seen = np.array([[(frame == geom).sum() for geom in place.object_geoms] for frame in segmentation])
    assert np.median(seen) > 20
    assert (seen > 5).mean() >= 0.9
    for episode in range(8):
        for slot, geom in enumerate(place.object_geoms):
            pixels = pictures[episode, 0][segmentation[episode] == geom]
            if len(pixels):
                color = int(place_states.layout.object_colors[episode, slot])  # red, green, blue: channels 0, 1, 2
                assert (pixels.mean(0).argmax() == color).all()


def test_unsupported_geom_is_named():
    model = mujoco.MjModel.from_xml_string(
        '<mujoco><worldbody><camera name="front"/><geom name="egg" type="ellipsoid" size="1 1 2"/></worldbody></mujoco>'
    )
    with pytest.raises(ValueError, match=r"geom 'egg' has type mjGEOM_ELLIPSOID, which the ray caster does not draw"):
        render.make_view(model, "front", 8, (0,), shadow=False)
