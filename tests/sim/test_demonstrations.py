"""Experts succeed, and what they leave behind is consistent."""

import jax
import numpy as np
import pytest
from conftest import NUM_EPISODES

from wam_jax.sim.compilation import jit
from wam_jax.sim.control import ACTION_SCALE
from wam_jax.sim.demonstrations import generate, generate_batches
from wam_jax.sim.tabletop import Tabletop


def test_reach_expert_succeeds(reach_demonstrations):
    assert reach_demonstrations.success[:, -1].all()
    assert not reach_demonstrations.success[:, 0].any()
    np.testing.assert_array_equal(reach_demonstrations.reward, np.asarray(reach_demonstrations.success, np.float32))


def test_shapes_and_ranges(reach, reach_demonstrations):
    steps = reach.episode_steps
    assert reach_demonstrations.images.shape == (NUM_EPISODES, steps, 2, 64, 64, 3)
    assert reach_demonstrations.images.dtype == np.uint8
    assert np.isfinite(reach_demonstrations.proprio).all()
    opening = np.asarray(reach_demonstrations.proprio)[..., 6]
    assert opening.min() >= 0
    assert opening.max() <= 1
    assert np.abs(reach_demonstrations.action).max() <= 1


def test_actions_add_up_to_the_commanded_motion(reach_demonstrations):
    command = np.asarray(reach_demonstrations.proprio)[..., 3:6]
    action = np.asarray(reach_demonstrations.action)[..., :3]
    expected = command[:, :1] + ACTION_SCALE * np.cumsum(action, axis=1)
    np.testing.assert_allclose(command[:, 1:], expected[:, :-1], atol=1e-5)


def test_same_key_same_demonstrations_another_key_others(reach, reach_demonstrations):
    again = generate(reach, jax.random.key(0), NUM_EPISODES, reach.episode_steps)
    for one, two in zip(jax.tree.leaves(reach_demonstrations), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(one, two)
    other = generate(reach, jax.random.key(1), NUM_EPISODES, reach.episode_steps)
    assert (np.asarray(other.proprio[:, 0]) != np.asarray(again.proprio[:, 0])).any(-1).all()


def test_batches_are_cut_not_changed(reach):
    """Twenty episodes are the first twenty of two batches of sixteen."""
    key = jax.random.key(3)
    batches = list(generate_batches(reach, key, 20, batch_size=NUM_EPISODES))
    assert [len(batch.instruction) for batch in batches] == [16, 4]
    second = generate(reach, jax.random.fold_in(key, 1), NUM_EPISODES, reach.episode_steps)
    np.testing.assert_array_equal(batches[1].action, second.action[:4])


def test_a_batch_of_episodes_is_each_of_them(reach):
    def episode(key):
        state = reach.step(reach.reset(key), np.array([0.5, -1.0, 0.2, -1.0], np.float32))
        return reach.proprio(state), reach.render(state)

    keys = jax.random.split(jax.random.key(11), 3)
    proprio, pictures = jit(jax.vmap(episode))(keys)
    alone = jit(episode)
    for index in range(3):
        proprio_alone, pictures_alone = alone(keys[index])
        np.testing.assert_allclose(proprio_alone, proprio[index], atol=1e-5)
        # A silhouette may fall on the other side of a pixel's centre; the rest is equal up to rounding.
        assert (np.abs(np.asarray(pictures_alone, int) - np.asarray(pictures[index], int)) <= 1).mean() > 0.999


@pytest.mark.slow
@pytest.mark.parametrize(("task", "least"), [("pick_lift", 0.98), ("push", 0.9), ("place", 0.95)])
def test_contact_experts_succeed(task, least):
    env = Tabletop(task, image_size=8)
    demonstrations = generate(env, jax.random.key(0), 128, env.episode_steps)
    assert np.mean(demonstrations.success[:, -1]) >= least
    assert np.isfinite(demonstrations.proprio).all()
