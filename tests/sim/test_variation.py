"""Each field of a variation changes what it says, and nothing else; the neutral one changes nothing."""

import dataclasses

import jax
import numpy as np
import pytest

from wam_jax.sim.compilation import jit
from wam_jax.sim.variation import Variation

SHIFTS = {
    "neutral": {},
    "camera_shift": {"camera_shift": [[0.05, 0.0, 0.0], [0.0, 0.0, 0.0]]},
    "camera_tilt": {"camera_tilt": [[0.0, 0.0, 0.0], [0.0, 0.0, 0.3]]},
    "light_shift": {"light_shift": [-0.8, 0.8, 0.0]},
    "brightness": {"brightness": 0.5},
    "table_color": {"table_color": [0.2, 0.3, 0.6]},
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
    np.testing.assert_array_equal(qpos, state.physics.qpos)
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
