"""What a policy does by itself: as it is, gone astray, and beside demonstrations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.loader import SideBySide, endless
from data_pipelines.transforms import Affine
from wam_jax.policy import PolicyParams
from wam_jax.posttraining.own_episodes import NoisyPerformer, own_episodes
from wam_jax.sim import compilation
from wam_jax.sim.rollout import WamParams
from wam_jax.sim.tabletop import Tabletop
from wam_jax.types import Text

EPISODES, CHUNKS, UNIT = 4, 2, 0.025


@pytest.fixture(scope="module")
def acted(fast_wam):
    """Actions with noise of 0 and of .5, and those of the policy itself."""
    base, policy, params, observation = fast_wam
    plain, key = PolicyParams(model=params.model, tokenizer=params.tokenizer), jax.random.key(3)

    def act(noise):
        return NoisyPerformer(base, policy.chunks, noise).act(plain, None, observation, key)[0]

    own = jax.random.split(key, 4)[0]
    alone = base.act(plain, None, observation, own)[0][:, : policy.chunks.block]
    return np.asarray(act(0.0)), np.asarray(act(0.5)), np.asarray(alone)


def test_without_noise_it_acts_as_the_policy(acted):
    still, _, alone = acted
    np.testing.assert_array_equal(still, alone)


def test_noise_moves_motions_and_leaves_commands_alone(acted):
    still, astray, _ = acted
    np.testing.assert_array_equal(astray[..., 3], still[..., 3])
    moved = astray[..., :3] - still[..., :3]
    assert np.abs(moved).max() > 0.01
    assert np.abs(moved.mean(1)).max() <= 0.5 * 1.5  # a chunk's direction, and the mean of its jitter


def test_they_stand_beside_demonstrations():
    def rows(count, number):
        arrays = {"actions": np.full((count, 4), number), "latents": np.full((count, 2, 3), number), "images": None}
        return endless(count, 2 * number, 0, lambda rows: jax.tree.map(lambda x: x[rows], arrays))

    batch = next(SideBySide(rows(5, 1), rows(6, 2)))
    assert batch["images"] is None
    np.testing.assert_array_equal(batch["actions"][:, 0], [1, 1, 2, 2, 2, 2])
    assert batch["latents"].shape == (6, 2, 3)


@pytest.mark.slow
def test_where_the_hand_is_told_to_be_is_where_its_actions_lead(fast_wam):
    base, policy, params, _ = fast_wam
    env, random = Tabletop("reach", image_size=16), np.random.default_rng(0)
    count, block = len(env.instructions), policy.chunks.block
    text = Text(features=jnp.asarray(random.normal(size=(count, 3, 8)), jnp.float32), mask=jnp.ones((count, 3), bool))
    informed = WamParams(
        policy=PolicyParams(model=params.model, tokenizer=params.tokenizer),
        text=text,
        embodiment=jnp.asarray(0),
        misinform=jnp.asarray(False),
    )
    # Motions so small that the command does not run ahead of the hand by more than it may.
    small = Affine(np.zeros(4, np.float32), np.float32([0.3, 0.3, 0.3, 1]))
    base = dataclasses.replace(base, codec=dataclasses.replace(base.codec, affine=small))
    run = compilation.jit(own_episodes(env, NoisyPerformer(base, policy.chunks, 0.3), CHUNKS))
    keys = jax.random.split(jax.random.key(0), EPISODES)
    found = run(informed, compilation.jit(lambda: jax.vmap(env.reset)(keys))(), jax.random.key(1))
    assert found.frames.shape[:2] == (EPISODES, CHUNKS + 1)
    moved = UNIT * np.asarray(found.actions)[..., :3].reshape(EPISODES, CHUNKS, block, 3).sum(2)
    commanded = np.asarray(found.proprio)[..., 3:6]
    inside = np.abs(commanded[:, 1:] - commanded[:, :-1] - moved).max(-1) < 1e-4
    assert inside.mean() >= 0.5  # all but chunks that the edge of the workspace cuts
