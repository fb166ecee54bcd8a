"""Each field of a variation changes what it says, and nothing else; the neutral one changes nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from wam_jax.sim.compilation import jit
from wam_jax.sim.tabletop import Tabletop
from wam_jax.sim.variation import Variation

SHIFTS = {
    "neutral": {},
    "camera_shift": {"camera_shift": [[0.05, 0.0, 0.0], [0.0, 0.0, 0.0]]},
    "camera_tilt": {"camera_tilt": [[0.0, 0.0, 0.0], [0.0, 0.0, 0.3]]},
    "light_shift": {"light_shift": [-0.8, 0.8, 0.0]},
    "brightness": {"brightness": 0.5},
    "table_color": {"table_color": [0.2, 0.3, 0.6]},
    "wall_color": {"wall_color": [0.9, 0.1, 0.1]},
    "checker": {"checker": 0.3},
    "object_colors": {"object_colors": [[0.5, 0.3, 0.1]] * 3},
    "arm_joint_shift": {"arm_joint_shift": [0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]},
    "layout_shift": {"layout_shift": [0.03, -0.02]},
}


@pytest.fixture(scope="module")
def seen(reach):
    """For each shift, of one and the same episode: state, pictures, segmentation. One batched run."""
    neutral = Variation()
    conditions = [
        dataclasses.replace(neutral, **{name: np.array(value, np.float32) for name, value in shift.items()})
        for shift in SHIFTS.values()
    ]
    grid = jax.tree.map(lambda *x: np.stack(x), *conditions)

    def look(variation):
        state = reach.reset(jax.random.key(5), variation)
        return state, reach.render(state), reach.render_geometry(state)[0]

    batch = jax.tree.map(np.asarray, jit(jax.vmap(look))(grid))
    return {name: jax.tree.map(lambda x, i=i: x[i], batch) for i, name in enumerate(SHIFTS)}


def changed(seen, name):
    """Whether pictures of (front, wrist), segmentation of (front, wrist), joints, and objects differ from neutral."""
    (state, pictures, ids), (state0, pictures0, ids0) = seen[name], seen["neutral"]
    differs = [bool((a != b).any()) for a, b in ((pictures[0], pictures0[0]), (pictures[1], pictures0[1]))]
    differs += [bool((a != b).any()) for a, b in ((ids[0], ids0[0]), (ids[1], ids0[1]))]
    differs.append(bool((state.physics.qpos != state0.physics.qpos).any()))
    differs.append(bool((state.physics.mocap_pos != state0.physics.mocap_pos).any()))
    return differs


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("camera_shift", [True, False, True, False, False, False]),
        ("camera_tilt", [False, True, False, True, False, False]),
        ("light_shift", [True, True, False, False, False, False]),
        ("brightness", [True, True, False, False, False, False]),
        ("table_color", [True, True, False, False, False, False]),
        ("wall_color", [False, True, False, False, False, False]),
        ("checker", [True, True, False, False, False, False]),
        ("object_colors", [True, True, False, False, False, False]),
        ("arm_joint_shift", [True, True, True, True, True, False]),
        ("layout_shift", [True, True, True, True, False, True]),
    ],
)
def test_changes_what_it_says_and_nothing_else(seen, name, expected):
    assert changed(seen, name) == expected


def test_neutral_is_the_default(reach, seen):
    def look(key):
        state = reach.reset(key)
        return state.physics.qpos, reach.render(state)

    qpos, pictures = jit(look)(jax.random.key(5))
    state, neutral_pictures, _ = seen["neutral"]
    np.testing.assert_allclose(qpos, state.physics.qpos, atol=1e-6)
    # Other fusions may round a pixel the other way; none may differ by more.
    assert np.abs(np.asarray(pictures, int) - neutral_pictures).max() <= 1


def test_magnitudes(reach, seen):
    neutral, pictures, ids = seen["neutral"]
    dark = seen["brightness"][1]
    np.testing.assert_allclose(dark, pictures / 2, atol=1)
    shifted = seen["arm_joint_shift"][0]
    np.testing.assert_allclose(shifted.physics.qpos[0] - neutral.physics.qpos[0], 0.1, atol=1e-6)
    moved = seen["layout_shift"][0]
    np.testing.assert_allclose(
        moved.physics.mocap_pos[:, :2] - neutral.physics.mocap_pos[:, :2], [[0.03, -0.02]] * 3, atol=1e-6
    )
    table = reach.model.geom("table").id
    recoloured = (seen["table_color"][1] != pictures).any(-1)
    assert (ids[recoloured] == table).all()
    assert recoloured[ids == table].all()


@pytest.fixture(scope="module")
def varied(reach):
    """One episode of a scene that can look otherwise: state, pictures, segmentation and masks, by condition."""
    env = Tabletop("reach", varied=True)
    conditions = {"own": {}, "cubes": {"object_shapes": [0, 0, 0]}, "distractors": {"distractors": 2}}
    neutral = Variation()
    grid = [
        dataclasses.replace(
            neutral, **{name: np.asarray(x, getattr(neutral, name).dtype) for name, x in changes.items()}
        )
        for changes in conditions.values()
    ]

    def look(variation):
        state = env.reset(jax.random.key(5), variation)
        stage = env.stage(state)
        drawn = env.draw(stage), env.render_geometry(state)[0], env.masks(stage, state.layout)
        return state, *drawn, env.object_places(stage)

    batch = jax.tree.map(np.asarray, jit(jax.vmap(look))(jax.tree.map(lambda *x: np.stack(x), *grid)))
    return env, {name: jax.tree.map(lambda x, i=i: x[i], batch) for i, name in enumerate(conditions)}


def geoms_seen(env, ids) -> set[str]:
    return {env.model.geom(int(i)).name for i in np.unique(ids) if i >= 0}


@pytest.mark.slow
def test_a_scene_that_can_vary_looks_as_ever_until_it_does(varied, reach, seen):
    env, looks = varied
    state, pictures, ids, *_ = looks["own"]
    np.testing.assert_allclose(state.physics.qpos, seen["neutral"][0].physics.qpos, atol=1e-6)
    assert np.abs(pictures.astype(int) - seen["neutral"][1]).max() <= 1
    names, expected = (np.array([m.geom(i).name for i in range(m.ngeom)] + ["sky"]) for m in (env.model, reach.model))
    assert (names[ids] == expected[seen["neutral"][2]]).mean() > 0.999


@pytest.mark.slow
def test_objects_take_another_shape_and_stay_where_they_are(varied):
    env, looks = varied
    own, cubes = geoms_seen(env, looks["own"][2]), geoms_seen(env, looks["cubes"][2])
    assert {name.replace("object", "cube") for name in own} == cubes
    np.testing.assert_array_equal(looks["own"][0].physics.mocap_pos, looks["cubes"][0].physics.mocap_pos)
    for name in ("own", "cubes"):  # and are said to be there
        np.testing.assert_allclose(looks[name][4], looks[name][0].physics.mocap_pos, atol=1e-6)
    before, after = looks["own"][3][1, 0], looks["cubes"][3][1, 0]  # the named object, seen from the front
    centres = [np.argwhere(mask).mean(0) for mask in (before, after)]
    assert before.any()
    assert np.abs(centres[0] - centres[1]).max() < 2


@pytest.mark.slow
def test_distractors_are_apart_from_everything_and_seen(varied):
    env, looks = varied
    state, _, ids, *_ = looks["distractors"]
    assert {"distractor0", "distractor1"} <= geoms_seen(env, ids)
    assert not {"distractor0", "distractor1"} & geoms_seen(env, looks["own"][2])
    objects = state.physics.geom_xpos[env.object_geoms][:, :2]
    assert np.linalg.norm(objects[:, None] - state.distractors[None, :, :2], axis=-1).min() > 0.06
