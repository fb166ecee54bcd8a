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
from wam_jax.sim.rollout import WamParams, at_skill, draw, imagine, rollout, scripted_actor, wam_actor
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
    sizes = {"layers": 1, "video": 32, "video_ffn": 96, "action": 16, "action_ffn": 48}
    spec = make_spec("fast_wam", **sizes, action_steps=2, video_steps=2)
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
    params["maps"]["action"]["head"]["project"]["linear"]["kernel"] = 0.3 * jax.random.normal(
        jax.random.key(2), (16, 4)
    )
    count = len(env.instructions)
    text = Text(features=jax.random.normal(jax.random.key(4), (count, 3, 8)), mask=jnp.ones((count, 3), bool))
    acting = PolicyParams(model=params, tokenizer=tokenizer)
    wam = WamParams(policy=acting, text=text, embodiment=jnp.asarray(0), misinform=jnp.asarray(False))
    return policy, wam


@pytest.fixture(scope="module")
def scripted(env):
    return rollout(env, scripted_actor(env), STEPS)


@pytest.fixture(scope="module")
def run(env, policy_and_params):
    return rollout(env, wam_actor(env, policy_and_params[0], execute=2), 4)


@pytest.fixture(scope="module")
def trace(run, keys, policy_and_params):
    return run(policy_and_params[1], keys, jax.random.key(0))


def test_expert_succeeds_and_random_actions_do_not(scripted, keys):
    expert = scripted(jnp.asarray(0.0), keys, jax.random.key(0)).outcome
    assert expert.success.shape == (STEPS, EPISODES)
    assert bool(expert.success[-1].all())
    assert not bool(expert.wrong[-1].any())
    random = scripted(jnp.asarray(1.0), keys, jax.random.key(0)).outcome
    assert int(random.success[-1].sum()) <= 1


def test_starts_depend_on_episode_keys_alone(scripted, keys):
    first = scripted(jnp.asarray(1.0), keys, jax.random.key(0)).outcome
    other_noise = scripted(jnp.asarray(1.0), keys, jax.random.key(1)).outcome
    np.testing.assert_allclose(first.error[0], other_noise.error[0], atol=0.05)
    assert float(jnp.abs(first.error[-1] - other_noise.error[-1]).max()) > 0


def test_a_policy_told_another_object_acts_otherwise_but_is_judged_alike(trace, keys, policy_and_params, run):
    _, wam = policy_and_params
    again = run(wam, keys, jax.random.key(0))
    np.testing.assert_array_equal(trace.outcome.error, again.outcome.error)
    misinformed = run(dataclasses.replace(wam, misinform=jnp.asarray(True)), keys, jax.random.key(0))
    assert float(jnp.abs(trace.outcome.error - misinformed.outcome.error).max()) > 0


@pytest.mark.slow
def test_a_trace_is_drawn_as_the_states_would_be(env, keys, trace):
    starts = compilation.jit(jax.vmap(env.reset))(keys)
    frames = draw(env)(trace.stage)
    assert frames.shape == (4, EPISODES, 2, 16, 16, 3)
    np.testing.assert_array_equal(frames[0], compilation.jit(jax.vmap(env.render))(starts))
    np.testing.assert_array_equal(trace.instruction, starts.instruction)
    np.testing.assert_allclose(trace.proprio[0], jax.vmap(env.proprio)(starts), atol=1e-6)


def test_a_future_is_imagined_for_each_replanning_and_episode(env, trace, policy_and_params):
    policy, wam = policy_and_params
    frames = np.zeros((4, EPISODES, 2, 16, 16, 3), np.uint8)
    futures = imagine(policy, 2)(wam, frames, trace.proprio, trace.instruction, jax.random.key(0))
    assert futures.shape == (2, EPISODES, 1, 2, 16, 16, 3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Counted:
    """A state in which a skill is done every third step, or every fifth."""

    clock: jax.Array
    every: jax.Array

    @property
    def done(self):
        return self.clock // self.every


class Clock:
    """An environment in which the expert makes time pass."""

    def expert(self, state):
        return jnp.ones_like(state.clock)

    def step(self, state, action):
        return dataclasses.replace(state, clock=state.clock + action)


def test_episodes_go_on_from_where_so_many_skills_are_done():
    states = Counted(jnp.zeros(4, int), jnp.array([3, 3, 5, 5]))
    found = at_skill(Clock(), states, jnp.array([0, 2, 1, 3]), 12)
    assert found.clock.tolist() == [0, 6, 5, 12]  # the last: not in twelve steps
    assert found.done.tolist() == [0, 2, 1, 2]
