"""Acting: the chunk of the highest value is taken; what a model lacks is said."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.transforms import ActionCodec, Affine
from wam_jax import policy as acting
from wam_jax.policy import Policy, PolicyParams
from wam_jax.tokenizers.visual import FrozenTokenizer, TokenizerConfig, define_tokenizer
from wam_jax.types import Observation
from wam_jax.wam.lens import Lens


def make_tokenizer(**options) -> FrozenTokenizer:
    sizes = {"patch_size": 4, "channels": 2, "width": 8, "encoder_layers": 1, "decoder_layers": 1}
    config = TokenizerConfig(image_size=(16, 16), **sizes, **options)
    return FrozenTokenizer(define_tokenizer(config).init(jax.random.key(0)), jnp.zeros(2), jnp.ones(2), config)


@pytest.fixture(scope="module")
def tokenizer() -> FrozenTokenizer:
    return make_tokenizer()


def make(tiny, batch, tokenizer, name, **options):
    definition = tiny.define(name)
    codec = ActionCodec(np.zeros(4, bool), Affine.identity(4))
    policy = Policy(definition=definition, codec=codec, proprio=Affine.identity(3), **options)
    images = np.random.default_rng(0).integers(0, 255, (8, 1, 2, 16, 16, 3), dtype=np.uint8)
    proprio = jnp.asarray(batch.proprio[:, 0])
    observation = Observation(images=jnp.asarray(images), proprio=proprio, text=batch.text, embodiment=batch.embodiment)
    return policy, PolicyParams(model=tiny.params(definition), tokenizer=tokenizer), observation


def test_the_chunk_of_the_highest_value_is_taken(tiny, batch, tokenizer, monkeypatch):
    policy, params, observation = make(tiny, batch, tokenizer, "cosmos_policy", candidates=3)
    value = jax.random.normal(jax.random.key(5), (24, 1, 1))

    def sample(model, known, rng, mode, want, steps):
        assert known.proprio.shape[0] == 24  # three candidates for each of eight observations, side by side
        np.testing.assert_array_equal(known.proprio[0], known.proprio[2])
        return {"action": jnp.broadcast_to(jnp.arange(24.0)[:, None, None], (24, 4, 4)), "value": value}

    monkeypatch.setattr(acting, "sample", sample)
    chunk, _ = policy.act(params, None, observation, jax.random.key(0))
    best = np.asarray(value).reshape(8, 3).argmax(1)
    np.testing.assert_array_equal(chunk[:, 0, 0], np.arange(8) * 3 + best)


def test_candidates_need_a_value(tiny, batch, tokenizer):
    policy, params, observation = make(tiny, batch, tokenizer, "uwm", candidates=2)
    with pytest.raises(ValueError, match=r"uwm has no value stream to choose by; set evaluation.candidates=1"):
        policy.act(params, None, observation, jax.random.key(0))


def test_a_causal_policy_remembers_and_another_does_not(tiny, batch, tokenizer):
    policy, params, observation = make(tiny, batch, tokenizer, "repwam")
    act = jax.jit(policy.act)
    memory = policy.init_state(params, observation)
    first, after = act(params, memory, observation, jax.random.key(0))
    second, _ = act(params, after, observation, jax.random.key(0))
    assert first.shape == (8, 2, 4)  # one block
    assert np.abs(first - second).max() > 1e-4  # the same observation, after another past
    policy, params, observation = make(tiny, batch, tokenizer, "fast_wam")
    assert policy.init_state(params, observation) is None


def test_a_causal_policy_remembers_actions_as_limits_cut_them(tiny, batch, tokenizer):
    policy, params, observation = make(tiny, batch, tokenizer, "repwam")
    codec = ActionCodec(np.ones(4, bool), Affine.identity(4), np.full(4, 1e-3, np.float32), block=2)
    policy = dataclasses.replace(policy, codec=codec)
    given, after = policy.act(params, policy.init_state(params, observation), observation, jax.random.key(0))
    assert np.abs(given).max() <= 1e-3
    np.testing.assert_allclose(after.executed["action"], codec.encode(given), atol=1e-7)


def test_a_policy_watches_an_episode_as_it_saw_it(tiny, batch):
    clips = make_tokenizer(tubelet=2, window=2)
    frames = jnp.asarray(np.random.default_rng(1).integers(0, 255, (2, 5, 2, 16, 16, 3), dtype=np.uint8))
    causal, params, _ = make(tiny, batch, clips, "repwam")
    assert causal.images(params) == (1, 0)
    first, state = clips.start(frames[:, 0])
    second, state = clips.step(state, frames[:, 1:3])
    third, _ = clips.step(state, frames[:, 3:5])
    seen = causal.watch(params, frames, execute=2)
    np.testing.assert_allclose(seen, np.stack([first, second, third], 1), atol=1e-5)
    forgetful, params, _ = make(tiny, batch, clips, "fast_wam")
    seen = forgetful.watch(params, frames, execute=2)
    for time in range(3):
        np.testing.assert_allclose(seen[:, time], clips.start(frames[:, 2 * time])[0], atol=1e-5)


def test_what_is_imagined_follows_from_what_was_watched(tiny, batch, tokenizer):
    policy, params, observation = make(tiny, batch, tokenizer, "repwam")
    watched = tokenizer.start(observation.images[:, -1])[0]
    alone = policy.imagine(params, observation, jax.random.key(0))
    np.testing.assert_array_equal(policy.imagine(params, observation, jax.random.key(0), watched), alone)
    assert (policy.imagine(params, observation, jax.random.key(0), watched + 1) != alone).any()


def test_a_moment_of_a_model_that_remembers_is_looked_at_as_one_that_stands_still(tiny, batch, monkeypatch):
    clips = make_tokenizer(tubelet=2, window=2)
    known = {}
    monkeypatch.setattr(acting, "sample", lambda model, now, *_, **__: {"action": now.values["video"]})
    for name in ("repwam", "fast_wam"):
        policy, params, observation = make(tiny, batch, clips, name)
        known[name], _ = policy.look(params, observation, jax.random.key(0), Lens())
    still = clips.encode(jnp.repeat(observation.images, 3, 1))
    np.testing.assert_allclose(known["fast_wam"], still[:, :1], atol=1e-5)
    np.testing.assert_allclose(known["repwam"], still[:, 1:], atol=1e-5)


def test_a_model_without_video_imagines_that_nothing_moves(tiny, batch, tokenizer):
    policy, params, observation = make(tiny, batch, tokenizer, "reactive")
    frames = policy.imagine(params, observation, jax.random.key(0))
    assert frames.shape == (8, 2, 2, 16, 16, 3)
    np.testing.assert_array_equal(frames[:, 1], observation.images[:, 0])
