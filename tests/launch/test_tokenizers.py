"""Latent actions go with the tokenizer they were learned on, and are sampled within episodes."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from launch.config import ConfigError
from launch.tokenizers import LATENT_ACTION, find_latent_actions, sample_latents, tokenizer_key
from launch.train import check_memory
from wam_jax.tokenizers import saved
from wam_jax.tokenizers.latent_action import FrozenLatentActions, LatentActionConfig, define_latent_actions
from wam_jax.tokenizers.visual import FrozenTokenizer, TokenizerConfig, define_tokenizer

VISUAL = TokenizerConfig(image_size=(8, 8), patch_size=4, channels=2, width=8, encoder_layers=0, decoder_layers=0)
ACTIONS = LatentActionConfig(latent_shape=VISUAL.latent_shape, hidden=8, layers=2)


def zeros(definition):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), definition.shapes())


def visual(mean: float) -> FrozenTokenizer:
    return FrozenTokenizer(zeros(define_tokenizer(VISUAL)), jnp.full(2, mean), jnp.ones(2), VISUAL)


def find(folder, tokenizer: FrozenTokenizer):
    config = ConfigDict({"latent_action": {"init": str(folder)}})
    data = SimpleNamespace(windows=SimpleNamespace(cameras=("front",)))
    return find_latent_actions(config, data, tokenizer, None, None, folder)


@pytest.fixture
def actions() -> FrozenLatentActions:
    return FrozenLatentActions(zeros(define_latent_actions(ACTIONS)), jnp.zeros(4), jnp.ones(4), ACTIONS)


def test_latent_actions_of_another_tokenizer_are_refused(tmp_path, actions):
    own, other = visual(0.0), visual(1.0)
    saved.save(tmp_path / LATENT_ACTION, actions, tokenizer_key(own))
    assert find(tmp_path, own).config == ACTIONS
    keys = [tokenizer_key(tokenizer)[:12] for tokenizer in (own, other)]
    with pytest.raises(ConfigError, match="of tokenizer {}, this run has {}; set tokenizer.init".format(*keys)):
        find(tmp_path, other)


def test_latent_actions_without_a_key_are_taken_and_it_is_said(tmp_path, actions, capsys):
    saved.save(tmp_path / LATENT_ACTION, actions)
    assert find(tmp_path, visual(0.0)).config == ACTIONS
    assert "does not say on which tokenizer its latent actions were learned" in capsys.readouterr().err


def test_samples_of_packed_rows_do_not_lead_from_one_episode_to_the_next():
    latents = np.random.default_rng(0).normal(size=(2, 4, 1, *VISUAL.latent_shape)).astype(np.float32)
    episode = np.array([[0, 0, 1, 1], [0, 1, 1, 2]])
    batch = SimpleNamespace(latents=latents, image_mask=np.ones((2, 4, 1), bool), episode=episode)
    batch.image_mask[1, 3] = False
    data = SimpleNamespace(batches=lambda *_: iter([batch]))
    windows, mask = sample_latents(ConfigDict({"seed": 0}), data, visual(0.0), [])
    np.testing.assert_array_equal(mask.all((1, 2)), [True, False, True, False, True, False])
    for number, (row, frame) in {0: (0, 0), 2: (0, 2), 4: (1, 1)}.items():
        np.testing.assert_array_equal(windows[number], latents[row, frame : frame + 2])


def test_a_model_that_remembers_does_not_learn_of_clips_that_begin_anywhere():
    single = visual(0.0)
    clips = SimpleNamespace(config=dataclasses.replace(VISUAL, tubelet=4))
    with pytest.raises(ConfigError, match=r"precompute_latents is False, .*\(data.action_block=4\) .* set it to True"):
        check_memory(ConfigDict({"precompute_latents": False, "action_block": 4}), clips)
    for tokenizer, block, ahead in ((single, 4, False), (clips, 0, False), (clips, 4, True)):
        check_memory(ConfigDict({"precompute_latents": ahead, "action_block": block}), tokenizer)
