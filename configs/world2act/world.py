"""The world model: video and words, no robot. All demonstrations' video teaches it; nobody's actions are needed.

    wam train --config configs/world2act/world.py --config.tokenizer.init=runs/quickstart --workdir runs/world2act/world

UniPi's video stream (its inverse dynamics learns beside it, and is not used). `wam imagine` says how far it drifts.
"""

from ml_collections import ConfigDict

from configs.world2act import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.model = ConfigDict({"name": "unipi", "size": "debug", "options": ConfigDict({})})
    config.train.optimizer.steps = 1500
    return config
