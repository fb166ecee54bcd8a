"""Cartesian control: from a commanded tcp position to joint targets that keep the gripper pointing down."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from wam_jax.sim.scene import FINGER_TRAVEL, HOME_QPOS, NUM_ARM_JOINTS

ACTION_SCALE = 0.025  # metres that the commanded tcp moves for an action of 1
_MAX_LEAD = 0.05  # metres that the command may run ahead of the tcp, so that a blocked arm does not wind up
_WORKSPACE = ((0.25, -0.35, 0.02), (0.75, 0.35, 0.45))  # metres
_DAMPING = 1e-4
_NULL_SPACE_GAIN = 0.1  # pull towards the home posture in the joint that the task leaves free
_GRIPPER_DOWN = ((1.0, 0.0, 0.0), (0.0, -1.0, 0.0), (0.0, 0.0, -1.0))


def next_command(command: Float[Array, "3"], tcp: Float[Array, "3"], delta: Float[Array, "3"]) -> Float[Array, "3"]:
    """Moves the commanded tcp (metres) by ``delta`` (in units of ``ACTION_SCALE``, clipped to ±1).

    It stays in the workspace and near the tcp, and never moves more than one action's worth, whatever clips it: so
    every motion of the command is an action, and actions add up to it.
    """
    low, high = jnp.array(_WORKSPACE)
    wanted = jnp.clip(command + ACTION_SCALE * jnp.clip(delta, -1, 1), low, high)
    wanted = tcp + jnp.clip(wanted - tcp, -_MAX_LEAD, _MAX_LEAD)
    return command + jnp.clip(wanted - command, -ACTION_SCALE, ACTION_SCALE)


def executed(action: Float[Array, "*B 4"]) -> Float[Array, "*B 4"]:
    """What of an action is carried out in free space: motion within ±1, the gripper as ±1."""
    return jnp.concatenate([jnp.clip(action[..., :3], -1, 1), jnp.where(action[..., 3:] > 0, 1.0, -1.0)], -1)


def effective_action(old: Float[Array, "3"], new: Float[Array, "3"], gripper: Float[Array, ""]) -> Float[Array, "4"]:
    """The action that was executed: motion of the command in units of ``ACTION_SCALE``, and the gripper as ±1."""
    return executed(jnp.append((new - old) / ACTION_SCALE, gripper))


def finger_target(gripper: Float[Array, ""]) -> Float[Array, "2"]:
    """Positions of both fingers, metres: open for a gripper action above 0, else closed."""
    return jnp.full((2,), jnp.where(gripper > 0, FINGER_TRAVEL, 0.0))


def inverse_kinematics(
    target: Float[Array, "3"],
    tcp: Float[Array, "3"],
    tcp_rotation: Float[Array, "3 3"],
    joint_anchor: Float[Array, "7 3"],
    joint_axis: Float[Array, "7 3"],
    arm_qpos: Float[Array, "7"],
) -> Float[Array, "7"]:
    """One damped-least-squares step to joint angles (rad) that bring the tcp to ``target`` (metres), gripper down.

    All poses are in the world's frame. Null-space term after Siciliano et al., *Robotics*, 2009, section 3.5.
    """
    jacobian = jnp.concatenate([jnp.cross(joint_axis, tcp - joint_anchor), joint_axis], axis=-1).T
    wanted_rotation = jnp.array(_GRIPPER_DOWN)
    turn = 0.5 * jnp.cross(tcp_rotation, wanted_rotation, axisa=0, axisb=0, axisc=0).sum(axis=1)
    error = jnp.concatenate([target - tcp, turn])
    homeward = _NULL_SPACE_GAIN * (jnp.asarray(HOME_QPOS[:NUM_ARM_JOINTS], jnp.float32) - arm_qpos)
    damped = jacobian @ jacobian.T + _DAMPING * jnp.eye(6)
    return arm_qpos + homeward + jacobian.T @ jnp.linalg.solve(damped, error - jacobian @ homeward)
