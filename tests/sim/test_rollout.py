"""Rollouts: the same starts for every controller, outcomes judged by the true instruction."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax.nn.module import define
from wam_jax.policy import Policy, PolicyParams
from wam_jax.sim import compilation
from wam_jax.sim.rollout import WamParams, record, rollout, scripted_actor, wam_actor
from wam_jax.sim.tabletop import Tabletop
from wam_jax.tokenizers.visual import FrozenTokenizer, TokenizerConfig, define_tokenizer
from wam_jax.types import Text
from wam_jax.wam.model import WorldActionModel
from wam_jax.wam.spec import Interface
from wam_jax.zoo import make_spec

EPISODES, STEPS = 8, 24


@pytest.fixture(scope="module")
def env():
    return Tabletop("reach", image_size=16)


@pytest.fixture(scope="module")
def keys():
    return jax.random.split(jax.random.key(3), EPISODES)


@pytest.fixture(scope="module")
def policy_and_params(env):
    spec = make_spec("joint_mot", num_layers=1, video_width=32, action_width=16, action_steps=2, video_steps=2)
    interface = Interface(
        latent_shape=(2, 2, 4),
        cameras=2,
        frame_steps=(0, 4),
        action_horizon=4,
        action_size=4,
        proprio_size=7,
        text_width=8,
    )
    definition = define(lambda rngs: WorldActionModel(spec, interface, rngs))
    config = TokenizerConfig(image_size=(16, 16), channels=4, width=16, encoder_layers=1, decoder_layers=1)
    tokenizer = FrozenTokenizer(define_tokenizer(config).init(jax.random.key(0)), jnp.zeros(4), jnp.ones(4), config)
    codec = ActionCodec(np.array([True, True, True, False]), Affine.identity(4))
    policy = Policy(definition=definition, codec=codec, proprio=Affine.identity(7))
    params = definition.init(jax.random.key(1))
    params["action_out"]["project"]["kernel"] = 0.3 * jax.random.normal(jax.random.key(2), (16, 4))
    count = len(env.instructions)
    text = Text(features=jax.random.normal(jax.random.key(4), (count, 3, 8)), mask=jnp.ones((count, 3), bool))
    wam = WamParams(policy=PolicyParams(model=params, tokenizer=tokenizer), text=text, misinform=jnp.asarray(False))
    return policy, wam


@pytest.fixture(scope="module")
def scripted(env):
    return rollout(env, scripted_actor(env), STEPS)


def test_expert_succeeds_and_random_actions_do_not(scripted, keys):
    expert = scripted(jnp.asarray(0.0), keys, jax.random.key(0))
    assert expert.success.shape == (STEPS, EPISODES)
    assert bool(expert.success[-1].all())
    assert not bool(expert.wrong[-1].any())
    random = scripted(jnp.asarray(1.0), keys, jax.random.key(0))
    assert int(random.success[-1].sum()) <= 1


def test_starts_depend_on_episode_keys_alone(scripted, keys):
    first = scripted(jnp.asarray(1.0), keys, jax.random.key(0))
    other_noise = scripted(jnp.asarray(1.0), keys, jax.random.key(1))
    np.testing.assert_allclose(first.error[0], other_noise.error[0], atol=0.05)
    assert float(jnp.abs(first.error[-1] - other_noise.error[-1]).max()) > 0


def test_a_policy_told_another_object_acts_otherwise_but_is_judged_alike(env, keys, policy_and_params):
    policy, wam = policy_and_params
    run = rollout(env, wam_actor(env, policy, execute=2), 4)
    told = run(wam, keys, jax.random.key(0))
    again = run(wam, keys, jax.random.key(0))
    np.testing.assert_array_equal(told.error, again.error)
    misinformed = run(dataclasses.replace(wam, misinform=jnp.asarray(True)), keys, jax.random.key(0))
    assert float(jnp.abs(told.error - misinformed.error).max()) > 0


def test_recording_has_a_frame_a_step_and_a_future_a_replanning(env, keys, policy_and_params):
    policy, wam = policy_and_params
    recording = record(env, policy, 2, 4)(wam, keys[:2], jax.random.key(0))
    assert recording.frames.shape == (4, 2, 2, 16, 16, 3)
    assert recording.imagined.shape == (2, 2, 1, 2, 16, 16, 3)
    starts = compilation.jit(jax.vmap(env.reset))(keys[:2])
    np.testing.assert_array_equal(recording.instruction, starts.instruction)
