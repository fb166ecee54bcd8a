"""Post-training in the simulator: actions come to be like the video that they are compared with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from data_pipelines.transforms import Affine
from wam_jax.policy import PolicyParams
from wam_jax.posttraining.chunk_view import ChunkView
from wam_jax.posttraining.online import Frozen, ResidualLearner, Starts, agreement, online_loss, roll
from wam_jax.sim import compilation
from wam_jax.sim.rollout import WamParams
from wam_jax.sim.tabletop import Tabletop
from wam_jax.types import Text

EPISODES, CHUNKS = 4, 2


@pytest.mark.slow
def test_a_residual_learns_to_do_what_the_video_shows(fast_wam):
    """The video is of what the base does, and a little more: its vectors are those of such actions."""
    _, policy, params, _ = fast_wam
    # Motions that the robot's limits do not cut, seen from about where it is.
    codec = dataclasses.replace(policy.chunks, affine=Affine(np.zeros(4, np.float32), np.float32([0.3, 0.3, 0.3, 1])))
    around = Affine(np.float32([0.54, 0.1, 0.26, 0.54, 0.1, 0.26, 1]), np.ones(7, np.float32))
    view = ChunkView.make(codec, around, (3, 4, 5), 0.025, (3,))
    policy = dataclasses.replace(policy, codec=dataclasses.replace(codec, block=None), chunks=codec, view=view)
    loud = jax.tree.map(lambda x: 3 * x, params.adapters)  # as drawn, all vectors are alike and decode to nothing
    params = dataclasses.replace(params, adapters=loud)
    env, random = Tabletop("reach", image_size=16), np.random.default_rng(0)
    count = len(env.instructions)
    text = Text(features=jnp.asarray(random.normal(size=(count, 3, 8)), jnp.float32), mask=jnp.ones((count, 3), bool))
    plain = PolicyParams(model=params.model, tokenizer=params.tokenizer)
    frozen = Frozen(base=plain, adapters=params.adapters, text=text, embodiment=jnp.asarray(0))
    keys = jax.random.split(jax.random.key(9), EPISODES)
    learner, states = ResidualLearner(policy), compilation.jit(lambda: jax.vmap(env.reset)(keys))()
    adapters = policy.adapters.bind(params.adapters)
    more = jnp.asarray(random.choice([-0.4, 0.4], (EPISODES, 1, 4)), jnp.float32)  # each drifts its own way

    def show(key):
        informed = WamParams(policy=params, text=text, embodiment=jnp.asarray(0), misinform=jnp.asarray(False))
        seen, notes, *_ = roll(env, learner, informed, states, CHUNKS * policy.chunks.block, policy.chunks.block, key)
        did = jnp.swapaxes(policy.chunks.encode(notes), 0, 1).reshape(EPISODES, -1, 4)
        return adapters.of_actions(policy.view(did + more, jnp.swapaxes(seen.proprio, 0, 1)))

    video = compilation.jit(show)(jax.random.key(1))
    batch = Starts(states=states, video=video)
    loss, optimizer = online_loss(env, learner, policy.adapters, policy.chunks, policy.view), optax.adam(3e-3)

    def step(trained, state):
        key = jax.random.key(1)
        (value, _), gradient = jax.value_and_grad(loss, has_aux=True)(trained, frozen, batch, key, jnp.asarray(0))
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(trained, updates), state, value

    run, trained = compilation.jit(step), params.residual
    state, found = optimizer.init(trained), []
    for _ in range(60):
        trained, state, value = run(trained, state)
        found.append(float(value))
    assert found[-1] < 0.8 * found[0]


def test_a_gradient_agrees_with_what_would_be_changed_as_far_as_it_points_there():
    random = np.random.default_rng(0)
    way = random.normal(size=(3, 2 * 4, 3)).astype(np.float32)
    way[..., 2] = 0.0  # not compared
    other = np.where(way != 0, 0.0, random.normal(size=way.shape)).astype(np.float32)
    np.testing.assert_allclose(agreement(5 * way + other, way, 4), 1.0, rtol=1e-5)
    np.testing.assert_allclose(agreement(-0.1 * way + other, way, 4), -1.0, rtol=1e-5)
    across = np.stack([-way[..., 1], way[..., 0], way[..., 2]], -1)
    np.testing.assert_allclose(agreement(across, way, 4), 0.0, atol=1e-6)
    np.testing.assert_array_equal(agreement(way, np.zeros_like(way), 4), 0.0)
    # Its first half agrees, its second is opposite, and three times as long.
    mixed = np.concatenate([way[:, :4], -way[:, :4]], 1)
    longer = np.concatenate([way[:, :4], 3 * way[:, :4]], 1)
    np.testing.assert_allclose(agreement(mixed, longer, 4), (1 - 3) / 4, rtol=1e-5)
