"""Tokenizers in folders: what is written comes back bit for bit, and what is not there is said."""

import jax
import jax.numpy as jnp
import pytest

from wam_jax.tokenizers import saved
from wam_jax.tokenizers.latent_action import FrozenLatentActions, LatentActionConfig, define_latent_actions
from wam_jax.tokenizers.visual import FrozenTokenizer, TokenizerConfig, define_tokenizer


def visual(seed: int) -> FrozenTokenizer:
    config = TokenizerConfig(image_size=(8, 8), patch_size=4, tubelet=2, channels=2, width=8, encoder_layers=1)
    return FrozenTokenizer(define_tokenizer(config).init(jax.random.key(seed)), jnp.ones(2), 2 * jnp.ones(2), config)


def latent_actions() -> FrozenLatentActions:
    config = LatentActionConfig(latent_shape=(2, 2, 2), hidden=8, layers=2)
    params = define_latent_actions(config).init(jax.random.key(0))
    return FrozenLatentActions(params, jnp.zeros(4), jnp.ones(4), config)


@pytest.mark.parametrize(("kind", "make"), [("visual", lambda: visual(0)), ("latent_action", latent_actions)])
def test_what_is_written_comes_back(tmp_path, kind, make):
    tokenizer = make()
    saved.save(tmp_path / "there", tokenizer)
    found = saved.load(tmp_path / "there", kind)
    assert found.config == tokenizer.config
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), found, tokenizer))


def test_a_second_one_replaces_the_first(tmp_path):
    saved.save(tmp_path, visual(0))
    saved.save(tmp_path, visual(1))
    kernels = (saved.load(tmp_path, "visual").params["patch_in"]["kernel"], visual(1).params["patch_in"]["kernel"])
    assert bool((kernels[0] == kernels[1]).all())


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(
        saved.TokenizerMissing, match=r"holds no trained visual tokenizer \(tokenizer.json\); train one"
    ):
        saved.load(tmp_path, "visual")
    saved.save(tmp_path, visual(0))
    with pytest.raises(saved.TokenizerMissing, match="holds a visual tokenizer, not a latent_action one"):
        saved.load(tmp_path, "latent_action")
