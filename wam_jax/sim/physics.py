"""Stepping MJX so that a batch of episodes cannot wedge the CPU backend, and poses are never stale."""

import jax
from jaxtyping import Array, Float
from mujoco import mjx

from wam_jax.sim.scene import PHYSICS_TIMESTEP

STEPS_PER_ACTION = 10
SECONDS_PER_ACTION = STEPS_PER_ACTION * PHYSICS_TIMESTEP


def settle(model: mjx.Model, data: mjx.Data) -> mjx.Data:
    """Brings everything that follows from positions, velocities and controls up to date."""
    with jax.default_matmul_precision("highest"):  # TF32 spoils physics
        return mjx.forward(model, data)


def advance(model: mjx.Model, data: mjx.Data, control: Float[Array, "9"]) -> mjx.Data:
    """Runs ``STEPS_PER_ACTION`` physics steps under one control; takes and returns settled data.

    Each step integrates first and computes forces after, the reverse of ``mj_step``: the control takes effect after
    the first step, and poses are those of the final positions. It also puts the step's Cholesky factorisations in a
    chain. ``mjx.step`` leaves two of them independent; jaxlib's CPU kernel (0.10.2, ``ParallelBatchMap``) runs a batch
    on the thread pool that it is called from and waits, so that two at once stop a machine of two cores for good.
    """

    def step(data: mjx.Data, _):
        if model.impl == mjx.Impl.WARP:  # has one fused step, and its own kernels
            return mjx.kinematics(model, mjx.step(model, data)), None
        return mjx.forward(model, mjx.implicit(model, data)), None

    with jax.default_matmul_precision("highest"):
        data, _ = jax.lax.scan(step, data.replace(ctrl=control), length=STEPS_PER_ACTION)
    return data
