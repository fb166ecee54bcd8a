"""The world model: video and words, no robot.

wam train --config configs/world2act/world.py --workdir runs/world2act/world

UniPi's video stream learns from all episodes, its inverse dynamics (which is not used) from those with actions. `wam
imagine runs/world2act/world --task pick_lift` says how far it drifts.
"""

from ml_collections import ConfigDict

from configs.world2act import common


def get_config() -> ConfigDict:
    config = common.get_config()
    config.data.unlabelled = "train[400:]"
    config.model = ConfigDict({"name": "unipi", "size": "debug", "options": ConfigDict({})})
    config.train.optimizer.steps = 1500
    return config
