"""`wam posttrain` says what is wrong before it does any work; tests/launch/test_whole_commands.py runs it."""

import pytest

from configs.world2act import posttrain as config_file
from launch.config import ConfigError, set_field
from launch.world2act import check_posttrain


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"posttrain.method": "best"}, "config.posttrain.method='best' is unknown (has: residual, lora, pixels)"),
        ({"init": ""}, "config.init is empty; name the run whose policy is to be improved"),
        ({"demos.tasks": ("reach", "push")}, "config.demos.tasks is ('reach', 'push'); post-training is for one task"),
        ({"posttrain.seed": 1000}, "config.posttrain.seed is config.evaluation.seed; choose other starts"),
        ({"posttrain.seed": 77}, "config.posttrain.seed is config.train.score.seed; choose other starts"),
        ({"posttrain.trajectories": 33}, "config.posttrain.trajectories=33 is no multiple of"),
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
