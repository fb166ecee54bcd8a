"""The policy before post-training: few demonstrations, few steps.

wam train --config configs/world2act/base.py
"""

from ml_collections import ConfigDict

from configs.world2act import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.tokenizer.init = "runs/world2act/world"
    config.train.batch_size = 32
    config.train.optimizer.steps = 1000
    return config
