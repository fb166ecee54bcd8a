"""MJX against C MuJoCo, and control."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco import mjx

from wam_jax.sim import control, physics, scene, tasks
from wam_jax.sim.compilation import jit

NUM_ACTIONS = 10  # 100 physics steps
START_X = 0.45  # metres, of the first cube


@pytest.fixture(scope="module")
def trajectories():
    """A sliding cube and a moving arm: (qpos of C MuJoCo, qpos of MJX) after each action."""
    model = tasks.build_model(tasks.TASKS["pick_lift"])
    data = mujoco.MjData(model)
    data.qpos[:9] = data.ctrl[:] = scene.HOME_QPOS
    data.qvel[9:11] = 0.4, 0.1
    mujoco.mj_forward(model, data)
    mjx_model = mjx.put_model(model, impl="jax")
    mjx_data = mjx.put_data(model, data, impl="jax")
    control_target = scene.HOME_QPOS + np.array([0.2, -0.1, 0.1, 0.2, -0.1, 0.1, 0.3, -0.03, -0.03])

    @jit
    def run(data):
        def act(data, _):
            data = physics.advance(mjx_model, data, jnp.asarray(control_target, jnp.float32))
            return data, (data.qpos, data.site_xpos[0])

        return jax.lax.scan(act, physics.settle(mjx_model, data), length=NUM_ACTIONS)[1]

    qpos, tcp = run(mjx_data)
    reference = []
    for _ in range(NUM_ACTIONS):
        for _ in range(physics.STEPS_PER_ACTION):
            mujoco.mj_step(model, data)
            data.ctrl[:] = control_target  # takes effect after the first step, as in ``advance``
        reference.append(data.qpos.copy())
    mujoco.mj_kinematics(model, data)
    return np.array(reference), np.asarray(qpos), data.site_xpos[0], np.asarray(tcp[-1])


def test_arm_follows_c_mujoco_to_rounding(trajectories):
    reference, qpos, _, _ = trajectories
    np.testing.assert_allclose(qpos[:, :9], reference[:, :9], atol=1e-5)
    assert np.abs(reference[-1, :7] - scene.HOME_QPOS[:7]).max() > 0.1  # and it did move


def test_sliding_cube_follows_c_mujoco_within_the_contact_solver(trajectories):
    reference, qpos, _, _ = trajectories
    np.testing.assert_allclose(qpos[:, 9:12], reference[:, 9:12], atol=5e-4)
    assert reference[-1, 9] - START_X > 0.005


def test_poses_are_those_of_the_last_positions(trajectories):
    _, _, reference_tcp, tcp = trajectories
    np.testing.assert_allclose(tcp, reference_tcp, atol=1e-5)


def test_actions_add_up_to_the_motion_of_the_command():
    """Also where the workspace, or the lead over a blocked arm, cuts what was asked."""
    key = jax.random.key(0)
    tcp = jnp.array([0.73, 0.3, 0.05])
    command = start = jnp.array([0.7, 0.33, 0.04])
    total = jnp.zeros(3)
    for delta in jax.random.uniform(key, (40, 3), minval=-2, maxval=2.5):
        after = control.next_command(command, tcp, delta)
        action = control.effective_action(command, after, jnp.array(1.0))
        np.testing.assert_allclose(after - command, control.ACTION_SCALE * action[:3], atol=1e-7)
        command, total = after, total + action[:3]
    np.testing.assert_allclose(start + control.ACTION_SCALE * total, command, atol=1e-6)
    assert (jnp.abs(command - tcp) <= 0.05 + 1e-6).all()


@pytest.mark.parametrize(("gripper", "position", "sign"), [(0.3, 0.04, 1.0), (-0.2, 0.0, -1.0), (0.0, 0.0, -1.0)])
def test_gripper_is_open_above_zero(gripper, position, sign):
    np.testing.assert_allclose(control.finger_target(jnp.array(gripper)), position)
    assert control.effective_action(jnp.zeros(3), jnp.zeros(3), jnp.array(gripper))[3] == sign
