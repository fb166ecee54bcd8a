"""`wam posttrain` says what is wrong before it does any work; tests/launch/test_whole_commands.py runs it."""

import dataclasses

import jax
import numpy as np
import pytest

from configs.world2act import base as base_config
from configs.world2act import posttrain as config_file
from launch.config import ConfigError, set_field
from launch.imagined_starts import expert_videos
from launch.start import check_start
from launch.world2act import check_posttrain
from wam_jax.sim import compilation
from wam_jax.sim.tabletop import Tabletop


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"posttrain.method": "best"}, "config.posttrain.method='best' is unknown (has: residual, lora, pixels)"),
        ({"init": ""}, "config.init is empty; name the run whose policy is to be improved"),
        ({"demos.tasks": ("reach", "push")}, "config.demos.tasks is ('reach', 'push'); post-training is for one task"),
        (
            {"posttrain.seed": 1000},
            "config.evaluation.seed is config.posttrain.seed, or 3 more; choose starts you do not judge by",
        ),
        (
            {"posttrain.seed": 77},
            "config.train.score.seed is config.posttrain.seed, or 3 more; choose starts you do not judge by",
        ),
        (
            {"posttrain.seed": 997},
            "config.evaluation.seed is config.posttrain.seed, or 3 more; choose starts you do not judge by",
        ),
        ({"posttrain.adapters.own_episodes": 33}, "config.posttrain.adapters.own_episodes=33 is no multiple of"),
        ({"posttrain.trajectories": 33}, "config.posttrain.trajectories=33 is no multiple of"),
        ({"posttrain.adapters.hard_share": 1.5}, "config.posttrain.adapters.hard_share=1.5 is no share, 0 to 1"),
        ({"posttrain.skills": "words"}, "config.posttrain.skills='words' is unknown (has: gripper, pause, or empty)"),
        ({"posttrain.skills": "gripper"}, "config.posttrain.skills='gripper', but reach is one skill; leave it empty"),
        ({"posttrain.windows": -1}, "config.posttrain.windows=-1 is too few; 0 is as long as the expert takes"),
        ({"posttrain.imagination": "mine"}, "config.posttrain.imagination='mine' is unknown (has: world, expert)"),
        (
            {"init": "ws://a:1", "posttrain.world": ""},
            "the policy at ws://a:1 can only be corrected: set config.posttrain",
        ),
        (
            {"init": "ws://a:1"},
            "the policy at ws://a:1 shows no hidden tokens; set config.posttrain.residual.options.sees",
        ),
        (
            {"posttrain.adapters.preset": "pixels"},
            "config.posttrain.adapters.preset='pixels' is unknown (has: latents, features)",
        ),
        ({"posttrain.method": "lora"}, "config.posttrain.method='lora' needs config.train.lora.rank"),
    ],
)
def test_what_is_wrong_is_said_at_once(fields, message):
    config = config_file.get_config()
    for name, value in fields.items():
        set_field(config, name, value)
    with pytest.raises(ConfigError) as error:
        check_posttrain(config)
    assert message in str(error.value)


def test_the_runs_that_are_missing_are_named_before_any_work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_file.get_config()
    how = "no run that is here; train it first (wam train --config configs/world2act/{0}.py), or name another"
    with pytest.raises(ConfigError) as error:
        check_posttrain(config)
    assert str(error.value) == "config.posttrain.world='runs/world2act/world' is " + how.format("world")
    config.posttrain.world = ""
    with pytest.raises(ConfigError) as error:
        check_posttrain(config)
    assert str(error.value) == "config.init='runs/world2act/base' is " + how.format("base")
    with pytest.raises(ConfigError) as error:
        check_start(base_config.get_config(), tmp_path / "run")
    assert str(error.value) == "config.tokenizer.init='runs/world2act/world' is " + how.format("world")
    config.init = "elsewhere"
    with pytest.raises(ConfigError, match="train it first, or name another"):
        check_posttrain(config)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Halving:
    """Latents are half of their pictures."""

    def encode(self, images):
        return images / 2


@pytest.mark.slow
def test_the_experts_videos_begin_at_the_start_and_show_what_it_does():
    env, keys = Tabletop("reach", image_size=16), jax.random.split(jax.random.key(0), 4)
    states = compilation.jit(lambda keys: jax.vmap(env.reset)(keys))(keys)
    found = expert_videos(env, np.array([0, 8, 16]), Halving())(states, 0)
    assert found.pictures.shape == (4, 3, 2, 16, 16, 3)
    starts = compilation.jit(lambda states: jax.vmap(env.render)(states))(states)
    np.testing.assert_allclose(found.pictures[:, 0], starts, atol=1)  # of rounding to bytes, in another program
    moved = np.abs(found.pictures[:, 1:].astype(int) - found.pictures[:, :1]).max((2, 3, 4, 5))
    assert (moved > 30).all()
    np.testing.assert_array_equal(found.latents, found.pictures / 2)
